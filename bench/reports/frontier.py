"""Price the removal of a claim: what a thief gives up in utility against what is still detected.

A sweep is one attack asked for at several strengths: chains that differ in a single number. Every
strength costs the thief some utility and leaves some detection; the price of removal is the
smallest loss at which the claim no longer holds. Like a report, all of it is a pure function of an
outline and the records by key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.records.nouns import (
    UNTOUCHED,
    Lineage,
    Outline,
    Record,
    Spec,
    UserError,
    Utility,
    canonical,
    evidence_of,
    unpacked,
)
from bench.records.table import NOTHING, Table
from bench.reports import notes
from bench.reports.blocks import (
    MARKED_AND_TWINS,
    NO_THEFT,
    WORTHLESS,
    Block,
    Row,
    Task,
    detection,
    grouped,
    judged,
    labelled,
    per_model,
    task_of,
)
from bench.reports.notes import numbered_tasks, utility_text
from bench.verdicts import intervals
from bench.verdicts.innocents import core
from bench.verdicts.intervals import Interval, difference_interval, paired_interval
from bench.verdicts.verdict import Verdict

R_HIGH = 0.75
"""Detection rate below which a copy counts as missed: 750 of 1000 images in A. Chistyakova,
M. Pautov, "ActiveMark", arXiv:2510.04966, section 3.3.1. Other methods' sources name no such rate;
here it judges their own rates too."""

SHARES = ("accuracy", "probe accuracy")
"""Metrics that are shares of test images: their difference has a binomial interval."""

WHAT_A_SWEEP_IS = (
    "a sweep is one attack listed several times with one number changed, such as "
    "{name: prune.l1, amount: 0.2} and {name: prune.l1, amount: 0.4}"
)

LEGEND = (
    "marked: the released model after the attack (for a fingerprint the owner's). twin: the same "
    "attack on the owner's unmarked model. Rates are shares of queries on which the method's own "
    "rule holds: mean [95 % Wilson interval over the queries of one suspect] (n models: lowest-"
    "highest). p: the largest p-value of the marked copies. owned 2/2: the verdict on 2 of 2 "
    "copies; other keys only at 1/2, or not read: innocents too few for it to hold against, in "
    f"which case it counts as owned all the same. {NOTHING}: not asked. hole: not run yet.",
    "score: mean agreement with the secret, marked / twin, which is what verdicts rank.",
    "utility loss, positive for a loss: where the suspect answers the task its model was measured "
    "on before the attack, that utility minus the suspect's; where it has a task of its own, the "
    "mean utility of the twins at their best strength (without twins, as for a fingerprint, of the "
    "copies) minus the suspect's: what the thief could have had honestly. [95 % Newcombe interval "
    "over the test images, paired where records say which images were got right] "
    f"(n models: lowest to highest). [{NOTHING}]: none, mIoU is no share of "
    "images, and against itself a model loses nothing.",
)

PRICE_LEGEND = (
    "price (verdict): the smallest utility loss at which fewer than half of the copies are owned. "
    "One that the method cannot read is not owned, nor one that is undecided where the untouched "
    "copy is decided: both are the thief's success. price (paper's rule): the smallest at which "
    "the detection rate, 0 of a copy that cannot be read, mean "
    f"over copies, is below {R_HIGH:g} (ActiveMark, section 3.3.1), whatever twins and strangers "
    "say. Brackets are the interval at that strength; that it was picked as the smallest is not "
    "in it.",
    "A price after >: the claim held at every strength, and this is the largest loss tried. A copy "
    "at a lower strength than the best twin's loses by learning too little, which is no price: it "
    "is not counted as tried. undecided: too few innocents at every strength. gone unattacked: the "
    "claim does not hold on the released model either. "
    f"{NOTHING}: no utility to compare, or no suspect that could be read.",
    "against: what the loss is counted from. points: strengths at which copies were "
    "judged, of those asked.",
)


@dataclass(frozen=True)
class Loss:
    """Utility given up, mean over models, with both kinds of spread."""

    value: float
    within: Interval | None  # Newcombe, over the test images
    between: Interval | None  # lowest and highest model
    models: int

    @property
    def text(self) -> str:
        """Return the loss as tables print it."""
        within = NOTHING if self.within is None else ", ".join(map(_signed, self.within))
        between = "" if self.between is None else f": {' to '.join(map(_signed, self.between))}"
        return f"{_signed(self.value)} [{within}] (n={self.models}{between})"


@dataclass(frozen=True)
class Point:
    """One strength of a sweep: what is left of the claim there, and what it cost the thief."""

    strength: float
    row: Row
    verdicts: Sequence[Verdict]
    losses: Mapping[Lineage, Loss]
    decidable: bool = False  # whether the untouched copies were decided

    @property
    def loss(self) -> Loss | None:
        """Return what the marked copies lost."""
        return self.losses.get("released")

    @property
    def owned(self) -> bool | None:
        """Say whether at least half of the copies are owned; None if none could be judged.

        One that the method cannot read is not, nor one that the attack left undecided.
        """
        found = [verdict.outcome for verdict in self.verdicts]
        counted = [o == "owned" for o in found if o != "undecided" or self.decidable]
        counted += [False] * self.row.unread
        return 2 * sum(counted) >= len(counted) if counted else None

    @property
    def detected(self) -> bool | None:
        """Say whether the copies pass the paper's own threshold; None without evidence."""
        found, unread = detection(self.row, "released"), self.row.unread
        if found is None:
            return False if unread else None
        return found.mean * found.models / (found.models + unread) >= R_HIGH


