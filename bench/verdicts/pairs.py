"""Compare two methods of an owner: the copies each recognises, by recipe, at what price."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from statistics import fmean

from bench.records.nouns import Fidelity, Outline, Record, unpacked
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
from bench.verdicts.intervals import paired_interval

FREE = "none"
"""The price of a fingerprint, whose released model is the owner's."""

PRICES = (
    "price: what a mark costs its owner before any attack. The owner's own task is its accuracy "
    "before -> after, with the paired 95 % interval of the difference. Feature cosine is that of "
    f"the owner and the released model. {FREE}: a fingerprint leaves the model as it is. A "
    "comparison at unequal prices orders nothing: it says who detects more, not which method is "
    "better."
)


def pairs_table(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> Table:
    """Return every two methods of every owner side by side, from (owner, method, records)."""
    owners: dict[str, list[tuple[str, list[Answer]]]] = {}
    prices = {}
    for owner, method, records in groups:
        prices[owner, method] = _price(records)
        owners.setdefault(owner, []).append((method, recognised(records, outline.alpha)))
    compared = [
        (owner, first, second, paired(ours, theirs, outline.alpha))
        for owner, methods in owners.items()
        for (first, ours), (second, theirs) in itertools.combinations(methods, 2)
    ]
    together = paired_together([pair for *_, pair in compared], outline.alpha)
    return Table(
        name="Methods compared",
        caption=(
            f"verdicts at alpha = {outline.alpha:g} on copies made by the same recipes, over "
            f"{len(compared)} comparisons by Holm ({outline.heading})"
        ),
        columns=(
            *("owner", "first", "second", "price of first", "price of second", "copies"),
            *("only first", "only second", "difference", "keys", "p", "least p", "Holm p"),
            "outcome",
        ),
        rows=tuple(
            (owner, first, second, prices[owner, first], prices[owner, second], *_line(*decided))
            for (owner, first, second, _), decided in zip(compared, together, strict=True)
        ),
        notes=(
            PRICES,
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
            *outline.reductions,
        ),
        heads=1,
    )


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
