"""Draw what one would rather look at than read, as small SVG that takes its colours from the page.

These drawings are a few hundred bytes each and need no library. No text from a record enters one.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import NamedTuple, get_args

from bench.records.nouns import Lineage, Outline, Record, evidence_of
from bench.reports import drawings, frontier
from bench.reports.blocks import TAUS, Block, Row, detection, rates_by_tau, reading_cost
from bench.verdicts import separation
from bench.verdicts.innocents import attack_of, lineage
from bench.verdicts.verdict import Kind

WIDTH, HEIGHT = 300, 170
"""Of a chart, in units of its own: it is as wide as the page lets it."""

LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 30
"""Room for what stands beside the axes."""

LANES: Mapping[str, str] = {
    "copies": "copies",
    "descendants": "twins",
    "other keys": "other keys",
    "strangers": "strangers",
}
"""Who scores are of, from top to bottom, and what a lane is called."""

BANDS: tuple[Lineage, ...] = ("stranger", "owner")


@dataclass(frozen=True)
class Chart:
    """A drawing with what is written beneath it; it belongs to some blocks of the page."""

    blocks: Sequence[int]
    title: str
    caption: str
    svg: str
    names: Sequence[str] = ()  # of what is numbered in the drawing


@dataclass(frozen=True)
class _Scale:
    """Where values lie in a drawing: x between two ends, y in [0, 1]."""

    low: float = 0.0
    high: float = 1.0
    logarithmic: bool = False

    def x(self, value: float) -> float:
        """Return how far to the right a value lies."""
        low, high, here = (
            map(math.log10, (self.low, self.high, value))
            if self.logarithmic
            else (self.low, self.high, value)
        )
        share = (here - low) / ((high - low) or 1.0)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return how far down a share lies."""
        return round(HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM), 1)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        """Return the line through some points."""
        return "M" + "L".join(f"{self.x(x):g} {self.y(y):g}" for x, y in points)


UNIT = _Scale()


def charts(
    outline: Outline, records: Mapping[str, Record], blocks: Sequence[Block]
) -> dict[str, list[Chart]]:
    """Return the drawings by what they show; nothing of what there are no numbers for."""
    told = [(n, block, *separation.readings(block.records)) for n, block in enumerate(blocks)]
    found = {
        "Scores": [
            scores(n, block, copies, innocents, outline.alpha)
            for n, block, copies, innocents in told
            if block.with_evidence
        ],
        "Power against false alarms": [
            power(n, block, copies, innocents)
            for n, block, copies, innocents in told
            if copies and innocents
        ],
        "R against tau": [
            tau(n, block) for n, block in enumerate(blocks) if _counted(block.with_evidence)
        ],
        "Strength": [*_sweeps(outline, records, blocks)],
        "Time against rate": [*_times(blocks)],
    }
    return {name: drawn for name, drawn in found.items() if drawn}


def scores(
    number: int,
    block: Block,
    copies: Sequence[separation.Reading],
    innocents: Mapping[Kind, Sequence[separation.Reading]],
    alpha: float,
) -> Chart:
    """Draw every score in a lane per population, with the threshold that innocents set."""
    lanes = {"copies": copies, **{str(kind): read for kind, read in innocents.items()}}
    shown = [name for name in LANES if lanes.get(name)]
    parts = [_x_axis(UNIT, ((0.0, "0"), (0.5, "0.5"), (1.0, "1")), "score: agreement, 0 to 1")]
    for place, name in enumerate(shown):
        middle = 1 - (place + 0.5) / len(shown)
        y = UNIT.y(middle)
        parts.append(f'<text x="{LEFT - 4}" y="{y + 3:g}" class="end">{LANES[name]}</text>')
        values = [reading.score for reading in lanes[name]]
        parts += _dots(values, y, name)
        threshold = None if name == "copies" else _threshold(values, alpha)
        if threshold is not None:
            x = UNIT.x(threshold)
            parts.append(f'<path class="rule" d="M{x:g} {y - 11:g}V{y + 11:g}"/>')
    if whole := _untouched(block):
        y = UNIT.y(1 - 0.5 / max(len(shown), 1))
        parts += [f'<circle class="whole" cx="{UNIT.x(v):g}" cy="{y:g}" r="5"/>' for v in whole]
    said = f"scores of {', '.join(LANES[name] for name in shown)}"
    return Chart([number], block.method, "", _svg(parts, f"{said}: {block.method}"))


