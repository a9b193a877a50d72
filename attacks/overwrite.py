"""Mark a stolen model once more, with a key of the thief's.

Source: N. Lukas, E. Jiang, X. Li, F. Kerschbaum, "SoK: how robust is image classification deep
neural network watermarking?", arXiv:2108.04974 (overwriting); Y. Uchida, Y. Nagai, S. Sakazawa,
S. Satoh, "Embedding watermarks into deep neural networks", arXiv:1701.04082, section 4.3.2.

The mark is put in as an owner would, with the thief's images. What the method keeps of its owner's
features it keeps of the victim's: the victim is its own teacher. The thief can then claim what he
stole, so what he needs to do so, his secret, is kept with the copy. Some of his images are held
apart, for methods that ask for such.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from attacks.apart import count_apart, held_apart
from bench.models import VisionModel, clone
from bench.registry import Marking, attack, marking
from bench.types import (
    Access,
    Change,
    Context,
    CountsProtecting,
    Json,
    Passes,
    Positive,
    Sizes,
)


def _usual() -> Mapping[str, Json]:
    return {"name": "activemark"}


@attack("overwrite")
@dataclass(frozen=True, slots=True)
class Overwrite:
    """Protect the stolen model as its owner would, once or several times, each with another key.

    The secrets stay with the copy, those of the i-th time, counted from 1, under names "i.". A
    store has them as "secret.i." beside the weights.

    * `data`: the data set whose images the thief marks with; none: the probe's.
    * `method`: any method that marks, with its settings, as a suite names it.
    * `times`: how often.
    """

    data: str | None = None
    method: Marking = field(default_factory=_usual)
    times: Positive = 1

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "finetuning"
    adaptive: ClassVar[str] = "how models are marked, but no key"

    def passes(self, sizes: Sizes) -> Passes:
        """Count what the method says of protecting; at least none, where it says nothing."""
        method = marking(self.method)
        if not isinstance(method, CountsProtecting):
            return Passes(bound="at least")
        held = count_apart(sizes.images)
        one = method.protect_passes(
            dataclasses.replace(sizes, images=sizes.images - held, held_out=held)
        )
        return dataclasses.replace(
            one,
            forward=self.times * one.forward,
            backward=self.times * one.backward,
            bound="about" if one.bound == "exact" else one.bound,
        )

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy with its secrets; notes are those of the last protection.

        Raises:
            UserError: the method cannot mark such a victim, or has no images to do it with.

        """
        method, (images, held_out) = marking(self.method), held_apart(ctx.images, "overwrite")
        ctx = dataclasses.replace(ctx, images=images, held_out=held_out, stranger=None)
        made, secrets, notes = victim, dict[str, Tensor](), dict[str, Json]()
        for time in range(1, self.times + 1):
            protected = method.protect(made, ctx)  # draws its key from what `ctx.rng` has left
            made, notes = protected.model.to(ctx.device), dict(protected.notes)
            secrets |= {f"{time}.{name}": value for name, value in protected.secret.items()}
        made = clone(made)
        made.notes, made.secret = {**notes, "times": self.times}, secrets
        return made
