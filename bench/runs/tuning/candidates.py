"""Draw the settings a method is tried at: what it declares tunable, and the same number for all."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from bench.records.nouns import Json, Spec, UserError
from bench.records.settings import Count, NotNegative, Positive, PositiveFloat, Share
from bench.registry import METHODS
from bench.types import Method

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)
"""Bases of the sequence, one a setting; a method may have as many tunable settings."""

ROUNDS = 16
"""How often the sequence may pass over a whole range before it counts as used up."""

Origin = Literal["suite", "default", "suite and default", "drawn"]
"""Where a candidate comes from: the suite's own entry, the method's default, or a draw."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What every method is tuned by: one budget, one price, one rule.

    * `budget`: how many settings each method is tried at; fewer where it has fewer.
    * `price`: the most a mark may cost, as a share of the owner's own task, such as 0.02.
    * `cosine`: the least feature cosine of the owner and what it releases.
    * `passes`: the most that protecting once may take, in forward passes' worth; none for no end.
    * `seed`: of the draw.
    """

    budget: Positive = 8
    price: NotNegative = 0.02
    cosine: Share = 0.0
    passes: PositiveFloat | None = None
    seed: Count = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One setting of a method that a suite lists as `entry`."""

    entry: Spec
    spec: Spec
    origin: Origin


def ranges(method: type[Method]) -> Mapping[str, tuple[Json, ...]]:
    """Return what a method declares tunable, with the values each setting may take."""
    declared: Mapping[str, tuple[Json, ...]] = getattr(method, "tunable", {})
    return declared


def candidates(entry: Spec, seed: int) -> Iterator[Candidate]:
    """Yield settings of a method without end or until there are no others, each once.

    The suite's own entry comes first, then the defaults, then draws. What is not tunable is always
    as the suite has it. A larger budget begins with the candidates of a smaller one.
    """
    declared = ranges(METHODS.get(entry.name))
    held = {name: value for name, value in entry.args.items() if name not in declared}
    usual = METHODS.spec(entry.name, held)
    if usual.text == entry.text:
        yield Candidate(entry, entry, "suite and default")
    else:
        yield Candidate(entry, entry, "suite")
        yield Candidate(entry, usual, "default")
    seen = {entry.text, usual.text}
    for drawn in draws(declared, seed):
        spec = METHODS.spec(entry.name, {**held, **drawn})
        if spec.text not in seen:
            seen.add(spec.text)
            yield Candidate(entry, spec, "drawn")


def draws(declared: Mapping[str, tuple[Json, ...]], seed: int) -> Iterator[dict[str, Json]]:
    """Yield choices of one value for each setting that fill their ranges evenly, then the rest.

    Halton's sequence, one prime a setting, turned by a random shift (Cranley and Patterson). It has
    no length of its own, so more draws leave the first ones as they are.
    Source: J. H. Halton, Numerische Mathematik 2, 1960; R. Cranley and T. N. L. Patterson, SIAM
    Journal on Numerical Analysis 13, 1976.
    """
    if not declared:
        return
    if len(declared) > len(PRIMES):
        raise UserError(f"tunable: expected at most {len(PRIMES)} settings, got {len(declared)}")
    draw = random.Random(seed)
    shifts = [draw.random() for _ in declared]
    every = math.prod(map(len, declared.values()))
    for number in range(1, ROUNDS * every + 1):
        places = [
            (_mirrored(number, base) + shift) % 1.0
            for base, shift in zip(PRIMES, shifts, strict=False)
        ]
        yield {
            name: values[int(place * len(values))]
            for (name, values), place in zip(declared.items(), places, strict=True)
        }
    for values in itertools.product(*declared.values()):
        yield dict(zip(declared, values, strict=True))


def _mirrored(number: int, base: int) -> float:
    """Mirror a number's digits at the point: 6 = 110 in base 2 becomes 0.011 = 0.375."""
    place, mirrored = 1.0, 0.0
    while number:
        number, digit = divmod(number, base)
        place /= base
        mirrored += digit * place
    return mirrored