def _untouched(block: Block) -> list[float]:
    """Return the scores of the released model as it is, key by key."""
    return [
        record.evidence.score
        for record in block.with_evidence
        if record.evidence and lineage(record) == "released" and not attack_of(record.cell)
    ]


def _dots(values: Sequence[float], y: float, name: str) -> Iterator[str]:
    """Yield a dot per value; equal ones are drawn once, and copies that cannot be read left out."""
    for value in sorted({round(v, 3) for v in values if v > separation.UNREAD}):
        yield f'<circle class="{name.replace(" ", "-")}" cx="{UNIT.x(value):g}" cy="{y:g}" r="3"/>'


def _threshold(values: Sequence[float], alpha: float) -> float | None:
    """Return the score above which a suspect's rank is at most alpha; None where too few."""
    ordered = sorted(values, reverse=True)
    allowed = math.floor(alpha * (len(ordered) + 1) + 1e-9)
    return ordered[allowed - 1] if allowed else None


def power(
    number: int,
    block: Block,
    copies: Sequence[separation.Reading],
    innocents: Mapping[Kind, Sequence[separation.Reading]],
) -> Chart:
    """Draw the share of copies above a threshold against that of innocents, kind by kind."""
    ends = ((0.0, "0"), (0.5, "0.5"), (1.0, "1"))
    parts = [
        _x_axis(UNIT, ends, "share of innocents called"),
        _y_axis(),
        f'<path class="rule" d="{UNIT.path([(0, 0), (1, 1)])}"/>',
    ]
    ours = [reading.score for reading in copies]
    for kind in (kind for kind in get_args(Kind) if innocents.get(kind)):
        points = separation.roc(ours, [reading.score for reading in innocents[kind]])
        parts.append(f'<path class="{kind.replace(" ", "-")}" d="{UNIT.path(_steps(points))}"/>')
    return Chart([number], block.method, "", _svg(parts, f"power of {block.method}"))


def _steps(points: Sequence[separation.Point]) -> Iterator[tuple[float, float]]:
    """Yield the corners of a curve that rises before it goes right, each direction in one piece."""
    x, y = 0.0, 0.0
    yield x, y
    for point in points:
        across, up = point.false_positive_rate, point.true_positive_rate
        if across != x and up != y:
            yield x, up
        if (across, up) != (x, y):
            yield across, up
        x, y = across, up


def _counted(records: Iterable[Record]) -> list[Record]:
    """Return the records whose method counts bit errors."""
    return [r for r in records if evidence_of(r).rule.statistic == drawings.COUNTED]


def tau(number: int, block: Block) -> Chart:
    """Draw the share of queries read with at most tau bit errors, a line per attack.

    Twins and strangers of all attacks together are bands from the lowest to the highest model.
    """
    scale = _Scale(0, TAUS[-1])
    threshold = _counted(block.with_evidence)[0].evidence
    assert threshold is not None
    parts = [_x_axis(scale, [(t, str(t)) for t in TAUS], "tau: bit errors"), _y_axis()]
    if scale.low <= threshold.rule.threshold <= scale.high:
        x = scale.x(threshold.rule.threshold)
        parts.append(f'<path class="rule" d="M{x:g} {UNIT.y(0):g}V{UNIT.y(1):g}"/>')
    for origin in BANDS:
        rates = rates_by_tau(_counted(r for row in block.rows for r in row.records(origin)))
        parts += _between(scale, [(t, each) for t, each in zip(TAUS, rates, strict=False)], origin)
    for row in (row for row in block.rows if row.chain):
        rates = rates_by_tau(_counted(row.records("released")))
        if rates:
            means = zip(TAUS, map(fmean, rates), strict=True)
            parts.append(f'<path class="copies thin" d="{scale.path(means)}"/>')
    return Chart([number], block.method, "", _svg(parts, f"R against tau: {block.method}"))


def _sweeps(
    outline: Outline, records: Mapping[str, Record], blocks: Sequence[Block]
) -> Iterator[Chart]:
    if not frontier.has_sweeps(outline):
        return
    places = {(block.owner, block.method): n for n, block in enumerate(blocks)}
    for sweep in frontier.sweeps_of(outline, records)[0]:
        if len(sweep.read) > 1:
            number = places[sweep.owner, sweep.method]
            title = f"{sweep.method}: {sweep.label}"
            yield Chart([number], title, sweep.setting, _svg(_swept(sweep), title))


