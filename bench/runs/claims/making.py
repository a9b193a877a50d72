"""Mark or fingerprint a model for its owner, and leave him with a key and what to release.

"User-specific binary signature" (A. Chistyakova, M. Pautov, "ActiveMark: on watermarking of visual
foundation models via massive activations", arXiv:2510.04966, section 3.2) is here a copy marked
anew for every user, with a secret of its own throughout. Sharing the encoder and the decoder
between users would not tell them apart: the message is an input at verification, and a channel
trained on fresh messages carries anybody's.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from bench.data import manifest
from bench.data.images import Images, Preprocess, load
from bench.data.manifest import Manifest
from bench.data.settings import described
from bench.models.symmetry import rewritten
from bench.models.vision import VisionModel
from bench.models.weights import headless, load_weights, release, sketch, weights_digest
from bench.records import nouns
from bench.records.nouns import Access, Evidence, Incompatible, Spec, UserError
from bench.registry import METHODS
from bench.runs.claims import commitment
from bench.runs.claims.key import KEY, RELEASED, Key, aligning, write
from bench.runs.claims.reading import AS_THEY_ARE, Bases, extract, fitted, read_file
from bench.runs.owners import load_owner
from bench.suite.owners import OwnerSettings, weights_file
from bench.types import Context

HELD_OUT = 0.3
"""Share of the owner's source images that a method may test on but not train on."""


class Material(NamedTuple):
    """What a protection starts from: a clean model, images to work with and held out, their name.

    `images` is the digest of the listing that both pools are of.
    """

    owner: VisionModel
    pools: tuple[Images, Images]
    images: str


@dataclass(frozen=True, slots=True, eq=False)
class ProtectedCopy:
    """A protected model with its key, and what the key reads off it and off the clean owner."""

    model: VisionModel
    key: Key
    released: Evidence
    clean: Evidence


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """What an owner is left with: a key, where it and its copy lie, and what the key reads.

    `released` is read off the protected copy, `clean` off the owner as it was. A fingerprint leaves
    the model as it is: there is no file of a copy.
    """

    key: Key
    released: Evidence
    clean: Evidence
    key_file: Path
    model_file: Path | None


def material(
    named: OwnerSettings,
    images: str,
    labels: Literal["none", "sorted"],
    root: Path | None,
    note: Callable[[str], object],
    most: int | None = None,
) -> Material:
    """Load an owner's model and images, and tell `note` what was understood of both.

    Relative paths start at `root`. Images are all there are, or at most so many of each pool.
    """
    root = root or Path()
    owner = load_owner(named, weights_file(named, root) if named.from_file else None)
    for told in owner.notes.get("weights", []):
        note(f"{named.name}: {told}")
    listed = manifest.read("images", described(images, labels, root), root)
    for told in listed.notes:
        note(f"images: {told}")
    return Material(owner, owners_images(listed, owner.preprocess, most), listed.digest)


def owners_images(
    listed: Manifest, preprocess: Preprocess, most: int | None = None
) -> tuple[Images, Images]:
    """Decode images of a data set, in those to work with and those held out, by source.

    They are all, or so many of each kind as the order of their sources' digests draws.
    """
    sources = sorted({item.source for item in listed.items}, key=nouns.digest)
    first = round((1 - HELD_OUT) * len(sources))
    if not 0 < first < len(sources):
        raise UserError(f"--images: expected two different images at least, got {len(sources)}")
    kept = set(sources[:first])
    pools: tuple[list[int], list[int]] = ([], [])
    for position, item in enumerate(listed.items):
        pools[item.source not in kept].append(position)
    if most is not None:
        place = {source: i for i, source in enumerate(sources)}
        for pool in pools:
            pool.sort(key=lambda position: place[listed.items[position].source])
            del pool[most:]
    images, held_out = (load(listed, pool, preprocess) for pool in pools)
    return images, held_out


def generator(seed: int | None, user: str) -> torch.Generator:
    """Return the randomness of one key: fixed by a seed and the user's name, or unpredictable."""
    rng = torch.Generator()
    if seed is not None:
        return rng.manual_seed(int(nouns.digest("key", seed, user), 16) >> 1)
    # PyTorch's CPU generator keeps 32 bits of a seed, few enough to try them all: starting
    # somewhere in the sequence instead of at its beginning adds 24.
    rng.manual_seed(secrets.randbits(32))
    torch.rand(secrets.randbits(24), generator=rng)
    return rng


