"""Say whether new results are the old ones, better or worse.

Equal evidence settles a cell. Where it differs, a marked copy must not be recognised less, an
innocent not more, and no suspect may do worse at its task, each by more than a stated tolerance.

So it is on one machine, which repeats itself to the byte. Another machine rounds otherwise, and
other data are other images: there each cell may move, and a method is worse where its cells move
one way more often than chance has it, by more than the tolerance, or where a verdict is lost.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from bench.records.ledger import Results
from bench.records.nouns import Cell, Json, Record, Spec, canonical, evidence_of, unpacked
from bench.records.table import NOTHING, Table
from bench.reports.blocks import grouped, labelled
from bench.verdicts.innocents import lineage, verdict_on

Outcome = Literal["same", "within tolerance", "improved", "regressed", "not measured"]

_Number = tuple[str, float | str, float | str, Outcome]
"""What differs, before, after, and what that means."""


ALPHA = 0.05
"""The chance, over all methods together, of taking noise for a change."""

ROUNDING = 1e-9
"""By how much equal shares may differ, added up in another order."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a number may move before it counts: a few queries or test images of hundreds."""

    rate: float = 0.02
    score: float = 0.01
    utility: float = 0.02


@dataclass(frozen=True, slots=True)
class Difference:
    """One number of one cell, or in words why it cannot be compared."""

    key: str
    cell: Cell  # as HEAD asks it
    what: str
    base: float | str
    head: float | str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Movement:
    """How the cells of one method moved in one number, and whether chance explains it.

    `p_value` is of an exact two-sided sign test over the cells that moved, `adjusted` Holm's over
    all of a comparison. `mean` is over the cells that moved, above 0 for the better.
    """

    method: Spec
    what: Literal["score", "utility"]
    cells: int
    better: int
    worse: int
    mean: float
    largest: float
    p_value: float
    adjusted: float
    lost: int  # copies that BASE calls owned and HEAD does not
    won: int

    def outcome(self, tolerance: Tolerance) -> Literal["same", "within noise", "better", "worse"]:
        """Return what the movement amounts to."""
        if self.lost:
            return "worse"
        if not self.better + self.worse:
            return "better" if self.won else "same"
        limit = tolerance.score if self.what == "score" else tolerance.utility
        if self.adjusted > ALPHA or abs(self.mean) <= limit:
            return "better" if self.won else "within noise"
        return "better" if self.mean > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells that both sides ask, and how many either asks alone."""

    differences: tuple[Difference, ...]
    equal: int  # cells whose numbers are all the same
    compared: int  # cells answered on both sides
    unanswered: int  # cells that BASE does not answer
    by_content: int  # cells matched by content, their keys being different
    only_base: int
    only_head: int
    tolerance: Tolerance
    movements: tuple[Movement, ...] = ()
    apart: tuple[str, ...] = ()  # in what machines and data differ
    code: tuple[str, ...] = ()  # what was made by other code

    @property
    def outcome(self) -> Literal["same", "same within noise", "regressed", "not measured"]:
        """Return the verdict on HEAD; where nothing was compared it is never "same"."""
        outcomes = {difference.outcome for difference in self.differences}
        moved = {movement.outcome(self.tolerance) for movement in self.movements}
        if "worse" in moved if self.apart else "regressed" in outcomes:
            return "regressed"
        if "not measured" in outcomes or not self.compared:
            return "not measured"
        noise = self.apart and self.compared > self.equal and "better" not in moved
        return "same within noise" if noise else "same"


def compare(base: Results, head: Results, tolerance: Tolerance) -> Comparison:
    """Compare HEAD with BASE over the cells both ask, matched by key, else by content."""
    known = {key: key for key, _ in base.outline.cells}
    alike = {_content(cell): key for key, cell in base.outline.cells}
    differences: list[Difference] = []
    matched: dict[str, str] = {}
    pairs: list[tuple[Record, Record]] = []
    tally: Counter[str] = Counter()
    for key, cell in head.outline.cells:
        twin = known.get(key) or alike.get(_content(cell))
        if twin is None:
            continue
        matched[key] = twin
        before, after = base.records.get(twin), head.records.get(key)
        if before is None or before.evidence is None:
            tally["unanswered"] += 1
        elif after is None or after.evidence is None:
            word = "no record" if after is None else after.status
            differences.append(Difference(key, cell, "evidence", "ok", word, "not measured"))
        else:
            found = [Difference(key, cell, *one) for one in _numbers(before, after, tolerance)]
            differences += found
            pairs.append((before, after))
            tally["compared"] += 1
            tally["equal"] += not found
    return Comparison(
        differences=tuple(differences),
        equal=tally["equal"],
        compared=tally["compared"],
        unanswered=tally["unanswered"],
        by_content=sum(key != twin for key, twin in matched.items()),
        only_base=len(known.keys() - set(matched.values())),
        only_head=len(head.outline.cells) - len(matched),
        tolerance=tolerance,
        movements=_movements(pairs, _owned(base), _owned(head)),
        apart=(*_machines(pairs), *_data(pairs)),
        code=tuple(sorted({name for a, b in pairs for name in _other(a.code, b.code)})),
    )


def _owned(results: Results) -> dict[str, bool]:
    """Judge every marked copy: by key, whether it is called owned."""
    blocks, _ = grouped(results.outline, results.records)
    found = dict[str, bool]()
    for block in blocks:
        for row in block.rows:
            for record in row.records("released"):  # also of keys that are one and the same
                verdict = verdict_on(record, block.nulls, results.outline.alpha)
                found[record.key] = verdict.outcome == "owned"
    return found


def _movements(
    pairs: Sequence[tuple[Record, Record]], was: Mapping[str, bool], now: Mapping[str, bool]
) -> tuple[Movement, ...]:
    """Test for every method whether its cells moved one way, in score and in utility."""
    found: list[Movement] = []
    methods = {after.cell.method.text: after.cell.method for _, after in pairs}
    for text, method in methods.items():
        own = [pair for pair in pairs if pair[1].cell.method.text == text]
        verdicts = [(was.get(a.key, False), now.get(b.key, False)) for a, b in own]
        lost, won = verdicts.count((True, False)), verdicts.count((False, True))
        found.append(_movement(method, "score", [_gain(*pair) for pair in own], lost, won))
        found.append(_movement(method, "utility", [*_useful(own)], 0, 0))
    adjusted = _holm([movement.p_value for movement in found])
    return tuple(
        dataclasses.replace(movement, adjusted=p)
        for movement, p in zip(found, adjusted, strict=True)
    )


def _movement(
    method: Spec, what: Literal["score", "utility"], gains: Sequence[float], lost: int, won: int
) -> Movement:
    moved = [gain for gain in gains if abs(gain) > ROUNDING]
    better = sum(gain > 0 for gain in moved)
    return Movement(
        method=method,
        what=what,
        cells=len(gains),
        better=better,
        worse=len(moved) - better,
        mean=fmean(moved) if moved else 0.0,
        largest=max(map(abs, moved), default=0.0),
        p_value=sign_test(better, len(moved) - better),
        adjusted=1.0,
        lost=lost,
        won=won,
    )


def _gain(base: Record, head: Record) -> float:
    """Return by how much a copy is recognised more, or an innocent less."""
    good = 1 if lineage(base) == "released" else -1
    return good * (evidence_of(head).score - evidence_of(base).score)


def _useful(pairs: Iterable[tuple[Record, Record]]) -> Iterator[float]:
    for before, after in pairs:
        was, now = before.utility, after.utility
        if was is not None and now is not None and was.metric == now.metric:
            yield now.value - was.value


def sign_test(better: int, worse: int) -> float:
    """Return the exact two-sided p-value of so many signs, either of which is as likely."""
    count, fewer = better + worse, min(better, worse)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << count))


def _holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's procedure."""
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _machines(pairs: Iterable[tuple[Record, Record]]) -> tuple[str, ...]:
    """Say in what the machines differ on which cells were read, and their models made."""

    def where(record: Record, stage: str) -> dict[str, str]:
        found = record.elsewhere.get(stage, record.environment)
        return {name: value for name, value in found.items() if name != "bench"}

    return _told(
        ("machine", where(a, stage), where(b, stage))
        for a, b in pairs
        for stage in ("", "protect", "attack")
    )


