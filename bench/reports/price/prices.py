"""Price every copy that a thief made: utility, images and compute, which are never added up.

Utility is what the copy does worse than it might, in points of its task. Images are the thief's
own. Compute is the work of the attack's passes, as a share of a reference that is stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.records.nouns import (
    EARLIER,
    UNTOUCHED,
    Cell,
    Cost,
    Outline,
    Passes,
    Record,
    Spec,
    StepFacts,
    Utility,
    unpacked,
)
from bench.reports.blocks import Block, Row, Task, task_of
from bench.suite.innocents import RECIPE
from bench.verdicts.innocents import TRAINED_APART, copy_of, core, outcomes, secret_of
from bench.verdicts.intervals import Interval, paired_interval
from bench.verdicts.verdict import Outcome

IMAGENET = 1_281_167
"""Training images of ILSVRC 2012."""

BLANK = 1.0
"""Forward passes that look at no image of anybody's: one of a blank image tells shapes."""

NO_THIEFS = ("forgery", "control")
"""Kinds of change that are no thief's: they are after a verdict on an innocent, or make one."""

ROUNDED = 1e-9
"""Of a price: what floating point may add to it."""


class Reference(NamedTuple):
    """The work that is 100 % of compute, in forward passes of one image, and in words."""

    work: float
    text: str