def protect_copies(
    owner: VisionModel,
    spec: Spec,
    pools: tuple[Images, Images],
    homes: Mapping[str, Path],
    seed: int | None,
    device: torch.device,
    watch: Callable[[Claim], object],
    registrar: Registrar | None = None,
) -> tuple[Claim, ...]:
    """Protect a copy for every user, and write it with its key to the user's home.

    Keys are written once all copies are made, for each says what it reads off the others. `watch`
    is told of every copy as it is made. With a `registrar` each key is drawn from an intent that
    was registered before, and registered in turn.
    """
    claims = []
    for user, home in homes.items():
        if registrar is None:
            made = protect(owner, spec, pools, generator(seed, user), device, user)
        else:
            made = registrar.protect(owner, spec, pools, device, user)
        file = home / RELEASED if METHODS.get(spec.name).marks else None
        if file is not None:
            release(made.model, file)
        claims.append(Claim(made.key, made.released, made.clean, home / KEY, file))
        watch(claims[-1])
    copies = {claim.model_file for claim in claims if claim.model_file}
    kept = [_kept(claim, sorted(copies - {claim.model_file}), device) for claim in claims]
    if registrar is not None:
        for claim in kept:
            commitment.register(registrar.path, claim.key)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class Registrar:
    """Where an owner registers his keys, in whose name, and at which level they will be judged."""

    path: Path
    holder: str
    alpha: float
    images: str  # the digest of the owner's

    def protect(
        self,
        owner: VisionModel,
        spec: Spec,
        pools: tuple[Images, Images],
        device: torch.device,
        user: str,
    ) -> ProtectedCopy:
        """Register an intent, and protect a copy with the randomness that follows from it."""
        clean = weights_digest(headless(owner))
        intent = commitment.intend(self.path, self.holder, spec, clean, self.images)
        made = protect(owner, spec, pools, commitment.generator(intent, spec, clean), device, user)
        bound = commitment.bound(intent, made.released.rule.text, self.alpha)
        return dataclasses.replace(made, key=dataclasses.replace(made.key, bound=bound))


def _kept(claim: Claim, others: Sequence[Path], device: torch.device) -> Claim:
    """Write a key that knows what it reads off the other users' copies."""
    bases = AS_THEY_ARE
    if others and claim.model_file and claim.key.align != "none":
        bases = Bases({claim.key: load_weights(claim.model_file, claim.key.owner).model})
    key = read_others(claim.key, others, device, bases)
    write(claim.key_file, key)
    return dataclasses.replace(claim, key=key)


def protect(
    owner: VisionModel,
    spec: Spec,
    pools: tuple[Images, Images],
    rng: torch.Generator,
    device: torch.device,
    user: str = "",
) -> ProtectedCopy:
    """Protect a model and read the new key off the result and off the clean owner.

    Raises:
        Incompatible: the method cannot work with this model.

    """
    method = METHODS.build(spec.name, spec.args)
    if method.needs & Access.BLACK_BOX and owner.classes == 0:
        raise Incompatible(
            f"{spec.name} asks for {method.needs.text}, and {owner.architecture.name} has no "
            "classifier; choose a method that reads weights"
        )
    # A suspect is read without its head, where the method does not ask for labels.
    whole = method.marks or bool(method.needs & Access.BLACK_BOX)
    given = (owner if whole else headless(owner)).to(device)
    made = method.protect(given, Context(device, rng, *pools))
    secret = {name: value.detach().cpu() for name, value in made.secret.items()}
    released = extract(method, secret, made.model, device)
    how = aligning(spec)
    if how != "none" and method.marks:  # as any innocent is read
        given = rewritten(given, fitted(given, made.model, how, device))
    clean = extract(method, secret, given, device)
    key = Key(
        secret=secret,
        method=spec,
        owner=owner.architecture,
        clean=weights_digest(headless(owner.cpu())),
        released=weights_digest(headless(made.model.cpu())),
        clean_score=clean.score,
        released_score=released.score,
        user=user,
        clean_sketch=sketch(owner),
        released_sketch=sketch(made.model),
    )
    return ProtectedCopy(made.model, key, released, clean)


def read_others(key: Key, copies: Sequence[Path], device: torch.device, bases: Bases) -> Key:
    """Read a key off the other users' copies, and return it with the highest agreement found."""
    found = [read_file(copy, [key], device, bases).found[key] for copy in copies]
    scores = [evidence.score for evidence in found if isinstance(evidence, Evidence)]
    return dataclasses.replace(key, others_score=max(scores, default=None))
