"""The page of a report in a real browser: its width, and that a stored drawing cannot run."""

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from page_facts import NAMES, PREPROCESS, a_report, latency, page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (1280, 390)
MEASURE = """<!DOCTYPE html><html><body><iframe src="page.html" width="{width}" height="900"
style="border:0"></iframe><pre id="out"></pre><script>
const frame = document.querySelector('iframe');
const measure = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const inside = e => e.closest('.scroll') !== null;
  const cut = [...page.body.querySelectorAll('*')].filter(
    e => !inside(e) && e.getBoundingClientRect().right > root.clientWidth + 1);
  document.querySelector('#out').textContent = JSON.stringify(
    {{client: root.clientWidth, scroll: root.scrollWidth,
      cut: cut.map(e => e.outerHTML.slice(0, 60)),
      pictures: [...page.images].every(i => i.naturalWidth > 0), title: page.title}});
}};
frame.onload = () => setTimeout(measure, 100);
</script></body></html>"""
SCRIPT = "parent.ran = true; document.title = 'the drawing ran'"
HOSTILE_SVG = (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20" onload="{SCRIPT}">'
    f"<script>{SCRIPT}</script></svg>"
)

Measured = dict[str, object]


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Measured]:
    """Return what the browser says of a page in a frame of some width."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")

    def measured(text: str, width: int = 1280) -> Measured:
        (tmp_path / "page.html").write_text(text)
        frame = tmp_path / "frame.html"
        frame.write_text(MEASURE.format(width=width))
        done = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--allow-file-access-from-files",
                "--virtual-time-budget=5000",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--window-size=1400,1000",
                "--dump-dom",
                frame.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        out = re.search(r'<pre id="out">(.+?)</pre>', done.stdout)
        assert out is not None, done.stderr[-500:]
        found: Measured = json.loads(html.unescape(out[1]))
        return found

    return measured


def wide_report() -> str:
    """A page with the longest things that can stand in it."""
    report = a_report(
        latency_modes=[latency(64, 1234.5, mode="nhwc+cuda-graph", transfers="host", stable=False)]
    )
    names = ["x" * 200, "word " * 40, *NAMES]
    report["data"] |= {"class_counts": dict.fromkeys(names, 12), "warnings": ["y" * 300]}
    report["device"]["label"] = "CPU " + "z" * 120
    return page(report, preprocess=PREPROCESS | {"class_names": names}, name="n" * 64)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("made", [page, wide_report], ids=["usual", "long names"])
def test_the_page_never_scrolls_sideways(
    look: Callable[..., Measured], made: Callable[[], str], width: int
) -> None:
    seen = look(made(), width)
    assert seen["client"] in range(width - 20, width + 1)  # but for a scroll bar
    assert seen["cut"] == []
    assert seen["scroll"] == seen["client"]
    assert seen["pictures"] is True


def test_control_what_is_too_wide_is_seen(look: Callable[..., Measured]) -> None:
    wide = '<p style="width:2000px">wide</p></main>'
    seen = look(page().replace("</main>", wide), 390)
    assert seen["cut"]
    assert seen["scroll"] != seen["client"]


def test_a_drawing_that_wants_to_run_does_not(look: Callable[..., Measured]) -> None:
    drawing = HOSTILE_SVG.encode()
    seen = look(page(genotype_svg=drawing, drawings={"search": drawing, "retrain": drawing}))
    assert seen["title"] == "demo, version 1: model report"
    assert seen["pictures"] is True


def test_the_policy_stops_what_escaping_would_have_missed(look: Callable[..., Measured]) -> None:
    assert look(page().replace("</main>", f"{HOSTILE_SVG}</main>"))["title"] != "the drawing ran"


def test_control_that_drawing_runs_where_nothing_stops_it(look: Callable[..., Measured]) -> None:
    inline = page().replace("</main>", f"{HOSTILE_SVG}</main>")
    free, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", inline)
    assert policies == 1
    assert look(free)["title"] == "the drawing ran"
