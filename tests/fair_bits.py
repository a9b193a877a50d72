"""The promise of a method whose evidence has an exact null, as a check like the others."""

import torch

from bench import testing
from bench.models.suspect import View
from bench.types import Method, RedrawsBits
from bench.verdicts.checks import fairness

REDRAWS = 12
"""Secrets with other bits: distances that move with the bits do so at the first."""


def method_with_an_exact_null_has_fair_bits(method: Method) -> None:
    """Redraw the secret's bits: which queries agree may change, and nothing else."""
    made = testing._protected(method)
    if not isinstance(method, RedrawsBits):
        null = testing._read(method, made, made.model).null
        testing._require(null is None, "evidence has an exact null, and the method no redrawn()")
        return
    rng = torch.Generator().manual_seed(0)
    drawn = [method.redrawn(made.secret, rng) for _ in range(REDRAWS)]
    innocent = [testing._owner_for(method.needs), *testing._strangers_for(method.needs)]

    def read(secret, suspect):
        view = View(suspect, method.needs)
        return method.extract(secret, view, testing.context(1, "owner"))

    said = fairness.why_unfair(read, made.secret, drawn, made.model, innocent)
    testing._require(not said, said)