@dataclass(frozen=True)
class Sweep:
    """One attack on one claim at several strengths, lowest number first."""

    owner: str
    method: str
    label: str
    setting: str
    points: Sequence[Point]
    untouched: Point | None
    baseline: _Baseline
    least: Mapping[Task, float]  # the utility of a usable theft, by task

    @property
    def read(self) -> list[Point]:
        """Return the points with marked copies that were read, or could not be."""
        return [point for point in self.points if point.verdicts or point.row.unread]


@dataclass(frozen=True)
class _Family:
    """Chains that are equal once one number of one step, the strength, is taken out."""

    steps: tuple[Spec, ...]
    setting: str
    strengths: dict[float, str]  # to the chain, by its canonical text


@dataclass(frozen=True)
class _Best:
    """The best that a sweep teaches without the owner's model, or at least without a loss."""

    utility: float
    strength: float
    row: Row
    population: Lineage


@dataclass(frozen=True)
class _Baseline:
    """What utilities are held against: the same model before the attack, or the best of a sweep."""

    before: Mapping[tuple[int, str], Utility]  # by method seed and by what was left as it was
    best: _Best | None

    @property
    def text(self) -> str:
        """Return the reference as tables print it."""
        if self.best is None:
            return "before the attack" if self.before else NOTHING
        return f"best {'twin' if self.best.population == 'owner' else 'copy'}"

    def of(self, record: Record) -> float | None:
        """Return the utility that one suspect is held against."""
        if self.best is not None:
            return self.best.utility
        found = self.before.get((record.cell.method_seed, record.cell.base))
        return None if found is None else found.value

    def models(self, record: Record) -> list[Utility]:
        """Return that utility model by model."""
        if self.best is not None:
            return [utility for _, utility in self.best.row.measured(self.best.population)]
        found = self.before.get((record.cell.method_seed, record.cell.base))
        return [] if found is None else [found]


