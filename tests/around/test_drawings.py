"""The drawings of docs/drawings: they are what the code draws, they can be read, and are true."""

import re
import sys
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "drawings"
sys.path.insert(0, str(FOLDER))
import draw  # noqa: E402
import gradient  # noqa: E402
import svg  # noqa: E402

NAMES = ("lora", "packing", "prompt", "gradient")
FILLS = ("paper", "frozen", "trained", "passed", "text_1", "text_2", "text_3", "text_4")
SVG = "{http://www.w3.org/2000/svg}"


def parsed(name: str) -> ElementTree.Element:
    return ElementTree.parse(FOLDER / f"{name}.svg").getroot()


def words_of(name: str) -> list[str]:
    return [text.text for text in parsed(name).iter(f"{SVG}text")]


def test_the_committed_drawings_are_those_that_the_code_draws():
    assert {path.stem for path in FOLDER.glob("*.svg")} == set(NAMES)
    for function in draw.DRAWINGS:
        drawing = function()
        committed = (FOLDER / f"{drawing.name}.svg").read_text("utf-8")
        assert committed == str(drawing), "run python docs/drawings/draw.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_has_a_title_and_a_description_for_screen_readers(name):
    root = parsed(name)
    assert root.get("role") == "img"
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert title.text and len(description.text) > 100
    assert root[0] is title and root[1] is description  # before the shapes


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_needs_no_other_file(name):
    text = (FOLDER / f"{name}.svg").read_text("utf-8")
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"href|url\(|@import|@font-face|<script|<image", text)


@pytest.mark.parametrize("name", NAMES)
def test_every_colour_of_a_drawing_has_a_light_and_a_dark_value(name):
    root = parsed(name)
    light, dark = root.find(f"{SVG}style").text.split("@media (prefers-color-scheme: dark)")
    for shape in root.iter():
        for colour in (shape.get("class") or "").split():
            assert f".{colour}{{" in light and f".{colour}{{" in dark, colour


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = (int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5))
    linear = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("fill", "mode"), list(product(FILLS, (0, 1))))
def test_words_on_every_fill_have_the_contrast_of_wcag(fill, mode):
    """At least 4.5 to 1, in light and dark. Words of less weight are on the background only."""
    for ink in ("ink", "pale") if fill == "paper" else ("ink",):
        pair = sorted(luminance(svg.COLOURS[name][mode]) for name in (fill, ink))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


