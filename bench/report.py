"""Turn records into the paper's tables and figures.

A report is a pure function of an outline (what was asked, in order) and the records by key (what
was found): the same records give the same bytes, whatever order they come in.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, TypeVar

from bench import bounds, statistics
from bench.lineup import (
    OTHER_KEY,
    POPULATIONS,
    TAUS,
    Block,
    Row,
    core,
    detection,
    evidence_of,
    grouped,
    judged,
    per_model,
    rates_by_tau,
)
from bench.tables import NOTHING, Table
from bench.types import Cost, Fidelity, Lineage, Record, canonical

if TYPE_CHECKING:
    from bench.ledger import Outline

T = TypeVar("T", bound=Hashable)


PROTECT_NOTES = (
    *("block", "block_rule", "trigger_images", "yield", "steps"),
    *("asked_for", "trajectories", "tried", "failed", "points", "zero_loss"),
    *("queries", "wrong", "filled"),
)
"""What `protect` may report: where a mark sits, who chose the place, how it was trained, and the
share of trigger images read without error, which a selecting owner would have kept; how many
queries a fingerprint has of those asked for, what failed, and what filled the gap."""

STEP_RATIO = "step_ratio_to_ideal"
"""What `protect` may report about its training loop: a step's time over the fewest passes'."""


LEGEND = (
    "marked: the released model after the attack (for a fingerprint the released model is the "
    "owner's). twin: the same attack on the owner's unmarked model, so a mark must not be read off "
    "it. stranger: the same attack on models trained independently. Rates are shares of queries on "
    "which the method's own rule holds: mean [95 % Wilson interval over the queries of one suspect]"
    " (n models: lowest-highest).",
    f"{OTHER_KEY}: the same owner's model marked with another key, not attacked, read with this "
    "claim's; it is innocent, and as a known model ranked among nobody. Strangers of another shape "
    "than the owner's, and models by name, stand in rows of their own and count among the "
    "strangers.",
    "p: the largest p-value of the marked copies, each (1 + innocents scoring at least as high) / "
    "(1 + innocents), the larger of strangers and descendants of the clean owner; 1 for a mark "
    "that scores no higher than the clean owner itself, the public model it was finetuned from or "
    "a copy marked with another key. Most strangers are untouched: p against them is that of a "
    "model left untouched, whatever the row's attack does to anybody's score; for a mark, the "
    "twins answer for the attack. owned 2/2: the "
    "verdict on 2 of 2 copies. statistic: mean of the method's native number. "
    f"m/t/s: marked / twin / stranger. {NOTHING}: not asked. hole: not run yet.",
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


# Table 1.


def _table_1(outline: Outline, blocks: Sequence[Block]) -> Table:
    """Return what is read off the marked copy and its twin, for each block a mark was put at."""
    places: dict[str, list[tuple[int, Block]]] = {}
    for block in blocks:
        method = block.asked[0].cell.method
        if isinstance(at := method.args.get("block"), int):
            alike = {name: value for name, value in method.args.items() if name != "block"}
            key = canonical([block.owner, method.name, method.version, alike])
            places.setdefault(key, []).append((at, block))
    sweeps = [sorted(found, key=lambda f: f[0]) for found in places.values() if len(found) > 1]
    rows = [
        (block.owner, block.asked[0].cell.method.name, str(at), row.label, *_place(row))
        for sweep in sweeps
        for at, block in sweep
        for row in block.rows
        if row.records("released")
    ]
    return Table(
        name="Table 1",
        caption=f"what the block that a mark is put at decides ({_title(outline)})",
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


def _place(row: Row) -> tuple[str, ...]:
    """Write R(0), R(4) and the mean bit errors of marked copies, then of twins."""
    cells: list[str] = []
    for origin, _ in POPULATIONS[:2]:
        records = row.records(origin)
        rates = rates_by_tau(records)
        errors = per_model((r, fmean(evidence_of(r).statistic)) for r in records)
        cells += [*(_number(rates[tau], fmean, 3) if rates else NOTHING for tau in (0, 4))]
        cells.append(_number(errors, fmean, 2))
    return tuple(cells)


# Table 2.


def _table_2(outline: Outline, blocks: Sequence[Block], legend: Sequence[str]) -> Table:
    """Return detection rates, verdicts and utility for every attack, after the price of a mark."""
    tasks: dict[str, str] = {}
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for block in blocks:
        nulls = block.nulls
        access = sorted({record.access for record in block.records if record.access})
        head = (block.owner, block.method, f"needs {'; '.join(access)}" if access else NOTHING)
        body = [
            *price(block),
            *(_attack_row(row, nulls, outline.alpha, tasks) for row in block.rows),
        ]
        rows += [(*head, *cells) for cells in body]
        notes += [
            f"{block.owner}, {block.method}: {n}" for n in _findings(block, nulls, outline.alpha)
        ]
    return Table(
        name="Table 2",
        caption=f"who is recognised after which attack ({_title(outline)})",
        columns=(
            *("owner", "method", "access"),
            *("attack", "marked", "twin", "stranger", "statistic (m/t/s)", "p", "verdict"),
            "utility (m/t)",
        ),
        rows=tuple(rows),
        notes=(
            *LEGEND,
            *(f"utility {number}: {task}." for task, number in tasks.items()),
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
    methods = _distinct(block.method for block in blocks)
    for owner in _distinct(block.owner for block in blocks):
        by_method = {block.method: block for block in blocks if block.owner == owner}
        columns = [by_method.get(method) for method in methods]
        rows += [(owner, *cells) for cells in _columns(columns, outline.alpha)]
    return Table(
        name="Table 2 side by side",
        caption=f"every method on copies made by the same recipes ({_title(outline)})",
        columns=("owner", "kind", "experiment", *methods),
        rows=tuple(rows) if len(methods) > 1 else (),
        notes=(
            "rates are shares of queries by each method's own rule, means over models (n); they "
            "differ in unit, the verdicts (how many of the copies) do not. Verdicts are "
            "conditional on this owner and these strangers; a mark is attacked in its own released "
            "model. Table 2 has the intervals and the reductions. A fingerprint has no twins: "
            "whatever descends from the unmarked owner is its own.",
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
    labels = _distinct(row.label for block in there for row in block.rows)
    yield ("what is compared", "needs", *(_needs(block) for block in blocks))
    yield ("what is compared", "rate of", *(_rule(block) for block in blocks))
    yield ("what is compared", "price: feature cosine", *(_brief_price(block) for block in blocks))
    for origin, _ in POPULATIONS:
        shown: set[tuple[str, ...]] = set()
        for label in labels:
            cells = tuple(
                _brief(rows.get(label), origin, null, alpha)
                for rows, null in zip(tables, nulls, strict=True)
            )
            if set(cells) != {NOTHING} and (cells not in shown or origin == "released"):
                yield (KINDS[origin], label, *cells)  # untouched strangers stand in two rows
            shown.add(cells)


def _brief(
    row: Row | None, origin: Lineage, nulls: Mapping[str, statistics.Innocents], alpha: float
) -> str:
    """Write a rate and, of marked copies, the verdicts; in words why there is none."""
    if row is None:
        return NOTHING
    spread = detection(row, origin)
    if spread is None:
        asked = row.suspects[origin]
        # A reason is a sentence, and stands in Table 2.
        states = [a.record.status if a.record else "hole" for a in asked if a.hole]
        return _count_words(states) if states else rate_text(row, origin)
    if origin != "released":
        return f"{spread.mean:.3f} (n={spread.models})"
    outcomes = [verdict.outcome for verdict in judged(row, nulls, alpha)]
    return f"{spread.mean:.3f} {counts_text(outcomes)}"


def _needs(block: Block | None) -> str:
    return "; ".join(sorted({r.access for r in block.records if r.access})) if block else NOTHING


def _rule(block: Block | None) -> str:
    """Name a query and what counts as a detection: "images, bit errors <= 5"."""
    if block is None or not block.found:
        return NOTHING
    evidence = evidence_of(block.found[0])
    return f"{evidence.unit}: {evidence.rule.text}"


def _brief_price(block: Block | None) -> str:
    prices = [r.fidelity for r in block.records if r.fidelity] if block else []
    return f"{fmean(fmean(p.feature_cosine) for p in prices):.3f}" if prices else NOTHING


def price(block: Block) -> list[tuple[str, ...]]:
    """Return the rows that price a mark: the released model, without injection, before attacks."""
    prices = list({r.cell.method_seed: r.fidelity for r in block.records if r.fidelity}.values())
    if not prices:
        return []
    blank = (NOTHING,) * 6
    return [
        ("price: feature cosine", _cosine(prices), *blank),
        ("price: probe accuracy, owner -> released", _probe(prices), *blank),
    ]


def _cosine(prices: Sequence[Fidelity]) -> str:
    means = [fmean(price.feature_cosine) for price in prices]
    intervals = [statistics.mean_interval(price.feature_cosine) for price in prices]
    known = [interval for interval in intervals if interval]
    models = _models(len(means), statistics.between(means))
    if not known:
        return f"{fmean(means):.4f} {models}"
    low = fmean(low for low, _ in known)
    high = min(1.0, fmean(high for _, high in known))  # Student knows no bound, a cosine has one
    return f"{fmean(means):.4f} [{low:.4f}, {high:.4f}] {models}"


def _probe(prices: Sequence[Fidelity]) -> str:
    before = fmean(price.owner_probe_accuracy for price in prices)
    after = [price.released_probe_accuracy for price in prices]
    n = min(price.probe_images for price in prices)
    low, high = statistics.difference_interval(before, fmean(after), n)
    change = fmean(after) - before
    return (
        f"{before:.3f} -> {fmean(after):.3f}: {change:+.3f} [{low:+.3f}, {high:+.3f}] "
        f"{_models(len(after), statistics.between(after))}"
    )


def _attack_row(
    row: Row, nulls: Mapping[str, statistics.Innocents], alpha: float, tasks: dict[str, str]
) -> tuple[str, ...]:
    verdicts = judged(row, nulls, alpha)
    native = _statistics(row)
    return (
        row.label,
        *(rate_text(row, origin) for origin, _ in POPULATIONS),
        NOTHING if set(native) == {NOTHING} else " / ".join(native),
        largest_p(verdicts),
        counts_text([verdict.outcome for verdict in verdicts]),
        utility_text(row, tasks),
    )


def rate_text(row: Row, origin: Lineage) -> str:
    """Write a population's detection rate, or in words why there is none."""
    words = _count_words([asked.hole for asked in row.suspects[origin] if asked.hole])
    spread = detection(row, origin)
    if spread is None:
        return words or ("the clean owner" if origin == "released" and row.undone else NOTHING)
    low, high = spread.within
    models = _models(spread.models, spread.between)
    text = f"{spread.mean:.3f} [{low:.3f}, {high:.3f}] {models}"
    return f"{text} + {words}" if words else text


