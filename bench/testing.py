"""Check that a method or an attack keeps its promises; third parties run the same on their own.

A plug-in passes when `check_attack(MyAttack())` or `check_method(MyMethod())` returns; under pytest
parametrise over `ATTACK_CHECKS` or `METHOD_CHECKS`, for one test per promise. Everything runs on
the embedded owner `mini`, on strangers trained from scratch like it, and on the embedded digits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import random
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load, load_file, save
from torch import Tensor

from bench.data import embedded, manifest
from bench.data.images import Images
from bench.data.images import load as load_
from bench.data.item import IGNORE
from bench.data.settings import DataSettings
from bench.models.building import build
from bench.models.heads import Head
from bench.models.surgery import with_head
from bench.models.suspect import View
from bench.models.vision import Architecture, VisionModel, clone
from bench.models.weights import load_state, weights_digest
from bench.records.explained import reading
from bench.records.nouns import Access, Evidence, UserError
from bench.registry import ATTACKS
from bench.suite.innocents import Recipe
from bench.training import loop, pretraining
from bench.training.probe import pooled_features
from bench.tuning.candidates import method_tunes_within_its_settings
from bench.types import Attack, Context, Method, Protected, UsesBase, UsesHead
from bench.verdicts.verdict import rank_p_value

STRANGERS = 4
"""Innocents a method is ranked against: the smallest p-value is 1 / 5."""

RECIPE = Recipe(steps=60)
"""How these strangers are trained: briefly, but on real images."""

CPU = torch.device("cpu")


def owner() -> VisionModel:
    """Return the embedded owner, `mini`; every call makes a new copy."""
    return clone(_mini())


def stranger(index: int = 0) -> VisionModel:
    """Return the index-th independently trained model of the owner's shape, as a new copy."""
    return clone(_cohort(index // STRANGERS)[index % STRANGERS])


def context(seed: int = 0, party: Literal["owner", "thief"] = "thief") -> Context:
    """Give one party its 64 digits, labelled and masked, 32 held out, and its own generator."""
    images, held_out = _pools()[party]
    return Context(CPU, torch.Generator().manual_seed(seed), images, held_out, stranger)


def check_attack(attack: Attack) -> None:
    """Run every check an attack must pass; raise AssertionError at the first it fails."""
    for check in ATTACK_CHECKS:
        check(attack)


def check_method(method: Method) -> None:
    """Run every check a method must pass; raise AssertionError at the first it fails."""
    for check in METHOD_CHECKS:
        check(method)


def attack_leaves_its_input_untouched(attack: Attack) -> None:
    """Work on a copy: weights, mode and gradients of the victim stay as they were."""
    victim = _victim(attack)
    before = _snapshot(victim)
    attack.run(victim, _context(attack))
    _same(before, _snapshot(victim), "run() changed the victim it was given")


def attack_repeats_under_equal_randomness(attack: Attack) -> None:
    """Draw on nothing but `ctx.rng`; ignore even that if declared not random."""
    runs = []
    for global_seed, seed in ((1, 3), (2, 3 if attack.random else 4)):
        with _global_seed(global_seed):
            runs.append(attack.run(_victim(attack), _context(attack, seed)).state_dict())
    blame = "drew on global randomness" if attack.random else "is random and declares it is not"
    _same(runs[0], runs[1], f"run() {blame}")


def attack_returns_finite_weights(attack: Attack) -> None:
    """Return no NaN and no infinity."""
    _finite(attack.run(_victim(attack), _context(attack)).state_dict(), "run() returned")


def attack_survives_a_round_trip(attack: Attack) -> None:
    """Return a model that its architecture and its weights describe completely."""
    made = attack.run(_victim(attack), _context(attack))
    _require(
        torch.equal(_outputs(made), _outputs(_round_trip(made))),
        "run() returned a model that answers differently once stored and loaded again",
    )


def attack_changes_weights_or_function(attack: Attack) -> None:
    """Do something; only control.identity may hand the victim on as it is."""
    victim = _victim(attack)
    made = attack.run(victim, _context(attack))
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
        here = attack.run(_victim(attack), _context(attack, 3)).state_dict()
        there = attack.run(_victim(attack, stranger(1)), _context(attack, 3)).state_dict()
        _same(here, there, "a control took something from the victim")


def attack_returns_a_distinct_object(attack: Attack) -> None:
    """Return a `VisionModel` that shares no memory with the victim."""
    victim = _victim(attack)
    made = attack.run(victim, _context(attack))
    _require(isinstance(made, VisionModel), f"run() returned a {type(made).__name__}")
    taken = {value.data_ptr() for value in victim.state_dict().values()}
    shared = [name for name, value in made.state_dict().items() if value.data_ptr() in taken]
    _require(not shared, f"run() shares memory with the victim: {', '.join(shared[:3])}")


def attack_twins_see_equal_batches_and_heads(attack: Attack) -> None:
    """Let nothing about the victim decide which images it sees or which head it starts from.

    An attack with a setting `lr` must accept 0: then the head is as drawn, and the backbone either
    the victim's or, for a student that starts afresh, as drawn too.
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
    if trains:
        _same(_head(one), _head(other), "run() gave equally seeded twins different heads")
    if trains and attack.derived:
        before, after = [*map(weights_digest, victims)], [*map(weights_digest, (one, other))]
        kept = before == after or after[0] == after[1]
        _require(kept, "run() moved the backbone at a learning rate of 0")


def attack_does_not_depend_on_order(attack: Attack) -> None:
    """Keep no memory: another run in between changes nothing."""
    first = attack.run(_victim(attack), _context(attack, 3)).state_dict()
    attack.run(_victim(attack, stranger(1)), _context(attack, 4))
    again = attack.run(_victim(attack), _context(attack, 3)).state_dict()
    _same(first, again, "run() remembers earlier runs")


def method_leaves_its_input_untouched(method: Method) -> None:
    """Work on copies: the owner, the secret and the suspect stay as they were."""
    given = _owner_for(method.needs)
    before = _snapshot(given)
    protected = method.protect(given, context(0, "owner"))
    _same(before, _snapshot(given), "protect() changed the owner it was given")
    secret = {name: value.clone() for name, value in protected.secret.items()}
    view = View(protected.model, method.needs)
    weights = _snapshot(view._model)
    method.extract(protected.secret, view, context(1, "owner"))
    _same(secret, protected.secret, "extract() changed the secret")
    _same(weights, _snapshot(view._model), "extract() changed the suspect")


def method_repeats_under_equal_randomness(method: Method) -> None:
    """Draw on nothing but `ctx.rng`."""
    first = _protected(method)
    with _global_seed(2):
        again = method.protect(_owner_for(method.needs), context(0, "owner"))
        evidence = _read(method, first, first.model)
    _same(first.secret, again.secret, "protect() drew its secret from global randomness")
    weights = first.model.state_dict(), again.model.state_dict()
    _same(*weights, "protect() drew its weights from global randomness")
    with _global_seed(3):
        repeated = _read(method, first, first.model)
    _require(evidence == repeated, "extract() drew on global randomness")


def method_returns_finite_values(method: Method) -> None:
    """Return no NaN and no infinity, in the weights or in the secret."""
    _finite(_protected(method).model.state_dict(), "protect() released")
    _finite(_protected(method).secret, "protect() kept as secret")


def method_keeps_tensors_only_as_secret(method: Method) -> None:
    """Keep what can be stored without pickling."""
    found = {name: type(value) for name, value in _protected(method).secret.items()}
    others = [f"{n} ({t.__name__})" for n, t in found.items() if not issubclass(t, Tensor)]
    _require(not others, f"the secret holds more than tensors: {', '.join(others)}")


def method_survives_a_round_trip(method: Method) -> None:
    """Read the same evidence with the stored secret off the stored model."""
    protected = _protected(method)
    kept = {name: value.contiguous() for name, value in protected.secret.items()}
    stored = Protected(_round_trip(protected.model), load(save(kept)))
    _require(
        _read(method, protected, protected.model) == _read(method, stored, stored.model),
        "extract() reads other evidence once secret and model are stored and loaded again",
    )


def method_changes_weights_if_it_marks(method: Method) -> None:
    """Release other weights than the owner's if it is a mark, the same if it is a fingerprint."""
    models = _protected(method).model, _owner_for(method.needs)
    released, clean = map(weights_digest, models)
    _require(not method.marks or released != clean, "a mark released the owner's weights")
    _require(method.marks or released == clean, "a fingerprint changed the owner's weights")


def method_recognises_its_own_model(method: Method) -> None:
    """Find the released model, unattacked, by the paper's own rule on most queries."""
    evidence = _read(method, _protected(method), _protected(method).model)
    _require(
        evidence.rate > 0.5 and evidence.score > (evidence.chance or 0.0),
        f"the rule {evidence.rule.text} holds on {evidence.rate:.0%} of its own model's queries",
    )


def method_separates_it_from_trained_strangers(method: Method) -> None:
    """Score the released model above every stranger: the p-value is the smallest attainable."""
    protected = _protected(method)
    own = _read(method, protected, protected.model).score
    others = [_read(method, protected, s).score for s in _strangers_for(method.needs)]
    _require(
        rank_p_value(own, others) <= 1 / (1 + STRANGERS),
        f"score {own:.3f} on its own model, up to {max(others):.3f} on strangers",
    )


def method_keeps_to_its_access(method: Method) -> None:
    """Ask for no more than `needs`, of its own model and of others."""
    protected = _protected(method)
    try:
        for model in (protected.model, _strangers_for(method.needs)[0]):
            _read(method, protected, model)
    except PermissionError as error:
        raise AssertionError(f"extract() asks for more than `needs`: {error}") from error


def method_protects_alike_whatever_it_reads_with(method: Method) -> None:
    """Let settings marked as `Reading` decide nothing of the model or the secret, but rounding."""
    other = _reading_otherwise(method)
    if other is None:
        return
    first, again = _protected(method), _protected(other)
    weights = first.model.state_dict(), again.model.state_dict()
    _same(*weights, "a setting marked as Reading decides which weights protect() releases")
    apart = [n for n in sorted({*first.secret, *again.secret}) if not _alike(n, first, again)]
    _require(not apart, f"a setting marked as Reading decides of the secret: {', '.join(apart)}")


def method_does_not_depend_on_order(method: Method) -> None:
    """Keep no memory: suspects read in another order give the same evidence."""
    protected, other = _protected(method), _strangers_for(method.needs)[0]
    forwards = [_read(method, protected, model) for model in (protected.model, other)]
    backwards = [_read(method, protected, model) for model in (other, protected.model)]
    _require(forwards == backwards[::-1], "extract() remembers earlier suspects")


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
)
"""What every attack must pass, cheapest explanation of a failure first."""

METHOD_CHECKS: tuple[Callable[[Method], None], ...] = (
    method_tunes_within_its_settings,
    method_keeps_tensors_only_as_secret,
    method_leaves_its_input_untouched,
    method_returns_finite_values,
    method_keeps_to_its_access,
    method_changes_weights_if_it_marks,
    method_repeats_under_equal_randomness,
    method_protects_alike_whatever_it_reads_with,
    method_does_not_depend_on_order,
    method_recognises_its_own_model,
    method_separates_it_from_trained_strangers,
    method_survives_a_round_trip,
)
"""What every method must pass, cheapest explanation of a failure first."""


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
    """Give the thief what the attack asks for: a base only to one that says `uses_base`."""
    base = stranger(2) if isinstance(attack, UsesBase) and attack.uses_base else None
    return dataclasses.replace(context(seed), base=base)


@functools.cache
def _mini() -> VisionModel:
    weights = load_file(embedded.WEIGHTS / "mini.safetensors")
    return load_state(build(pretraining.ARCHITECTURE), weights, "mini")


@functools.cache
def _cohort(number: int) -> list[VisionModel]:
    states = pretraining.cohort(number, STRANGERS, RECIPE)
    return [load_state(build(pretraining.ARCHITECTURE), state, "a stranger") for state in states]


@functools.cache
def _pools() -> Mapping[str, tuple[Images, Images]]:
    digits = manifest.read("digits", DataSettings("digits"))
    pools, size = manifest.split(digits), _mini().preprocess

    def some(indices: tuple[int, ...], count: int) -> Images:
        found = load_(digits, indices[:count], size)
        assert found.labels is not None
        # Where there is ink the pixels show the digit; what is not ink does not count.
        shown = found.labels[:, None, None].to(torch.uint8)
        masks = torch.where(found.pixels[:, 0] > 127, shown, IGNORE)
        return dataclasses.replace(found, masks=masks)

    return {
        "owner": (some(pools.owner_images, 64), some(pools.owner_held_out, 32)),
        "thief": (some(pools.thief_images, 64), some(pools.thief_held_out, 32)),
    }


def _owner_for(needs: Access) -> VisionModel:
    return _with_digits_head(owner()) if needs & Access.BLACK_BOX else owner()


@functools.cache
def _strangers_for(needs: Access) -> list[VisionModel]:
    models = [stranger(i) for i in range(STRANGERS)]
    return [_with_digits_head(m) for m in models] if needs & Access.BLACK_BOX else models


def _with_digits_head(model: VisionModel) -> VisionModel:
    """Give a model the label space that methods needing labels or logits ask about."""
    images, labels, rng = _pools()["owner"][0], _pools()["owner"][0].labels, context().rng
    made = with_head(model, Head(images.classes), rng)
    head, pooled = made.head, pooled_features(made, images, CPU)
    assert head is not None
    assert labels is not None

    def loss_of(chosen: Tensor) -> Tensor:
        return F.cross_entropy(head(pooled[chosen]), labels[chosen])

    settings = loop.Training(epochs=30, batch=32, lr=1e-2)
    loop.fit(head.parameters(), loss_of, len(images), settings, rng)
    return made


def _protected(method: Method) -> Protected:
    # Protecting is the slow part, and no check changes what it gets.
    return _protect_once(cast(Hashable, method))


@functools.cache
def _protect_once(method: Any) -> Protected:
    with _global_seed(1):
        made: Protected = method.protect(_owner_for(method.needs), context(0, "owner"))
    return made


def _read(method: Method, protected: Protected, suspect: VisionModel) -> Evidence:
    return method.extract(protected.secret, View(suspect, method.needs), context(1, "owner"))


def _reading_otherwise(method: Method) -> Method | None:
    """Return the method with other values for all settings of reading; None if it has none."""
    made: Any = method
    for name, words in reading(type(method)).items():
        value = getattr(method, name)
        near = [value - 1, value / 2, value // 2] if isinstance(value, int | float) else []
        for other in [word for word in words if word != value] or near:
            with contextlib.suppress(UserError):
                made = dataclasses.replace(made, **{name: other})
                break
    return None if made == method else made


def _alike(name: str, one: Protected, other: Protected) -> bool:
    """Say whether two secrets hold the same under a name, but for rounding."""
    if name not in one.secret or name not in other.secret:
        return False
    here, there = one.secret[name].double(), other.secret[name].double()
    if here.shape != there.shape or not here.numel():
        return here.shape == there.shape
    return bool((here - there).abs().mean() <= 0.01 * here.std(correction=0) + 1e-6)


def _watched(ctx: Context, seen: list[Any]) -> Context:
    """Have every batch drawn from the context's images written down in `seen`."""

    class Watched(Images):
        def batch(self, indices: Tensor | slice, device: torch.device) -> Tensor:
            seen.append(indices if isinstance(indices, slice) else indices.tolist())
            return super().batch(indices, device)

    images = ctx.images
    watched = Watched(**{f.name: getattr(images, f.name) for f in dataclasses.fields(images)})
    return dataclasses.replace(ctx, images=watched)


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Set every global generator a plug-in might lean on, and put them back afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _round_trip(model: VisionModel) -> VisionModel:
    described = Architecture.of(json.loads(json.dumps(model.architecture.json())))
    return load_state(build(described), load(save(model.state_dict())), "the stored weights")


def _outputs(model: VisionModel) -> Tensor:
    with torch.no_grad():
        answers: Tensor = model.eval()(context().images.batch(slice(0, 16), CPU))
    return answers


def _snapshot(model: VisionModel) -> dict[str, Tensor]:
    """Return all a caller could find changed: the weights, and flags written as tensors."""
    flags = {f"requires_grad of {n}": p.requires_grad for n, p in model.named_parameters()}
    flags |= {f"mode of {n or 'the model'}": m.training for n, m in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return weights | {name: torch.tensor(flag) for name, flag in flags.items()}


def _head(model: VisionModel) -> dict[str, Tensor]:
    # Parameters alone: what a batch norm counts depends on the victim's features, rightly so.
    return {} if model.head is None else dict(model.head.named_parameters())


def _differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    return [n for n in sorted({*a, *b}) if n not in a or n not in b or not torch.equal(a[n], b[n])]


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], complaint: str) -> None:
    found = _differing(a, b)
    _require(not found, f"{complaint}: {', '.join(found[:3])} ({len(found)} in all)")


def _finite(values: Mapping[str, Tensor], complaint: str) -> None:
    bad = [name for name, value in values.items() if not torch.isfinite(value).all()]
    _require(not bad, f"{complaint} NaN or infinity in {', '.join(bad[:3])}")


def _require(holds: bool, complaint: str) -> None:
    if not holds:  # not `assert`: the contract holds under python -O as well
        raise AssertionError(complaint)
