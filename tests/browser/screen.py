"""Make the picture of the first screen anew, in Chromium: python tests/browser/screen.py."""

import hashlib
import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin
from tab import Tab
from test_page_browser import DEMO, MAP

from bench.records import ledger
from bench.reports import page, tables

PICTURE = Path(__file__).parents[2] / "results" / "screens" / "page.png"

SIZE = (1280, 940)
"""In pixels: the whole map, and what its colours mean."""

COLOURS = 128
"""Kept of a picture: a page has few, and the file is a third."""


def shows(tab):
    """Name what the map says, whatever it looks like."""
    text = tab.run(f"document.querySelector('{MAP}').textContent.replace(/\\s+/g, ' ')")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make(folder):
    outline, records = ledger.read_outline(DEMO / "suite.json"), ledger.latest(ledger.read(DEMO))
    written = folder / "page.html"
    written.write_text(page.html(outline, records, tables.tables(outline, records)), "utf-8")
    tab = Tab(folder / "profile")
    try:
        tab.open(written.as_uri(), *SIZE)
        tab.picture(folder / "page.png")
        said = PngImagePlugin.PngInfo()
        said.add_text("shows", shows(tab))
    finally:
        tab.close()
    PICTURE.parent.mkdir(exist_ok=True)
    few = Image.open(folder / "page.png").convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(PICTURE, optimize=True, pnginfo=said)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