def _statistics(row: Row) -> list[str]:
    """Write each population's native statistic, mean over models, or that nothing is there."""
    found = [
        per_model((r, fmean(evidence_of(r).statistic)) for r in row.records(origin))
        for origin, _ in POPULATIONS
    ]
    return [f"{fmean(means):#.3g}" if means else NOTHING for means in found]


def utility_text(row: Row, tasks: dict[str, str]) -> str:
    """Write marked / twin with the numbers of the tasks; `tasks` gains those not met before."""
    texts, numbers = [], set()
    for origin in ("released", "owner"):
        measured = [(r, r.utility) for r in row.records(origin) if r.utility is not None]
        values = per_model((record, utility.value) for record, utility in measured)
        texts.append(f"{fmean(values):.3f}" if values else NOTHING)
        for _, utility in measured:
            task = f"{utility.metric}, {utility.task}, n = {utility.n}"
            numbers.add(tasks.setdefault(task, f"({len(tasks) + 1})"))
    return f"{' / '.join(texts)} {''.join(sorted(numbers))}" if numbers else NOTHING


def _findings(
    block: Block, nulls: Mapping[str, statistics.Innocents], alpha: float
) -> Iterator[str]:
    """Yield what a reader must know to judge a block: its rule, its nulls, its warnings."""
    if not block.found:
        return
    evidence = evidence_of(block.found[0])
    rule = f"native rule {evidence.rule.text}, one query is one {evidence.unit}, {_chance(block)}."
    noted = filter(None, [_noted(block.found)])
    yield " ".join([rule, *noted, *_distinct(_null(null, alpha) for null in nulls.values())])
    alike = [
        row.label
        for row in block.rows
        if any(evidence_of(record).rate for record in row.records("released"))  # a mark is there
        and any(_twin_alike(verdict, alpha) for verdict in judged(row, nulls, alpha))
    ]
    if alike:
        yield (
            f"descendants of the unmarked owner score like the marked copy ({', '.join(alike)}): "
            "the mark would be read off models that nobody marked with its key."
        )
    if same := _read_alike(block.found):
        yield f"its keys read alike on all {same} suspects they share; they count as one."
    if undone := [row.label for row in block.rows if row.undone]:
        yield f"the suspect has the clean owner's weights, hence is a twin: {', '.join(undone)}."


