"""Check that an attack keeps its promises."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from bench.models.vision import VisionModel
from bench.models.weights import weights_digest
from bench.registry import ATTACKS
from bench.testing.comparing import (
    _differing,
    _finite,
    _global_seed,
    _head,
    _outputs,
    _require,
    _round_trip,
    _run,
    _same,
    _snapshot,
    _watched,
)
from bench.testing.victims import CPU, _with_digits_head, context, owner, stranger
from bench.types import (
    Attack,
    Context,
    IsExact,
    NeedsLabels,
    UserError,
    UsesBase,
    UsesCopies,
    UsesHead,
)

EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far an exact attack may move what a model computes, over the largest number in it."""


def check_attack(
    attack: Attack, note: Callable[[str], object] = print, threads: int | None = 1
) -> None:
    """Run every check an attack must pass; raise AssertionError at the first it fails.

    `note` is told of every check before it runs. Models so small are fastest with one thread;
    `threads` is None for as many as the caller has.
    """
    _run(ATTACK_CHECKS, attack, note, threads)


def attack_leaves_its_input_untouched(attack: Attack) -> None:
    """Work on a copy: weights, mode and gradients of the victim stay as they were."""
    victim = _victim(attack)
    before = _snapshot(victim)
    attack.run(victim, _context(attack))
    _same(before, _snapshot(victim), "run() changed the victim it was given")


def attack_repeats_under_equal_randomness(attack: Attack) -> None:
    """Draw on nothing but `ctx.rng`; ignore even that if declared not random."""
    first = _attacked(attack, 3).made
    with _global_seed(2):
        again = attack.run(_victim(attack), _context(attack, 3 if attack.random else 4))
    blame = "drew on global randomness" if attack.random else "is random and declares it is not"
    _same(first.state_dict(), again.state_dict(), f"run() {blame}")


def attack_returns_finite_weights(attack: Attack) -> None:
    """Return no NaN and no infinity."""
    _finite(_attacked(attack).made.state_dict(), "run() returned")


def attack_survives_a_round_trip(attack: Attack) -> None:
    """Return a model that its architecture and its weights describe completely."""
    made = _attacked(attack).made
    _require(
        torch.equal(_outputs(made), _outputs(_round_trip(made))),
        "run() returned a model that answers differently once stored and loaded again",
    )


def attack_changes_weights_or_function(attack: Attack) -> None:
    """Do something; only control.identity may hand the victim on as it is."""
    victim, made = _attacked(attack)
    if made.architecture.served != victim.architecture.served:
        return  # it may answer all but a few questions as before
    if made.state_dict().keys() != victim.state_dict().keys() or _differing(
        made.state_dict(), victim.state_dict()
    ):
        return
    if torch.equal(_outputs(made), _outputs(victim)):
        allowed = type(attack) is ATTACKS.get("control.identity")
        _require(allowed, "run() returned a model equal to the victim")


def attack_as_control_ignores_the_victims_weights(attack: Attack) -> None:
    """Give a control two victims of one shape; it must not tell them apart."""
    if not attack.derived:
        here = _attacked(attack, 3).made.state_dict()
        there = attack.run(_victim(attack, stranger(1)), _context(attack, 3)).state_dict()
        _same(here, there, "a control took something from the victim")


def attack_returns_a_distinct_object(attack: Attack) -> None:
    """Return a `VisionModel` that shares no memory with the victim."""
    victim, made = _attacked(attack)
    _require(isinstance(made, VisionModel), f"run() returned a {type(made).__name__}")
    taken = {value.data_ptr() for value in victim.state_dict().values()}
    shared = [name for name, value in made.state_dict().items() if value.data_ptr() in taken]
    _require(not shared, f"run() shares memory with the victim: {', '.join(shared[:3])}")


def attack_twins_see_equal_batches_and_heads(attack: Attack) -> None:
    """Let nothing about the victim decide which images it sees or which head it starts from.

    An attack with a setting `lr` must accept 0: then the head is as drawn, or the victim's own, and
    the backbone either the victim's or, for a student that starts afresh, as drawn too.
    """
    idle = _idle(attack)
    trains, attack = idle is not None, idle or attack
    victims = _victim(attack), _victim(attack, stranger(1))
    batches: tuple[list[Any], list[Any]] = [], []
    one, other = (
        attack.run(victim, _watched(_context(attack, 3), seen))
        for victim, seen in zip(victims, batches, strict=True)
    )
    _require(batches[0] == batches[1], "run() showed equally seeded twins different batches")
    pairs = zip(victims, (one, other), strict=True)
    own = all(_head(after) and not _differing(_head(v), _head(after)) for v, after in pairs)
    if trains and not own:  # a head that was the victim's is no draw
        _same(_head(one), _head(other), "run() gave equally seeded twins different heads")
    if trains and attack.derived:
        before, after = [*map(weights_digest, victims)], [*map(weights_digest, (one, other))]
        kept = before == after or after[0] == after[1]
        _require(kept, "run() moved the backbone at a learning rate of 0")


