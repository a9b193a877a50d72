"""Lay out what a thief must pay, as a small grid per method, and say of each method what it holds.

Numbers are those of the tables "Worst case" and "Price grid"; here they are looked at.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.records.nouns import UNTOUCHED, Outline, Record, how_many
from bench.records.table import NOTHING
from bench.reports.blocks import Block
from bench.reports.notes import distinct
from bench.reports.page.answers import MIXED, place_of
from bench.reports.price.grid import (
    BUDGETS,
    COMPUTE,
    IMAGES,
    POINTS,
    STATE_OF,
    STATES,
    Claims,
    Worst,
    budget_text,
    least_losses,
)
from bench.reports.price.kinds import highest_innocent
from bench.reports.price.prices import Bills, Price, copies

COLOURS: Mapping[str, str] = {
    "stands": "owned",
    "lost": "not owned",
    "undecided": "undecided",
    MIXED: MIXED,
}
"""What became of a claim within a budget, in the colours of the map."""


@dataclass(frozen=True)
class Within:
    """One budget: the worst that any attack within it left of the claim."""

    state: str
    rate: str
    said: str
    place: str  # of the row that decides; empty where it has none on the page
    untried: bool


@dataclass(frozen=True)
class Grid:
    """The 36 budgets of one owner with one method, and what they say in a sentence."""

    number: int  # of its block on the page
    owner: str
    method: str
    score: str
    rows: Sequence[tuple[str, str, Sequence[Within | None]]]
    sentence: str


def grids(outline: Outline, records: Mapping[str, Record], blocks: Sequence[Block]) -> list[Grid]:
    """Return a grid per block, in order."""
    bills = Bills.of(outline, records.values())
    return [
        _grid(n, Claims(block, copies(block, bills, outline.alpha)))
        for n, block in enumerate(blocks)
    ]


def compute_columns() -> list[str]:
    """Return the shares of compute that stand over the columns of a grid."""
    return [f"{100 * share:g} %" for share in COMPUTE]


def _grid(number: int, claims: Claims) -> Grid:
    stands = claims.scores("stands")
    rows = []
    for points, images in itertools.product(POINTS, IMAGES):
        budgets = (Price(points, images, compute) for compute in COMPUTE)
        cells = [_within(number, claims, budget) for budget in budgets]
        rows.append((f"{points:g}", _thousands(images), cells))
    return Grid(
        number=number,
        owner=claims.block.owner,
        method=claims.block.method,
        score=f"{fmean(stands):.2f}" if stands else NOTHING,
        rows=rows if stands else [],
        sentence=sentence(claims),
    )


def _thousands(images: int) -> str:
    return f"{images // 1000}k" if images >= 1000 else str(images)


def _within(number: int, claims: Claims, budget: Price) -> Within | None:
    found = claims.grid[budget]
    if not found:
        return None
    counted = Counter(worst.state for worst in found)
    lowest = min(found, key=lambda worst: (STATES.index(worst.state), worst.rate))
    untried = not any(worst.attacks for worst in found)
    rate = fmean(worst.rate for worst in found)
    states = ", ".join(f"{s} {counted[s]}/{len(found)}" for s in STATES if counted[s])
    by = "no attack is within it" if untried else f"worst: {lowest.by[-1]}"
    return Within(
        state=COLOURS[MIXED if len(counted) > 1 else lowest.state],
        rate=f"{rate:.2f}",
        said=f"{claims.block.method}, at most {budget_text(budget)}: {states}, rate {rate:.3f}, "
        f"{by}",
        place=_place(number, claims, lowest),
        untried=untried,
    )


def _place(number: int, claims: Claims, worst: Worst) -> str:
    rows = (row for row in claims.block.rows if row.suspects["released"])
    found = next((row for row in rows if row.label == worst.by[-1]), None)
    return place_of(number, claims.block, found) if found else ""


def sentence(claims: Claims) -> str:
    """Say in one sentence what the records say of a method."""
    return "; ".join(filter(None, (_recognised(claims), *_priced(claims), _named(claims)))) + "."


def _recognised(claims: Claims) -> str:
    """Say how many attacked copies are recognised, and which attacks end it."""
    attacked = [copy for copy in claims.copies if not copy.untouched]
    if not attacked:
        return "no attacked copy was read"
    states = [STATE_OF[copy.outcome] for copy in attacked]
    counted = Counter(states)
    keys = how_many(len({copy.key for copy in attacked}), "key")
    tried = how_many(len(attacked), "attacked copy", "attacked copies")
    said = f"recognised in {counted['stands']} of {tried} ({keys})"
    if counted["undecided"]:
        said += f", undecided in {counted['undecided']}"
    lost = distinct(c.attack for c, s in zip(attacked, states, strict=True) if s == "lost")
    if not lost:
        return said
    others = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return f"{said}, lost to {', '.join(lost[:3])}{others}"


def _priced(claims: Claims) -> Iterator[str]:
    """Say in how many budgets the claim stands, and what is the least that ends it."""
    stands = claims.scores("stands")
    if not stands:
        return
    untried = sum(not any(w.attacks for w in found) for found in claims.grid.values())
    yield (
        f"stands in at most {fmean(stands):.0%} of the {len(BUDGETS)} budgets, "
        f"{untried} of which nobody tried"
    )
    least = next(least_losses(claims), None)
    if least is not None:
        budget, lost = least
        by = distinct(worst.by[-1] for worst in lost)
        named = "as it was released" if by == [UNTOUCHED] else f"by {', '.join(by)}"
        yield f"the least price of removal is {budget_text(budget)}, {named}"


def _named(claims: Claims) -> str:
    highest = highest_innocent(claims.block)
    return "" if highest == NOTHING else f"an innocent reaches {highest}"
