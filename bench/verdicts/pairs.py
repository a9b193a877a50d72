"""Compare two methods of an owner: the copies each recognises, by recipe, at what price."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.records.nouns import (
    SCORE_DECIMALS,
    Fidelity,
    Outline,
    Record,
    Spec,
    how_many,
    unpacked,
)
from bench.records.table import NOTHING, Table
from bench.verdicts.families import Answer, Paired, paired, paired_together
from bench.verdicts.innocents import (
    WHOLE,
    attack_of,
    copy_of,
    innocents,
    outcomes,
    secret_of,
)
from bench.verdicts.intervals import Interval, difference_interval, paired_interval

FREE = "none"
"""The price of a fingerprint, whose released model is the owner's."""

PRICES = (
    "price: what a mark costs its owner before any attack. The owner's own task is its accuracy "
    "before -> after, with the paired 95 % interval of the difference. Feature cosine is that of "
    f"the owner and the released model. {FREE}: a fingerprint leaves the model as it is. A "
    "comparison at unequal prices orders nothing: it says who detects more, not which method is "
    "better."
)

NOT_ORDERED = (
    "not ordered: what the two cost their owner differs by more than 0.01 of its own task (by "
    "probe, where it has none), so neither is called better. Such a pair is not tested, nor "
    "counted by Holm. `bench tune` finds settings at a stated price."
)

POINTS = (0.0, 0.01, 0.02, 0.05)
"""The prices at which methods are set side by side, as shares of the owner's own task."""

SAME_PRICE = 0.01
"""Two prices count as equal up to here: one point of the owner's own task."""


CLASSES = (
    "price class: points of the owner's own task that a mark costs (of a probe, where it has "
    f"none), the nearest of {', '.join(f'{100 * point:g}' for point in POINTS)}. What is read "
    "compares within a class, and says nothing across classes."
)


@dataclass(frozen=True, slots=True)
class Price:
    """What a mark loses its owner, as a share of `task`: positive where the task suffers.

    `ends` is the 95 % interval, paired over images where records allow. A fingerprint's is nothing.
    """

    lost: float
    ends: Interval
    task: str

    @property
    def point(self) -> float | None:
        """Return the nearest of the prices that are set side by side; None beyond the last."""
        if self.lost > round(POINTS[-1] + SAME_PRICE, SCORE_DECIMALS):
            return None
        return min(POINTS, key=lambda point: abs(point - self.lost))


def price_of(records: Iterable[Record]) -> Price | None:
    """Return what a mark costs on its owner's own task, or by probe where there is none.

    None where no record says it. One key counts once, several by their means.
    """
    read = list(records)
    if read and not any(record.marks for record in read):
        return Price(0.0, (0.0, 0.0), FREE)
    found = list({r.cell.method_seed: r.fidelity for r in read if r.fidelity}.values())
    if not found:
        return None
    task = "own task"
    pairs = own_answers(found)
    if not pairs and all(f.released_probe_right for f in found):
        task, n = "probe", found[0].probe_images
        pairs = [
            (unpacked(f.owner_probe_right, n), unpacked(f.released_probe_right, n)) for f in found
        ]
    if not pairs:  # an older record, which has totals alone
        before = fmean(f.owner_probe_accuracy for f in found)
        after = fmean(f.released_probe_accuracy for f in found)
        low, high = difference_interval(before, after, found[0].probe_images)
        return Price(_lost(before, after), (-high, -low), "probe")
    low, high = paired_interval(pairs)
    before, after = (fmean(fmean(pair[side]) for pair in pairs) for side in (0, 1))
    return Price(_lost(before, after), (-high, -low), task)


def _lost(before: float, after: float) -> float:
    """Return a difference of accuracies; its last digits must not decide what a price allows."""
    return round(before - after, SCORE_DECIMALS)


def class_text(price: Price | None) -> str:
    """Name the prices that a price is set beside: those nearest to one point of the task."""
    if price is None:
        return NOTHING
    if price.point is None:
        return f"more than {100 * (POINTS[-1] + SAME_PRICE):g} points"
    return f"about {how_many(round(100 * price.point), 'point')}"


def price_text(price: Price) -> str:
    """Write what the owner's task loses, with its interval: a loss is positive."""
    low, high = price.ends
    ends = "" if low == high == 0.0 else f" [{low:+.3f}, {high:+.3f}]"
    return f"{price.lost:+.3f}{ends}" + (" by probe" if price.task == "probe" else "")


def apart(first: Price | None, second: Price | None) -> str:
    """Say why two prices forbid to order their methods; empty if they are equal."""
    if first is None or second is None:
        return "a price is not known"
    gap = round(abs(first.lost - second.lost), SCORE_DECIMALS)
    return f"prices {gap:.3f} apart" if gap > SAME_PRICE else ""


ALIKE = (
    "Raw readings are compared with raw ones, aligned with aligned ones, and the two of a method "
    "with each other, which says what aligning is worth: no claim counts twice against another."
)


