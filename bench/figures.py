"""Draw a report's figures as SVG that stands inline in a page and takes its colours from it.

No text from a record enters a drawing: what must be said of one is said around it, in the page.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench import lineup
from bench.types import Evidence, Lineage, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE, ACCENT = "#010101", "#020202", "#030303", "#040404"

COLOURS = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent"}
"""Placeholders, and the page's own colours in their place: light and dark are the page's affair."""

STYLES: dict[Lineage, dict[str, Any]] = {
    "stranger": {"color": MUTED, "linestyle": (0, (1, 1)), "linewidth": 1.4},
    "owner": {"color": INK, "linestyle": (0, (4, 1.5)), "linewidth": 1.2},
    "released": {"color": ACCENT, "linestyle": "-", "linewidth": 1.8},
}
"""Dashes tell the populations apart in grey; the marked copies are drawn last, on top."""

COUNTED = "bit errors"
"""The native statistic whose detection curve is the paper's Fig. 3."""

BINS = 24
"""Of a histogram over a statistic that is no count."""

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "bench",  # ids that do not differ from run to run
    "font.size": 8,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def curves(row: lineup.Row, name: str) -> str:
    """Return the paper's Fig. 3 for one attack; empty where nobody counted bit errors.

    Lines are means over models, shades go from the lowest model to the highest, the upright is the
    method's rule. `name` keeps the ids of one figure apart from those of others on a page.
    """
    found = {origin: _counted(row.records(origin)) for origin in STYLES}
    if not any(found.values()):
        return ""
    threshold = next(_evidence(records[0]).rule.threshold for records in found.values() if records)

    def draw(axes: Axes) -> None:
        axes.axvline(threshold, color=MUTED, linewidth=0.6)
        for origin, by_tau in ((o, lineup.rates_by_tau(r)) for o, r in found.items() if r):
            axes.plot(lineup.TAUS, [fmean(rates) for rates in by_tau], **STYLES[origin])
            low, high = map(min, by_tau), map(max, by_tau)
            shade = STYLES[origin]["color"]
            axes.fill_between(lineup.TAUS, [*low], [*high], color=shade, alpha=0.14, linewidth=0)
        axes.set(xlim=(0, lineup.TAUS[-1]), ylim=(-0.02, 1.02), yticks=(0, 0.5, 1))
        axes.set(xticks=lineup.TAUS, xlabel="tau", ylabel="R")

    return _svg(draw, (2.6, 1.8), name, f"R against tau after {row.label}")


def histogram(block: lineup.Block, name: str) -> str:
    """Return the native statistic of all queries by population, each suspect counting once."""
    from matplotlib.ticker import MaxNLocator

    if not block.found:
        return ""
    rule = _evidence(block.found[0]).rule
    edges = _edges(block.found)

    def draw(axes: Axes) -> None:
        axes.axvline(rule.threshold, color=MUTED, linewidth=0.6)
        for origin, style in STYLES.items():
            found = {r.key: r for row in block.rows for r in row.records(origin)}
            if found:
                axes.stairs(_shares([*found.values()], edges), edges, **style)
        if rule.statistic == COUNTED:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlim=(edges[0], edges[-1]), ylabel="share of queries")
        axes.set_ylim(bottom=0)

    return _svg(draw, (5.2, 1.9), name, f"{rule.statistic} of {block.method}, by population")


def _counted(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if _evidence(record).rule.statistic == COUNTED]


def _evidence(record: Record) -> Evidence:
    assert record.evidence is not None  # rows hand out no other records
    return record.evidence


def _edges(records: Sequence[Record]) -> list[float]:
    """Return the edges of bins: one per count, or equal ones between the extremes."""
    low = min(min(_evidence(record).statistic) for record in records)
    high = max(max(_evidence(record).statistic) for record in records)
    if _evidence(records[0]).rule.statistic == COUNTED:
        return [count - 0.5 for count in range(int(high) + 2)]
    width = (high - low or 1.0) / BINS
    return [low + i * width for i in range(BINS + 1)]


def _shares(records: Sequence[Record], edges: Sequence[float]) -> list[float]:
    """Return the share of queries in every bin, mean over suspects."""
    import numpy as np

    counts = [np.histogram(_evidence(r).statistic, edges)[0] for r in records]
    shares = [count / max(count.sum(), 1) for count in counts]
    return [float(share) for share in np.mean(shares, axis=0)]


def _svg(draw: Callable[[Axes], None], inches: tuple[float, float], name: str, label: str) -> str:
    """Draw without a date, a font or a colour of its own; the same figure is the same text."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **SETTINGS}):
        figure = Figure(figsize=inches)
        FigureCanvasSVG(figure)
        left, bottom = 0.42 / inches[0], 0.36 / inches[1]
        axes = figure.add_axes((left, bottom, 0.96 - left, 0.95 - bottom))
        axes.grid(axis="y", color=LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), name, label)


def _inline(text: str, name: str, label: str) -> str:
    """Strip what only a file needs, make ids unique, and let the page choose colours and fonts."""
    viewed = re.search(r'viewBox="[^"]*"', text)
    assert viewed is not None  # matplotlib writes one
    text = text[text.index(">", viewed.end()) + 1 :]
    for needless in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"font-family: [^;]*; "):
        text = re.sub(needless, "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]*)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}", text)
    for placeholder, colour in COLOURS.items():
        text = text.replace(placeholder, f"var({colour})")
    opening = f'<svg {viewed[0]} role="img" aria-label="{html.escape(label)}">'
    return opening + re.sub(r"\s*\n\s*", " ", text.strip())
