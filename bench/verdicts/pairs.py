"""Say whether two methods of an owner differ in the copies they recognise, paired by recipe."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from bench.records.nouns import Cell, Outline, Record
from bench.records.table import NOTHING, Table
from bench.verdicts.families import Paired, paired, paired_together
from bench.verdicts.innocents import innocents, lineage, verdict_on


def pairs_table(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> Table:
    """Return every two methods of every owner side by side, from (owner, method, records)."""
    owners: dict[str, list[tuple[str, list[tuple[Cell, bool]]]]] = {}
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
            "released model. What is undecided or could not be read is not judged. only first: "
            "owned by the first method's verdict and not by the second's, though other keys be too "
            "few. difference: of the shares owned, first minus second.",
            "p: exact, over all swaps of the two methods within keys, whose copies share one "
            "piece of luck; conditional on this owner and these strangers. least p: the smallest "
            "that so many keys allow. Holm p: all comparisons passed together. needed: keys, where "
            "those there could decide nothing.",
            *outline.reductions,
        ),
        heads=1,
    )


def recognised(records: Sequence[Record], alpha: float) -> list[tuple[Cell, bool]]:
    """Say of every marked copy whose verdict was decided whether it was owned."""
    nulls = innocents(records)
    found = []
    for record in records:
        if record.evidence is None or lineage(record) != "released":
            continue
        verdict = verdict_on(record, nulls, alpha)
        if verdict.outcome != "undecided":
            found.append((record.cell, verdict.outcome == "owned"))
    return found


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