def pairs_table(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> Table:
    """Return every two methods of every owner side by side, from (owner, method, records)."""
    owners: dict[str, list[tuple[str, list[Answer]]]] = {}
    prices, paid = dict[tuple[str, str], str](), dict[tuple[str, str], Price | None]()
    specs = dict[tuple[str, str], Spec | None]()
    for owner, method, records in groups:
        prices[owner, method], paid[owner, method] = _price(records), price_of(records)
        specs[owner, method] = records[0].cell.method if records else None
        owners.setdefault(owner, []).append((method, recognised(records, outline.alpha)))
    compared = [
        (owner, first, second, paired(ours, theirs, outline.alpha))
        for owner, methods in owners.items()
        for (first, ours), (second, theirs) in itertools.combinations(methods, 2)
        if _comparable(specs[owner, first], specs[owner, second])
    ]
    why = [apart(paid[owner, first], paid[owner, second]) for owner, first, second, _ in compared]
    equal = [pair for (*_, pair), reason in zip(compared, why, strict=True) if not reason]
    decided = iter(paired_together(equal, outline.alpha))
    lines = [
        _unordered(pair, reason) if reason else _line(*next(decided))
        for (*_, pair), reason in zip(compared, why, strict=True)
    ]
    return Table(
        name="Methods compared",
        caption=(
            f"verdicts at alpha = {outline.alpha:g} on copies made by the same recipes, over "
            f"{how_many(len(equal), 'comparison')} at equal prices by Holm ({outline.heading})"
        ),
        columns=(
            *("owner", "first", "second", "price of first", "price of second", "copies"),
            *("only first", "only second", "difference", "keys", "p", "least p", "Holm p"),
            "outcome",
        ),
        rows=tuple(
            (owner, first, second, prices[owner, first], prices[owner, second], *line)
            for (owner, first, second, _), line in zip(compared, lines, strict=True)
        ),
        notes=(
            PRICES,
            NOT_ORDERED,
            "copies: attacked copies of the released model, made by one recipe (owner, attack, "
            "seed), that both methods judged, of those that any did; a mark is attacked in its own "
            "released model. One that a method cannot read is not owned, nor one that is undecided "
            "where the untouched copy is decided: both are the thief's success. What is undecided "
            "otherwise is not judged. only first: "
            "owned by the first method's verdict and not by the second's, though other keys be too "
            "few. difference: of the shares owned, first minus second.",
            "keys: those that are one and the same, for either method, are one. "
            "p: exact, over all swaps of the two methods within keys, whose copies share one "
            "piece of luck; conditional on this owner and these strangers. least p: the smallest "
            "that so many keys allow. Holm p: all comparisons passed together. needed: keys, where "
            "those there could decide nothing.",
            *([ALIKE] if any(spec and spec.align != "none" for spec in specs.values()) else []),
            *outline.reductions,
        ),
        heads=1,
    )


def _comparable(first: Spec | None, second: Spec | None) -> bool:
    """Say whether two readings are of one kind, or of one method."""
    if first is None or second is None:
        return True
    return first.align == second.align or first.unaligned == second.unaligned


def recognised(records: Sequence[Record], alpha: float) -> list[Answer]:
    """Say of every attacked copy whether it was owned, as far as that can be said."""
    found = outcomes(records, innocents(records), alpha)
    return [
        Answer(record.cell, found[name] == "owned", secret_of(record), name)
        for record in records
        if attack_of(record.cell) != WHOLE
        and found.get(name := copy_of(record), "undecided") != "undecided"
    ]


def cosine_price(records: Iterable[Record]) -> str:
    """Write the feature cosine of owner and released model, mean over images and keys."""
    read = list(records)
    found = [fmean(record.fidelity.feature_cosine) for record in read if record.fidelity]
    return f"{fmean(found):.3f}" if found else _unpriced(read)


def own_task_price(records: Iterable[Record]) -> str:
    """Write what the owner's own classifier gets right before and after, paired over images."""
    read = list(records)
    found = [record.fidelity for record in read if record.fidelity]
    pairs = own_answers(found)
    if not pairs:
        told = any(price.owner_probe_right for price in found)  # an older record does not say
        return "no classifier" if told else _unpriced(read)
    low, high = paired_interval(pairs)
    before, after = (fmean(fmean(pair[side]) for pair in pairs) for side in (0, 1))
    return f"{before:.3f} -> {after:.3f} [{low:+.3f}, {high:+.3f}]"


def own_answers(prices: Iterable[Fidelity]) -> list[tuple[Sequence[bool], Sequence[bool]]]:
    """Return which images of its own task the owner and its released model get right."""
    return [
        (unpacked(p.owner_right, p.own_images), unpacked(p.released_right, p.own_images))
        for p in prices
        if p.own_images
    ]


def _unpriced(records: Sequence[Record]) -> str:
    return FREE if records and not any(record.marks for record in records) else NOTHING


def _price(records: Sequence[Record]) -> str:
    """Write both prices of a method, each under its name, or that there is none."""
    own, cosine = own_task_price(records), cosine_price(records)
    return cosine if own == cosine else f"own task {own}, feature cosine {cosine}"


def _unordered(pair: Paired, why: str) -> tuple[str, ...]:
    """Write who recognises what, and that nothing follows: neither a p nor an outcome."""
    *counts, difference, keys, _, _, _, _ = _line(pair, None)
    return (*counts, difference, keys, NOTHING, NOTHING, NOTHING, f"not ordered: {why}")


def _line(pair: Paired, adjusted: float | None) -> tuple[str, ...]:
    short = f", {pair.needed} keys needed" if pair.outcome == "undecided" else ""
    return (
        f"{pair.pairs} of {pair.pairs + pair.unmatched}",
        str(pair.only_first),
        str(pair.only_second),
        f"{pair.total / pair.pairs:+.3f}" if pair.pairs else NOTHING,
        str(pair.clusters),
        *(NOTHING if p is None else f"{p:.3g}" for p in (pair.p_value, pair.attainable, adjusted)),
        f"{pair.outcome}{short}",
    )