def _swept(sweep: frontier.Sweep) -> list[str]:
    """Draw rates strength by strength: copies as a line, twins and strangers as bands."""
    points = sweep.read
    scale = _Scale(0, len(points) - 1)
    ticks = [(float(i), f"{point.strength:g}") for i, point in enumerate(points)]
    parts = [_x_axis(scale, ticks, ""), _y_axis()]
    rows = [point.row for point in points]
    for origin in BANDS:
        parts += _band(scale, rows, origin)
    means = [(i, found.mean) for i, row in enumerate(rows) if (found := detection(row, "released"))]
    if means:
        parts.append(f'<path class="copies" d="{scale.path(means)}"/>')
    for i, mean in means:
        state = {True: "copies", False: "whole", None: "unsure"}[points[i].owned]
        parts.append(
            f'<circle class="{state}" cx="{scale.x(i):g}" cy="{scale.y(mean):g}" r="3.5"/>'
        )
    return parts


def _band(scale: _Scale, rows: Sequence[Row], origin: Lineage) -> Iterator[str]:
    """Yield the range of one population over its models, strength by strength, and its mean."""
    found = [(i, spread) for i, row in enumerate(rows) if (spread := detection(row, origin))]
    told = [(i, (*(spread.between or ()), spread.mean)) for i, spread in found]
    return _between(scale, told, origin)


def _between(
    scale: _Scale, found: Sequence[tuple[float, Sequence[float]]], origin: Lineage
) -> Iterator[str]:
    """Yield a band from the lowest to the highest of some values, and their mean as a line."""
    if not found:
        return
    name = {"owner": "descendants", "stranger": "strangers"}[origin]
    around = [(x, min(values)) for x, values in found]
    around += [(x, max(values)) for x, values in reversed(found)]
    yield f'<path class="band {name}" d="{scale.path(around)}Z"/>'
    yield f'<path class="{name}" d="{scale.path((x, fmean(values)) for x, values in found)}"/>'


class _Speed(NamedTuple):
    """What a method takes to read one suspect, and its mean rate on attacked copies."""

    number: int
    method: str
    seconds: float
    rate: float


def _times(blocks: Sequence[Block]) -> Iterator[Chart]:
    """Yield, owner by owner, what reading one suspect takes against the rate on attacked copies."""
    owners: dict[str, list[_Speed]] = {}
    for n, block in enumerate(blocks):
        seconds = [reading_cost(r).seconds for r in block.with_evidence if "extract" in r.costs]
        rows = [row for row in block.rows if row.chain]
        rates = [found.mean for row in rows if (found := detection(row, "released"))]
        if rates and seconds and median(seconds) > 0:
            told = _Speed(n, block.method, median(seconds), fmean(rates))
            owners.setdefault(block.owner, []).append(told)
    for owner, speeds in owners.items():
        numbers, names = [one.number for one in speeds], [one.method for one in speeds]
        drawing = _svg(_timed(speeds), f"seconds against rate: {owner}")
        yield Chart(numbers, owner, "", drawing, names)


def _timed(speeds: Sequence[_Speed]) -> Iterator[str]:
    """Yield a numbered dot per method over seconds, on whole powers of ten."""
    first = math.floor(math.log10(min(one.seconds for one in speeds)))
    last = max(math.ceil(math.log10(max(one.seconds for one in speeds))), first + 1)
    scale = _Scale(10.0**first, 10.0**last, logarithmic=True)
    powers = [10.0**power for power in range(first, last + 1)]
    yield _x_axis(scale, [(power, f"{power:g}") for power in powers], "seconds")
    yield _y_axis()
    for place, one in enumerate(speeds, start=1):
        x, y = scale.x(one.seconds), scale.y(one.rate)
        yield f'<circle class="copies" cx="{x:g}" cy="{y:g}" r="7"/>'
        yield f'<text class="in" x="{x:g}" y="{y + 3:g}">{place}</text>'


def _x_axis(scale: _Scale, ticks: Sequence[tuple[float, str]], title: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>']
    parts += [
        f'<text class="mid" x="{scale.x(at):g}" y="{bottom + 12}">{text}</text>'
        for at, text in ticks
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    titled = f'<text class="mid" x="{middle:g}" y="{bottom + 25}">{title}</text>'
    return "".join([*parts, *([titled] if title else [])])


def _y_axis() -> str:
    parts = [
        f'<path class="axis" d="M{LEFT} {UNIT.y(at):g}H{WIDTH - RIGHT}"/>'
        f'<text class="end" x="{LEFT - 4}" y="{UNIT.y(at) + 3:g}">{at:g}</text>'
        for at in (0, 0.5, 1)
    ]
    return "".join(parts)


def _svg(parts: Iterable[str], label: str) -> str:
    opening = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    return f'{opening} aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
