"""The page in a real browser: it sorts, complains of nothing, asks the network for nothing and fits a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kdbench.records import StageResult
from kdbench.report.boards import boards
from kdbench.report.frame import Entry, to_frame
from kdbench.report.html import page as html_page
from kdbench.report.html.gallery import Gallery, GalleryRow

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
)  # fmt: skip
PHONE = 360
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
METHODS = {"kd": 30.0, "cwd": 42.0, "a-method[with=a-long-name,and=options]": 35.0, "broken": None}
PROBE = """
addEventListener("load", () => {
  const table = document.querySelector("section#b0 table"), headers = [...table.tHead.rows[0].cells];
  const at = name => headers.findIndex(header => header.textContent === name);
  const column = name => [...table.tBodies[0].rows].map(row => row.cells[at(name)].textContent.trim());
  const press = name => headers[at(name)].querySelector("button").click();
  const found = { before: column("method"), width: innerWidth };
  const score = "synthetic a-city-like";
  for (const [key, name] of [["down", score], ["up", score], ["az", "method"], ["za", "method"]]) {
    press(name);
    found[key] = column(name);
    found[key + "_sort"] = headers.map(header => header.getAttribute("aria-sort"));
  }
  const buttons = headers.map(header => header.firstElementChild);
  found.focusable = buttons.every(button => { button.focus(); return document.activeElement === button; });
  for (const each of document.querySelectorAll("details")) each.open = true;
  found.scroll = document.documentElement.scrollWidth;
  found.requests = performance.getEntriesByType("resource").map(entry => entry.name);
  const widths = images => [...images].map(image => { image.loading = "eager"; return image.naturalWidth; });
  found.images = widths(document.querySelectorAll(".gallery img"));
  found.charts = widths(document.querySelectorAll(".chart"));
  parent.postMessage(JSON.stringify(found), "*");
});
"""
# A window of the browser is never as narrow as a phone; a frame is.
FRAME = """
<!DOCTYPE html>
<pre id="found"></pre>
<script>addEventListener("message", event => { document.getElementById("found").textContent = event.data; });</script>
<iframe src="page.html" style="width: {width}px; height: 800px; border: 0"></iframe>
"""


class Seen(NamedTuple):
    """What the probe found, and what the browser said of the page."""

    found: dict[str, Any]
    console: list[str]


@pytest.fixture
def page(make_record, monkeypatch: pytest.MonkeyPatch) -> str:
    """One board with a blank mean, an undistilled student, long names and a gallery."""
    stage = StageResult(
        name="joint", phase="task", key="0", data={}, steps=5, images=20, student_forwards=20,
        losses={"task": [2.0, 1.0]},
    )  # fmt: skip
    records = [
        make_record({"a-city": score or 0.0}, method=method, stages=[stage], error=None if score else "no memory",
                    role="undistilled" if method == "plain" else "distilled")
        for method, score in (METHODS | {"plain": 9.5}).items()
    ]  # fmt: skip
    tiles = GalleryRow("synthetic a-city-like", (PNG,) * 12)
    gallery = Gallery(0, (tiles,), tuple(f"column {k}" for k in range(12)), (("road", "#804080"),), "")
    monkeypatch.setattr(html_page, "make_gallery", lambda *given: gallery)
    return html_page.to_html(boards(to_frame(map(Entry, records))))


def look(page: str, folder: Path, width: int = 1200) -> Seen:
    """Opens a copy of the page that has the probe in it, in a frame of this width."""
    if BROWSER is None:
        pytest.skip("optional: chromium")
    (folder / "page.html").write_text(page.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("{width}", str(width)), encoding="utf-8")
    command = [BROWSER, *QUIET, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [*command, frame.as_uri()], capture_output=True, timeout=120, check=True, encoding="utf-8", errors="replace"
    )
    held = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert held, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(json.loads(html.unescape(held[1])), console)


def test_a_click_sorts_numbers_and_words_both_ways_and_leaves_blanks_last(page: str, tmp_path: Path) -> None:
    found = look(page, tmp_path).found
    known = sorted((value for value in METHODS.values() if value is not None), reverse=True)
    assert [float(text) for text in found["down"][:4]] == pytest.approx([*known, 9.5], abs=0.2)
    assert found["down"][4] == ""
    assert found["up"] == [*reversed(found["down"][:4]), ""]
    names = ["a-method[with=a-long-name,and=options]", "broken*", "cwd", "kd", "plain, undistilled"]
    assert found["az"] == names
    assert found["za"] == names[::-1]
    assert found["before"] not in (found["az"], found["za"])
    assert [sorted(set(found[f"{key}_sort"])) for key in ("down", "up", "az", "za")] == [
        [way, "none"] for way in ("descending", "ascending", "ascending", "descending")
    ]
    assert found["focusable"]


def test_the_browser_complains_of_nothing_and_asks_nobody(page: str, tmp_path: Path) -> None:
    found, console = look(page, tmp_path)
    assert console == []
    assert found["requests"] == []
    assert found["images"] == [1] * 12
    assert len(found["charts"]) == 5
    assert min(found["charts"]) > 0


def test_the_page_never_scrolls_sideways_on_a_phone(page: str, tmp_path: Path) -> None:
    found = look(page, tmp_path, PHONE).found
    assert found["width"] == PHONE
    assert found["scroll"] <= PHONE
