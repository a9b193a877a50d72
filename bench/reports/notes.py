"""Put a block of records into words: rates, verdicts, and what a reader must know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

from bench.records.nouns import POPULATIONS, Lineage, Record, canonical, evidence_of, how_many
from bench.records.table import NOTHING
from bench.reports.blocks import (
    MARKED_AND_TWINS,
    NO_THEFT,
    OTHER_KEY,
    Block,
    Row,
    Task,
    detection,
    judged,
    per_model,
)
from bench.verdicts.exact.coins import p_text
from bench.verdicts.innocents import (
    Innocents,
    core,
    model_name,
    reading_of,
    same_keys,
    secret_of,
)
from bench.verdicts.intervals import Interval, mean_interval, means_agree
from bench.verdicts.verdict import Rank, Verdict

T = TypeVar("T", bound=Hashable)

PROTECT_NOTES = (
    *("block", "block_rule", "code_block", "trigger_images", "yield", "steps"),
    *("asked_for", "trajectories", "tried", "failed", "points", "zero_loss"),
    *("queries", "wrong", "filled", "names"),
)
"""What `protect` may report: where a mark sits, who chose the place and what the authors' code
would have chosen, how it was trained, and the share of trigger images read without error, which a
selecting owner would have kept; how many queries a fingerprint has of those asked for, what failed,
what filled the gap, and what a high score names."""

STEP_RATIO = "step_ratio_to_ideal"
"""What `protect` may report about its training loop: a step's time over the fewest passes'."""

LEGEND = (
    "marked: the released model after the attack (for a fingerprint the released model is the "
    "owner's). twin: the same attack on the owner's unmarked model, so a mark must not be read off "
    "it. stranger: the same attack on models trained independently. Rates are shares of queries on "
    "which the method's own rule holds: mean [95 % Wilson interval over the queries of one suspect]"
    " (n models: lowest-highest).",
    f"{OTHER_KEY}: the same owner's model marked with another key and attacked alike, read with "
    "this claim's; it is innocent. Strangers of another shape than the owner's, and models by "
    "name, stand in rows of their own and count among the strangers.",
    "p: the largest p-value of the marked copies, each (1 + innocents scoring at least as high) / "
    "(1 + innocents), the largest over the kinds of innocents it is ranked among; 1 for a mark "
    "that does not outscore every innocent that is known and no draw: the clean owner, the public "
    "model it was finetuned from, twins of the row's own attack that are too few to rank, and, "
    "where no other key was attacked alike, other keys' untouched copies. "
    "ranked among: the fewest that count as one, of each kind, and the least p these allow. "
    "strangers: models, of a family of published ones the highest score; of a fingerprint, those "
    "that went through the row's attack; of a mark, untouched ones, for its twins answer for the "
    "attack. twins: of the row's own attack, where it has enough. clusters: else, attack by "
    "attack, the highest score of its twins, the clean owner being one. other keys: of copies "
    "marked with them, attacked alike.",
    "owned 2/2: the verdict on 2 of 2 copies. other keys only at 1/2: the copy outscored the one "
    "other key there is, which an innocent other key's does with that chance. other keys not "
    "read: nothing is said of them. 2 of 19: too few to reach alpha. statistic: mean of the "
    f"method's native number. m/t/s: marked / twin / stranger. {NOTHING}: not asked. hole: not "
    "run yet.",
)


ALIGNED_LEGEND = (
    "aligned: a reading of its own, with innocents of its own. Before it is read, every suspect, "
    "guilty or not, is written in the basis of the released model, for a fingerprint of the "
    "owner's: what rotations, permutations and scales hid is undone. auto-aligned: by activations "
    "where weights tell too little. A claim is one, read in two ways: of the two "
    "verdicts choose one before the suspect is seen, or halve alpha."
)


def rate_text(row: Row, origin: Lineage) -> str:
    """Write a population's detection rate, or in words why there is none."""
    words = count_words([result.hole for result in row.suspects[origin] if result.hole])
    spread = detection(row, origin)
    if spread is None:
        return words or ("the clean owner" if origin == "released" and row.undone else NOTHING)
    low, high = spread.within
    models = models_text(spread.models, spread.between)
    text = f"{spread.mean:.3f} [{low:.3f}, {high:.3f}] {models}"
    return f"{text} + {words}" if words else text


def findings(block: Block, alpha: float) -> Iterator[str]:
    """Yield what a reader must know to judge a block: its rule, its nulls, its warnings."""
    evidence, nulls = block.sample, block.nulls
    if evidence is None:
        return
    chance = _chance(block, evidence.chance)
    rule = f"native rule {evidence.rule.text}, one query is one {evidence.unit}, {chance}."
    noted = filter(None, [_noted(block.with_evidence)])
    yield " ".join([rule, *noted, *distinct(map(_known, nulls.values()))]).strip()
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
    if same := same_keys(block.with_evidence):
        yield f"{same}."
    if shared := _read_alike(block.with_evidence):
        yield (
            f"its keys read alike on all {shared} suspects they share; they count apart, for "
            "nothing says that they are one."
        )
    if partly := _read_in_part(block.with_evidence):
        yield partly
    if distances := _distances(block):
        yield f"distance left of the embeddings by alignment, 0 of a copy: {distances}."
    if undone := [row.label for row in block.rows if row.undone]:
        yield f"the suspect has the clean owner's weights, hence is a twin: {', '.join(undone)}."


