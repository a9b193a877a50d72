"""Check that a method keeps its promises."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load, save
from torch import Tensor

from bench.models.suspect import View
from bench.models.vision import VisionModel
from bench.models.weights import weights_digest
from bench.records.explained import reading
from bench.records.nouns import Evidence, UserError
from bench.testing.comparing import (
    _alike,
    _finite,
    _global_seed,
    _require,
    _round_trip,
    _run,
    _same,
    _snapshot,
)
from bench.testing.victims import STRANGERS, _owner_for, _strangers_for, context
from bench.types import (
    HasForgery,
    Method,
    Protected,
    RedrawsBits,
    SaysTunable,
    StatesFacts,
    Suspect,
)
from bench.verdicts.checks import fairness
from bench.verdicts.verdict import rank_p_value

REDRAWS = 12
"""Secrets with other bits: distances that move with the bits do so at the first."""


def check_method(
    method: Method, note: Callable[[str], object] = print, threads: int | None = 1
) -> None:
    """Run every check a method must pass; raise AssertionError at the first it fails.

    `note` is told of every check before it runs. Models so small are fastest with one thread;
    `threads` is None for as many as the caller has.
    """
    _run(METHOD_CHECKS, method, note, threads)


def method_leaves_its_input_untouched(method: Method) -> None:
    """Work on copies: the owner, the secret and the suspect stay as they were."""
    protected, before, after = _once(method)
    _same(before, after, "protect() changed the owner it was given")
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
    released, clean = (
        weights_digest(_protected(method).model),
        weights_digest(_owner_for(method.needs)),
    )
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


def method_tunes_within_its_settings(method: Method) -> None:
    """Declare as tunable values that the method takes, and nothing that only reading depends on."""
    declared = method.tunable if isinstance(method, SaysTunable) else {}
    read = sorted(declared.keys() & reading(type(method)).keys())
    _require(not read, f"`tunable` names what only reading depends on: {', '.join(read)}")
    whole: Any = method
    for name, values in declared.items():
        _require(len(values) > 1, f"`tunable` leaves '{name}' no choice: {list(values)}")
        for value in values:
            try:
                dataclasses.replace(whole, **{name: value})
            except UserError as error:
                raise AssertionError(f"`tunable` has a value that is refused: {error}") from None


def method_with_an_exact_null_has_fair_bits(method: Method) -> None:
    """Redraw the bits of a secret with an exact null: which queries agree may change, no more."""
    made = _protected(method)
    if not isinstance(method, RedrawsBits):
        null = _read(method, made, made.model).null
        _require(null is None, "evidence has an exact null, and the method no redrawn()")
        return
    rng = torch.Generator().manual_seed(0)
    drawn = [method.redrawn(made.secret, rng) for _ in range(REDRAWS)]
    innocent = [_owner_for(method.needs), *_strangers_for(method.needs)]

    def read(secret: Mapping[str, Tensor], suspect: VisionModel) -> Evidence:
        view = View(suspect, method.needs)
        return method.extract(secret, view, context(1, "owner"))

    said = fairness.why_unfair(read, made.secret, drawn, made.model, innocent)
    _require(not said, said)


def method_counts_what_it_states(method: Method) -> None:
    """Read evidence in the unit that its facts name, if it states any."""
    if not isinstance(method, StatesFacts):
        return
    made = _protected(method)
    stated, found = method.facts.unit, _read(method, made, made.model).unit
    _require(stated == found, f"`facts` says that one query is one {stated}, evidence one {found}")


def method_forges_of_what_it_sees(method: Method) -> None:
    """Forge, if it can, of the suspect and the accuser's images: whatever else there is to see."""
    if not isinstance(method, HasForgery):
        return
    released, owner = _protected(method), _owner_for(method.needs)
    innocent, *others = _strangers_for(method.needs)
    view, again = (View(model, method.needs) for model in (innocent, _round_trip(innocent)))
    before = _snapshot(view._model)
    try:
        with _global_seed(4):
            first = _forged(method, view, owner, released.model)
        # From here on all that an accuser has no part in is another's, his own memory too.
        method.protect(others[0], context(5, "owner"))
        with _global_seed(5):
            blind = _forged(method, _Seen(again), others[1], others[2])
    except PermissionError as error:
        raise AssertionError(f"forged() asks for more than `needs`: {error}") from error
    _same(first, blind, "forged() leans on more than the suspect, `ctx.images` and `ctx.rng`")
    _same(before, _snapshot(view._model), "forged() changed the suspect")


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
    method_with_an_exact_null_has_fair_bits,
    method_counts_what_it_states,
    method_forges_of_what_it_sees,
)
"""What every method must pass, cheapest explanation of a failure first."""


class _Once(NamedTuple):
    """What was made of an owner, and all there is to tell of that owner before and after."""

    made: Protected
    before: Mapping[str, Any]
    after: Mapping[str, Any]


def _protected(method: Method) -> Protected:
    return _once(method).made


def _once(method: Method) -> _Once:
    # Protecting is the slow part, and no check changes what it gets.
    try:
        hash(method)
    except TypeError:  # a mapping or a list is among its settings
        return _protect(method)
    return _protect_once(cast(Hashable, method))


@functools.cache
def _protect_once(method: Any) -> _Once:
    return _protect(method)


def _protect(method: Method) -> _Once:
    given = _owner_for(method.needs)
    before = _snapshot(given)
    with _global_seed(1):
        made = method.protect(given, context(0, "owner"))
    return _Once(made, before, _snapshot(given))


def _read(method: Method, protected: Protected, suspect: VisionModel) -> Evidence:
    return method.extract(protected.secret, View(suspect, method.needs), context(1, "owner"))


class _Seen:
    """A suspect that is no more than `Suspect` says: there is nothing behind it to look at."""

    def __init__(self, view: View) -> None:
        self.labels, self.logits, self.features = view.labels, view.logits, view.features
        self._network: Callable[[], VisionModel] = lambda: view.network

    @property
    def network(self) -> VisionModel:
        """Return the network itself, to whom `needs` gives it."""
        return self._network()

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"forged() asks for '{name}' of the suspect, which no accuser sees")


def _forged(
    method: HasForgery, suspect: Suspect, base: VisionModel, copy: VisionModel
) -> Mapping[str, Tensor]:
    """Forge beside two models that an accuser must not lean on."""
    ctx = context(3, "owner")
    ctx = dataclasses.replace(ctx, base=base, copies=lambda i: copy, stranger=lambda i: base)
    return method.forged(suspect, ctx)


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