@dataclass(frozen=True, slots=True)
class Price:
    """What a copy took from its thief; None where no record tells.

    `points` are of utility, in hundredths; `compute` is a share of the reference.
    """

    points: float | None
    images: int | None
    compute: float | None

    @property
    def known(self) -> bool:
        """Say whether all three are known: a copy of no known price is in no budget."""
        return None not in (self.points, self.images, self.compute)

    def within(self, budget: Price) -> bool:
        """Say whether a thief with this budget can have the copy."""
        there = (self.points, self.images, self.compute)
        most = (budget.points, budget.images, budget.compute)
        return all(
            one is not None and other is not None and one <= other + ROUNDED
            for one, other in zip(there, most, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of the released model: what it cost its thief, and what is left of the claim."""

    key: str
    attack: str  # by the name of its row
    price: Price
    rate: float
    outcome: Outcome
    exact: bool = False
    within: Interval | None = None  # of the points, paired over the test images

    @property
    def untouched(self) -> bool:
        """Say whether nothing was done to it: it was taken as it was released."""
        return self.attack == UNTOUCHED


def reference(owner: Spec) -> Reference:
    """Return what 100 % of compute is for the thief of one owner's model."""
    if owner.args.get("library") == TRAINED_APART:
        images, what = RECIPE.steps * RECIPE.batch, "its pretraining"
    else:  # nobody here has seen such models pretrained, which took many epochs
        images, what = IMAGENET, "one epoch over ImageNet-1k"
    work = Passes(images, images).work
    return Reference(work, f"{what}: {images} images forward and back, worth {work:.0f} passes")


@dataclass(frozen=True)
class Bills:
    """What attacks cost wherever they ran, and what an outline tells of their steps."""

    steps: Mapping[str, StepFacts]
    last: Mapping[str, Passes] = field(default_factory=dict)  # of a chain's last step, by chain
    earlier: Mapping[str, Passes] = field(default_factory=dict)  # of all before it

    @staticmethod
    def of(outline: Outline, records: Iterable[Record]) -> Bills:
        """Collect the dearest bill of every chain: copies and twins cost alike."""
        last, earlier = dict[str, Passes](), dict[str, Passes]()
        for record in records:
            chain = _name(core(record.cell))
            for found, stage in ((last, "attack"), (earlier, EARLIER)):
                if stage in record.costs:
                    bill = _passes(record.costs[stage])
                    found[chain] = max(bill, found.get(chain, bill), key=lambda made: made.work)
        return Bills({spec.text: facts for spec, facts in outline.steps}, last, earlier)

    def passes(self, chain: Sequence[Spec]) -> Passes | None:
        """Return the passes of a whole chain; None if a step's were not recorded."""
        if not chain:
            return Passes()
        name = _name(chain)
        before = self.earlier.get(name) or self.passes(chain[:-1])
        last = self.last.get(name)
        return None if last is None or before is None else _sum(before, last)

    def images(self, chain: Sequence[Spec]) -> int | None:
        """Return how many images of the thief's a chain draws on; None if nothing tells.

        A step looks at no more than it makes forward passes: at none without passes, and of a step
        of which no outline tells that many are assumed. Steps on one data set share its images.
        """
        pools: dict[str, int] = {}
        for number, step in enumerate(chain, start=1):
            passes = self._step(chain, number)
            if passes is not None and passes.forward <= BLANK:
                continue
            facts = self.steps.get(step.text, StepFacts())
            known = [facts.images] if facts.images is not None else []
            known += [math.ceil(passes.forward)] if passes is not None else []
            if not known:
                return None
            size = min(known)
            pool = facts.data or f"of step {number}"
            pools[pool] = max(size, pools.get(pool, 0))
        return sum(pools.values())

    def queries(self, chain: Sequence[Spec]) -> int | None:
        """Return how many images the released model answers for; None if its weights are had.

        A thief who distils a copy that he has already made asks his own.
        """
        return self.steps.get(chain[0].text, StepFacts()).queries if chain else None

    def _step(self, chain: Sequence[Spec], number: int) -> Passes | None:
        """Return the passes of one step of a chain, or those of all before the last with it."""
        earlier = self.earlier.get(_name(chain)) if number < len(chain) else None
        return self.last.get(_name(chain[:number]), earlier)

    def exact(self, chain: Sequence[Spec]) -> bool:
        """Say whether every step leaves what a model answers as it was."""
        return bool(chain) and all(self.steps.get(s.text, StepFacts()).exact for s in chain)

    def change(self, chain: Sequence[Spec]) -> str:
        """Name what a chain changes, each kind once, in the order of the steps."""
        kinds = [self.steps.get(step.text, StepFacts()).change for step in chain]
        return " > ".join(dict.fromkeys(kinds))

    def adaptive(self, chain: Sequence[Spec]) -> str:
        """Say what the thief knows of the defence; empty if nothing."""
        told = (self.steps.get(step.text, StepFacts()).adaptive for step in chain)
        return ", ".join(dict.fromkeys(filter(None, told)))


def _name(chain: Iterable[Spec]) -> str:
    return " > ".join(step.text for step in chain)


def _passes(cost: Cost) -> Passes:
    return Passes(cost.forward_passes, cost.backward_passes)


def _sum(one: Passes, other: Passes) -> Passes:
    return Passes(one.forward + other.forward, one.backward + other.backward)


def copies(block: Block, bills: Bills, alpha: float) -> list[Copy]:
    """Return every copy that a method could be asked about, once, in the order of its rows.

    A copy that it cannot read is lost, as `outcomes` has it, and nothing is read off it.
    """
    found = outcomes(block.records, block.nulls, alpha)
    made: dict[str, Copy] = {}
    loss = _losses(block)
    for row in block.rows:
        if not set(NO_THIEFS).isdisjoint(bills.change(row.chain).split(" > ")):
            continue
        for record in _stolen(row):
            name = copy_of(record)
            if name in found and name not in made:
                made[name] = _copy(row.label, record, found[name], bills, loss)
    return list(made.values())


def _stolen(row: Row) -> Iterator[Record]:
    return (result.record for result in row.suspects["released"] if result.record)


def _copy(
    label: str,
    record: Record,
    outcome: Outcome,
    bills: Bills,
    loss: Callable[[Record], tuple[float | None, Interval | None]],
) -> Copy:
    chain = core(record.cell)
    passes, exact = bills.passes(chain), bills.exact(chain)
    points, within = loss(record)
    if exact or not chain:  # what it answers is the same by construction, whatever rounding flips
        points = 0.0
    share = None if passes is None else passes.work / reference(record.cell.owner).work
    return Copy(
        key=secret_of(record),
        attack=label if chain else UNTOUCHED,
        price=Price(points, bills.images(chain), share),
        rate=record.evidence.rate if record.evidence else 0.0,
        outcome=outcome,
        exact=exact,
        within=within,
    )


def _losses(block: Block) -> Callable[[Record], tuple[float | None, Interval | None]]:
    """Return what says how many points a copy lost, with the interval where it is paired.

    On the task that the same model was measured on before the attack, they are counted from there,
    image by image. On a task of the thief's own they are counted from the best that any attack
    reached there: twins in the mean, or copies where no attack has twins.
    """
    before = {
        _model(r.cell): r.utility for row in block.rows if not row.chain for r in _stolen(row)
    }
    honest = _honest(block)

    def loss(record: Record) -> tuple[float | None, Interval | None]:
        after = record.utility
        if after is None:
            return None, None
        reached = before.get(_model(record.cell))
        if reached is not None and task_of(reached) == task_of(after):
            return 100 * (reached.value - after.value), _paired(reached, after)
        best = honest.get(task_of(after))
        return (None if best is None else 100 * (best - after.value)), None

    return loss


def _model(cell: Cell) -> tuple[int, str]:
    return cell.method_seed, cell.base


def _honest(block: Block) -> dict[Task, float]:
    """Return the best mean utility on every task, of twins where it has any."""
    found: dict[Task, float] = {}
    for population in ("released", "owner"):  # twins come last, and count
        best: dict[Task, float] = {}
        for row in block.rows:
            for task, value in row.by_task(population).items():
                best[task] = max(value, best.get(task, value))
        found |= best
    return found


def _paired(before: Utility, after: Utility) -> Interval | None:
    """Return the interval of the points lost, where it is known which images each got right."""
    if not (before.right and after.right and before.n == after.n):
        return None
    pair = unpacked(before.right, before.n), unpacked(after.right, after.n)
    low, high = paired_interval([pair])
    return -100 * high, -100 * low
