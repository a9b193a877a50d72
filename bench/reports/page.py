"""Write a report as one page of HTML that needs nothing but a browser.

No server, no network: styles, script, figures and the record of every cell are in the page. Like
the tables, it is a pure function of an outline and the records by key.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from statistics import fmean
from typing import NamedTuple

from bench.records.nouns import (
    POPULATIONS,
    Cost,
    Evidence,
    Fidelity,
    Json,
    Outline,
    Record,
    Spec,
    canonical,
    how_many,
    unpacked,
)
from bench.records.table import NOTHING, Picture, Table
from bench.reports import drawings, tables
from bench.reports.blocks import Block, CellResult, grouped, judged
from bench.reports.notes import counts_text, distinct, largest_p
from bench.reports.price.marks import price
from bench.verdicts.innocents import Innocents, verdict_on
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


@dataclass(frozen=True)
class Card:
    """What is to be known of one owner with one method before reading its rows."""

    owner: str
    method: str
    facts: Sequence[Line]
    states: Sequence[tuple[str, str, int]]
    curves: Sequence[tuple[str, str]]
    histogram: str
    statistic: str
    cells: Sequence[CellRow]


@dataclass(frozen=True)
class TableView:
    """A table's text in the page: its blocks, every cell with the states of its holes."""

    name: str
    caption: str
    notes: Sequence[str]
    columns: Sequence[str]
    blocks: Sequence[tuple[str, Sequence[Sequence[tuple[str, str]]]]]