def _chance(block: Block) -> str:
    """Write how far a model that never met the owner agrees with it.

    Where nobody knows beforehand, strangers of even number tell and those of odd number check it.
    """
    known = evidence_of(block.found[0]).chance
    if known is not None:
        return f"chance agreement {known:.3g}"
    even, odd = _stranger_scores(block, 0), _stranger_scores(block, 1)
    if not even:
        return "chance agreement not known: it takes strangers to tell, and none was read"
    told = (
        f"chance agreement not known beforehand: {fmean(even):.3f} by the strangers of even number "
        f"(n={len(even)})"
    )
    interval = statistics.mean_interval(odd)
    if interval is None or len(even) < 2:
        return f"{told}, too few to check it on others"
    verb = "agree" if statistics.means_agree(even, odd) else "do not agree"
    low, high = max(0.0, interval[0]), min(1.0, interval[1])  # Student knows no bounds
    return (
        f"{told}; those of odd number {verb}: {fmean(odd):.3f} [{low:.3f}, {high:.3f}] "
        f"(n={len(odd)})"
    )


def _stranger_scores(block: Block, parity: int) -> list[float]:
    """Return the mean score of each untouched stranger whose number is even (0) or odd (1)."""
    scores: dict[str, list[float]] = {}
    for asked in block.asked:
        control, whole = asked.cell.attack[0], not core(asked.cell)
        index = control.args.get("index") if asked.lineage == "stranger" and whole else None
        if asked.found and isinstance(index, int) and index % 2 == parity:
            scores.setdefault(canonical(control.json()), []).append(evidence_of(asked.found).score)
    return [fmean(values) for _, values in sorted(scores.items())]


