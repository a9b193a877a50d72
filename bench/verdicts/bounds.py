"""The rules and bounds of ActiveMark's section 3, as printed and as its argument would need them.

A. Chistyakova, M. Pautov, "ActiveMark: on watermarking of visual foundation models via massive
activations", https://arxiv.org/abs/2510.04966, equations 6, 7 and 11 to 14. Equation 9 defines r on
bits and equation 12 uses it as the chance that an image is detected, so each bound comes at three
levels, see `Level`. Equation 6 prints `< tau` and sums up to tau: here, as in equation 4, it is
`<= tau`.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bench.records.nouns import Evidence, Outline, Record, UserError, evidence_of
from bench.records.table import NOTHING, Table
from bench.verdicts.innocents import Population, populations, unread_copies
from bench.verdicts.intervals import upper_bound

Level = Literal["bits, as printed", "bits, through eq. 6", "images"]
"""What the intervals of equation 11 are for: the bits of an image, taken for the image itself, as
printed; those bits, whose number wrong is then binomial; or the image's own detection, one trial
per suspect, which is what equations 12 to 14 sum over."""

LEVELS: tuple[Level, ...] = get_args(Level)

ALPHA = 5e-6
"""The chance that any of the intervals of one side misses; the remark of section 3.3.1."""

MISSED, CALLED = 1e-6, 1e-4
"""The error probabilities of the same remark: a copy missed, an innocent called."""

R_HIGH, R_LOW = 0.75, 0.60
"""Its thresholds, as shares of the images."""

UNREAD = (
    "a marked copy that the method cannot read is missed, with R = 0: no image, no bit is right. "
    "Without it the bounds would speak of what thieves left readable alone."
)

MOST = 10**6
"""Suspects; a bound that needs more counts as out of reach."""


@dataclass(frozen=True, slots=True)
class Bound:
    """An upper bound on the chance of an error at a threshold, and what it could have been.

    `needed` suspects, all of them flawless, are the fewest whose bound is at most `level`; None if
    no number would do, there being too few images.
    """

    threshold: int  # images
    probability: float
    level: float
    suspects: int
    needed: int | None

    @property
    def vacuous(self) -> bool:
        """Say whether so few suspects could never have met the level, whatever they showed."""
        return self.needed is None or self.suspects < self.needed


@dataclass(frozen=True, slots=True)
class Bounds:
    """Equations 11, 13 and 14 for one secret at one level.

    `high` is the greatest threshold that bounds the chance of a miss by `missed.level`, `low` the
    least that bounds the chance of a false call by `called.level`; None where only the trivial
    threshold does, which calls everybody or nobody.
    """

    level: Level
    images: int
    lower: tuple[float, ...]  # l(x), by image
    upper: tuple[float, ...]  # u(x)
    missed: Bound
    called: Bound
    high: int | None
    low: int | None

    @property
    def separates(self) -> bool:
        """Say whether some threshold keeps both errors at their levels."""
        return self.low is not None and self.high is not None and self.low < self.high


def false_positive_rate(tau: int, bits: int, match: float = 0.5) -> float:
    """Return FPR1 (eq. 6): the chance of at most `tau` wrong bits if each is right with `match`."""
    from scipy.stats import binom

    return float(binom.cdf(tau, bits, 1 - match))


def largest_tau(epsilon: float, bits: int, match: float = 0.5) -> int | None:
    """Return the tau of eq. 7: the largest below `bits` with FPR1 < `epsilon`, None if none has."""
    fitting = [tau for tau in range(bits) if false_positive_rate(tau, bits, match) < epsilon]
    return max(fitting, default=None)


def lower_limits(hits: Sequence[int], trials: int, alpha: float = ALPHA) -> tuple[float, ...]:
    """Return l(x) (eq. 11): one-sided Clopper-Pearson limits that hold for all images together."""
    return _limits(hits, trials, alpha)[0]


def upper_limits(hits: Sequence[int], trials: int, alpha: float = ALPHA) -> tuple[float, ...]:
    """Return u(x) (eq. 11), the other side of `lower_limits`."""
    return _limits(hits, trials, alpha)[1]


def _limits(
    hits: Sequence[int], trials: int, alpha: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    import numpy as np
    from statsmodels.stats.proportion import proportion_confint

    if not trials:
        return (0.0,) * len(hits), (1.0,) * len(hits)
    # Either end of a two-sided interval at twice the level is the one-sided limit.
    level = 2 * alpha / len(hits)
    low, high = proportion_confint(np.asarray(hits), trials, alpha=level, method="beta")
    return tuple(low.tolist()), tuple(high.tolist())


def chance_missed(lower: Sequence[float], threshold: int) -> float:
    """Return eq. 13: P[R < threshold] if the images are detected independently, each with l(x)."""
    from scipy.stats import poisson_binom

    return float(poisson_binom(lower).cdf(threshold - 1))


def chance_called(upper: Sequence[float], threshold: int) -> float:
    """Return eq. 14: P[R > threshold] if the images are detected independently, each with u(x)."""
    # Counting the images not detected keeps the digits that 1 - P[R <= threshold] would lose.
    return chance_missed([1 - u for u in upper], len(upper) - threshold)


def high_threshold(lower: Sequence[float], level: float) -> int | None:
    """Return the greatest threshold whose chance of a miss (eq. 13) is at most `level`."""
    return _greatest(lower, level) or None


def low_threshold(upper: Sequence[float], level: float) -> int | None:
    """Return the least threshold whose chance of a false call (eq. 14) is at most `level`."""
    margin = _greatest([1 - u for u in upper], level)
    return len(upper) - margin if margin else None


def _greatest(chances: Sequence[float], level: float) -> int:
    """Return the greatest r with P[R < r] <= level; 0 if only that has."""
    import numpy as np
    from scipy.stats import poisson_binom

    below = poisson_binom(chances).cdf(np.arange(len(chances)))  # P[R < 1], ..., P[R < N]
    return int(np.sum(below <= level))


def bounds(
    marked: Sequence[Evidence],
    innocent: Sequence[Evidence],
    level: Level,
    alpha: float = ALPHA,
    unread: int = 0,
) -> Bounds:
    """Bound both errors of a threshold on R from suspects read with one secret.

    Suspects count as independent draws of the models there could be. A marked copy that cannot be
    read, `unread` of them, is missed at every threshold: none of its images and bits is right.

    Raises:
        UserError: there is no evidence, it does not count bit errors, or not of the same images.

    """
    trial = _Trial.of([*marked, *innocent], level, alpha)
    copies = len(marked) + unread
    lower = trial.lower(trial.hits(marked), copies)
    upper = trial.upper(trial.hits(innocent), len(innocent))
    # 0.6 of 55 images is 33, which floating point misses.
    high = math.ceil(round(R_HIGH * trial.images, 9))
    low = math.floor(round(R_LOW * trial.images, 9))

    missed, called = chance_missed(lower, high), chance_called(upper, low)
    return Bounds(
        level=level,
        images=trial.images,
        lower=lower,
        upper=upper,
        missed=Bound(high, missed, MISSED, copies, _fewest_marked(trial, high)),
        called=Bound(low, called, CALLED, len(innocent), _fewest_innocent(trial, low)),
        high=high_threshold(lower, MISSED),
        low=low_threshold(upper, CALLED),
    )


@functools.cache  # a search, and the same for every secret of a method
def _fewest_marked(trial: _Trial, high: int) -> int | None:
    def can_hit(n: int) -> bool:
        return chance_missed(trial.lower(trial.flawless(n), n), high) <= MISSED

    return _fewest(can_hit)


@functools.cache
def _fewest_innocent(trial: _Trial, low: int) -> int | None:
    def can_pass(n: int) -> bool:
        return chance_called(trial.upper(trial.by_chance(n), n), low) <= CALLED

    return _fewest(can_pass)


def _fewest(reaches: Callable[[int], bool]) -> int | None:
    found = 1 + bisect.bisect_left(range(1, MOST), True, key=reaches)
    return found if found < MOST else None


@dataclass(frozen=True, slots=True)
class _Trial:
    """What one trial of equation 10 is, and how its chance becomes that of an image."""

    level: Level
    images: int
    bits: int
    tau: int
    chance: float
    alpha: float

    @staticmethod
    def of(evidence: Sequence[Evidence], level: Level, alpha: float) -> _Trial:
        counts = {len(e.statistic) for e in evidence}
        taus = {e.rule.threshold for e in evidence if counts_bits(e)}
        if len(counts) != 1 or len(taus) != 1 or not all(map(counts_bits, evidence)):
            raise UserError(
                "expected suspects read with one secret by 'bit errors <= tau', got "
                f"{len(evidence)} with {sorted(counts)} images and tau {sorted(taus)}"
            )
        bits, chance = _bits(evidence), evidence[0].chance or 0.0
        if not bits and level != "images":
            raise UserError(
                "expected a wrong bit somewhere, got none: a message's bits are unknown"
            )
        return _Trial(level, counts.pop(), bits, int(taus.pop()), chance, alpha)

    @property
    def per_suspect(self) -> int:
        return 1 if self.level == "images" else self.bits

    def hits(self, suspects: Sequence[Evidence]) -> list[int]:
        """Count what was right, image by image, over all suspects."""
        import numpy as np

        every = itertools.chain.from_iterable(e.statistic for e in suspects)
        errors = np.fromiter(every, float).reshape(-1, self.images)  # (n, images)
        right = errors <= self.tau if self.level == "images" else self.bits - errors.round()
        hits: list[int] = right.sum(axis=0).astype(int).tolist()
        return hits

    def flawless(self, suspects: int) -> list[int]:
        return [suspects * self.per_suspect] * self.images

    def by_chance(self, suspects: int) -> list[int]:
        """Return what the best innocents show: no image detected, half of the bits guessed."""
        bits = round(suspects * self.bits * self.chance)
        return [0 if self.level == "images" else bits] * self.images

    def lower(self, hits: Sequence[int], suspects: int) -> tuple[float, ...]:
        return self._of_images(lower_limits(hits, suspects * self.per_suspect, self.alpha))

    def upper(self, hits: Sequence[int], suspects: int) -> tuple[float, ...]:
        return self._of_images(upper_limits(hits, suspects * self.per_suspect, self.alpha))

    def _of_images(self, limits: tuple[float, ...]) -> tuple[float, ...]:
        if self.level != "bits, through eq. 6":
            return limits
        detected = {m: false_positive_rate(self.tau, self.bits, m) for m in set(limits)}
        return tuple(detected[match] for match in limits)


ROUNDED = 1e-4
"""How far bit errors may lie from those of a share in single precision."""


def counts_bits(evidence: Evidence) -> bool:
    """Say whether these bounds speak of such evidence at all."""
    return (evidence.rule.statistic, evidence.rule.comparison) == ("bit errors", "<=")


def _bits(evidence: Iterable[Evidence]) -> int:
    """Find the bits of a message from the share that a known number of errors left right, or 0."""
    pairs = (pair for e in evidence for pair in zip(e.agreement, e.statistic, strict=True))
    # What a record says may have been tampered with: wrong bits where all are right tell nothing.
    told = (round(errors / (1 - right)) for right, errors in pairs if errors and right < 1)
    return next(told, 0)


def contradicts(evidence: Evidence) -> bool:
    """Say whether bit errors are not those of the shares of bits that they left right."""
    if not counts_bits(evidence):
        return False
    bits = _bits([evidence])
    pairs = zip(evidence.agreement, evidence.statistic, strict=True)
    return any(abs(bits * (1 - right) - errors) > ROUNDED for right, errors in pairs)


def bounds_table(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> Table:
    """Return what section 3.3 can promise here; a group is an owner, a method and its records.

    It has no rows where no method counts bit errors.
    """
    told = list(groups)
    rows = [(owner, method, *cells) for owner, method, records in told for cells in _rows(records)]
    return Table(
        name="Bounds",
        caption=f"section 3.3 of the ActiveMark paper ({outline.heading})",
        columns=(
            *("owner", "method", "r is the chance of", "marked / innocent", "l(x)", "u(x)"),
            *(
                f"P[R < {R_HIGH:g} N]",
                f"P[R > {R_LOW:g} N]",
                "R high / N",
                "R low / N",
                "separated",
            ),
        ),
        rows=tuple(rows),
        notes=(
            f"l(x), u(x): Clopper-Pearson limits (eq. 11), all images together at {ALPHA:g}. "
            f"P: upper bounds of eq. 13 and 14, wanted at {MISSED:g} and {CALLED:g}; R high and R "
            "low: the thresholds that reach these. vacuous: even flawless suspects of this number "
            "could not reach them, so many are needed. "
            "separated: R low lies below R high. Several keys: the worst of them. marked: copies "
            "of the released model, attacked or not, for R is to be high of both.",
            "bits, as printed: eq. 9 defines r on bits and eq. 12 uses it on images. bits, through "
            "eq. 6: an image by its bits, as if independent. images: detections per suspect, what "
            "eq. 12 needs. All three take the images of a suspect as independent, though they "
            "share its model, and suspects as independent draws.",
            "models: suspects counted whole, with one-sided 95 % bounds, and the lowest and the "
            "highest R seen; it supposes nothing of images.",
            *([UNREAD] if any(map(_any_unread, told)) else []),
        ),
        heads=2,
    )


def _any_unread(group: tuple[str, str, Sequence[Record]]) -> bool:
    return any(unread_copies(group[2]).values())


def _rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    read = [p for p in populations(records).values() if all(map(_counts_bits, _everyone(p)))]
    return [*(_bound_row(level, read) for level in LEVELS), _model_row(read)] if read else []


def _everyone(population: Population) -> tuple[Record, ...]:
    return population.marked + population.innocent


def _counts_bits(record: Record) -> bool:
    return counts_bits(evidence_of(record))


def _bound_row(level: Level, read: Sequence[Population]) -> tuple[str, ...]:
    try:
        found = [
            bounds(
                *(list(map(evidence_of, p.marked)), list(map(evidence_of, p.innocent)), level),
                unread=p.unread,
            )
            for p in read
        ]
    except UserError as error:
        return (level, *(NOTHING,) * 7, str(error))
    high = min((b.high or 0) / b.images for b in found)
    low = max((b.images if b.low is None else b.low) / b.images for b in found)
    return (
        level,
        _sizes(read),
        _range([limit for b in found for limit in b.lower]),
        _range([limit for b in found for limit in b.upper]),
        _bound([b.missed for b in found]),
        _bound([b.called for b in found]),
        f"{high:.3f}" if high > 0 else "none",
        f"{low:.3f}" if low < 1 else "none",
        "yes" if all(b.separates for b in found) and low < high else "no",
    )


def _model_row(read: Sequence[Population]) -> tuple[str, ...]:
    """Count suspects whole: what remains when nothing is supposed of images."""
    marked = [[*(evidence_of(r).rate for r in p.marked), *[0.0] * p.unread] for p in read]
    innocent = [[evidence_of(r).rate for r in p.innocent] for p in read]
    high, low = (
        min((rate for rates in marked for rate in rates), default=None),
        max((rate for rates in innocent for rate in rates), default=None),
    )
    apart = high is not None and low is not None and low < high
    return (
        "models",
        _sizes(read),
        *(NOTHING, NOTHING),
        _counted([(sum(rate < R_HIGH for rate in rates), len(rates)) for rates in marked]),
        _counted([(sum(rate > R_LOW for rate in rates), len(rates)) for rates in innocent]),
        NOTHING if high is None else f"{high:.3f}",
        NOTHING if low is None else f"{low:.3f}",
        "yes (seen)" if apart else "no (seen)",
    )


def _sizes(read: Sequence[Population]) -> str:
    """Write how many suspects there are per key, the fewest if keys differ."""
    marked = min(len(p.marked) + p.unread for p in read)
    return f"{marked} / {min(len(p.innocent) for p in read)}"


def _range(limits: Sequence[float]) -> str:
    low, high = f"{min(limits):.3f}", f"{max(limits):.3f}"
    return low if low == high else f"{low}-{high}"


def _bound(found: Sequence[Bound]) -> str:
    """Write the worst bound over keys; one that could not have been met is said to be vacuous."""
    worst = max(found, key=lambda bound: (bound.vacuous, bound.probability))
    if worst.vacuous:
        wanted = "more images" if worst.needed is None else f"{worst.needed} suspects"
        return f"vacuous: needs {wanted}"
    return f"<= {worst.probability:.1e}" if worst.probability < 0.95 else "no bound below 0.95"


def _counted(shares: Sequence[tuple[int, int]]) -> str:
    """Write errors among suspects, of the key with the greatest bound."""
    known = [(upper_bound(k, n), k, n) for k, n in shares]
    if any(bound is None for bound, _, _ in known):
        return "vacuous: no suspects"
    bound, errors, suspects = max((b or 0.0, k, n) for b, k, n in known)
    return f"{errors}/{suspects} (<= {bound:.3f})"
