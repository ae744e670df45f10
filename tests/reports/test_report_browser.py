"""The report in chromium, as wide as a phone and as a desktop screen. There is no error, nothing is
wider than the page, and the page is not empty, in the light and in the dark theme.

No script can run in the report. So a test page loads it in a frame: it opens the folded groups,
measures all elements, and writes the results into its own text.
"""

import json
import os
import re
import shutil
import subprocess

import pytest
from answered import (
    AFTER,
    BEFORE,
    EVIL,
    LABELLED,
    LABELS,
    PREDICTED_TAGS,
    TAGGED,
    answerer,
    make_run,
    tagger,
)
from matplotlib.image import imread
from waiting import HANG

from neo_peft.commands import look as look_command
from neo_peft.commands import report
from neo_peft.runs.predictions import PredictionKind
from neo_peft.runs.training import run
from neo_peft.settings import make_settings

pytestmark = pytest.mark.slow

LOOK = """<!doctype html><title>look</title><body style="margin: 0"><pre id="found"></pre>
<iframe id="frame" src="report.html" style="border: 0; width: {width}px; height: 800px"></iframe>
<script>
frame.onload = () => {{
  const page = frame.contentDocument, edge = page.documentElement.clientWidth;
  page.querySelectorAll("details").forEach(group => group.open = true);
  const boxed = element =>
    element.closest(".wide, svg") && !element.matches(".wide, svg");
  const over = [...page.body.querySelectorAll("*")].filter(
    element => !boxed(element) && element.getBoundingClientRect().right > edge + 1);
  found.textContent = JSON.stringify({{
    width: edge, scroll: page.documentElement.scrollWidth,
    over: over.map(element => element.outerHTML.slice(0, 200)),
    shown: page.body.innerText.length, ran: typeof frame.contentWindow.ran,
    scrolled: [...page.querySelectorAll(".wide:has(.scores)")].filter(
      box => box.scrollWidth > box.clientWidth).length,
  }});
}};
</script>"""
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Return a function that runs the browser with flags and returns its output and its log."""
    if os.environ.get("NEO_PEFT_BROWSER") != "1":
        pytest.skip("set NEO_PEFT_BROWSER=1 to open the report in chromium")
    program = shutil.which("chromium") or pytest.fail(
        "NEO_PEFT_BROWSER=1, but there is no chromium"
    )
    profile = tmp_path_factory.mktemp("profile")

    def run(*flags) -> tuple[str, str]:
        done = subprocess.run(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={profile}",
                "--enable-logging=stderr",
                "--hide-scrollbars",
                *map(str, flags),
            ],
            capture_output=True,
            text=True,
            timeout=HANG,
            check=True,
        )
        return done.stdout, done.stderr

    return run


@pytest.fixture
def look(chromium, tmp_path):
    """Return a function that measures report.html in a frame. It returns the measurements and the
    lines of the console."""

    def measure(width: int) -> tuple[dict, list[str]]:
        (tmp_path / "look.html").write_text(LOOK.format(width=width))
        dom, log = chromium(
            "--allow-file-access-from-files", "--dump-dom", f"file://{tmp_path}/look.html"
        )
        found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL).group(1)
        found = found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        return json.loads(found), console_lines(log)

    return measure


def console_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]


@pytest.fixture(params=["tagger", "answerer", "both", "foreign text", "long words"])
def page(request, tmp_path):
    """Write tmp_path/report.html for made-up runs, and return its path."""
    first, second = tmp_path / "one", tmp_path / "two"
    if request.param == "foreign text":
        runs = [
            tagger(first, changes={"warnings": [EVIL, "<script>ran = 1</script>"], "data": EVIL})
        ]
    elif request.param == "long words":
        rows = [
            {"tokens": [word * 99 for word in row["tokens"]], "tags": row["tags"]} for row in TAGGED
        ]
        texts = [{"sentence": row["sentence"] * 999, "label": row["label"]} for row in LABELLED]
        predicted = {kind: {"validation": PREDICTED_TAGS} for kind in (BEFORE, AFTER)}
        wrong = {kind: {"validation": ["bad"] * len(texts)} for kind in (BEFORE, AFTER)}
        runs = [
            make_run(first / ("x" * 200), "tagging", rows, predicted, LABELS),
            make_run(
                second,
                "classification",
                texts,
                wrong,
                ("bad", "so-so", "good"),
                label_words=("b", "s", "g" * 300),
            ),
        ]
    else:
        makers = {"tagger": [tagger], "answerer": [answerer], "both": [tagger, answerer]}[
            request.param
        ]
        runs = [make(folder) for make, folder in zip(makers, (first, second))]
    report.main([*map(str, runs), "--out", str(tmp_path / "report.html")])
    return tmp_path / "report.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_the_console_is_empty(page, look, width):
    found, console = look(width)
    assert console == [] and found["ran"] == "undefined"
    assert (found["width"], found["scroll"], found["over"]) == (width, width, []) and found[
        "shown"
    ] > 500


@pytest.fixture(scope="module")
def tuned(tiny_folder, tmp_path_factory):
    """Return the folder of a run that trained LoRA and a long prompt."""
    folder = tmp_path_factory.mktemp("look") / ("x" * 200)
    sizes = {"train_limit": 9, "eval_limit": 9, "epochs": 1, "prompt_length": 40, "threads": 1}
    given = {"task": "ner", "method": "lora+prompt", "model": str(tiny_folder)}
    run(make_settings(**given, **sizes, out=str(folder)), lambda line: None)
    return folder


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_look_fits_too(tmp_path, look, tuned, width):
    text = f"{'long' * 99} {EVIL}"
    page = ["--out", str(tmp_path / "report.html"), "--text", text]
    look_command.main([str(tuned), *page, "--against", str(tuned)])
    found, console = look(width)
    assert console == [] and found["ran"] == "undefined"
    assert (found["width"], found["scroll"], found["over"]) == (width, width, [])
    assert found["shown"] > 3000 and found["scrolled"] == 0


@pytest.mark.parametrize("width", [390, 900, 1280])
def test_the_scores_of_a_run_need_no_scrolling(tmp_path, look, width):
    """The last of the five columns has the scores after tuning."""
    kinds = map(PredictionKind, ("baseline", "head_alone", "before", "after"))
    predicted = {kind: {"validation": PREDICTED_TAGS, "test": PREDICTED_TAGS} for kind in kinds}
    run = make_run(tmp_path / "run", "tagging", TAGGED, predicted, LABELS)
    report.main([str(run), "--out", str(tmp_path / "report.html")])
    found, _ = look(width)
    assert found["scrolled"] == 0 and found["over"] == []


def test_the_test_page_finds_errors_and_wide_elements(tmp_path, look):
    (tmp_path / "report.html").write_text(
        "<p style='width: 500px'>wide<script>ran = 1; missing()</script>"
    )
    found, console = look(390)
    assert found["scroll"] > 390 and "wide" in found["over"][0] and found["ran"] == "number"
    assert len(console) == 1 and "missing is not defined" in console[0]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_not_empty(tmp_path, chromium, width, theme):
    report.main([str(tagger(tmp_path / "run")), "--out", str(tmp_path / "report.html")])
    # A window is at least 500 pixels wide, so a narrower page must be in a frame.
    frame = (
        f'<body style="margin: 0"><iframe src="report.html" style="border: 0" width="{width}" '
        'height="1500"></iframe>'
    )
    (tmp_path / "frame.html").write_text(frame)
    chromium(
        *([DARK] if theme == "dark" else []),
        f"--screenshot={tmp_path}/shot.png",
        "--window-size=1280,1500",
        f"file://{tmp_path}/frame.html",
    )
    picture = imread(tmp_path / "shot.png")[:, :width, :3]
    background = picture[1, 1]
    assert (background.mean() > 0.9) if theme == "light" else (background.mean() < 0.2)
    drawn = abs(picture - background).max(axis=2) > 0.2  # pixels that differ from the background
    assert 0.005 < drawn.mean() < 0.5
    # the heading, the scores, the curves
    assert all(part.any() for part in (drawn[:300], drawn[300:800], drawn[800:]))
