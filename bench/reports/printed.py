"""Set the figures printed in the ActiveMark paper beside ours.

They are facts about other models, data and machines, shown for comparison and used for nothing.
Which row is like which is decided by registry names and settings, spelt out in
`reference/activemark.yaml`, never by what a label looks like:

* a method by its registry name, whatever its settings and whatever the owner;
* an attack by the registry name and the listed settings of its only step: fine-tuning of all layers
  by its schedule, segmentation, l1 pruning by its amount; other settings may differ, a chain of
  several steps is like nothing in the paper;
* strangers that nothing was done to, in a row of their own, are like the paper's two independent
  models, which both stand beside them;
* a numbered block (Table 1) only in the paper's own network: a block means nothing in another one.

Where nothing is alike, nothing is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from statistics import fmean

from bench.records.nouns import Json, Outline, Record, Spec, evidence_of
from bench.records.table import NOTHING, Table
from bench.reports import notes
from bench.reports.blocks import Block, Row, grouped, rates_by_tau
from bench.reports.tables import cost_row

CAUTION = "other models, data and machines than ours: no target, and part of no verdict."


def tables(outline: Outline, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """Return the paper's Tables 1 to 3 beside ours, as far as rows are alike."""
    every, _ = grouped(outline, records)
    blocks = [block for block in every if not block.aligned]  # the paper reads suspects as they are
    printed = _printed()
    one, two, three = printed["table1"], printed["table2"], printed["table3"]
    errors = ("R, tau 0", "paper", "bit errors", "paper", "R, tau 4, segmented", "paper")
    times = ("embed (ours)", "embed (paper)", "extract (ours)", "extract (paper)")
    made = (
        _table("Table 1", printed, one, ("block", *errors), _rows_1(blocks, one), 1),
        _table("Table 2", printed, two, ("attack", "ours", "paper"), _rows_2(blocks, two), 2),
        _table("Table 3", printed, three, times, _rows_3(blocks, three), 1),
    )
    return tuple(table for table in made if table.rows)


def _table(
    name: str,
    printed: Json,
    part: Json,
    columns: tuple[str, ...],
    rows: Iterable[tuple[str, ...]],
    heads: int,
) -> Table:
    return Table(
        name=f"Paper's {name}",
        caption="our figures beside those printed in the paper",
        columns=("owner", "method", *columns),
        rows=tuple(rows),
        notes=(f"paper: {printed['paper']}, {name}; {part['setting']}.", CAUTION),
        heads=heads,
    )


def _rows_1(blocks: Iterable[Block], printed: Json) -> Iterator[tuple[str, ...]]:
    """Yield the block with the mark: R without errors, mean errors, R after segmentation."""
    for block in blocks:
        cell = block.cell
        number = _marked_block(block.records)
        figures = printed["rows"].get(number)
        if cell.method.name != printed["method"] or not _like(cell.owner, printed["owner"]):
            continue
        if figures is None:
            continue
        whole, segmented = [], []
        for row in block.rows:
            whole += [] if row.chain else row.records("released")
            segmented += row.records("released") if _done(row, printed["segmented"]) else []
        errors = [fmean(evidence_of(r).statistic) for r in whole]
        ours = (_rate(whole, 0), f"{fmean(errors):.3f}" if errors else NOTHING, _rate(segmented, 4))
        beside = zip(ours, (f"{figure:.3f}" for figure in figures), strict=True)
        yield block.owner, block.method, str(number), *(text for pair in beside for text in pair)


def _marked_block(records: Iterable[Record]) -> int | None:
    """Return the block that carries the mark, counted from 1, as `protect` noted it."""
    noted = {record.notes.get("protect", {}).get("block") for record in records}
    number = noted.pop() if len(noted) == 1 else None
    return None if number is None else number + 1


def _rate(records: Sequence[Record], tau: int) -> str:
    """Write the mean detection rate with `tau` bit errors allowed."""
    return f"{fmean(rates_by_tau(records)[tau]):.3f}" if records else NOTHING


def _rows_2(blocks: Iterable[Block], printed: Json) -> Iterator[tuple[str, ...]]:
    """Yield the detection rate of every attack that the paper tried on this method too."""
    for block in blocks:
        method = block.cell.method.name
        for row in block.rows:
            if found := [f for f in printed["attacked"] if _done(row, f["attack"])]:
                ours = notes.rate_text(row, "released")
                figures = [f"{f['rates'][method]:.3f}" for f in found if method in f["rates"]]
            elif _independent(row):
                ours = notes.rate_text(row, "stranger")
                figures = [
                    f"{f['rates'][method]:.3f} ({f['model']})"
                    for f in printed["independent"]
                    if method in f["rates"]
                ]
            else:
                continue
            if figures:
                yield block.owner, block.method, row.label, ours, ", ".join(figures)


def _rows_3(blocks: Iterable[Block], printed: Json) -> Iterator[tuple[str, ...]]:
    """Yield what embedding and extraction took, in the units each side prints."""
    for block in blocks:
        minutes = printed["minutes"].get(block.cell.method.name)
        if minutes is not None:
            cost = cost_row(block)
            embed, extract = (f"{figure:.2f} min" for figure in minutes)
            ours = f"{cost.embed_minutes} min", f"{cost.extract_seconds} s"
            yield block.owner, block.method, ours[0], embed, ours[1], extract


def _done(row: Row, pattern: Json) -> bool:
    """Say whether a row's suspects went through this one attack, and marked copies are among it."""
    return bool(row.suspects["released"]) and len(row.chain) == 1 and _like(row.chain[0], pattern)


def _independent(row: Row) -> bool:
    """Say whether a row holds strangers that nothing was done to, and nobody else."""
    others = row.suspects["released"] or row.suspects["owner"]
    return bool(row.suspects["stranger"]) and not others and not row.chain


def _like(spec: Spec, pattern: Mapping[str, Sequence[Json]]) -> bool:
    """Say whether a spec has one of the names and, where listed, one of the settings allowed."""
    said = {**spec.args, "name": spec.name}
    return all(said.get(setting) in allowed for setting, allowed in pattern.items())


def _printed() -> Json:
    import yaml

    file = resources.files("bench.reports").joinpath("reference/activemark.yaml")
    return yaml.safe_load(file.read_text("utf-8"))
