"""The pages in a headless browser: legible, no wider than the window, sortable."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_helpers import (
    HOSTILE,
    hostile_feedback,
    hostile_run,
    make_feedback_run,
    make_run,
    make_runs,
)

from minialign.evaluation.report.page import write_comparison, write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTHS = (390, 1280)
# Runs inside a page that holds ours in frames of the wanted widths, and writes what it measured of
# each, by its title, where --dump-dom shows it. A text's ground is the nearest background that is
# not transparent.
MEASURE = """
const channels = color => color.match(/[\\d.]+/g).map(Number);
const light = color => {
  const [r, g, b] = channels(color).slice(0, 3).map(
    v => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const measured = frame => {
  const page = frame.document;
  for (const fold of page.querySelectorAll("details")) fold.open = true;
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = frame.getComputedStyle(e).backgroundColor;
      if (channels(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = { least: 99, texts: 0, ground: ground(page.body) };
  for (const element of page.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || ["SCRIPT", "STYLE", "title"].includes(element.tagName)) continue;
    const style = frame.getComputedStyle(element);
    const inSvg = element.namespaceURI.endsWith("svg");
    const pair = [light(inSvg ? style.fill : style.color), light(ground(element))];
    const contrast = (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
    found.texts += 1;
    if (contrast >= found.least) continue;
    found.least = contrast;
    found.worst = element.outerHTML.slice(0, 200);
  }
  found.width = frame.innerWidth;
  found.scrolls = page.documentElement.scrollWidth;
  found.wide = [...page.querySelectorAll("main *")].filter(
    e => e.getBoundingClientRect().right > frame.innerWidth + 1 && !e.closest(".scroll")
  ).map(e => e.outerHTML.slice(0, 200)).slice(0, 3);
  return found;
};
onload = () => {
  const frames = [...document.querySelectorAll("iframe")];
  document.body.dataset.found = JSON.stringify(
    Object.fromEntries(frames.map(f => [f.title, measured(f.contentWindow)])));
};
"""


def browse(source: str, folder: Path, width: int = 1280, scheme: str = "light") -> dict[str, Any]:
    """Opens a page in a headless browser: what its script left in `data-found`.

    Fails where the page says anything on the console.
    """
    page = folder / "browsed.html"
    page.write_text(source, encoding="utf-8")
    flags = ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"]
    flags += ["disable-sync", "disable-background-networking", "disable-component-update"]
    flags += [f"user-data-dir={folder / 'profile'}", f"window-size={max(width, 600)},1000"]
    flags += [f"blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"]
    flags += ["enable-logging=stderr", "virtual-time-budget=5000", "dump-dom"]
    command = [str(CHROMIUM), *(f"--{flag}" for flag in flags), page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, encoding="utf-8")
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def measure(sources: dict[str, str], folder: Path, scheme: str) -> dict[str, Any]:
    """Pages in frames, since a headless window is never as narrow as a phone; all in one browser,
    which takes long to start. "name, width" -> what was measured.
    """
    frames = [
        f'<iframe style="border:0;color-scheme:{scheme};width:{width}px;height:900px" '
        f'title="{name}, {width}" srcdoc="{html.escape(source)}"></iframe>'
        for name, source in sources.items()
        for width in WIDTHS
    ]
    wrapper = f'<!DOCTYPE html><meta charset="utf-8"><body>{"".join(frames)}'
    return browse(f"{wrapper}<script>{MEASURE}</script>", folder, max(WIDTHS), scheme)


def pages_of(kind: str, folder: Path) -> dict[str, str]:
    """An ordinary page of a kind and one whose texts are hostile, as source."""
    long = HOSTILE["long word"]
    if kind == "report":
        files = [
            write_report(make_run(folder / "plain")),
            write_report(make_run(folder / "hostile", **hostile_run(long))),
        ]
    elif kind == "feedback":
        files = [
            write_report(make_feedback_run(folder / "plain")),
            write_report(make_feedback_run(folder / "hostile", **hostile_feedback(long))),
        ]
    else:
        voices = make_runs(folder)
        mixed = [*voices, make_feedback_run(folder / "c3po", **hostile_feedback(long))]
        files = [
            write_comparison(voices, folder / "plain.html"),
            write_comparison(mixed, folder / "mixed.html"),
        ]
    return {f"{file.parent.name}/{file.name}": file.read_text("utf-8") for file in files}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not looked at in a browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["report", "feedback", "comparison"])
def test_a_browser_shows_it_without_sideways_scrolling_and_legibly(
    tmp_path: Path, kind: str, scheme: str
) -> None:
    pages = measure(pages_of(kind, tmp_path), tmp_path, scheme)
    assert len(pages) == 2 * len(WIDTHS)
    for name, found in pages.items():
        assert found["width"] == int(name.split(", ")[1]) and found["scrolls"] <= found["width"]
        assert found["wide"] == [], name
        assert found["texts"] > 50 and found["least"] >= 4.5, (name, found["worst"])
        bright = sum(map(int, re.findall(r"\d+", found["ground"])[:3])) / 3
        assert bright > 200 if scheme == "light" else bright < 60


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: sorting is not tried in a browser")
def test_a_click_on_a_column_sorts_the_runs(tmp_path: Path) -> None:
    source = write_comparison(make_runs(tmp_path), tmp_path / "all.html").read_text("utf-8")
    click = """
    <script>
    const rows = () => [...document.querySelectorAll("tbody th")].map(h => h.dataset.sort).join();
    const sort = n => { document.querySelectorAll("thead button")[n].click(); return rows(); };
    document.body.dataset.found = JSON.stringify({
      given: rows(), won: sort(2), down: sort(2), rate: sort(5),
      said: document.querySelectorAll("thead th")[5].getAttribute("aria-sort"),
    });
    </script></body>"""
    found = browse(source.replace("</body>", click), tmp_path)
    assert found["given"] == "run 0,run 1,run 2"
    assert found["won"] == "run 1,run 2,run 0"  # a run without the figure always comes last
    assert found["down"] == "run 2,run 1,run 0"
    assert found["rate"] == "run 2,run 1,run 0" and found["said"] == "ascending"
