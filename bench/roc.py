"""Draw how well the scores of each method part copies of an owner's model from innocents."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import inference
from bench.tables import Picture
from bench.types import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = tuple(
    zip(
        ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00") * 4,
        ("-", "--", ":", "-.") * 7,
        strict=True,
    )
)
"""Colour and dashes of each method: dashes tell them apart in grey, colours on a screen."""

WIDTH, SQUARE, LINE = 3.8, 3.5, 0.17
"""Inches: as wide as a telephone, the curves with their axes, and a method named below them."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One method's curve from the strictest threshold to the mildest, and the area under it."""

    method: str
    points: Sequence[inference.Point]
    separation: inference.Separation

    @property
    def text(self) -> str:
        """Return what a legend says of it."""
        low, high = self.separation.interval
        return f"{self.method}: AUC {self.separation.area:.3f} [{low:.3f}, {high:.3f}]"


def curves(groups: Iterable[tuple[str, str, Sequence[Record]]]) -> dict[str, list[Curve]]:
    """Return every owner's methods that were read on copies and on innocents, in order."""
    owners: dict[str, list[Curve]] = {}
    for owner, method, records in groups:
        marked, innocent = inference.readings(records)
        if marked and innocent:
            points = inference.roc([r.score for r in marked], [r.score for r in innocent])
            curve = Curve(method, points, inference.separation(marked, innocent))
            owners.setdefault(owner, []).append(curve)
    return owners


def picture(groups: Iterable[tuple[str, str, Sequence[Record]]]) -> Picture | None:
    """Return the drawing of all curves under its name; None where nobody can be drawn."""
    owners = curves(groups)
    if not owners:
        return None
    keys = min(curve.separation.keys for drawn in owners.values() for curve in drawn)
    caption = (
        "ROC: the share of marked copies against the share of innocents (strangers and "
        "descendants) that score at least as high, threshold by threshold. AUC: with its interval, "
        f"{inference.interval_note(keys)}."
    )
    return Picture("roc", "Level and power", caption, svg(owners))


def svg(owners: Mapping[str, Sequence[Curve]]) -> bytes:
    """Draw one panel per owner; equal curves give equal bytes with one version of matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user has set for pictures of his own
        matplotlib.rc("svg", hashsalt="roc", fonttype="none")
        matplotlib.rc("text", parse_math=False)
        matplotlib.rc("font", size=8)
        heights = [SQUARE + LINE * len(drawn) for drawn in owners.values()]
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        panels = figure.subplots(len(owners), squeeze=False, height_ratios=heights)[:, 0]
        for axes, (owner, drawn) in zip(panels, owners.items(), strict=True):
            axes.set_title(owner)
            _draw(axes, drawn)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _draw(axes: Axes, drawn: Sequence[Curve]) -> None:
    """Draw one owner's methods; a tie between copy and innocent is a slope, worth half."""
    axes.plot((0, 1), (0, 1), color="0.6", linewidth=0.6)
    for curve, (color, dashes) in zip(drawn, itertools.cycle(STYLES), strict=False):
        rates = [(p.false_positive_rate, p.true_positive_rate) for p in curve.points]
        axes.plot(*zip(*rates, strict=True), color=color, linestyle=dashes, label=curve.text)
    axes.set(xlabel="share of innocents", ylabel="share of marked copies", box_aspect=1)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