def _distances(block: Block) -> str:
    """Write between which distances each population was aligned, and how many could not be."""
    parts, refused = [], 0
    for origin, name in POPULATIONS.items():
        records = [r for row in block.rows for r in row.records(origin) if "align" in r.notes]
        found = [r.notes["align"]["residual"] for r in records]
        left = [float(residual) for residual in found if residual is not None]
        refused += sum(r.notes["align"]["stage"] == "none" for r in records)
        if left:
            parts.append(f"{name} {min(left):.3f} to {max(left):.3f}")
    unaligned = f"; {refused} read as they are, for they cannot be aligned" if refused else ""
    return ", ".join(parts) + unaligned


def _chance(block: Block, known: float | None) -> str:
    """Write how far a model that never met the owner agrees with it.

    Where nobody knows beforehand, strangers of even number tell and those of odd number check it.
    """
    if known is not None:
        return f"chance agreement {known:.3g}"
    even, odd = _stranger_scores(block, 0), _stranger_scores(block, 1)
    if not even:
        return "chance agreement not known: it takes strangers to tell, and none was read"
    told = (
        f"chance agreement not known beforehand: {fmean(even):.3f} by the strangers of even number "
        f"(n={len(even)})"
    )
    interval = mean_interval(odd)
    if interval is None or len(even) < 2:
        return f"{told}, too few to check it on others"
    verb = "agree" if means_agree(even, odd) else "do not agree"
    low, high = max(0.0, interval[0]), min(1.0, interval[1])  # Student knows no bounds
    return (
        f"{told}; those of odd number {verb}: {fmean(odd):.3f} [{low:.3f}, {high:.3f}] "
        f"(n={len(odd)})"
    )


def _stranger_scores(block: Block, parity: int) -> list[float]:
    """Return the mean score of each untouched stranger whose number is even (0) or odd (1)."""
    scores: dict[str, list[float]] = {}
    for result in block.results:
        control, whole = result.cell.attack[0], not core(result.cell)
        index = control.args.get("index") if result.lineage == "stranger" and whole else None
        if result.evidence and isinstance(index, int) and index % 2 == parity:
            scores.setdefault(canonical(control.json()), []).append(result.evidence.score)
    return [fmean(values) for _, values in sorted(scores.items())]


def _known(null: Innocents) -> str:
    """Say what a claim's known innocents are, where it has another than the clean owner."""
    if null.descendants is None and null.public is not None:
        return (
            f"The public model that the owner finetuned scores {null.public:.3f}: a copy must "
            "score above it, for others finetune that model, too."
        )
    if null.descendants is None or null.clean is not None:
        return ""
    return "The clean owner itself was not read: no copy had to score above it."


def _read_alike(found: Iterable[Record]) -> int:
    """Return how many suspects all keys of a method were read on, if no reading tells them apart.

    One reading throughout, as of a method that finds nothing anywhere, says nothing about the keys.
    """
    keys: dict[str, dict[str, list[float]]] = {}
    for record in found:
        read = keys.setdefault(secret_of(record), {})
        # The same queries may come in another order.
        read[model_name(record)] = sorted(evidence_of(record).agreement)
    first, *others = keys.values()
    shared = [suspect for suspect in first if all(suspect in other for other in others)]
    alike = all(first[suspect] == other[suspect] for suspect in shared for other in others)
    differ = any(first[suspect] != first[shared[0]] for suspect in shared)
    return len(shared) if others and alike and differ else 0


def _read_in_part(found: Iterable[Record]) -> str:
    """Say of how many suspects a part alone could be read; empty if all were read whole."""
    noted = [r.notes.get("extract", {}) for r in {reading_of(r): r for r in found}.values()]
    parts = [(n["compared"], n["of"]) for n in noted if n.get("compared", 0) < n.get("of", 0)]
    if not parts:
        return ""
    least, of = min(parts)
    suspects = how_many(len(parts), "suspect was", "suspects were")
    return f"{suspects} read in part: at least {least} of {of} queries."


def _noted(records: Iterable[Record]) -> str:
    """Say what `protect` reported of the mark, one value per secret where secrets differ."""
    by_secret = {r.cell.method_seed: r.notes["protect"] for r in records if r.notes.get("protect")}
    texts = []
    for name in PROTECT_NOTES:
        known = (noted.get(name) for _, noted in sorted(by_secret.items()))
        found = [value for value in known if value is not None]
        shown = dict.fromkeys(f"{v:.3f}" if isinstance(v, float) else str(v) for v in found)
        if shown:
            texts.append(f"{name.replace('_', ' ')}: {' and '.join(shown)}")
    return f"{', '.join(texts)}." if texts else ""


