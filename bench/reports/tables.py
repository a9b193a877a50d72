"""Turn records into the paper's tables and figures.

A report is a pure function of an outline (what was asked, in order) and the records by key (what
was found): the same records give the same bytes, whatever order they come in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import NamedTuple

from bench.records.nouns import (
    ALIGNED,
    POPULATIONS,
    Cost,
    Lineage,
    Outline,
    Record,
    canonical,
    evidence_of,
)
from bench.records.table import NOTHING, Table
from bench.reports.blocks import (
    LOST,
    MARKED_AND_TWINS,
    NO_THEFT,
    TAUS,
    WORTHLESS,
    Block,
    Row,
    Task,
    any_unread,
    detection,
    grouped,
    judged,
    per_model,
    rates_by_tau,
    reading_cost,
)
from bench.reports.notes import (
    ALIGNED_LEGEND,
    LEGEND,
    STEP_RATIO,
    count_words,
    counts_text,
    distinct,
    findings,
    largest_p,
    number_text,
    numbered_tasks,
    ranked_among,
    rate_text,
    utility_text,
)
from bench.reports.price.marks import price
from bench.verdicts import bounds, level, pairs
from bench.verdicts.checks.uniform import uniform_table
from bench.verdicts.innocents import Innocents
from bench.verdicts.pairs import (
    CLASSES,
    FREE,
    PRICES,
    class_text,
    cosine_price,
    own_task_price,
    price_of,
)


def tables(outline: Outline, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """Return Tables 2 and 3 and, of the others, those that the suite has numbers for.

    They are Table 1 where one mark was put at several blocks, Table 2 once more with a column per
    method where there are several, and Fig. 3 and the bounds of 3.3 where bit errors are counted.
    """
    blocks, legend = grouped(outline, records)
    groups = [(block.owner, block.method, block.records) for block in blocks]
    found = (
        _table_1(outline, blocks),
        _table_2(outline, blocks, legend),
        _side_by_side(outline, blocks, legend),
        _table_3(outline, blocks),
        _figure_3(blocks),
        bounds.bounds_table(outline, groups),
    )
    return tuple(table for table in found if table.rows or table.name in ("Table 2", "Table 3"))


def calibration(
    outline: Outline, groups: Sequence[tuple[str, str, Sequence[Record]]]
) -> tuple[Table, ...]:
    """Return what verdicts are worth: level and power, exact nulls, every two methods compared."""
    others = uniform_table(outline, groups), pairs.pairs_table(outline, groups)
    return (level.level_table(outline, groups), *(table for table in others if table.rows))


def _table_1(outline: Outline, blocks: Sequence[Block]) -> Table:
    """Return what is read off the marked copy and its twin, for each block a mark was put at."""
    places: dict[str, list[tuple[int, Block]]] = {}
    for block in blocks:
        method = block.cell.method
        if isinstance(at := method.args.get("block"), int):
            alike = {name: value for name, value in method.args.items() if name != "block"}
            key = canonical([block.owner, method.name, method.version, alike])
            places.setdefault(key, []).append((at, block))
    sweeps = [sorted(found, key=lambda f: f[0]) for found in places.values() if len(found) > 1]
    rows = [
        (block.owner, _named(block), str(at), row.label, *_place(row))
        for sweep in sweeps
        for at, block in sweep
        for row in block.rows
        if row.records("released")
    ]
    return Table(
        name="Table 1",
        caption=f"what the block that a mark is put at decides ({outline.heading})",
        columns=(
            *("owner", "method", "block", "attack", "marked R(0)", "marked R(4)"),
            *("marked errors", "twin R(0)", "twin R(4)", "twin errors"),
        ),
        rows=tuple(rows),
        notes=(
            "block: 0-based number of the last frozen block, whose output is written to. R: share "
            "of images read with at most so many bit errors; errors: their mean. Means over "
            "models, twins over seeds.",
            *outline.reductions,
        ),
        heads=2,
    )


def _named(block: Block) -> str:
    method = block.cell.method
    return f"{method.name} {ALIGNED[method.align]}".strip()


def _place(row: Row) -> tuple[str, ...]:
    """Write R(0), R(4) and the mean bit errors of marked copies, then of twins."""
    cells: list[str] = []
    for origin in MARKED_AND_TWINS:
        records = row.records(origin)
        rates = rates_by_tau(records)
        errors = per_model((r, fmean(evidence_of(r).statistic)) for r in records)
        cells += [*(number_text(rates[tau], fmean, 3) if rates else NOTHING for tau in (0, 4))]
        cells.append(number_text(errors, fmean, 2))
    return tuple(cells)


def _table_2(outline: Outline, blocks: Sequence[Block], legend: Sequence[str]) -> Table:
    """Return detection rates, verdicts and utility for every attack, after the price of a mark."""
    tasks = numbered_tasks(row for block in blocks for row in block.rows)
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for block in blocks:
        nulls = block.nulls
        needs = f"needs {block.access}" if block.access else NOTHING
        head = (block.owner, block.method, needs)
        body = [
            *price(block),
            *(_attack_row(row, nulls, outline.alpha, tasks, block.least) for row in block.rows),
        ]
        rows += [(*head, *cells) for cells in body]
        notes += [f"{block.owner}, {block.method}: {n}" for n in findings(block, outline.alpha)]
    return Table(
        name="Table 2",
        caption=f"who is recognised after which attack ({outline.heading})",
        columns=(
            *("owner", "method", "access"),
            *("attack", "marked", "twin", "stranger", "statistic (m/t/s)", "p"),
            *("ranked among", "verdict", "utility (m/t)"),
        ),
        rows=tuple(rows),
        notes=(
            *LEGEND,
            *([ALIGNED_LEGEND] if any(block.aligned for block in blocks) else []),
            *(f"utility {number}: {task}." for task, number in tasks.items()),
            *([WORTHLESS] if any(NO_THEFT in cells[-1] for cells in rows) else []),
            *([LOST] if any_unread(blocks) else []),
            *legend,
            *notes,
            *outline.reductions,
            *outline.warnings,
        ),
        heads=3,
    )


def _side_by_side(outline: Outline, blocks: Sequence[Block], legend: Sequence[str]) -> Table:
    """Return Table 2 in the paper's shape: a column per method, positive rows, then negative."""
    rows: list[tuple[str, ...]] = []
    methods = distinct(block.method for block in blocks)
    for owner in distinct(block.owner for block in blocks):
        by_method = {block.method: block for block in blocks if block.owner == owner}
        columns = [by_method.get(method) for method in methods]
        rows += [(owner, *cells) for cells in _columns(columns, outline.alpha)]
    return Table(
        name="Table 2 side by side",
        caption=f"every method on copies made by the same recipes ({outline.heading})",
        columns=("owner", "kind", "experiment", *methods),
        rows=tuple(rows) if len(methods) > 1 else (),
        notes=(
            "rates are shares of queries by each method's own rule, means over models (n); they "
            "differ in unit, the verdicts (how many of the copies) do not. Verdicts are "
            "conditional on this owner and these strangers; a mark is attacked in its own released "
            "model. Table 2 has the intervals, the numbers of innocents and the reductions, and "
            "says what other keys are. A fingerprint has no twins: whatever descends from the "
            "unmarked owner is its own.",
            PRICES,
            *([CLASSES] if any(cells[2] == "price class" for cells in rows) else []),
            *([ALIGNED_LEGEND] if any(block.aligned for block in blocks) else []),
            *([LOST] if any_unread(blocks) else []),
            *legend,
        ),
        heads=2,
    )


