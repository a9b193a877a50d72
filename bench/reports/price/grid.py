"""Lay out what is left of a claim by what its thief pays: the price of removal as one grid.

A cell of the grid is a budget in three currencies. What stands in it is the worst that any attack
within the budget did: first the worst over attacks for every key, then the mean over keys.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Literal

from bench.records.nouns import UNTOUCHED, Outline, Record
from bench.records.table import NOTHING, Table
from bench.reports.blocks import Block, Row, any_unread, grouped
from bench.reports.notes import distinct
from bench.reports.price.kinds import highest_innocent
from bench.reports.price.prices import Bills, Copy, Price, copies, reference
from bench.verdicts.intervals import mean_interval

POINTS = (0.0, 1.0, 5.0)
"""Of utility that a thief may give up: hundredths of accuracy or of mIoU."""

IMAGES = (0, 1_000, 50_000)
"""Of the thief's own that an attack may draw on."""

COMPUTE = (0.0, 0.01, 0.1, 1.0)
"""Shares of the reference that an attack may work."""

BUDGETS = tuple(itertools.starmap(Price, itertools.product(POINTS, IMAGES, COMPUTE)))
"""The 36 cells, the cheapest first."""

DEAREST = BUDGETS[-1]

QUERIES = 7
"""The column of queries, which is there where any attack counts them."""

ASKED = (
    "queries: the images that the released model answered for, of a thief who has nothing else of "
    "it; no part of the price, for what an answer costs its provider says."
)

State = Literal["lost", "undecided", "stands"]
"""What became of a claim within a budget, the worst first."""

STATES: tuple[State, ...] = ("lost", "undecided", "stands")

STATE_OF: Mapping[str, State] = {"owned": "stands", "not owned": "lost", "undecided": "undecided"}

LEGEND = (
    "budget: what a thief may pay, in three currencies that are never added up. Utility: points of "
    "the task that the model was measured on before the attack, paired over its test images; on a "
    "task of the thief's own, points below the best that any attack reached there. Images: the "
    "thief's own pool. Compute: work of the attack's passes, one back worth two, of the reference.",
    "A cell holds the worst over all attacks within the budget, chains among them: for every key "
    "the lowest rate, then the mean over keys [95 % Student interval, where keys differ]. stands "
    "1/2: of 2 keys, the claim on every copy within the budget is decided, and owned, for 1. lost: "
    "a copy is not owned, or cannot be read, or is undecided where the untouched one is decided. "
    "undecided: none is lost, and innocents are too few to tell. (4): the attack with the lowest "
    "rate, and where that is another, after / the one by which the claim is lost. untried: no "
    "attack is within the budget, and what stands there is the untouched copy's.",
    "A longer list of attacks can only lower a cell, and so can a larger budget: no cell says what "
    "an attack that nobody tried would do. Utilities are point estimates: an attack that costs a "
    "little may be seen to cost nothing.",
)

SCORE = (
    "score: the share of the 36 budgets of the price grid in which the claim stands, mean over "
    "keys [95 % Student interval over keys]. It is a bound from above: undecided budgets do not "
    "stand, but untried ones do where the untouched copy does. tried: attacks and chains that "
    "copies went through; in the grid: those that the dearest budget pays for. exact: those that "
    "leave what a model answers as it was, and on how many of their copies the claim is lost. for "
    "nothing: the budget of no utility, no images and no compute. cheapest: the least budgets at "
    "which half of the claims are lost. highest innocent: the highest rate of any innocent; a "
    "method that names everybody has a high one, and its claims are lost."
)

NO_EXACT = (
    "No exact attack was tried, which leaves a model's answers as they were and costs nothing: "
    "the cells of the smallest budgets say little."
)

OLDER = (
    "These records are older than the facts they are priced by: of a step that makes passes, the "
    "thief's images are taken to be as many as its forward passes, which is too many."
)


@dataclass(frozen=True, slots=True)
class Worst:
    """The worst that copies within one budget did to one claim."""

    key: str
    rate: float
    state: State
    by: tuple[str, ...]  # the attack with the lowest rate, and the one that decides
    attacks: int  # within the budget; the untouched copy is none


