"""Write what a mark costs its owner: features, a probe, and the owner's own task."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from bench.records.nouns import Fidelity, unpacked
from bench.records.table import NOTHING
from bench.reports.blocks import Block
from bench.reports.notes import models_text
from bench.verdicts.intervals import (
    Interval,
    between,
    difference_interval,
    mean_interval,
    paired_interval,
)
from bench.verdicts.pairs import own_answers


def price(block: Block) -> list[tuple[str, ...]]:
    """Return the rows that price a mark: the released model, without injection, before attacks."""
    prices = list({r.cell.method_seed: r.fidelity for r in block.records if r.fidelity}.values())
    if not prices:
        return []
    blank = (NOTHING,) * 7
    rows: list[tuple[str, ...]] = [
        ("price: feature cosine", _cosine(prices), *blank),
        ("price: probe accuracy, owner -> released", _probe(prices), *blank),
    ]
    if any(price.owner_probe_right for price in prices):  # an older record does not say
        rows.append(("price: own task, owner -> released", _own_task(prices), *blank))
    return rows


def _cosine(prices: Sequence[Fidelity]) -> str:
    means = [fmean(price.feature_cosine) for price in prices]
    intervals = [mean_interval(price.feature_cosine) for price in prices]
    known = [interval for interval in intervals if interval]
    models = models_text(len(means), between(means))
    if not known:
        return f"{fmean(means):.4f} {models}"
    low = fmean(low for low, _ in known)
    high = min(1.0, fmean(high for _, high in known))  # Student knows no bound, a cosine has one
    return f"{fmean(means):.4f} [{low:.4f}, {high:.4f}] {models}"


def _probe(prices: Sequence[Fidelity]) -> str:
    before = fmean(price.owner_probe_accuracy for price in prices)
    after = [price.released_probe_accuracy for price in prices]
    n = min(price.probe_images for price in prices)
    if all(price.released_probe_right for price in prices):
        ends = paired_interval(
            [
                (unpacked(p.owner_probe_right, n), unpacked(p.released_probe_right, n))
                for p in prices
            ]
        )
    else:  # an older record, which has totals alone
        ends = difference_interval(before, fmean(after), n)
    return _change(before, after, ends)


def _own_task(prices: Sequence[Fidelity]) -> str:
    """Write what the mark costs the owner's own classifier, on the same images."""
    pairs = own_answers(prices)
    if not pairs:
        return "none: the owner has no classifier of labelled images of its own"
    before = fmean(fmean(owner) for owner, _ in pairs)
    return _change(before, [fmean(released) for _, released in pairs], paired_interval(pairs))


def _change(before: float, after: Sequence[float], ends: Interval) -> str:
    mean, (low, high) = fmean(after), ends
    return (
        f"{before:.3f} -> {mean:.3f}: {mean - before:+.3f} [{low:+.3f}, {high:+.3f}] "
        f"{models_text(len(after), between(after))}"
    )