KINDS = {
    "released": "positive: the released model after the attack",
    "owner": "negative: descendants of the unmarked owner, the same attack (twins)",
    "stranger": "negative: models that owe the owner nothing, attacked alike",
}


def _columns(blocks: Sequence[Block | None], alpha: float) -> Iterator[tuple[str, ...]]:
    """Yield kind, experiment and one text per method, for all that was asked of any."""
    there = [block for block in blocks if block is not None]
    nulls = [block.nulls if block else {} for block in blocks]
    tables = [{row.label: row for row in block.rows} if block else {} for block in blocks]
    labels = distinct(row.label for block in there for row in block.rows)
    yield ("what is compared", "needs", *(block.access if block else NOTHING for block in blocks))
    yield ("what is compared", "rate of", *(_rule(block) for block in blocks))
    records = [block.records if block else [] for block in blocks]
    yield ("what is compared", "price: feature cosine", *map(cosine_price, records))
    own = tuple(map(own_task_price, records))
    if not {*own} <= {NOTHING, FREE}:
        yield ("what is compared", "price: the owner's own task", *own)
    paid = [price_of(each) for each in records]
    if any(price is not None and price.task != FREE for price in paid):
        yield ("what is compared", "price class", *map(class_text, paid))
    for origin in POPULATIONS:
        shown: set[tuple[str, ...]] = set()
        for label in labels:
            cells = tuple(
                _brief(rows.get(label), origin, null, alpha)
                for rows, null in zip(tables, nulls, strict=True)
            )
            if set(cells) != {NOTHING} and (cells not in shown or origin == "released"):
                yield (KINDS[origin], label, *cells)  # untouched strangers stand in two rows
            shown.add(cells)