@dataclass(frozen=True)
class Claims:
    """All copies of one owner's model under one method, key by key."""

    block: Block
    copies: Sequence[Copy]

    @cached_property
    def keys(self) -> dict[str, list[Copy]]:
        """Return the copies by the secret that they were read with."""
        found: dict[str, list[Copy]] = {}
        for copy in self.copies:
            found.setdefault(copy.key, []).append(copy)
        return found

    @cached_property
    def attacks(self) -> list[str]:
        """Return the attacks that were tried, in order of first mention."""
        return distinct(copy.attack for copy in self.copies if not copy.untouched)

    @cached_property
    def grid(self) -> dict[Price, list[Worst]]:
        """Return the worst of every key within every budget."""
        return {
            budget: [found for made in self.keys.values() if (found := worst(made, budget))]
            for budget in BUDGETS
        }

    def scores(self, state: State) -> list[float]:
        """Return for every key the share of budgets within which its claim is in a state."""
        counted = Counter(w.key for found in self.grid.values() for w in found if w.state == state)
        return [counted[key] / len(BUDGETS) for key in self.keys]


def worst(made: Sequence[Copy], budget: Price) -> Worst | None:
    """Return the worst that copies of one claim within a budget show; None if there are none."""
    within = [copy for copy in made if copy.price.within(budget)]
    if not within:
        return None
    lowest = min(within, key=lambda copy: (copy.rate, _order(copy)))
    decisive = min(within, key=lambda copy: (_order(copy), copy.rate))
    named = [lowest, *([decisive] if _order(decisive) < _order(lowest) else [])]
    return Worst(
        key=lowest.key,
        rate=lowest.rate,
        state=STATE_OF[decisive.outcome],
        by=tuple(distinct(copy.attack for copy in named)),
        attacks=len({copy.attack for copy in within if not copy.untouched}),
    )


def _order(copy: Copy) -> int:
    return STATES.index(STATE_OF[copy.outcome])


