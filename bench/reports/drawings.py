"""Draw a report's figures as SVG that stands inline in a page and takes its colours from it.

No text from a record enters a drawing: what must be said of one is said around it, in the page.
"""

from __future__ import annotations

import functools
import html
import io
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from bench.records.nouns import Lineage, Outline, Record, evidence_of
from bench.records.table import Picture
from bench.reports import frontier
from bench.reports.blocks import TAUS, Block, Row, detection, rates_by_tau
from bench.verdicts import separation
from bench.verdicts.innocents import reading_of
from bench.verdicts.intervals import Interval, Spread
from bench.verdicts.verdict import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FRONTIER_STYLES = tuple(
    zip(
        "osD^vP" * 7,
        ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00") * 6,
        strict=True,
    )
)
"""Marker and colour of each sweep: markers tell them apart in grey, colours on a screen."""

LOSS_TICKS = (-1, -0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1)


def frontier_picture(outline: Outline, records: Mapping[str, Record]) -> Picture:
    """Return the drawing of `svg` under its name."""
    return Picture(
        name="frontier",
        table="Frontier",
        caption="Detection rate against utility lost, strength by strength.",
        svg=frontier_svg(outline, records),
    )


def frontier_svg(outline: Outline, records: Mapping[str, Record]) -> bytes:
    """Draw detection rate against utility loss, one panel per owner and method.

    Equal records give equal bytes with one version of matplotlib: no date, no random names.
    """
    import matplotlib
    from matplotlib.figure import Figure

    swept, _ = frontier.sweeps_of(outline, records)
    panels: dict[tuple[str, str], list[frontier.Sweep]] = {}
    for sweep in swept:
        panels.setdefault((sweep.owner, sweep.method), []).append(sweep)
    file = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user has set for pictures of his own
        matplotlib.rc("svg", hashsalt="frontier", fonttype="none")
        matplotlib.rc("text", parse_math=False)
        figure = Figure(figsize=(9, 4.5 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for panel, (head, drawn) in zip(axes, panels.items(), strict=True):
            panel.set_title(", ".join(head))
            _draw_frontier(panel, drawn)
        _settle(figure)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _draw_frontier(axes: Axes, swept: Sequence[frontier.Sweep]) -> None:
    """Draw the sweeps of one owner and method: marked copies filled, twins hollow and dashed."""
    from matplotlib.ticker import FixedLocator, NullLocator

    for sweep, (marker, color) in zip(swept, itertools.cycle(FRONTIER_STYLES), strict=False):
        line = functools.partial(_frontier_line, axes, sweep, marker=marker, color=color)
        line("released", linestyle="-", label=sweep.label)
        line("owner", linestyle="--", markerfacecolor="white")
        for point in sweep.points:
            if dot := _dot(point, "released"):
                _name_strength(axes, point, dot, color)
    axes.plot([], [], "ko--", markerfacecolor="white", label="twin, unmarked")
    axes.plot([], [], "kx", markersize=10, label="not owned")
    axes.axhline(frontier.R_HIGH, color="0.6", linestyle=":", label=f"R = {frontier.R_HIGH:g}")
    # Linear where losses are small, so that a copy that has hardly learnt leaves them room.
    axes.set_xscale("symlog", linthresh=0.1)
    axes.xaxis.set_major_locator(FixedLocator(LOSS_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="utility loss", ylabel="detection rate", ylim=(-0.04, 1.04))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _name_strength(axes: Axes, point: frontier.Point, dot: _Dot, color: str) -> None:
    """Write the strength beside a marked copy, and cross the copy out if it is not owned."""
    place = (dot.loss.value, dot.rate.mean)
    text = f"{point.strength:g}"
    axes.annotate(text, place, (4, -9), textcoords="offset points", fontsize=7, color=color)
    if point.owned is False:
        axes.plot(*place, "kx", markersize=10)


def _frontier_line(axes: Axes, sweep: frontier.Sweep, population: Lineage, **style: Any) -> None:
    """Draw one population through the strengths, with both intervals as bars."""
    dots = [dot for point in sweep.points if (dot := _dot(point, population))]
    x, y = [dot.loss.value for dot in dots], [dot.rate.mean for dot in dots]
    shape = {"markersize": 5, "linewidth": 1, "elinewidth": 0.5, **style}
    if dots:
        axes.errorbar(
            *(x, y),
            xerr=_bars(x, [dot.loss.within for dot in dots]),
            yerr=_bars(y, [dot.rate.within for dot in dots]),
            **shape,
        )


class _Dot(NamedTuple):
    """Where one population stands at one strength."""

    loss: frontier.Loss
    rate: Spread


def _dot(point: frontier.Point, population: Lineage) -> _Dot | None:
    loss, rate = point.losses.get(population), detection(point.row, population)
    return None if loss is None or rate is None else _Dot(loss, rate)


def _bars(values: Sequence[float], intervals: Sequence[Interval | None]) -> list[list[float]]:
    """Return how far each interval reaches below and above its value; nothing where none is."""
    ends = [interval or (value, value) for value, interval in zip(values, intervals, strict=True)]
    return [
        [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
    ]


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


def curves(row: Row, name: str) -> str:
    """Return the paper's Fig. 3 for one attack; empty where nobody counted bit errors.

    Lines are means over models, shades go from the lowest model to the highest, the upright is the
    method's rule. `name` keeps the ids of one figure apart from those of others on a page.
    """
    found = {origin: _counted(row.records(origin)) for origin in STYLES}
    if not any(found.values()):
        return ""
    threshold = next(
        evidence_of(records[0]).rule.threshold for records in found.values() if records
    )

    def draw(axes: Axes) -> None:
        axes.axvline(threshold, color=MUTED, linewidth=0.6)
        for origin, by_tau in ((o, rates_by_tau(r)) for o, r in found.items() if r):
            axes.plot(TAUS, [fmean(rates) for rates in by_tau], **STYLES[origin])
            low, high = map(min, by_tau), map(max, by_tau)
            shade = STYLES[origin]["color"]
            axes.fill_between(TAUS, [*low], [*high], color=shade, alpha=0.14, linewidth=0)
        axes.set(xlim=(0, TAUS[-1]), ylim=(-0.02, 1.02), yticks=(0, 0.5, 1))
        axes.set(xticks=TAUS, xlabel="tau", ylabel="R")

    return _svg(draw, (2.6, 1.8), name, f"R against tau after {row.label}")


def histogram(block: Block, name: str) -> str:
    """Return the native statistic of all queries by population, each suspect counting once."""
    from matplotlib.ticker import MaxNLocator

    if block.sample is None:
        return ""
    rule, edges = block.sample.rule, _edges(block.with_evidence)

    def draw(axes: Axes) -> None:
        axes.axvline(rule.threshold, color=MUTED, linewidth=0.6)
        for origin, style in STYLES.items():
            found = {reading_of(r): r for row in block.rows for r in row.records(origin)}
            if found:
                axes.stairs(_shares([*found.values()], edges), edges, **style)
        if rule.statistic == COUNTED:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlim=(edges[0], edges[-1]), ylabel="share of queries")
        axes.set_ylim(bottom=0)

    return _svg(draw, (5.2, 1.9), name, f"{rule.statistic} of {block.method}, by population")


def _counted(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if evidence_of(record).rule.statistic == COUNTED]


def _edges(records: Sequence[Record]) -> list[float]:
    """Return the edges of bins: one per count, or equal ones between the extremes."""
    low = min(min(evidence_of(record).statistic) for record in records)
    high = max(max(evidence_of(record).statistic) for record in records)
    if evidence_of(records[0]).rule.statistic == COUNTED:
        return [count - 0.5 for count in range(int(high) + 2)]
    width = (high - low or 1.0) / BINS
    return [low + i * width for i in range(BINS + 1)]


def _shares(records: Sequence[Record], edges: Sequence[float]) -> list[float]:
    """Return the share of queries in every bin, mean over suspects."""
    import numpy as np

    counts = [np.histogram(evidence_of(r).statistic, edges)[0] for r in records]
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


ROC_STYLES = tuple(
    zip(
        ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00") * 4,
        ("-", "--", ":", "-.") * 7,
        strict=True,
    )
)
"""Colour and dashes of each method: dashes tell them apart in grey, colours on a screen."""

WIDTH, SQUARE, ROC_LINE = 3.8, 3.5, 0.17
"""Inches: as wide as a telephone, the curves with their axes, and a method named below them."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One method's curve from the strictest threshold to the mildest, and the area under it."""

    method: str
    points: Sequence[separation.Point]
    separation: separation.Separation

    @property
    def text(self) -> str:
        """Return what a legend says of it."""
        low, high = self.separation.interval
        return f"{self.method}: AUC {self.separation.area:.3f} [{low:.3f}, {high:.3f}]"


def roc_curves(groups: Iterable[tuple[str, str, Sequence[Record]]]) -> dict[str, list[Curve]]:
    """Return, for every owner and kind of innocent, the methods read on both, in order."""
    owners: dict[str, dict[Kind, list[Curve]]] = {}
    for owner, method, records in groups:
        marked, innocents = separation.readings(records)
        for kind, innocent in innocents.items() if marked else ():
            points = separation.roc([r.score for r in marked], [r.score for r in innocent])
            curve = Curve(method, points, separation.separation(marked, innocent))
            owners.setdefault(owner, {}).setdefault(kind, []).append(curve)
    return {
        f"{owner}, copies against {kind}": kinds[kind]
        for owner, kinds in owners.items()
        for kind in get_args(Kind)
        if kind in kinds
    }


def roc_picture(groups: Iterable[tuple[str, str, Sequence[Record]]]) -> Picture | None:
    """Return the drawing of all curves under its name; None where nobody can be drawn."""
    owners = roc_curves(groups)
    if not owners:
        return None
    keys = min(curve.separation.keys for drawn in owners.values() for curve in drawn)
    caption = (
        "ROC: the share of attacked copies above a threshold against the share of innocents at or "
        "above it, each kind of innocent by itself: ties count against ownership. AUC: with its "
        "interval, "
        f"{separation.interval_note(keys)}."
    )
    return Picture("roc", "Level and power", caption, roc_svg(owners))


def roc_svg(owners: Mapping[str, Sequence[Curve]]) -> bytes:
    """Draw a panel per owner and kind; equal curves give equal bytes with one matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user has set for pictures of his own
        matplotlib.rc("svg", hashsalt="roc", fonttype="none")
        matplotlib.rc("text", parse_math=False)
        matplotlib.rc("font", size=8)
        heights = [SQUARE + ROC_LINE * len(drawn) for drawn in owners.values()]
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        panels = figure.subplots(len(owners), squeeze=False, height_ratios=heights)[:, 0]
        for axes, (owner, drawn) in zip(panels, owners.items(), strict=True):
            axes.set_title(owner)
            _draw_roc(axes, drawn)
        _settle(figure)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _settle(figure: Figure) -> None:
    """Place the axes for good, to nine digits.

    The solver of a constrained layout has other last digits in every run, and ids hang on them.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, low, wide, high = (round(float(side), 9) for side in axes.get_position().bounds)
        axes.set_position((left, low, wide, high))


def _draw_roc(axes: Axes, drawn: Sequence[Curve]) -> None:
    """Draw one owner's methods; a tie between copy and innocent goes right before it rises."""
    axes.plot((0, 1), (0, 1), color="0.6", linewidth=0.6)
    for curve, (color, dashes) in zip(drawn, itertools.cycle(ROC_STYLES), strict=False):
        rates = [(p.false_positive_rate, p.true_positive_rate) for p in curve.points]
        (line,) = axes.plot(*zip(*rates, strict=True), color=color, linestyle=dashes)
        line.set(label=curve.text, drawstyle="steps-pre")
    axes.set(xlabel="share of innocents", ylabel="share of marked copies", box_aspect=1)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