def _brief(row: Row | None, origin: Lineage, nulls: Mapping[str, Innocents], alpha: float) -> str:
    """Write a rate and, of marked copies, the verdicts; in words why there is none."""
    if row is None:
        return NOTHING
    spread = detection(row, origin)
    if spread is None:
        if origin == "released" and row.unread:
            return counts_text([], row.unread)
        missing = [result for result in row.suspects[origin] if result.hole]
        # A reason is a sentence, and stands in Table 2.
        states = [result.record.status if result.record else "hole" for result in missing]
        return count_words(states) if states else rate_text(row, origin)
    if origin != "released":
        return f"{spread.mean:.3f} (n={spread.models})"
    return f"{spread.mean:.3f} {counts_text(judged(row, nulls, alpha), row.unread)}"


def _rule(block: Block | None) -> str:
    """Name a query and what counts as a detection: "images, bit errors <= 5"."""
    evidence = block.sample if block else None
    return f"{evidence.unit}: {evidence.rule.text}" if evidence else NOTHING


def _attack_row(
    row: Row,
    nulls: Mapping[str, Innocents],
    alpha: float,
    tasks: Mapping[str, str],
    least: Mapping[Task, float],
) -> tuple[str, ...]:
    verdicts = judged(row, nulls, alpha)
    native = _statistics(row)
    return (
        row.label,
        *(rate_text(row, origin) for origin in POPULATIONS),
        NOTHING if set(native) == {NOTHING} else " / ".join(native),
        largest_p(verdicts),
        ranked_among(verdicts),
        counts_text(verdicts, row.unread),
        utility_text(row, tasks, least),
    )


def _statistics(row: Row) -> list[str]:
    """Write each population's native statistic, mean over models, or that nothing is there."""
    found = [
        per_model((r, fmean(evidence_of(r).statistic)) for r in row.records(origin))
        for origin in POPULATIONS
    ]
    return [f"{fmean(means):#.3g}" if means else NOTHING for means in found]


def _table_3(outline: Outline, blocks: Sequence[Block]) -> Table:
    """Return what embedding and extraction cost, beside the fewest passes they need."""
    return Table(
        name="Table 3",
        caption=f"what marking and reading cost ({outline.heading})",
        heads=2,
        columns=(
            *("owner", "device", "method", "embed min", "embed s", "ideal s", "ratio", "step"),
            *("extract s", "ideal s", "ratio", "forward (e/x)", "backward (e/x)", "peak MB"),
        ),
        rows=tuple(cost_row(block) for block in blocks),
        notes=(
            "embed: mean over method seeds. extract: median over suspects. ideal: the fewest "
            "passes the variant needs, timed on the same device in the same run. step: a training "
            "step over its ideal, without set-up. e/x: embedding / extraction, in images through "
            "the whole depth.",
            *([ALIGNED_COST] if any(block.aligned for block in blocks) else []),
            *outline.reductions,
        ),
    )


ALIGNED_COST = "aligned: extraction includes what aligning the suspect cost."


