"""Carry a protection out again, and say whether a key's secret follows from what it is bound to.

A registry shows since when a secret is there, and not how it came about: trained on the suspect, or
solved for it, it can be registered like any other. But the randomness of a registered key follows
from its intent. So whoever holds the opened key, the clean weights and the owner's images makes
protection again, and holds what comes out against what was disclosed.

On a machine such as the key was made on, both are equal bit for bit. Another processor, or other
threads, adds up in another order, and training carries the last digit on. Then the suspect is read
with the secret that was made here as well, in the basis of the copy that was made with it: whatever
was fitted to the suspect is not in it. A claim that follows gives the same agreement both times.
Where a secret draws bits from a hash of numbers that another machine rounds otherwise, all bits are
others there: nothing can be told but on a machine such as the key's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bench.models.vision import Architecture, VisionModel
from bench.models.weights import Loaded, headless, load_weights, weights_digest
from bench.records.nouns import Align, Evidence, Passes, Sizes, UserError
from bench.registry import METHODS
from bench.runs.claims import commitment
from bench.runs.claims.key import Key
from bench.runs.claims.making import Material, ProtectedCopy, protect
from bench.runs.claims.reading import Bases, read
from bench.runs.foresight.budget import shape
from bench.types import CountsProtecting
from bench.verdicts import copies

TOLERANCE = 0.01
"""How far apart two agreements may be that differ by the order of sums alone.

It is what `bench/README.md` promises of scores between processors."""

APART = 0.1
"""How far the weights of two released models may be apart, of their way from the clean one's.