def tables(outline: Outline, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """Return the worst case of every method in a line, its grid of prices, and every attack's."""
    blocks, legend = grouped(outline, records)
    bills = Bills.of(outline, records.values())
    claims = [Claims(block, copies(block, bills, outline.alpha)) for block in blocks]
    numbers = {
        name: f"({n})" for n, name in enumerate(distinct(a for c in claims for a in c.attacks), 1)
    }
    notes = (
        *distinct(f"reference of {c.block.owner}: {_reference(c)}." for c in claims),
        *([] if any(copy.exact for c in claims for copy in c.copies) else [NO_EXACT]),
        *([] if outline.steps else [OLDER]),
    )
    return (
        _summary(outline, claims, numbers, notes),
        _grid(outline, claims, numbers, notes),
        _attacks(outline, claims, numbers, bills, (*notes, *_named(legend, claims, numbers))),
    )


def _named(
    legend: Iterable[str], claims: Sequence[Claims], attacks: Iterable[str]
) -> Iterator[str]:
    """Yield the lines of a legend about what these tables name; the rest is about innocents."""
    heads = {name for c in claims for name in (c.block.owner, c.block.method)}
    steps = {step for attack in attacks for step in attack.split(" > ")}
    return (line for line in legend if line.split(": ")[0] in heads | steps)


def _reference(claims: Claims) -> str:
    return reference(claims.block.cell.owner).text


def _summary(
    outline: Outline,
    claims: Sequence[Claims],
    numbers: Mapping[str, str],
    notes: Sequence[str],
) -> Table:
    """Return a line for every owner and method: the score, and what stands beside it."""
    lost = any(any_unread([c.block]) for c in claims)
    return Table(
        name="Worst case",
        caption=f"what is left of a claim after the worst attack a thief can pay for "
        f"({outline.heading})",
        columns=(
            *("owner", "method", "access", "score at most", "undecided", "untried", "tried"),
            *("exact", "for nothing", "cheapest", "highest innocent"),
        ),
        rows=tuple((c.block.owner, c.block.method, *_line(c, numbers)) for c in claims),
        notes=(SCORE, *LEGEND[:2], *notes, *([UNREAD] if lost else []), *outline.reductions),
        heads=1,
    )


UNREAD = "A copy that the method cannot read counts with a rate of 0, and as a lost claim."


def _line(claims: Claims, numbers: Mapping[str, str]) -> tuple[str, ...]:
    stands, undecided = claims.scores("stands"), claims.scores("undecided")
    paid = {c.attack for c in claims.copies if c.price.within(DEAREST) and not c.untouched}
    untried = sum(not any(w.attacks for w in found) for found in claims.grid.values())
    return (
        claims.block.access or NOTHING,
        mean_text(stands),
        f"{fmean(undecided):.3f}" if undecided else NOTHING,
        f"{untried} of {len(BUDGETS)}",
        f"{len(claims.attacks)}, in the grid {len(paid)}",
        _exact(claims),
        _cell(claims.grid[BUDGETS[0]], numbers),
        "; ".join(_cheapest(claims, numbers)) or ("none" if stands else NOTHING),
        highest_innocent(claims.block),
    )


def _exact(claims: Claims) -> str:
    found = [copy for copy in claims.copies if copy.exact]
    gone = sum(copy.outcome == "not owned" for copy in found)
    attacks = len({copy.attack for copy in found})
    return f"{attacks}, lost {gone}/{len(found)}" if found else "none tried"


def mean_text(values: Sequence[float]) -> str:
    """Write the mean over keys of what is in [0, 1], with its interval where they differ.

    Of two keys that agree Student's interval has no width, and would look like certainty.
    """
    if not values:
        return NOTHING
    ends = mean_interval(values)
    if ends is None or min(values) == max(values):
        return f"{fmean(values):.3f}"
    low, high = max(0.0, ends[0]), min(1.0, ends[1])  # Student knows no bounds
    return f"{fmean(values):.3f} [{low:.3f}, {high:.3f}]"


def _cell(found: Sequence[Worst], numbers: Mapping[str, str]) -> str:
    """Write a cell: the mean of the lowest rates, what became of the claims, and by which attack.

    An attack that decides without having the lowest rate stands after a stroke.
    """
    if not found:
        return NOTHING
    counted = Counter(w.state for w in found)
    states = ", ".join(f"{s} {counted[s]}/{len(found)}" for s in STATES if counted[s])
    lowest, decisive = (
        [numbers[w.by[i]] for w in found if len(w.by) > i and w.by[i] != UNTOUCHED] for i in (0, 1)
    )
    named = " / ".join(" ".join(distinct(part)) for part in (lowest, decisive) if part)
    if not any(w.attacks for w in found):
        named = "untried"
    return " ".join(filter(None, (mean_text([w.rate for w in found]), states, named)))


def _cheapest(claims: Claims, numbers: Mapping[str, str]) -> Iterator[str]:
    """Write the least budgets within which half of the claims are lost, and by which attacks."""
    for budget, lost in least_losses(claims):
        by = distinct(numbers.get(w.by[-1], "unattacked") for w in lost)
        yield f"{budget_text(budget)}: {' '.join(by)}"


def least_losses(claims: Claims) -> Iterator[tuple[Price, Sequence[Worst]]]:
    """Yield the least budgets within which half of the claims are lost, the cheapest first."""
    least: list[Price] = []
    for budget, found in claims.grid.items():
        lost = [w for w in found if w.state == "lost"]
        if lost and 2 * len(lost) >= len(found) and not any(one.within(budget) for one in least):
            least.append(budget)
            yield budget, lost


def budget_text(budget: Price) -> str:
    """Write the currencies of which a budget has any: "1 point, 1k images, 10 %"."""
    said = [
        *([_points(budget.points)] if budget.points else []),
        *([_images(budget.images)] if budget.images else []),
        *([_share(budget.compute)] if budget.compute else []),
    ]
    return ", ".join(said) or "nothing"


def _points(points: float | None) -> str:
    return f"{points or 0:g} {'point' if points == 1 else 'points'}"


def _images(images: int | None) -> str:
    count = images or 0
    return f"{count // 1000}k images" if count >= 1000 else f"{count} images"


def _share(share: float | None) -> str:
    return f"{100 * (share or 0):g} %"


def _grid(
    outline: Outline,
    claims: Sequence[Claims],
    numbers: Mapping[str, str],
    notes: Sequence[str],
) -> Table:
    """Return the 36 budgets of every owner and method: 9 rows of 4 columns."""
    rows = [
        (
            *(c.block.owner, c.block.method, f"{_points(points)}, {_images(images)}"),
            *(_cell(c.grid[Price(points, images, compute)], numbers) for compute in COMPUTE),
        )
        for c in claims
        if c.copies
        for points, images in itertools.product(POINTS, IMAGES)
    ]
    first, *others = COMPUTE
    shown = {name for c in claims for found in c.grid.values() for w in found for name in w.by}
    named = [f"{number} {name}" for name, number in numbers.items() if name in shown]
    return Table(
        name="Price grid",
        caption=f"the price of removal: the worst attack within every budget ({outline.heading})",
        columns=(
            *("owner", "method", "at most", f"compute {_share(first)}"),
            *(f"<= {_share(share)}" for share in others),
        ),
        rows=tuple(rows),
        notes=(
            *LEGEND,
            *notes,
            *([f"Attacks by number: {', '.join(named)}."] if named else []),
            *outline.reductions,
        ),
        heads=2,
    )


def _attacks(
    outline: Outline,
    claims: Sequence[Claims],
    numbers: Mapping[str, str],
    bills: Bills,
    notes: Sequence[str],
) -> Table:
    """Return what every attack cost, and what it left: all that the grid is made of."""
    rows = [
        (c.block.owner, c.block.method, *_attack(c, row, numbers, bills))
        for c in claims
        for row in c.block.rows
        if row.label in c.attacks
    ]
    asked = any(row[QUERIES] != NOTHING for row in rows)
    names = (
        *("owner", "method", "attack", "number", "change", "utility lost", "images"),
        *("queries", "compute", "in the grid", "lowest rate", "claims"),
    )
    shown = [c for c in range(len(names)) if c != QUERIES or asked]
    return Table(
        name="Attacks priced",
        caption=f"what every attack cost the thief and left of the claim ({outline.heading})",
        columns=tuple(names[c] for c in shown),
        rows=tuple(tuple(row[c] for c in shown) for row in rows),
        notes=(
            *([ASKED] if asked else []),
            "utility lost: points, from the lowest to the highest copy, and of a single copy its "
            "95 % Newcombe interval, paired over test images, where records say which were got "
            "right; 0 of an exact attack, by construction. in the grid: copies whose price is "
            "known and within the dearest budget. claims: what became of them, over copies.",
            *notes,
            *outline.reductions,
        ),
        heads=2,
    )


def _attack(claims: Claims, row: Row, numbers: Mapping[str, str], bills: Bills) -> tuple[str, ...]:
    made = [copy for copy in claims.copies if copy.attack == row.label]
    counted = Counter(STATE_OF[copy.outcome] for copy in made)
    price = made[0].price
    return (
        row.label,
        numbers[row.label],
        bills.change(row.chain),
        _lost(made),
        NOTHING if price.images is None else str(price.images),
        NOTHING if (asked := bills.queries(row.chain)) is None else str(asked),
        NOTHING if price.compute is None else f"{100 * price.compute:.3g} %",
        f"{sum(copy.price.within(DEAREST) for copy in made)} of {len(made)}",
        f"{min(copy.rate for copy in made):.3f}",
        ", ".join(f"{state} {counted[state]}/{len(made)}" for state in STATES if counted[state]),
    )


def _lost(made: Sequence[Copy]) -> str:
    """Write the points that copies of one attack lost."""
    points = [copy.price.points for copy in made if copy.price.points is not None]
    if not points:
        return NOTHING
    if len(points) > 1 and min(points) != max(points):
        return f"{_signed(min(points))} to {_signed(max(points))}"
    within = made[0].within if len(made) == 1 and not made[0].exact else None
    ends = f" [{_signed(within[0])}, {_signed(within[1])}]" if within else ""
    return f"{_signed(points[0])}{ends}"


def _signed(value: float) -> str:
    return f"{round(value, 1) or 0.0:+.1f}"  # never -0.0