class CostRow(NamedTuple):
    """A row of Table 3: one owner with one method."""

    owner: str
    device: str
    method: str
    embed_minutes: str
    embed_seconds: str
    embed_ideal: str
    embed_ratio: str
    step: str
    extract_seconds: str
    extract_ideal: str
    extract_ratio: str
    forward: str
    backward: str
    peak_mb: str


def cost_row(block: Block) -> CostRow:
    """Return a block's row of Table 3."""
    # Embedding happens once per seed, however many suspects are read with its secret.
    embeds = list(
        {
            r.cell.method_seed: r.costs["protect"] for r in block.records if "protect" in r.costs
        }.values()
    )
    reads = [reading_cost(r) for r in block.with_evidence if "extract" in r.costs]
    both = [*embeds, *reads]
    notes = {r.cell.method_seed: r.notes.get("protect", {}) for r in block.records}
    steps = [float(n[STEP_RATIO]) for n in notes.values() if n.get(STEP_RATIO) is not None]
    embed_seconds, embed_ideal, embed_ratio = _seconds(embeds, fmean)
    extract_seconds, extract_ideal, extract_ratio = _seconds(reads, median)
    return CostRow(
        owner=block.owner,
        device=", ".join(sorted({cost.device for cost in both if cost.device})) or NOTHING,
        method=block.method,
        embed_minutes=number_text([cost.seconds / 60 for cost in embeds], fmean, 2),
        embed_seconds=embed_seconds,
        embed_ideal=embed_ideal,
        embed_ratio=embed_ratio,
        step=number_text(steps, median, 2),
        extract_seconds=extract_seconds,
        extract_ideal=extract_ideal,
        extract_ratio=extract_ratio,
        forward=_passes([c.forward_passes for c in embeds], [c.forward_passes for c in reads]),
        backward=_passes([c.backward_passes for c in embeds], [c.backward_passes for c in reads]),
        peak_mb=number_text([cost.peak_memory_mb for cost in both], max, 0),
    )


def _passes(embeds: Sequence[float], reads: Sequence[float]) -> str:
    return f"{number_text(embeds, fmean, 0)}/{number_text(reads, median, 0)}"


def _seconds(
    costs: Sequence[Cost], middle: Callable[[Sequence[float]], float]
) -> tuple[str, str, str]:
    """Write seconds, ideal seconds and their ratio, the ratio from the same stages as the ideal."""
    paired = [(c.seconds, c.ideal_seconds) for c in costs if c.ideal_seconds]
    ratios = [seconds / ideal for seconds, ideal in paired]
    return (
        number_text([cost.seconds for cost in costs], middle, 2),
        number_text([ideal for _, ideal in paired], middle, 2),
        number_text(ratios, middle, 2),
    )


def _figure_3(blocks: Sequence[Block]) -> Table:
    """Return R at every tau for methods that count bit errors: the paper's Fig. 3 as numbers."""
    rows = []
    for block in blocks:
        counted = [r for r in block.with_evidence if evidence_of(r).rule.statistic == "bit errors"]
        if not counted:
            continue
        for row, (origin, name) in itertools.product(block.rows, POPULATIONS.items()):
            unread = row.unread if origin == "released" else 0
            if curve := _curve(row.records(origin), unread):
                rows.append((block.owner, block.method, row.label, name, *curve))
    return Table(
        name="Figure 3",
        caption="R, the share of images read with at most tau bit errors, mean over n models",
        columns=("owner", "method", "attack", "suspect", "n", *(f"tau {tau}" for tau in TAUS)),
        rows=tuple(rows),
        notes=(
            LEGEND[0],
            *(
                ["a copy that the method cannot read counts with R = 0."]
                if any_unread(blocks)
                else []
            ),
        ),
        heads=2,
    )


def _curve(records: Sequence[Record], unread: int) -> tuple[str, ...]:
    """Write the number of models and their mean rate at every tau; empty without models.

    Nothing is read off those that cannot be.
    """
    by_tau = rates_by_tau(records) or [[] for _ in TAUS]
    found = [[*rates, *[0.0] * unread] for rates in by_tau]
    return (str(len(found[0])), *(f"{fmean(rates):.3f}" for rates in found)) if found[0] else ()