Both are in squares of distances. ActiveMark's were 0.3 % apart on `mini` after 200 steps without
oneDNN instead of with it, and both secrets read the same off either."""

ROUNDING = 1e-3
"""How far a tensor may be from another, of its length, and be the same but for rounding."""

TIMED = 32
"""Images that are sent through the clean model, twice, to foresee the seconds of a replay."""


HASHED = (
    "numbers of the secret are rounded otherwise here, and what it draws from them is another; "
    "make it again on a machine such as the key was made on: processor, threads and versions"
)
"""Why a replay may be no answer, and where it is one."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What keys are said to have been made of: as `bench.protect` takes it, `clean` its `weights`.

    `note` is told, before any work, what it takes to make the secrets again.
    """

    images: str
    labels: Literal["none", "sorted"] = "none"
    clean: str | Path = "hub"
    entry: str | None = None
    data: str | Path | None = None
    note: Callable[[str], object] = print


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """Whether what a key discloses follows from what it is bound to, and how that was seen.

    None where this machine cannot tell.
    """

    key: Key
    follows: bool | None
    text: str


def refuse_others(keys: Sequence[Key], material: Material) -> None:
    """Refuse a clean model or images that are not those the keys were made of.

    Raises:
        UserError: they are others, or a key is bound to nothing that its secret could follow from.

    """
    clean = weights_digest(headless(material.owner))
    for key in keys:
        images = commitment.images_of(key)
        if key.clean != clean:
            raise UserError(
                f"--clean: expected the key's unmarked model {key.clean}, got {clean}; give the "
                "weights that `bench protect` was given"
            )
        if images and images != material.images:
            raise UserError(
                f"--replay: expected the images that the key's intent binds, {images}, got "
                f"{material.images}; give those that `bench protect` was given, and its --labels"
            )


def price(keys: Sequence[Key], material: Material, device: torch.device) -> str:
    """Say what it takes to make the secrets again: passes, and seconds as they pass here."""
    counted = [_passes(key, material) for key in keys]
    known = [one for one in counted if one is not None]
    if len(known) < len(counted):
        return "making the secret again takes a whole protection, of which nobody counts the passes"
    forward, backward = sum(p.forward for p in known), sum(p.backward for p in known)
    bounds = {p.bound for p in known} - {"exact"}
    bound = f"{bounds.pop()} " if len(bounds) == 1 else "about " if bounds else ""
    seconds = sum(p.work for p in known) * _pace(material, device)
    return (
        f"making the secret again takes {bound}{forward:,.0f} forward and {backward:,.0f} backward "
        f"passes: {max(1.0, seconds):,.0f} s as they pass here"
    )


def each(
    evidence: Mapping[Key, Evidence | str],
    suspect: tuple[Path, Architecture, str | None],
    material: Material,
    device: torch.device,
    align: Align | None = None,
) -> tuple[Replay, ...]:
    """Replay every key of which there is evidence; `suspect` is its file, kind and set of weights.

    See `replay` for the rest.
    """
    loaded = load_weights(*suspect, any_size=True)
    return tuple(replay(k, found, loaded, material, device, align) for k, found in evidence.items())


def replay(
    key: Key,
    found: Evidence | str,
    suspect: Loaded,
    material: Material,
    device: torch.device,
    align: Align | None = None,
) -> Replay:
    """Make a key's secret again; `found` is what the disclosed one reads off the suspect.

    `align` says how suspects are aligned, where not as the key does.

    Raises:
        UserError: the material is not what the key was made of, or it is bound to nothing.
        Incompatible: the method cannot work with the clean model.

    """
    refuse_others([key], material)
    rng = commitment.generator_of(key)
    made = protect(material.owner, key.method, material.pools, rng, device, key.user)
    left = "" if commitment.images_of(key) else "; its intent binds no images: others may fit"
    if _forms(key.secret) == _forms(made.key.secret) and _hashed(key.secret, made.key.secret):
        return Replay(key, None, f"cannot be told here: {HASHED}")
    if said := _otherwise(key, made):
        return Replay(key, False, f"does not follow: {said}")
    if _equal(key.secret, made.key.secret) and made.key.released == key.released:
        return Replay(key, True, f"replayed: the secret follows from the key, bit for bit{left}")
    again = read("suspect", suspect, [made.key], device, Bases({made.key: made.model}, align))
    return _by_reading(key, found, again.found[made.key], left)


def _otherwise(key: Key, made: ProtectedCopy) -> str:
    """Say what of a key no order of sums explains; empty if nothing."""
    theirs, ours = _forms(key.secret), _forms(made.key.secret)
    if theirs != ours:
        odd = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
        return f"its rule makes no such tensors as {', '.join(odd)}"
    said = commitment.rule_of(key)
    if said != made.released.rule.text:
        return f"its rule is {made.released.rule.text}, and {said} was disclosed"
    for whose, one, other in (
        ("clean model", key.clean_score, made.key.clean_score),
        ("released model", key.released_score, made.key.released_score),
    ):
        if abs(one - other) > TOLERANCE:
            return f"the {whose} has an agreement of {other:.3f} here, and {one:.3f} was disclosed"
    return "" if _same_copy(key, made.key) else "its rule makes another released model"


def _same_copy(key: Key, made: Key) -> bool:
    """Say whether two protections of one clean model changed its weights alike."""
    ours, theirs, clean = made.released_sketch, key.released_sketch, made.clean_sketch
    if key.released == made.released or ours is None or theirs is None or clean is None:
        return key.released == made.released
    apart, moved = (1 - copies.cosine(ours, other) for other in (theirs, clean))
    return apart <= APART * moved


def _by_reading(key: Key, found: Evidence | str, again: Evidence | str, left: str) -> Replay:
    """Compare what both secrets read off the suspect."""
    if isinstance(found, str) or isinstance(again, str):
        why = found if isinstance(found, str) else again
        same = isinstance(found, str) and isinstance(again, str)
        text = f"the secret made here is not bit for bit the disclosed one, and {why}"
        said = "cannot be told here" if same else "does not follow"
        return Replay(key, None if same else False, f"{said}: {text}")
    both = f"the suspect's agreement is {found.score:.3f}, and {again.score:.3f} by the secret made"
    if abs(found.score - again.score) > TOLERANCE:
        return Replay(key, False, f"does not follow: {both} here")
    follows = "replayed: the secret follows from the key, but for the order of sums"
    return Replay(key, True, f"{follows}: {both} here (at most {TOLERANCE:g} apart){left}")


def _forms(secret: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (value.dtype, value.shape) for name, value in secret.items()}


def _hashed(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Say whether numbers differ by rounding, and what was drawn with no number in it as well."""
    rounded = drawn = False
    for name, mine in one.items():
        yours = other[name].cpu()
        if torch.equal(_raw(mine.cpu()), _raw(yours)):
            continue
        if not mine.is_floating_point():
            drawn = True
        elif (mine.cpu() - yours).norm() <= ROUNDING * yours.norm():
            rounded = True
    return rounded and drawn


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Say whether two secrets of one form are equal in every bit, row by row and in this order."""
    bits = ((one[name].cpu(), other[name].cpu()) for name in one)
    return all(torch.equal(_raw(mine), _raw(yours)) for mine, yours in bits)


def _raw(value: Tensor) -> Tensor:
    return value.detach().contiguous().reshape(-1).view(torch.uint8)


def _passes(key: Key, material: Material) -> Passes | None:
    method = METHODS.build(key.method.name, key.method.args)
    if not isinstance(method, CountsProtecting):
        return None
    made = shape(material.owner.architecture)
    images, held_out = map(len, material.pools)
    return method.protect_passes(Sizes(images, held_out, made.blocks, made.tokens, made.width))


def _pace(material: Material, device: torch.device) -> float:
    """Return the seconds of one image's way through the clean model."""
    model: VisionModel = material.owner.to(device)
    images = torch.rand(TIMED, 3, *model.preprocess.size, device=device)
    with torch.no_grad():
        model.forward_features(images).sum().item()  # the first way is longer than any other
        begun = time.perf_counter()
        model.forward_features(images).sum().item()
    return (time.perf_counter() - begun) / TIMED
