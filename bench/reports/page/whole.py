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
from dataclasses import dataclass, replace
from importlib import resources

from bench.records.nouns import POPULATIONS, Outline, Record, how_many
from bench.records.table import NOTHING, Picture, Table
from bench.reports import drawings, tables
from bench.reports.blocks import Block, CellResult, grouped, judged
from bench.reports.notes import counts_text, distinct
from bench.reports.page import answers, budgets, charts
from bench.reports.page.cells import STATES, CellRow, Line, cell_row, details, pairs, state_of
from bench.reports.price.accusers import Forged, forged, suspect_of
from bench.reports.price.marks import price
from bench.verdicts.innocents import Innocents, verdict_on

SCRIPTS = ("sort.js", "report.js", "answers.js")
"""What the one script of the page is made of; its policy allows no other, by digest."""


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
class Accused:
    """The cells of one accuser with one method."""

    owner: str
    method: str
    accuser: str
    states: Sequence[tuple[str, str, int]]
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
    """Return the page: the answer, drawings, tables and pictures given, every cell's record."""
    import jinja2

    blocks, _ = grouped(outline, records)
    claims = forged(outline, records)
    groups = [*(block.results for block in blocks), *(claim.results for claim in claims)]
    results = [*itertools.chain.from_iterable(groups)]
    starts = itertools.accumulate(map(len, groups), initial=0)
    cards = [_card(block, outline.alpha, next(starts)) for block in blocks]
    accused = [_accused(claim, next(starts)) for claim in claims]
    maps, holes = answers.maps(outline, records, blocks), _holes(blocks)
    said = {*outline.reductions, *outline.warnings}  # once, in the overview
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bench.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    templates = resources.files("bench.reports").joinpath("templates")
    script = "".join(templates.joinpath(name).read_text("utf-8") for name in SCRIPTS)
    return environment.get_template("report.html").render(
        outline=outline,
        title=outline.heading,
        maps=maps,
        choices=answers.choices(maps),
        grids=budgets.grids(outline, records, blocks),
        compute=budgets.compute_columns(),
        charts=charts.charts(outline, records, blocks),
        cards=cards,
        accused=accused,
        totals=_states(results),
        environments=_environments(records, outline),
        asked=_extent(blocks),
        tables=[_table_view(table, holes, said) for table in made],
        pictures=[(p.table, p.caption, base64.b64encode(p.svg).decode()) for p in pictures],
        details=details(results),
        states=STATES,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _states(results: Iterable[CellResult]) -> list[tuple[str, str, int]]:
    """Count cells by what became of them: state, its words, how many."""
    counted = Counter(map(state_of, results))
    return [(state, words, counted[state]) for state, words in STATES.items()]


def _extent(blocks: Sequence[Block]) -> str:
    """Say how much was asked: "1 owner, 2 methods, 8 attacks"."""
    owners, methods = ({getattr(block, kind) for block in blocks} for kind in ("owner", "method"))
    attacks = {row.label for block in blocks for row in block.rows}
    words = ((owners, "owner"), (methods, "method"), (attacks, "attack"))
    return ", ".join(how_many(len(found), word) for found, word in words)


def _environments(records: Mapping[str, Record], outline: Outline) -> list[str]:
    asked = (records[key] for key, _ in outline.cells if key in records)
    return sorted({pairs(record.environment) for record in asked if record.environment})


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
        cell_row(number, result, attacks.get(result.key, NOTHING), verdicts.get(result.key))
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


def _accused(claim: Forged, first: int) -> Accused:
    """List an accuser's cells, of which the first has this number on the page."""
    rows = [
        cell_row(number, result, NOTHING, claim.verdicts.get(result.key))
        for number, result in enumerate(claim.results, start=first)
    ]
    cells = [
        replace(row, suspect=suspect_of(result.cell))
        for row, result in zip(rows, claim.results, strict=True)
    ]
    return Accused(claim.owner, claim.method, claim.accuser, _states(claim.results), cells)


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
                states = {state_of(result) for result in row.suspects[origin] if result.hole}
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