@pytest.mark.parametrize("name", NAMES)
def test_no_words_leave_the_drawing_even_in_a_wide_font(name):
    root = parsed(name)
    width, height = float(root.get("width")), float(root.get("height"))
    for text in root.iter(f"{SVG}text"):
        long = 0.56 * float(text.get("font-size")) * len(text.text)
        start = (
            float(text.get("x"))
            - {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")] * long
        )
        assert start >= 0 and start + long <= width, text.text
        assert 0 < float(text.get("y")) < height, text.text


def test_words_on_a_phone_are_at_least_eight_pixels_high():
    for name in NAMES:
        scale = (390 - 2 * 16) / float(parsed(name).get("width"))
        sizes = [float(text.get("font-size")) for text in parsed(name).iter(f"{SVG}text")]
        assert scale * min(sizes) >= 8


def test_the_lora_branch_is_drawn_to_scale():
    """The areas of A and B in pixels are to the area of W as their numbers are."""
    boxes = [
        (box.get("class").split()[0], float(box.get("width")) * float(box.get("height")))
        for box in parsed("lora").iter(f"{SVG}rect")
    ]
    (frozen,) = (area for kind, area in boxes if kind == "frozen")
    pattern = r"W: ([\d,]+) numbers. A and B: ([\d,]+)\."
    trained = sum(area for kind, area in boxes if kind == "trained")
    numbers = re.search(pattern, " ".join(words_of("lora")))
    of_w, of_a_and_b = (int(number.replace(",", "")) for number in numbers.groups())
    assert trained / frozen == pytest.approx(of_a_and_b / of_w)


def test_the_masks_of_the_prompt_are_those_worked_by_hand():
    """Four prompt embeddings, eight tokens, a window of five."""
    boxes = list(parsed("prompt").iter(f"{SVG}rect"))[-2 * 12 * 12 :]
    for mask, window in ((boxes[:144], 12), (boxes[144:], 5)):
        mask.sort(key=lambda box: (float(box.get("y")), float(box.get("x"))))
        kinds = [box.get("class").split()[0] for box in mask]
        for query, key in product(range(12), range(12)):
            expected = "unseen"
            if key <= query and query - key < window:
                expected = "trained" if key < 4 else "text_1"
            assert kinds[12 * query + key] == expected


def test_the_packed_tokens_are_those_worked_by_hand():
    """Texts of 7, 4, 4 and 2 tokens; the drawing has a padded grid first and last."""
    boxes = [
        box.get("class").split()[0]
        for box in parsed("packing").iter(f"{SVG}rect")
        if box.get("width") == "30"
    ]
    one, two, three, four = (
        [f"text_{number}"] * length for number, length in ((1, 7), (2, 4), (3, 4), (4, 2))
    )
    padded = one + two + ["paper"] * 3 + three + ["paper"] * 3 + four + ["paper"] * 5
    packed = one + two + three + four
    assert boxes == padded + packed + packed + padded
    numbers = [words for words in words_of("packing") if words.isdigit()]
    positions = [str(position) for length in (7, 4, 4, 2) for position in range(length)]
    assert numbers == 4 * positions


FIRST = "transformer.h.0.attn.attention."
EMBEDDINGS = {"transformer.wte", "transformer.wpe"}


def not_reached(method: str) -> set[str]:
    """Return the modules without parts that the backward pass of a method does not reach."""
    way = gradient.way_of(method)
    containers = {name.rpartition(".")[0] for name in way.modules} | {""}
    return {name for name in way.modules - containers if way.state(name) == "frozen"}


def test_full_tuning_reaches_and_trains_every_module():
    assert not not_reached("full")
    assert EMBEDDINGS | {"transformer.ln_f", "classifier"} <= gradient.way_of("full").trained


def test_the_gradient_of_lora_ends_in_q_and_v_of_the_first_block():
    """There x needs no gradient, so W of q and v, k and the first norm are not reached."""
    assert not_reached("lora") == EMBEDDINGS | {
        "transformer.h.0.ln_1",
        f"{FIRST}k_proj",
        f"{FIRST}q_proj.base_layer",
        f"{FIRST}v_proj.base_layer",
    }
    trained = gradient.way_of("lora").trained - {"classifier"}
    assert {name.rpartition(".")[2] for name in trained} == {"lora_A", "lora_B"}


def test_the_gradient_of_a_prompt_goes_through_all_blocks():
    assert not_reached("prompt") == EMBEDDINGS
    assert gradient.way_of("prompt").trained == {"prompt", "classifier"}


def test_the_gradient_of_a_head_alone_stays_in_the_head():
    way = gradient.way_of("head")
    assert way.trained == way.passed == {"classifier"}


@pytest.mark.parametrize("method", gradient.TITLES)
def test_all_blocks_after_the_first_are_alike_so_one_is_drawn_for_them(method):
    way = gradient.way_of(method)
    states = [
        {
            name.removeprefix(f"transformer.h.{block}."): way.state(name)
            for name in way.modules
            if name.startswith(f"transformer.h.{block}.")
        }
        for block in range(1, way.blocks)
    ]
    assert all(state == states[0] for state in states)


def test_each_page_with_a_drawing_links_to_a_file_that_exists():
    text = (FOLDER / "README.md").read_text("utf-8")
    images = re.findall(r"!\[([^]]+)\]\(([^)]+)\)", text)
    assert {link for _, link in images} == {f"{name}.svg" for name in NAMES}
    assert all(len(alternative) > 20 for alternative, _ in images)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (FOLDER / link).exists(), link
