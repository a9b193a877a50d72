"""Claims against the true owner: by a thief with a mark of his own, by whoever has seen a key.

Own mark over another's is the ambiguity attack of S. Craver, N. Memon, B.-L. Yeo, M. M. Yeung,
"Resolving rightful ownerships with invisible watermarking techniques: limitations, attacks, and
implications", IEEE JSAC 16(4), 1998, https://doi.org/10.1109/49.668979, where the owner's answer
stands too: he can show a model that bears his mark alone, and the thief cannot.

Of ActiveMark that answer does not hold. On `mini` (paper variant, 16 triggers, 200 steps) a thief's
key is found on 0.94 of its triggers in the owner's copy, and on 0.88 in the clean model. Its codec
finds a message in whatever it was trained beside; only the date is left to decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.models import clone
from bench.registry import accuser
from bench.types import (
    Case,
    Context,
    CountsProtecting,
    Method,
    Passes,
    Protected,
    Sizes,
    StoppedBy,
)


@accuser("overmark")
@dataclass(frozen=True, slots=True)
class Overmark:
    """Mark the stolen copy with a key of his own, and claim the owner's model with that.

    With a fingerprint the thief takes one of the stolen copy, which is the owner's model.
    """

    accuses: ClassVar[Literal["stranger", "owner"]] = "owner"
    post_hoc: ClassVar[bool] = False
    stopped_by: ClassVar[StoppedBy] = "date"

    def accuse(self, case: Case, ctx: Context) -> Protected:
        """Return the copy with both marks, and the thief's key."""
        return case.method.protect(_victim(case).model, ctx)

    def passes(self, method: Method, sizes: Sizes) -> Passes | None:
        """Count those of protecting."""
        return method.protect_passes(sizes) if isinstance(method, CountsProtecting) else None


@accuser("disclosed")
@dataclass(frozen=True, slots=True)
class Disclosed:
    """Take the key that the owner had to open in a dispute, and claim the model with it."""

    accuses: ClassVar[Literal["stranger", "owner"]] = "owner"
    post_hoc: ClassVar[bool] = False
    stopped_by: ClassVar[StoppedBy] = "name"

    def accuse(self, case: Case, ctx: Context) -> Protected:
        """Return the owner's own key, and the owner's model as the one to show."""
        victim = _victim(case)
        return Protected(clone(victim.model), dict(victim.secret))

    def passes(self, method: Method, sizes: Sizes) -> Passes:
        """Count none: everything is there."""
        return Passes()


def _victim(case: Case) -> Protected:
    assert case.victim is not None, "whoever accuses the owner gets his model and key"
    return case.victim
