"""Check on innocent models that an exact null holds: their p-values must look uniform.

Innocents read with one secret share its coins, and descendants of one owner are alike besides, so
their p-values are not independent. What is exact is the draw of the coins: were they tossed anew,
all readings of a secret would change together. So the distance of the p-values from uniform
(Kolmogorov-Smirnov) is ranked among what other tosses of the same coins would have made of it. That
keeps its level whatever the dependence, and for p-values that come in jumps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from bench.records.nouns import Evidence, Outline, Record, evidence_of
from bench.records.table import Table
from bench.verdicts.exact.coins import log10_p, p_text, steps_of
from bench.verdicts.innocents import is_other_key, lineage, reading_of, secret_of
from bench.verdicts.intervals import Interval, exact
from bench.verdicts.verdict import Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOSSES = 999
"""Other tosses of the coins: the smallest p of the check is 1 / 1000."""

SMALL = 0.01
"""The p-value below which a share is told: of so many innocents, so few may fall."""


@dataclass(frozen=True, slots=True)
class Uniformity:
    """How the p-values of innocents are spread, and whether that is further off than chance has it.

    `distance` is the largest between their distribution and the uniform one, `p` how seldom other
    tosses of the coins lie as far off. `small` of `readings` have a p below `SMALL`, with the exact
    95 % interval of that share as if they were independent.
    """

    readings: int
    secrets: int
    distance: float
    p: float
    small: int

    @property
    def interval(self) -> Interval:
        """Return the Clopper-Pearson interval of the share of small p-values."""
        return exact(self.small, self.readings, 0.05)


def uniformity(secrets: Sequence[Sequence[Evidence]]) -> Uniformity:
    """Say how uniform the p-values of innocents are; each sequence was read with one secret."""
    import numpy as np

    rng = np.random.default_rng(0)  # a check that is made again says the same
    ranks = np.concatenate([_ranks(readings, rng) for readings in secrets])
    distances = _distances(ranks)
    found = [log10_p(evidence) for readings in secrets for evidence in readings]
    return Uniformity(
        readings=len(found),
        secrets=len(secrets),
        distance=float(distances[0]),
        p=float((distances >= distances[0] - 1e-12).mean()),
        small=sum(10**p < SMALL for p in found),
    )


def uniform_table(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> Table:
    """Return the check for every (owner, method, records) with an exact null, kind by kind."""
    return Table(
        name="Exact nulls",
        caption=f"p-values of innocents, which must be uniform ({outline.heading})",
        columns=(
            *("owner", "method", "innocents", "n", "secrets", "distance", "p of the distance"),
            *(f"p below {SMALL:g}", "smallest p"),
        ),
        rows=tuple(
            (owner, method, kind, *_row(found))
            for owner, method, records in groups
            for kind, found in innocent_evidence(records).items()
        ),
        notes=(
            "n: different models read with different secrets. distance: Kolmogorov-Smirnov's, from "
            f"uniform; its p is the share, of {TOSSES} other tosses of the secrets' coins and this "
            "one, that lie as far off. Readings of one secret share its coins, and are tossed "
            f"together. p below {SMALL:g}: their share, with its exact 95 % interval as if they "
            "were independent.",
        ),
        heads=2,
    )


def _row(secrets: Sequence[Sequence[Evidence]]) -> tuple[str, ...]:
    found = uniformity(secrets)
    low, high = found.interval
    least = min(log10_p(evidence) for readings in secrets for evidence in readings)
    return (
        *(str(found.readings), str(found.secrets), f"{found.distance:.3f}", f"{found.p:.3f}"),
        f"{found.small} of {found.readings} [{low:.3f}, {high:.3f}]",
        p_text(least),
    )


def innocent_evidence(records: Iterable[Record]) -> Mapping[Kind, Sequence[Sequence[Evidence]]]:
    """Collect what innocents with an exact null gave, kind by kind and secret by secret.

    Each model counts once with each secret. None is chosen by its score, which would bend p.
    """
    found: dict[Kind, dict[str, dict[str, Evidence]]] = {kind: {} for kind in get_args(Kind)}
    for record in records:
        kind = _kind(record)
        if kind is None or record.evidence is None or record.evidence.null is None:
            continue
        readings = found[kind].setdefault(secret_of(record), {})
        readings.setdefault(reading_of(record), evidence_of(record))
    return {
        kind: [list(readings.values()) for _, readings in sorted(secrets.items())]
        for kind, secrets in found.items()
        if secrets
    }


def _kind(record: Record) -> Kind | None:
    """Say which kind of innocent a suspect is; None for a copy of the released model."""
    if is_other_key(record):
        return "other keys"
    kinds: dict[str, Kind] = {"owner": "descendants", "stranger": "strangers"}
    return kinds.get(lineage(record))


def _ranks(readings: Sequence[Evidence], rng: np.random.Generator) -> NDArray[np.float64]:
    """Rank each reading (s,) among what every toss makes of it; the one seen comes first.

    Returns (s, 1 + TOSSES) shares of tosses with a sum at least as high.
    """
    import numpy as np

    steps = [steps_of(evidence) for evidence in readings]
    longest = max(map(len, steps))  # a suspect may leave queries out at the end, never reorder them
    signed = np.array([row + (0,) * (longest - len(row)) for row in steps], dtype=np.float32)
    tosses = rng.integers(0, 2, (longest, 1 + TOSSES), dtype=np.int8).astype(np.float32) * 2 - 1
    tosses[:, 0] = 1
    sums = signed @ tosses  # (s, 1 + TOSSES), whole numbers
    ranked = np.sort(sums, axis=1)
    below = np.stack([np.searchsorted(*pair) for pair in zip(ranked, sums, strict=True)])
    ranks: NDArray[np.float64] = (sums.shape[1] - below) / sums.shape[1]
    return ranks


def _distances(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for every column (n, t), the largest distance from the uniform distribution."""
    import numpy as np

    ordered, n = np.sort(p_values, axis=0), len(p_values)
    ahead = np.arange(1, n + 1)[:, None] / n - ordered
    behind = ordered - np.arange(n)[:, None] / n
    distances: NDArray[np.float64] = np.maximum(ahead, behind).max(0)
    return distances