def _null(null: statistics.Innocents, alpha: float) -> str:
    """Write the populations of innocents behind the p-values, and what they can decide."""
    sizes = [len(null.strangers), *([] if null.descendants is None else [len(null.descendants)])]
    needed = statistics.innocents_needed(alpha)
    twins = "" if null.descendants is None else f" and {sizes[1]} descendants of the clean owner"
    short = "" if min(sizes) >= needed else f"; undecided, {needed} of each are needed"
    unread = null.descendants is not None and null.clean is None
    clean = " The clean owner itself was not read: no copy had to score above it." * unread
    keys = f", above {len(null.other_keys)} marked with other keys" * bool(null.other_keys)
    return (
        f"p from {sizes[0]} strangers{twins}, counted as models{keys}; smallest attainable p "
        f"{_p(1 / (min(sizes) + 1))} at alpha = {alpha:g}{short}; {_level(null, alpha)}.{clean}"
    )


def _level(null: statistics.Innocents, alpha: float) -> str:
    """Write how many innocents of each kind would be called owned, judged by all others."""
    checks = {k: c for k, c in statistics.false_positives(null, alpha).items() if c.decided}
    if not checks:
        return "too few innocents to judge each by all others"
    if null.descendants is None:
        return f"ranks among strangers alone call a share of {alpha:g} of them owned at most"
    counts = ", ".join(
        f"{check.called} of {check.decided} {kind} (95 % upper bound {check.upper:.3f})"
        for kind, check in checks.items()
    )
    return f"called owned, each judged by all others: {counts}"