def _data(pairs: Sequence[tuple[Record, Record]]) -> Iterator[str]:
    """Say which data differ: by digest, or of older records by keys alone."""
    yield from _told(("data", a.data, b.data) for a, b in pairs)
    unstated = [(a, b) for a, b in pairs if not (a.data and b.data)]
    if count := sum(a.cell == b.cell and a.key != b.key for a, b in unstated):
        yield f"data or weights: {count} equal cells have other keys"


def _told(found: Iterable[tuple[str, Mapping[str, str], Mapping[str, str]]]) -> tuple[str, ...]:
    """Say once what differs; where one side says nothing at all, nothing is known to."""
    lines = dict[str, None]()
    for what, was, now in found:
        for name in _other(was, now):
            before, after = was.get(name, "not stated"), now.get(name, "not stated")
            lines[f"{what}: {name} {before} in BASE, {after} in HEAD"] = None
    return tuple(lines)


def _other(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    names = sorted(was.keys() | now.keys()) if was and now else []
    return [name for name in names if was.get(name) != now.get(name)]


def _content(cell: Cell) -> str:
    """Write a cell without versions: they rise when results may change, which is to be seen."""
    return canonical(_unversioned(dataclasses.asdict(cell)))


def _unversioned(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {k: _unversioned(v) for k, v in value.items() if k != "version" and v is not None}
    return [_unversioned(item) for item in value] if isinstance(value, list | tuple) else value


def _numbers(base: Record, head: Record, tolerance: Tolerance) -> Iterator[_Number]:
    """Yield every number that differs, the evidence's only where the evidence does."""
    assert base.evidence is not None
    assert head.evidence is not None
    before, after = base.evidence, head.evidence
    good = 1 if lineage(base) == "released" else -1  # an innocent must not be recognised more
    if before != after:
        if before.rule == after.rule:
            yield from _number("rate", before.rate, after.rate, tolerance.rate, good)
        else:
            yield "rule", before.rule.text, after.rule.text, "not measured"
        yield from _number("score", before.score, after.score, tolerance.score, good)
        if before.rate == after.rate and before.score == after.score:
            yield "evidence", before.rate, after.rate, "within tolerance"  # of other queries
    yield from _utility(base, head, tolerance.utility)
    if (was := base.fidelity) and (now := head.fidelity):
        cosines = fmean(was.feature_cosine), fmean(now.feature_cosine)
        yield from _number("feature cosine", *cosines, tolerance.score)
        probes = was.released_probe_accuracy, now.released_probe_accuracy
        yield from _number("probe accuracy", *probes, tolerance.utility)
        if was.own_images and now.own_images:
            own = [fmean(unpacked(f.released_right, f.own_images)) for f in (was, now)]
            yield from _number(
                "accuracy on the owner's own task", own[0], own[1], tolerance.utility
            )


def _utility(base: Record, head: Record, tolerance: float) -> Iterator[_Number]:
    before, after = base.utility, head.utility
    if before is None or before == after:
        return
    if after is None or after.metric != before.metric:
        yield "utility", before.metric, after.metric if after else "none", "not measured"
    else:
        yield from _number("utility", before.value, after.value, tolerance)


def _number(
    what: str, before: float, after: float, tolerance: float, good: int = 1
) -> Iterator[_Number]:
    gain = good * (after - before)
    if abs(gain) <= tolerance + 1e-9:  # 0.92 - 0.90 is a little more than 0.02
        if gain:
            yield what, before, after, "within tolerance"
    else:
        yield what, before, after, "improved" if gain > 0 else "regressed"


MOVED = {"regressed": "moved for the worse", "improved": "moved for the better"}
"""What a cell alone does where another machine or other data moves every cell a little."""


def by_method(found: Comparison) -> Table:
    """Return how far each method moved, and whether that is more than noise."""
    names = labelled(movement.method for movement in found.movements)
    return Table(
        name="Comparison by method",
        caption=f"HEAD against BASE over all cells of a method: {found.outcome}",
        columns=(
            *("method", "what", "cells", "moved", "better", "worse", "mean", "largest"),
            *("p", "p (Holm)", "verdicts lost", "won", "outcome"),
        ),
        rows=tuple(
            (
                *(names(m.method), m.what, str(m.cells), str(m.better + m.worse)),
                *(str(m.better), str(m.worse), f"{m.mean:+.4f}", f"{m.largest:.4f}"),
                *(f"{m.p_value:.3g}", f"{m.adjusted:.3g}", str(m.lost), str(m.won)),
                m.outcome(found.tolerance),
            )
            for m in found.movements
        ),
        notes=(
            "better: a copy recognised more, an innocent less, a suspect more useful. mean and "
            "largest: of the cells that moved. p: exact two-sided sign test over these, which "
            f"takes them for independent; more than noise at {ALPHA:g} after Holm and a mean "
            "beyond tolerance. A lost verdict is worse whatever the rest.",
            *names.legend,
        ),
        heads=2,
    )


def table(found: Comparison, head: Results, tolerance: Tolerance) -> Table:
    """Return what moved beyond tolerance or was lost, and how much there was to compare."""
    cells = [cell for _, cell in head.outline.cells]
    owners = labelled(cell.owner for cell in cells)
    methods = labelled(cell.method for cell in cells)
    steps = labelled(step for cell in cells for step in cell.attack)
    shown = [d for d in found.differences if d.outcome != "within tolerance"]
    rows = [
        (
            owners(d.cell.owner),
            methods(d.cell.method),
            steps(*d.cell.attack),
            f"{d.cell.lineage} {d.cell.method_seed}/{d.cell.attack_seed}",
            d.what,
            *_change(d.base, d.head),
            MOVED.get(d.outcome, d.outcome) if found.apart else d.outcome,
            d.key,
        )
        for d in sorted(shown, key=lambda d: (d.outcome != "regressed", d.outcome == "improved"))
    ]
    legend = (*owners.legend, *methods.legend, *steps.legend)
    used = {name for row in rows for cell in row[:3] for name in cell.split(" > ")}
    return Table(
        name="Comparison",
        caption=f"HEAD against BASE: {found.outcome} ({head.outline.name})",
        columns=(
            *("owner", "method", "attack", "suspect", "what"),
            *("BASE", "HEAD", "change", "outcome", "cell"),
        ),
        rows=tuple(rows),
        notes=(
            *_circumstances(found),
            *_counts(found),
            f"tolerances: rate {tolerance.rate:g}, score {tolerance.score:g}, utility "
            f"{tolerance.utility:g}. A suspect is named by lineage and seeds, method's / attack's.",
            *(line for line in legend if line.partition(":")[0] in used),
        ),
        heads=2,
    )


def _change(base: float | str, head: float | str) -> tuple[str, str, str]:
    if isinstance(base, str) or isinstance(head, str):
        return str(base), str(head), NOTHING
    return f"{base:.3f}", f"{head:.3f}", f"{head - base:+.3f}"


def _circumstances(found: Comparison) -> Iterable[str]:
    """Yield in what BASE and HEAD differ beside their numbers, and how they are judged for it."""
    if found.apart:
        yield (
            "made on another machine or with other data: judged by method, over all cells, and by "
            f"verdicts. {'; '.join(found.apart)}."
        )
    if found.code:
        yield f"made by other code: {', '.join(found.code)}."


def _counts(found: Comparison) -> Iterable[str]:
    """Yield in sentences how much was compared and what was not."""
    if not found.compared:
        yield "nothing was compared: no cell has evidence on both sides."
    outcomes = Counter(difference.outcome for difference in found.differences)
    words: Mapping[str, str] = MOVED if found.apart else {}
    better, worse = (words.get(word, word) for word in ("improved", "regressed"))
    yield (
        f"{found.compared} cells compared, {found.equal} of them alike in every number. Numbers "
        f"that differ: {outcomes['within tolerance']} within tolerance, {outcomes['improved']} "
        f"{better}, {outcomes['regressed']} {worse}. {outcomes['not measured']} not measured any "
        "more."
    )
    if found.by_content:
        yield f"{found.by_content} cells matched by content: their keys differ."
    if found.unanswered:
        yield f"{found.unanswered} cells have no evidence in BASE."
    if found.only_base or found.only_head:
        yield f"{found.only_base} cells only BASE asks, {found.only_head} only HEAD."