def attack_does_not_depend_on_order(attack: Attack) -> None:
    """Keep no memory: another run in between changes nothing."""
    first = _attacked(attack, 3).made.state_dict()
    attack.run(_victim(attack, stranger(1)), _context(attack, 4))
    again = attack.run(_victim(attack), _context(attack, 3)).state_dict()
    _same(first, again, "run() remembers earlier runs")


def attack_keeps_the_function_if_it_says_so(attack: Attack) -> None:
    """Leave final tokens, features and class scores as they were, if the attack is `exact`."""
    if not isinstance(attack, IsExact) or not attack.exact:
        return
    for kind, bound in EXACT.items():
        victim = _with_digits_head(owner()).to(kind)
        made = attack.run(victim, _context(attack))
        apart = max(
            float((found - wanted).abs().max() / wanted.abs().max())
            for found, wanted in zip(_computed(made), _computed(victim), strict=True)
        )
        _require(apart <= bound, f"run() is not exact: it moved outputs by {apart:.1e} in {kind}")


def attack_needs_the_labels_it_says(attack: Attack) -> None:
    """Refuse images without labels, if the attack is `labelled`; all others never see any."""
    if not isinstance(attack, NeedsLabels) or not attack.labelled:
        return
    try:
        attack.run(_victim(attack), _unlabelled(_context(attack)))
    except UserError:
        return
    _require(False, "run() learned from images without labels, and declares that it needs some")


ATTACK_CHECKS: tuple[Callable[[Attack], None], ...] = (
    attack_returns_a_distinct_object,
    attack_leaves_its_input_untouched,
    attack_returns_finite_weights,
    attack_changes_weights_or_function,
    attack_repeats_under_equal_randomness,
    attack_does_not_depend_on_order,
    attack_as_control_ignores_the_victims_weights,
    attack_twins_see_equal_batches_and_heads,
    attack_survives_a_round_trip,
    attack_keeps_the_function_if_it_says_so,
    attack_needs_the_labels_it_says,
)
"""What every attack must pass, cheapest explanation of a failure first."""


class _Attacked(NamedTuple):
    """A victim after it was attacked, and what the attack made of it."""

    victim: VisionModel
    made: VisionModel


def _attacked(attack: Attack, seed: int = 0) -> _Attacked:
    # Running is the slow part, and no check changes what it gets.
    try:
        hash(attack)
    except TypeError:  # a setting that is a mapping, such as the method of `overwrite`
        return _attack_once.__wrapped__(attack, seed)
    return _attack_once(cast(Hashable, attack), seed)


@functools.cache
def _attack_once(attack: Any, seed: int) -> _Attacked:
    victim = _victim(attack)
    with _global_seed(1):
        return _Attacked(victim, attack.run(victim, _context(attack, seed)))


def _victim(attack: Attack, model: VisionModel | None = None) -> VisionModel:
    """Return a model, `mini` unless told, with a head for an attack that says `uses_head`."""
    model = model or owner()
    return _with_digits_head(model) if isinstance(attack, UsesHead) and attack.uses_head else model


def _idle(attack: Attack) -> Attack | None:
    """Return the attack at a learning rate of 0, if it has one to set."""
    if not dataclasses.is_dataclass(attack) or isinstance(attack, type):
        return None
    trains = any(field.name == "lr" for field in dataclasses.fields(attack))
    return dataclasses.replace(attack, lr=0.0) if trains else None


def _context(attack: Attack, seed: int = 0) -> Context:
    """Give the thief what the attack asks for: a base only to one that says `uses_base`.

    Labels only to one that is `labelled`. Strangers stand in for copies under other keys.
    """
    made = context(seed)
    if not isinstance(attack, NeedsLabels) or not attack.labelled:
        made = _unlabelled(made)
    base = stranger(2) if isinstance(attack, UsesBase) and attack.uses_base else None
    copies = (lambda i: stranger(2 + i)) if isinstance(attack, UsesCopies) else None
    return dataclasses.replace(made, base=base, copies=copies)


def _unlabelled(context: Context) -> Context:
    """Take labels and masks away from all of a thief's images."""
    pools = (context.images, context.held_out)
    bare = (pool and dataclasses.replace(pool, labels=None, masks=None) for pool in pools)
    images, held_out = bare
    return dataclasses.replace(context, images=images, held_out=held_out)


def _computed(model: VisionModel) -> list[Tensor]:
    """List all that others read of a model, on digits and on noise."""
    digits = context().images.batch(slice(0, 16), CPU)
    noise = torch.rand(digits.shape, generator=torch.Generator().manual_seed(0))
    images = torch.cat([digits, noise]).to(model.mean.dtype)
    with torch.no_grad():
        tokens = model.eval().forward_features(images)
        return [tokens, model.embedding(tokens), model.pooled(tokens), model.forward_head(tokens)]
