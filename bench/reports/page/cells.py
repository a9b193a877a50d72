"""Say of every cell of a page what its row and its record say, line by line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from bench.records.nouns import (
    POPULATIONS,
    Cost,
    Evidence,
    Fidelity,
    Json,
    Record,
    Spec,
    canonical,
    how_many,
    unpacked,
)
from bench.records.table import NOTHING
from bench.reports.blocks import CellResult
from bench.reports.notes import largest_p
from bench.reports.price.accusers import kind_of
from bench.verdicts.intervals import wilson
from bench.verdicts.verdict import Verdict

STATES = {
    "ok": "answered",
    "hole": "not run yet",
    "failed": "failed",
    "skipped": "skipped",
    "incompatible": "incompatible",
}
"""What can have become of a cell, in the words of the page."""


class Line(NamedTuple):
    """One thing said about a cell, and what it is called."""

    term: str
    text: str


@dataclass(frozen=True)
class CellRow:
    """One cell as the page lists it."""

    number: int
    key: str
    attack: str
    suspect: str
    seeds: str
    state: str
    rate: str
    score: str
    p: str
    verdict: str
    utility: str


def state_of(result: CellResult) -> str:
    """Name what became of a cell, as `STATES` has it."""
    return result.record.status if result.record else "hole"


def details(results: Iterable[CellResult]) -> dict[str, Json]:
    """Return every line there is to say of any cell, and for every cell the numbers of its own."""
    lines: dict[Line, int] = {}
    cells = [[lines.setdefault(line, len(lines)) for line in _lines(result)] for result in results]
    return {"lines": list(lines), "cells": cells}


def cell_row(number: int, result: CellResult, attack: str, verdict: Verdict | None) -> CellRow:
    """Write the row of a cell that has this number on the page."""
    record, evidence = result.record, result.evidence
    utility = record.utility if record else None
    return CellRow(
        number=number,
        key=result.key,
        attack=attack,
        suspect=POPULATIONS[result.lineage],
        seeds=f"{result.cell.method_seed}/{result.cell.attack_seed}",
        state=state_of(result),
        rate=f"{evidence.rate:.3f}" if evidence else NOTHING,
        score=f"{evidence.score:.4f}" if evidence else NOTHING,
        p=largest_p([verdict]) if verdict else NOTHING,
        verdict=verdict.text if verdict else NOTHING,
        utility=f"{utility.value:.3f}" if utility else NOTHING,
    )


def _lines(result: CellResult) -> Iterator[Line]:
    """Yield a cell's record and where it comes from, line by line."""
    cell, record = result.cell, result.record
    yield Line("key", result.key)
    state = STATES[state_of(result)]
    yield Line("status", f"{state}: {record.reason}" if record and record.reason else state)
    if record:
        yield from _found(record)
    descent = POPULATIONS[result.lineage]
    yield Line("suspect", f"{descent}, made from the model called {cell.base!r}")
    for step in cell.attack:
        yield Line("attack", _spec(step))
    yield Line("owner", _spec(cell.owner))
    yield Line("method", _spec(cell.method))
    if cell.other_model:
        yield Line("other model", _spec(cell.other_model))
    if cell.accuser:
        yield Line("accuser", _spec(cell.accuser))
        after = "" if cell.accused is None else f", made up with innocent {cell.accused} in hand"
        yield Line("claim", kind_of(cell) + after)
    other = "" if cell.other_seed is None else f", of the other key {cell.other_seed}"
    yield Line("seeds", f"method {cell.method_seed}, attack {cell.attack_seed}{other}")
    if record:
        yield from _provenance(record)


def _found(record: Record) -> Iterator[Line]:
    if record.evidence:
        yield Line("evidence", _evidence(record.evidence))
    if record.utility:
        u = record.utility
        yield Line("utility", f"{u.metric} {u.value:.4f} on {u.task}, n = {u.n}")
    if record.fidelity:
        yield Line("fidelity", _fidelity(record.fidelity))


def _evidence(evidence: Evidence) -> str:
    n = len(evidence.agreement)
    low, high = wilson(evidence.rate, n)
    native = evidence.statistic
    queries = f"{how_many(n, 'query', 'queries')} ({evidence.unit})"
    return (
        f"rate {evidence.rate:.4f} [{low:.3f}, {high:.3f}] by {evidence.rule.text}, "
        f"score {evidence.score:.4f}, {queries}; {evidence.rule.statistic}: "
        f"mean {fmean(native):.4g}, from {min(native):.4g} to {max(native):.4g}"
    )


def _fidelity(fidelity: Fidelity) -> str:
    n = fidelity.own_images
    rights = (fidelity.owner_right, fidelity.released_right)
    own = [f"{fmean(unpacked(right, n)):.4f}" for right in rights] if n else []
    return (
        f"feature cosine {fmean(fidelity.feature_cosine):.4f} over {len(fidelity.feature_cosine)} "
        f"images; probe accuracy {fidelity.owner_probe_accuracy:.4f} (owner), "
        f"{fidelity.released_probe_accuracy:.4f} (released) on {fidelity.task}, "
        f"n = {fidelity.probe_images}"
        + (f"; own classifier {' to '.join(own)} on {fidelity.own_task}, n = {n}" if own else "")
    )


def _provenance(record: Record) -> Iterator[Line]:
    yield Line("suspect digest", record.suspect_digest or NOTHING)
    yield Line("owner digest", record.owner_digest or NOTHING)
    yield Line("access", record.access or NOTHING)
    for stage, cost in sorted(record.costs.items()):
        yield Line(f"cost of {stage}", _cost(cost))
    for stage, notes in sorted(record.notes.items()):
        if notes:
            text = pairs(notes) if isinstance(notes, dict) else _word(notes)
            yield Line(f"notes of {stage}", text)
    yield Line("environment", pairs(record.environment) or NOTHING)
    for stage, environment in sorted(record.elsewhere.items()):
        yield Line(f"environment of {stage}", pairs(environment))
    for what, digests in (("data", record.data), ("code", record.code)):
        if digests:
            yield Line(what, pairs(digests))
    yield Line("record", f"of the suite {record.suite}, schema {record.schema}")


def _cost(cost: Cost) -> str:
    ideal = "" if cost.ideal_seconds is None else f" (ideal {cost.ideal_seconds:.3g})"
    return (
        f"{cost.seconds:.3g} s{ideal}, passes: {cost.forward_passes:.0f} forward, "
        f"{cost.backward_passes:.0f} backward, {cost.peak_memory_mb:.0f} MB, {cost.device}"
    )


def _spec(spec: Spec) -> str:
    version = "" if spec.version == 1 else f" (version {spec.version})"
    return f"{spec.name}{version}: {pairs(spec.args) or 'no settings'}"


def pairs(values: Mapping[str, Json]) -> str:
    """Write names with their values, in order of the names."""
    return ", ".join(f"{name} {_word(value)}" for name, value in sorted(values.items()))


def _word(value: Json) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else canonical(value)
