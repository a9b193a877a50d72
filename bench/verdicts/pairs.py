"""Say whether two methods of an owner differ in the copies they recognise, paired by recipe."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from bench.records.nouns import Outline, Record
from bench.records.table import NOTHING, Table
from bench.verdicts.families import Answer, Paired, paired, paired_together
from bench.verdicts.innocents import (
    WHOLE,
    attack_of,
    innocents,
    lineage,
    reading_of,
    secret_of,
    verdict_on,
)


def pairs_table(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> Table:
    """Return every two methods of every owner side by side, from (owner, method, records)."""
    owners: dict[str, list[tuple[str, list[Answer]]]] = {}
    for owner, method, records in groups:
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
            *("owner", "first", "second", "copies", "only first", "only second", "difference"),
            *("keys", "p", "least p", "Holm p", "outcome"),
        ),
        rows=tuple(
            (owner, first, second, *_line(*decided))
            for (owner, first, second, _), decided in zip(compared, together, strict=True)
        ),
        notes=(
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
    """Say of every attacked copy whether it was owned, as far as that can be said.

    One that the method cannot read is not, nor one that the attack left undecided.
    """
    nulls = innocents(records)
    copies = [record for record in records if lineage(record) == "released"]
    outcomes = {r.key: verdict_on(r, nulls, alpha).outcome for r in copies if r.evidence}
    outcomes |= {r.key: "not owned" for r in copies if r.status == "incompatible"}
    decidable = {
        secret_of(record)
        for record in copies
        if attack_of(record.cell) == WHOLE and outcomes.get(record.key) in ("owned", "not owned")
    }
    return [
        Answer(
            record.cell,
            outcomes[record.key] == "owned",
            secret_of(record),
            f"{attack_of(record.cell)} {reading_of(record)}",
        )
        for record in copies
        if record.key in outcomes
        and attack_of(record.cell) != WHOLE
        and (outcomes[record.key] != "undecided" or secret_of(record) in decidable)
    ]


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