def _read_alike(found: Iterable[Record]) -> int:
    """Return how many suspects all keys of a method were read on, if no reading tells them apart.

    One reading throughout, as of a method that finds nothing anywhere, says nothing about the keys.
    """
    keys: dict[str, dict[str, list[float]]] = {}
    for record in found:
        read = keys.setdefault(statistics.claim(record.cell), {})
        # The same queries may come in another order.
        read[statistics.model_name(record)] = sorted(evidence_of(record).agreement)
    first, *others = keys.values()
    shared = [suspect for suspect in first if all(suspect in other for other in others)]
    alike = all(first[suspect] == other[suspect] for suspect in shared for other in others)
    differ = any(first[suspect] != first[shared[0]] for suspect in shared)
    return len(shared) if others and alike and differ else 0


def _noted(records: Iterable[Record]) -> str:
    """Say what `protect` reported of the mark, one value per secret where secrets differ."""
    by_secret = {r.cell.method_seed: r.notes["protect"] for r in records if r.notes.get("protect")}
    texts = []
    for name in PROTECT_NOTES:
        found = [noted[name] for _, noted in sorted(by_secret.items()) if name in noted]
        shown = dict.fromkeys(f"{v:.3f}" if isinstance(v, float) else str(v) for v in found)
        if shown:
            texts.append(f"{name.replace('_', ' ')}: {' and '.join(shown)}")
    return f"{', '.join(texts)}." if texts else ""


def _twin_alike(verdict: statistics.Verdict, alpha: float) -> bool:
    """Say whether innocents of the owner's own family are what stands against ownership.

    A copy that has lost its mark scores like strangers too: that is no complaint about twins.
    """
    by_strangers, by_twins = verdict.p_stranger, verdict.p_descendant
    if by_twins is None or by_twins <= max(alpha, 1 / (1 + (verdict.n_descendants or 0))):
        return False  # no twin scores as high
    if by_strangers is None:
        return False  # without strangers nobody can say that the mark is still there
    return by_strangers <= max(alpha, 1 / (1 + verdict.n_strangers))


# Table 3 and Fig. 3.


def _table_3(outline: Outline, blocks: Sequence[Block]) -> Table:
    """Return what embedding and extraction cost, beside the fewest passes they need."""
    return Table(
        name="Table 3",
        caption=f"what marking and reading cost ({_title(outline)})",
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
            *outline.reductions,
        ),
    )