def html(
    outline: Outline,
    records: Mapping[str, Record],
    made: Sequence[Table],
    pictures: Sequence[Picture] = (),
) -> str:
    """Return the page: overview, methods, tables and pictures given, every cell with its record."""
    import jinja2

    blocks, _ = grouped(outline, records)
    starts = itertools.accumulate((len(block.results) for block in blocks), initial=0)
    cards = [_card(b, outline.alpha, start) for b, start in zip(blocks, starts, strict=False)]
    said = {*outline.reductions, *outline.warnings}  # once, in the overview
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bench.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    script = resources.files("bench.reports").joinpath("templates/report.js").read_text("utf-8")
    return environment.get_template("report.html").render(
        outline=outline,
        title=outline.heading,
        cards=cards,
        totals=_states(result for block in blocks for result in block.results),
        environments=_environments(records, outline),
        asked=_extent(blocks),
        tables=[_table_view(table, _holes(blocks), said) for table in made],
        pictures=[(p.table, p.caption, base64.b64encode(p.svg).decode()) for p in pictures],
        details=_details(blocks),
        states=STATES,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _states(results: Iterable[CellResult]) -> list[tuple[str, str, int]]:
    """Count cells by what became of them: state, its words, how many."""
    counted = Counter(map(_state, results))
    return [(state, words, counted[state]) for state, words in STATES.items()]


def _extent(blocks: Sequence[Block]) -> str:
    """Say how much was asked: "1 owner, 2 methods, 8 attacks"."""
    owners, methods = ({getattr(block, kind) for block in blocks} for kind in ("owner", "method"))
    attacks = {row.label for block in blocks for row in block.rows}
    words = ((owners, "owner"), (methods, "method"), (attacks, "attack"))
    return ", ".join(how_many(len(found), word) for found, word in words)


def _state(result: CellResult) -> str:
    return result.record.status if result.record else "hole"


def _environments(records: Mapping[str, Record], outline: Outline) -> list[str]:
    asked = (records[key] for key, _ in outline.cells if key in records)
    return sorted({_pairs(record.environment) for record in asked if record.environment})


def _details(blocks: Sequence[Block]) -> dict[str, Json]:
    """Return every line there is to say of any cell, and for every cell the numbers of its own."""
    lines: dict[Line, int] = {}
    cells = [
        [lines.setdefault(line, len(lines)) for line in _lines(result)]
        for block in blocks
        for result in block.results
    ]
    return {"lines": list(lines), "cells": cells}


def _card(block: Block, alpha: float, first: int) -> Card:
    """Describe a block, whose first cell has this number on the page."""
    nulls = block.nulls
    verdicts = {
        record.key: verdict_on(record, nulls, alpha)
        for row in block.rows
        for record in row.records("released")
    }
    attacks = {
        result.key: row.label
        for row in block.rows
        for group in row.suspects.values()
        for result in group
    }
    rows = [
        _cell_row(number, result, attacks.get(result.key, NOTHING), verdicts.get(result.key))
        for number, result in enumerate(block.results, start=first)
    ]
    name = f"b{first + len(rows)}-"
    drawn = [(row.label, drawings.curves(row, f"{name}{i}-")) for i, row in enumerate(block.rows)]
    return Card(
        owner=block.owner,
        method=block.method,
        facts=[*_facts(block, alpha)],
        states=_states(block.results),
        curves=[(label, drawing) for label, drawing in drawn if drawing],
        histogram=drawings.histogram(block, name),
        statistic=_unit(block),
        cells=rows,
    )


def _unit(block: Block) -> str:
    evidence = block.sample
    return f"{evidence.rule.statistic} of one {evidence.unit}" if evidence else ""


def _facts(block: Block, alpha: float) -> Iterator[Line]:
    """Yield access, rule, price, innocents, verdicts and costs, as far as records tell."""
    yield Line("needs", block.access or NOTHING)
    if block.records:
        yield Line("kind", "mark" if block.records[0].marks else "fingerprint")
    if evidence := block.sample:
        yield Line("native rule", f"{evidence.rule.text} per {evidence.unit}")
        known = "not known beforehand" if evidence.chance is None else f"{evidence.chance:.3g}"
        yield Line("chance agreement", known)
    for label, text, *_ in price(block):
        yield Line(label, text)
    yield Line("innocent models", "; ".join(distinct(map(_null, block.nulls.values()))) or NOTHING)
    attacked = [row for row in block.rows if row.chain]  # nobody took the untouched model
    found = [verdict for row in attacked for verdict in judged(row, block.nulls, alpha)]
    lost = sum(row.unread for row in attacked)
    yield Line("verdicts on attacked copies", counts_text(found, lost))
    cost = tables.cost_row(block)
    yield Line("embedding", f"{cost.embed_minutes} min, {cost.embed_ratio} of its ideal")
    yield Line("extraction", f"{cost.extract_seconds} s, {cost.extract_ratio} of its ideal")
    yield Line("on", f"{cost.device}, {cost.peak_mb} MB at most")


def _null(null: Innocents) -> str:
    strangers = len({name for group in null.strangers.values() for name in group})
    if null.descendants is None:
        return f"{strangers} strangers"
    models = len({name for group in null.descendants.values() for name in group})
    keys = len({name for group in null.other_keys.values() for name in group})
    return (
        f"{strangers} strangers, {models} descendants of the clean owner in {len(null.clusters)} "
        f"clusters, {keys} other keys"
    )


Holes = Mapping[tuple[str, str, str, str], str]
"""The state of what is missing, by owner, method, attack and population; "part" beside a number."""


def _holes(blocks: Sequence[Block]) -> Holes:
    """Return where answers are missing; of several states in one place, the gravest."""
    found: dict[tuple[str, str, str, str], str] = {}
    gravest = ("failed", "hole", "incompatible", "skipped")
    for block in blocks:
        for row in block.rows:
            for origin, population in POPULATIONS.items():
                states = {_state(result) for result in row.suspects[origin] if result.hole}
                missing = [state for state in gravest if state in states]
                if missing:
                    place = (block.owner, block.method, row.label, population)
                    found[place] = "part" if row.records(origin) else missing[0]
    return found


def _table_view(table: Table, holes: Holes, said: set[str]) -> TableView:
    """Lay out a table's blocks, and say of every cell what is missing there."""
    columns = {name: number for number, name in enumerate(table.columns)}
    named = [columns.get(name) for name in ("owner", "method", "attack")]

    def cells(head: tuple[str, ...], row: tuple[str, ...]) -> list[tuple[str, str]]:
        whole = (*head, *row)
        owner, method, attack = (NOTHING if i is None else whole[i] for i in named)
        return [
            (text, holes.get((owner, method, attack, column), ""))
            for column, text in zip(table.columns[table.heads :], row, strict=True)
        ]

    blocks = [
        (", ".join(part for part in head if part != NOTHING), [cells(head, row) for row in rows])
        for head, rows in table.blocks().items()
    ]
    notes = [note for note in table.notes if note not in said]
    return TableView(table.name, table.caption, notes, table.columns[table.heads :], blocks)


def _cell_row(number: int, result: CellResult, attack: str, verdict: Verdict | None) -> CellRow:
    record, evidence = result.record, result.evidence
    utility = record.utility if record else None
    return CellRow(
        number=number,
        key=result.key,
        attack=attack,
        suspect=POPULATIONS[result.lineage],
        seeds=f"{result.cell.method_seed}/{result.cell.attack_seed}",
        state=_state(result),
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
    state = STATES[_state(result)]
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
            text = _pairs(notes) if isinstance(notes, dict) else _word(notes)
            yield Line(f"notes of {stage}", text)
    yield Line("environment", _pairs(record.environment) or NOTHING)
    for stage, environment in sorted(record.elsewhere.items()):
        yield Line(f"environment of {stage}", _pairs(environment))
    for what, digests in (("data", record.data), ("code", record.code)):
        if digests:
            yield Line(what, _pairs(digests))
    yield Line("record", f"of the suite {record.suite}, schema {record.schema}")


def _cost(cost: Cost) -> str:
    ideal = "" if cost.ideal_seconds is None else f" (ideal {cost.ideal_seconds:.3g})"
    return (
        f"{cost.seconds:.3g} s{ideal}, passes: {cost.forward_passes:.0f} forward, "
        f"{cost.backward_passes:.0f} backward, {cost.peak_memory_mb:.0f} MB, {cost.device}"
    )


def _spec(spec: Spec) -> str:
    version = "" if spec.version == 1 else f" (version {spec.version})"
    return f"{spec.name}{version}: {_pairs(spec.args) or 'no settings'}"


def _pairs(values: Mapping[str, Json]) -> str:
    return ", ".join(f"{name} {_word(value)}" for name, value in sorted(values.items()))


def _word(value: Json) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else canonical(value)
