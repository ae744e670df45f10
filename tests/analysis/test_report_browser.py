"""The report in a real browser, Debian's chromium, at a phone's width and a desk's: no error,
nothing that hangs over the page's edge, and something to see, in light and in dark.

A page is looked at in a frame of a page of ours, which opens what is folded away, measures it, and
prints what it found as its own text: the report's policy lets no script run in it.
"""

import json
import os
import re
import shutil
import subprocess

import pytest
from answered import AFTER, ANSWERED, BEFORE, EVIL, LABELS, SAID, TAGGED, answerer, make_run, tagger
from matplotlib.image import imread

from neo_peft.commands import report

pytestmark = pytest.mark.slow

LOOK = """<!doctype html><title>look</title><body style="margin: 0"><pre id="found"></pre>
<iframe id="frame" src="report.html" style="border: 0; width: {width}px; height: 800px"></iframe>
<script>
frame.onload = () => {{
  const page = frame.contentDocument, edge = page.documentElement.clientWidth;
  page.querySelectorAll("details").forEach(one => one.open = true);
  const boxed = one => one.closest(".wide, svg") && !one.matches(".wide, svg");
  const over = [...page.body.querySelectorAll("*")].filter(
    one => !boxed(one) && one.getBoundingClientRect().right > edge + 1);
  found.textContent = JSON.stringify({{
    width: edge, scroll: page.documentElement.scrollWidth,
    over: over.map(one => one.outerHTML.slice(0, 200)),
    shown: page.body.innerText.length, ran: typeof frame.contentWindow.ran,
  }});
}};
</script>"""
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Run the browser with flags; return its standard output, and its log."""
    if os.environ.get("NEO_PEFT_BROWSER") != "1":
        pytest.skip("NEO_PEFT_BROWSER=1 lets chromium look at the report")
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
            timeout=120,
            check=True,
        )
        return done.stdout, done.stderr

    return run


@pytest.fixture
def look(chromium, tmp_path):
    """Measure a page in a frame of a width; return what was found, and what the console said."""

    def measure(width: int) -> tuple[dict, list[str]]:
        (tmp_path / "look.html").write_text(LOOK.format(width=width))
        dom, log = chromium(
            "--allow-file-access-from-files", "--dump-dom", f"file://{tmp_path}/look.html"
        )
        found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL).group(1)
        return json.loads(
            found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        ), said_in(log)

    return measure


def said_in(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]


@pytest.fixture(params=["tagger", "answerer", "both", "foreign text", "long words"])
def page(request, tmp_path):
    """Write tmp_path/report.html of runs made by hand."""
    one, two = tmp_path / "one", tmp_path / "two"
    if request.param == "foreign text":
        runs = [tagger(one, changes={"warnings": [EVIL, "<script>ran = 1</script>"], "data": EVIL})]
    elif request.param == "long words":
        rows = [
            {"tokens": [word * 99 for word in row["tokens"]], "tags": row["tags"]} for row in TAGGED
        ]
        texts = [{"sentence": row["sentence"] * 999, "label": row["label"]} for row in SAID]
        answers = {kind: {"validation": ANSWERED} for kind in (BEFORE, AFTER)}
        wrong = {kind: {"validation": ["bad"] * len(texts)} for kind in (BEFORE, AFTER)}
        runs = [
            make_run(one / ("x" * 200), "tagging", rows, answers, LABELS),
            make_run(
                two,
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
        runs = [make(folder) for make, folder in zip(makers, (one, two))]
    report.main([*map(str, runs), "--out", str(tmp_path / "report.html")])
    return tmp_path / "report.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_the_console_is_silent(page, look, width):
    found, console = look(width)
    assert console == [] and found["ran"] == "undefined"
    assert (found["width"], found["scroll"], found["over"]) == (width, width, []) and found[
        "shown"
    ] > 500


def test_what_is_wrong_with_a_page_would_be_seen(tmp_path, look):
    (tmp_path / "report.html").write_text(
        "<p style='width: 500px'>wide<script>ran = 1; missing()</script>"
    )
    found, console = look(390)
    assert found["scroll"] > 390 and "wide" in found["over"][0] and found["ran"] == "number"
    assert len(console) == 1 and "missing is not defined" in console[0]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_there_is_something_to_see(tmp_path, chromium, width, theme):
    report.main([str(tagger(tmp_path / "run")), "--out", str(tmp_path / "report.html")])
    # A window is at least 500 wide, so a narrow page stands in a frame.
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
    ground = picture[1, 1]
    assert (ground.mean() > 0.9) if theme == "light" else (ground.mean() < 0.2)
    drawn = abs(picture - ground).max(axis=2) > 0.2  # what stands out from the ground
    assert 0.005 < drawn.mean() < 0.5
    # the head, the scores, the curves
    assert all(part.any() for part in (drawn[:300], drawn[300:800], drawn[800:]))