def _twin_alike(verdict: Verdict, alpha: float) -> bool:
    """Say whether innocents of the owner's own family are what stands against ownership.

    A copy that has lost its mark scores like strangers too: that is no complaint about twins.
    """
    strangers, twins = verdict.rank("strangers"), verdict.rank("descendants")
    if twins is None or twins.p is None or twins.p <= max(alpha, twins.attainable):
        return False  # no twin scores as high
    if strangers is None or strangers.p is None:
        return False  # without strangers nobody can say that the mark is still there
    return strangers.p <= max(alpha, strangers.attainable)


def numbered_tasks(rows: Iterable[Row]) -> dict[str, str]:
    """Return the number of every task that suspects were held to, in order of first mention."""
    tasks = distinct(task for row in rows for task in _tasks(row))
    return {task: f"({number})" for number, task in enumerate(tasks, start=1)}


def _tasks(row: Row) -> list[str]:
    measured = (utility for origin in MARKED_AND_TWINS for _, utility in row.measured(origin))
    return [f"{utility.metric}, {utility.task}, n = {utility.n}" for utility in measured]


def utility_text(row: Row, tasks: Mapping[str, str], least: Mapping[Task, float]) -> str:
    """Write marked / twin with the numbers of their tasks, and whether the copies are worth it."""
    numbers = sorted({tasks[task] for task in _tasks(row)})
    if not numbers:
        return NOTHING
    means = [
        per_model((record, utility.value) for record, utility in row.measured(origin))
        for origin in MARKED_AND_TWINS
    ]
    texts = [f"{fmean(values):.3f}" if values else NOTHING for values in means]
    worth = "" if row.usable(least) else f", {NO_THEFT}"
    return f"{' / '.join(texts)} {''.join(numbers)}{worth}"


def models_text(count: int, between: Interval | None) -> str:
    """Write how many models a mean is over, and their range if there is one."""
    return f"(n={count}: {between[0]:.3f}-{between[1]:.3f})" if between else f"(n={count})"


def largest_p(verdicts: Sequence[Verdict]) -> str:
    """Write the largest p-value of several copies, if every one of them has one."""
    exact = [verdict.log10_p for verdict in verdicts if verdict.log10_p is not None]
    if exact and len(exact) == len(verdicts):
        return p_text(max(exact))
    found = [verdict.p_value for verdict in verdicts if verdict.p_value is not None]
    return _p(max(found)) if found and len(found) == len(verdicts) else NOTHING


def ranked_among(verdicts: Sequence[Verdict]) -> str:
    """Write the fewest innocents of each kind that copies were ranked among, and the least p."""
    if not verdicts:
        return NOTHING
    kinds: dict[str, list[Rank]] = {}
    for rank in (rank for verdict in verdicts for rank in verdict.ranks):
        kinds.setdefault(rank.kind, []).append(rank)
    fewest = [min(ranks, key=lambda rank: rank.n) for ranks in kinds.values()]
    needed, least = verdicts[0].needed, max(verdict.attainable for verdict in verdicts)
    if not kinds:
        return f"none needed; least p {_p(least)}"
    return f"{', '.join(_counted(rank, needed) for rank in fewest)}; least p {_p(least)}"


def _counted(rank: Rank, needed: int) -> str:
    """Write how many innocents of a kind there are, and of how many where these are too few."""
    short = "" if rank.n >= needed else f" of {needed}"
    alike = " attacked alike" if rank.counted == "attacked alike" else ""
    if rank.kind == "strangers":
        return f"{rank.n}{short} strangers{alike}"
    if rank.kind == "other keys":
        return f"{rank.n}{short} other keys"
    return f"{rank.n}{short} {'twins' if rank.counted == 'within the attack' else rank.counted}"


def counts_text(verdicts: Sequence[Verdict], unread: int = 0) -> str:
    """Write verdicts with how often each was passed: "owned 1/2, undecided 1/2".

    Owned copies count as such, whatever their reservation, which is said after them. Copies that
    the method could not read, `unread` of them, are among those it was tried on.
    """
    counted: Counter[str] = Counter(verdict.outcome for verdict in verdicts)
    counted.update(["incompatible"] * unread)
    said = ", ".join(f"{o} {counted[o]}/{counted.total()}" for o in sorted(counted))
    reservations = sorted({verdict.reservation for verdict in verdicts if verdict.reservation})
    return "; ".join([said, *reservations]) or NOTHING


def count_words(words: Sequence[str]) -> str:
    """Write the reasons for missing numbers once each: "hole (2), skipped: needs labels"."""
    counted = Counter(words)
    return "; ".join(w if counted[w] == 1 else f"{w} ({counted[w]})" for w in sorted(counted))


def distinct(items: Iterable[T]) -> list[T]:
    """Return each item once, in order of first mention."""
    return list(dict.fromkeys(items))


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def number_text(
    values: Sequence[float], middle: Callable[[Sequence[float]], float], decimals: int
) -> str:
    """Write the middle of some values, and from which to which they go."""
    return f"{middle(values):.{decimals}f}" if values else NOTHING
