"""Set methods side by side at equal prices: of each mark, the settings that come nearest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from bench.records.nouns import UNTOUCHED, Lineage, Outline, Record, canonical
from bench.records.table import NOTHING, Table
from bench.reports.blocks import MARKED_AND_TWINS, Block, Row, detection, grouped, judged
from bench.reports.notes import counts_text
from bench.verdicts.pairs import (
    CLASSES,
    POINTS,
    SAME_PRICE,
    Price,
    class_text,
    cosine_price,
    price_of,
    price_text,
)


def equal_price(outline: Outline, records: Mapping[str, Record]) -> Table:
    """Return what is read at equal prices: of each mark, the settings that come nearest."""
    blocks, legend = grouped(outline, records)
    return Table(
        name="At equal price",
        caption=f"what is read at which price ({outline.heading})",
        columns=(
            *("owner", "price class", "method", "price", "cosine", "own rate", "clean rate"),
            *("worst attacked rate", "worst attack", "attacked copies"),
        ),
        rows=tuple(_rows(blocks, outline.alpha)),
        notes=(
            CLASSES,
            "of a mark's settings in a class the nearest to it stands there, whatever it reads; "
            f"of those beyond the last by more than {100 * SAME_PRICE:g}, the cheapest. A "
            "fingerprint costs nothing, and all its settings stand at 0. Rows come in the suite's "
            "order. Compare verdicts rather than rates, which differ in unit.",
            "worst attacked rate: the lowest of any attack that leaves a usable theft; a copy that "
            "cannot be read counts 0. attacked copies: their verdicts, after any attack.",
            *legend,
        ),
        heads=2,
    )


def _rows(blocks: Sequence[Block], alpha: float) -> Iterator[tuple[str, ...]]:
    """Yield the rows class by class, owner by owner."""
    for owner in dict.fromkeys(block.owner for block in blocks):
        priced = [
            (block, price)
            for block in blocks
            if block.owner == owner and (price := price_of(block.records)) is not None
        ]
        for point in (*POINTS, None):
            inside = [found for found in priced if found[1].point == point]
            for block, price in _nearest(inside, point):
                yield (owner, class_text(price), block.method, *_read(block, price, alpha))


def _nearest(
    found: Sequence[tuple[Block, Price]], point: float | None
) -> list[tuple[Block, Price]]:
    """Keep one setting of every mark: the nearest to the class, or the cheapest beyond all."""
    kept: dict[str, tuple[Block, Price]] = {}
    for block, price in found:
        family = _family(block)
        if family not in kept or _off(price, point) < _off(kept[family][1], point):
            kept[family] = block, price
    return [*kept.values()]


def _family(block: Block) -> str:
    """Name a mark by its words, which choose a variant; a fingerprint's settings stay apart."""
    spec = block.cell.method
    if not any(record.marks for record in block.records):
        return spec.text
    return canonical([spec.name, {n: v for n, v in spec.args.items() if isinstance(v, str)}])


def _off(price: Price, point: float | None) -> float:
    return price.lost if point is None else abs(price.lost - point)


def _read(block: Block, price: Price, alpha: float) -> tuple[str, ...]:
    whole = next((row for row in block.rows if row.label == UNTOUCHED), None)
    tried = [r for r in block.rows if r.label != UNTOUCHED and (r.records("released") or r.unread)]
    rates = {row.label: _rate(row) for row in tried if row.usable(block.least)}
    worst = min(rates, key=lambda label: rates[label]) if rates else None
    # A copy is no theft where the mark ruined its owner: there the verdict counts all the same.
    verdicts = [verdict for row in tried for verdict in judged(row, block.nulls, alpha)]
    return (
        price_text(price),
        cosine_price(block.records),
        *(_mean(whole, origin) for origin in MARKED_AND_TWINS),
        NOTHING if worst is None else f"{rates[worst]:.3f}",
        NOTHING if worst is None else worst,
        counts_text(verdicts, sum(row.unread for row in tried)) if tried else NOTHING,
    )


def _rate(row: Row) -> float:
    spread = detection(row, "released")
    read = [] if spread is None else [spread.mean] * spread.models
    return fmean([*read, *[0.0] * row.unread])


def _mean(row: Row | None, origin: Lineage) -> str:
    spread = None if row is None else detection(row, origin)
    return NOTHING if spread is None else f"{spread.mean:.3f}"