def cost_row(block: Block) -> tuple[str, ...]:
    """Return a block's row of Table 3."""
    # Embedding happens once per seed, however many suspects are read with its secret.
    embeds = list(
        {
            r.cell.method_seed: r.costs["protect"] for r in block.records if "protect" in r.costs
        }.values()
    )
    reads = [r.costs["extract"] for r in block.found if "extract" in r.costs]
    both = [*embeds, *reads]
    notes = {r.cell.method_seed: r.notes.get("protect", {}) for r in block.records}
    steps = [float(n[STEP_RATIO]) for n in notes.values() if n.get(STEP_RATIO) is not None]
    return (
        block.owner,
        ", ".join(sorted({cost.device for cost in both if cost.device})) or NOTHING,
        block.method,
        _number([cost.seconds / 60 for cost in embeds], fmean, 2),
        *_seconds(embeds, fmean),
        _number(steps, median, 2),
        *_seconds(reads, median),
        _passes([c.forward_passes for c in embeds], [c.forward_passes for c in reads]),
        _passes([c.backward_passes for c in embeds], [c.backward_passes for c in reads]),
        _number([cost.peak_memory_mb for cost in both], max, 0),
    )


def _passes(embeds: Sequence[float], reads: Sequence[float]) -> str:
    return f"{_number(embeds, fmean, 0)}/{_number(reads, median, 0)}"


def _seconds(costs: Sequence[Cost], middle: Callable[[Sequence[float]], float]) -> tuple[str, ...]:
    """Write seconds, ideal seconds and their ratio, the ratio from the same stages as the ideal."""
    paired = [(c.seconds, c.ideal_seconds) for c in costs if c.ideal_seconds]
    ratios = [seconds / ideal for seconds, ideal in paired]
    return (
        _number([cost.seconds for cost in costs], middle, 2),
        _number([ideal for _, ideal in paired], middle, 2),
        _number(ratios, middle, 2),
    )


def _figure_3(blocks: Sequence[Block]) -> Table:
    """Return R at every tau for methods that count bit errors: the paper's Fig. 3 as numbers."""
    rows = []
    for block in blocks:
        if not any(evidence_of(record).rule.statistic == "bit errors" for record in block.found):
            continue
        for row, (origin, name) in itertools.product(block.rows, POPULATIONS):
            if curve := _curve(row.records(origin)):
                rows.append((block.owner, block.method, row.label, name, *curve))
    return Table(
        name="Figure 3",
        caption="R, the share of images read with at most tau bit errors, mean over n models",
        columns=("owner", "method", "attack", "suspect", "n", *(f"tau {tau}" for tau in TAUS)),
        rows=tuple(rows),
        notes=LEGEND[:1],
        heads=2,
    )


def _curve(records: Sequence[Record]) -> tuple[str, ...]:
    """Write the number of models and their mean rate at every tau; empty without models."""
    if not records:
        return ()
    by_tau = rates_by_tau(records)
    return (str(len(by_tau[0])), *(f"{fmean(rates):.3f}" for rates in by_tau))


# Text.


def _models(count: int, between: statistics.Interval | None) -> str:
    """Write how many models a mean is over, and their range if there is one."""
    return f"(n={count}: {between[0]:.3f}-{between[1]:.3f})" if between else f"(n={count})"


def largest_p(verdicts: Sequence[statistics.Verdict]) -> str:
    """Write the largest p-value of several copies, if every one of them has one."""
    found = [verdict.p_value for verdict in verdicts if verdict.p_value is not None]
    return _p(max(found)) if found and len(found) == len(verdicts) else NOTHING


def counts_text(outcomes: Sequence[str]) -> str:
    """Write verdicts with how often each was passed: "owned 1/2, undecided 1/2"."""
    counted = Counter(outcomes)
    return ", ".join(f"{o} {counted[o]}/{len(outcomes)}" for o in sorted(counted)) or NOTHING


def _count_words(words: Sequence[str]) -> str:
    """Write the reasons for missing numbers once each: "hole (2), skipped: needs labels"."""
    counted = Counter(words)
    return "; ".join(w if counted[w] == 1 else f"{w} ({counted[w]})" for w in sorted(counted))


def _distinct(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _number(
    values: Sequence[float], middle: Callable[[Sequence[float]], float], decimals: int
) -> str:
    return f"{middle(values):.{decimals}f}" if values else NOTHING


def _title(outline: Outline) -> str:
    return outline.title or outline.name