def tables(outline: Outline, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """Return the frontier, strength by strength, and the price of removal, sweep by sweep.

    Raises:
        UserError: the suite has no sweep.

    """
    swept, legend = sweeps_of(outline, records)
    return _frontier(swept, legend, outline), _prices(swept, outline)


def has_sweeps(outline: Outline) -> bool:
    """Say whether there is anything to price."""
    return bool(_families(outline))


def sweeps_of(outline: Outline, records: Mapping[str, Record]) -> tuple[list[Sweep], list[str]]:
    """Return every sweep of every owner and method in the outline's order, and a legend."""
    families = _families(outline)
    if not families:
        raise UserError(f"{outline.name}: expected a sweep, got none; {WHAT_A_SWEEP_IS}")
    label = labelled(step for family in families for step in family.steps)
    by_label = {label(*family.steps): family for family in families}
    blocks, legend = grouped(outline, records)
    swept = [s for block in blocks for s in _block_sweeps(block, by_label, outline.alpha)]
    heads = {name for block in blocks for name in (block.owner, block.method)}
    named = [line for line in legend if line.split(": ")[0] in heads]  # the rest is about rows
    return swept, [*named, *(_fixed(name, family) for name, family in by_label.items())]


def _families(outline: Outline) -> list[_Family]:
    """Find the chains that differ in one number only; an attack may be swept in two numbers."""
    found: dict[str, _Family] = {}
    for chain in (core(c) for _, c in outline.cells if c.lineage == "released"):
        for position, step in enumerate(chain):
            for setting, value in step.args.items():
                if type(value) in (int, float):
                    others = {name: v for name, v in step.args.items() if name != setting}
                    swept = Spec(f"{step.name} {setting}", others, step.version)
                    steps = (*chain[:position], swept, *chain[position + 1 :])
                    family = found.setdefault(_name(steps), _Family(steps, setting, {}))
                    family.strengths[value] = _name(chain)
    return [family for family in found.values() if len(family.strengths) > 1]


def _name(chain: Iterable[Spec]) -> str:
    return canonical([step.json() for step in chain])


def _fixed(label: str, family: _Family) -> str:
    """Say what does not change along a sweep."""
    args = [setting for step in family.steps for setting in step.args.items()]
    told = ", ".join(f"{name}={canonical(value)}".replace('"', "") for name, value in args)
    return f"{label} is swept, {told or 'nothing else'} is fixed."


def _block_sweeps(block: Block, families: Mapping[str, _Family], alpha: float) -> Iterator[Sweep]:
    """Yield the sweeps of one owner and method."""
    nulls = block.nulls
    # Innocents with rows of their own went through the same; those rows come after the attack's.
    rows = {_name(row.chain): row for row in reversed(block.rows)}
    untouched = next((row for row in block.rows if row.label == UNTOUCHED), None)

    before = judged(untouched, nulls, alpha) if untouched else []
    decidable = any(verdict.outcome != "undecided" for verdict in before)

    def point(strength: float, row: Row, baseline: _Baseline) -> Point:
        losses = {p: loss for p in MARKED_AND_TWINS if (loss := _loss(row, p, baseline))}
        return Point(strength, row, judged(row, nulls, alpha), losses, decidable)

    for label, family in families.items():
        swept = {s: rows[c] for s, c in sorted(family.strengths.items()) if c in rows}
        baseline = _baseline(untouched, swept)
        yield Sweep(
            owner=block.owner,
            method=block.method,
            label=label,
            setting=family.setting,
            points=[point(strength, row, baseline) for strength, row in swept.items()],
            untouched=point(0.0, untouched, _Baseline({}, None)) if untouched else None,
            baseline=baseline,
            least=block.least,
        )


def _baseline(untouched: Row | None, rows: Mapping[float, Row]) -> _Baseline:
    """Choose by the records: is the suspects' task the one their model was measured on before?"""
    before: dict[tuple[int, str], Utility] = {
        (record.cell.method_seed, record.cell.base): utility
        for population in MARKED_AND_TWINS
        for record, utility in (untouched.measured(population) if untouched else [])
    }
    suspects = [u for row in rows.values() for p in MARKED_AND_TWINS for _, u in row.measured(p)]
    same = {task_of(u) for u in suspects} <= {task_of(u) for u in before.values()}
    return _Baseline(before, _best(rows) if before and not same else None)


def _best(rows: Mapping[float, Row]) -> _Best | None:
    """Return the twins' best mean utility over the strengths; the copies' where none has a twin."""
    for population in ("owner", "released"):
        means = {
            strength: fmean(per_model((record, utility.value) for record, utility in found))
            for strength, row in rows.items()
            if (found := row.measured(population))
        }
        if means:
            best = max(means, key=means.__getitem__)
            return _Best(means[best], best, rows[best], population)
    return None


def _loss(row: Row, population: Lineage, baseline: _Baseline) -> Loss | None:
    """Hold the utility of one population against the baseline, mean over models."""
    held = [
        (record, reference, utility)
        for record, utility in row.measured(population)
        if (reference := baseline.of(record)) is not None
    ]
    if not held:
        return None
    before = fmean(per_model((record, reference) for record, reference, _ in held))
    after = fmean(per_model((record, utility.value) for record, _, utility in held))
    losses = per_model((record, ref - utility.value) for record, ref, utility in held)
    best = baseline.best
    itself = best is not None and best.row is row and best.population == population
    share = all(utility.metric in SHARES for _, _, utility in held)
    n = min(utility.n for _, _, utility in held)
    pairs = [(utility, model) for record, _, utility in held for model in baseline.models(record)]
    within = None
    if share and not itself:
        within = _paired(pairs) or difference_interval(after, before, n)
    return Loss(
        value=before - after,
        within=within,
        between=intervals.between(losses),
        models=len(losses),
    )


def _paired(pairs: Sequence[tuple[Utility, Utility]]) -> Interval | None:
    """Pair two models image by image, where it is known which images each got right."""
    same = all(one.n == other.n and task_of(one) == task_of(other) for one, other in pairs)
    if not same or not all(one.right and other.right for one, other in pairs):
        return None
    return paired_interval(
        [(unpacked(one.right, one.n), unpacked(other.right, other.n)) for one, other in pairs]
    )


def _frontier(swept: Sequence[Sweep], legend: Sequence[str], outline: Outline) -> Table:
    """Return every strength of every sweep: what is still detected, and what it cost."""
    tasks = numbered_tasks(point.row for sweep in swept for point in sweep.points)
    rows = [
        (sweep.owner, sweep.method, sweep.label, *_point_row(point, tasks, sweep.least))
        for sweep in swept
        for point in sweep.points
    ]
    return Table(
        name="Frontier",
        caption=f"what removal costs and what is left to detect, by strength ({outline.heading})",
        columns=(
            *("owner", "method", "sweep", "strength", "marked", "twin", "score (m/t)", "p"),
            *("verdict", "utility (m/t)", "utility loss"),
        ),
        rows=tuple(rows),
        notes=(
            *LEGEND,
            WORTHLESS,
            *(f"utility {number}: {task}." for task, number in tasks.items()),
            *legend,
            *outline.reductions,
            *outline.warnings,
        ),
        heads=3,
    )


def _point_row(
    point: Point, tasks: Mapping[str, str], least: Mapping[Task, float]
) -> tuple[str, ...]:
    scores = [_score(point.row, population) for population in MARKED_AND_TWINS]
    return (
        f"{point.strength:g}",
        *(notes.rate_text(point.row, population) for population in MARKED_AND_TWINS),
        NOTHING if set(scores) == {NOTHING} else " / ".join(scores),
        notes.largest_p(point.verdicts),
        notes.counts_text(point.verdicts, point.row.unread),
        utility_text(point.row, tasks, least),
        point.loss.text if point.loss else NOTHING,
    )


def _score(row: Row, population: Lineage) -> str:
    read = [(r, evidence_of(r).score) for r in row.records(population)]
    return f"{fmean(per_model(read)):.3f}" if read else NOTHING


def _prices(swept: Sequence[Sweep], outline: Outline) -> Table:
    """Return the price of removal of every sweep, by our verdict and by the paper's threshold."""
    return Table(
        name="Price of removal",
        caption=f"the smallest utility loss at which the claim is gone ({outline.heading})",
        columns=(
            *("owner", "method", "sweep", "price (verdict)"),
            f"price (paper's rule, R < {R_HIGH:g})",
            *("largest loss tried", "against", "points"),
        ),
        rows=tuple(
            (
                *(sweep.owner, sweep.method, sweep.label),
                _price(sweep, lambda point: point.owned),
                _price(sweep, lambda point: point.detected),
                _tried(sweep, sweep.read),
                sweep.baseline.text,
                f"{len(sweep.read)} of {len(sweep.points)}",
            )
            for sweep in swept
        ),
        notes=(*PRICE_LEGEND, LEGEND[-1], WORTHLESS, *outline.reductions),
        heads=2,
    )


def _price(sweep: Sweep, holds: Callable[[Point], bool | None]) -> str:
    """Write the smallest loss at which a claim no longer holds, or how far it was tried."""
    if sweep.untouched is not None and holds(sweep.untouched) is False:
        return "gone unattacked"
    judged = [point for point in sweep.read if holds(point) is not None]
    gone = [point for point in judged if not holds(point)]
    if gone:
        return _extreme(sweep, gone, min)
    if judged:
        tried = _tried(sweep, judged)
        return f"> {tried}" if tried != NOTHING else NOTHING
    return "undecided" if sweep.read else NOTHING


def _tried(sweep: Sweep, points: Iterable[Point]) -> str:
    """Write the largest loss among points attacked at least as much as an honest thief would."""
    best = sweep.baseline.best
    return _extreme(sweep, [p for p in points if best is None or p.strength >= best.strength], max)


def _extreme(
    sweep: Sweep, points: Iterable[Point], choose: Callable[[Iterable[float]], float]
) -> str:
    """Write the smallest or the largest loss of several points, and the strength it goes with."""
    losses = {point.loss.value: point for point in reversed(list(points)) if point.loss}
    if not losses:
        return NOTHING
    point = losses[choose(losses)]
    worth = "" if point.row.usable(sweep.least) else f", {NO_THEFT}"
    lost = point.loss.text if point.loss else NOTHING
    return f"{lost} at {sweep.setting}={point.strength:g}{worth}"


def _signed(value: float) -> str:
    return f"{round(value, 3) or 0.0:+.3f}"  # never -0.000
