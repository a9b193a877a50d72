"""Read a model with keys, in the basis of the model that each key was released with.

Whoever rotates, permutes or scales what passes between the blocks of a model leaves what it does as
it is and hides a mark from its reader. So suspects, and innocents alike, are first written in the
basis of the released model, see `bench.models.symmetry`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bench.data import manifest
from bench.data.images import Images, Preprocess, load
from bench.data.settings import DataSettings
from bench.models.suspect import View
from bench.models.symmetry import DYNAMIC_IMAGES, FAR, Alignment, align, rewritten
from bench.models.vision import Architecture, VisionModel
from bench.models.weights import Loaded, load_weights, sketch
from bench.records.nouns import Align, Evidence, Incompatible, UserError
from bench.runs.claims.key import RELEASED, Key
from bench.runs.owners import architecture_of
from bench.suite.owners import owner_of
from bench.types import Context, Method
from bench.verdicts import copies


@dataclass(frozen=True, slots=True)
class Reading:
    """What every key read off one model; a reason where it could not."""

    name: str
    digest: str
    found: Mapping[Key, Evidence | str]
    sketch: tuple[float, ...]  # of its weights, to know it again where it was rounded
    aligned: Mapping[Key, Alignment] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what was understood of its file


@dataclass(frozen=True, slots=True, eq=False)
class Bases:
    """The released models of keys, in whose bases suspects are read with them.

    `align` says how, where not as each key does. A key whose model is not here reads suspects as
    they are, and overlooks a copy that somebody has written in another basis.
    """

    released: Mapping[Key, VisionModel] = field(default_factory=dict)
    align: Align | None = None

    def how(self, key: Key) -> Align:
        """Return how suspects are to be aligned before they are read with a key."""
        return key.align if self.align is None or key.align == "none" else self.align

    def fit(self, model: VisionModel, key: Key, device: torch.device) -> Alignment | None:
        """Fit a model to the released one; None where it is read as it is."""
        how, released = self.how(key), self.released.get(key)
        if how == "none" or released is None:
            return None
        return fitted(model, released, how, device)


AS_THEY_ARE = Bases()
"""Of no key there is a released model."""


def fitted(
    model: VisionModel, released: VisionModel, how: Literal["static", "auto"], device: torch.device
) -> Alignment:
    """Fit a model to the released one; activations are looked at where weights tell too little."""
    rng = torch.Generator().manual_seed(0)
    found = align(model, released, "static", None, rng, device)
    if how == "static" or found.residual is None or found.residual <= FAR:
        return found
    return align(model, released, how, photographs(released.preprocess), rng, device)


def architecture(
    owner: Architecture, file: str, model: str | None, tag: str | None, image_size: int | None
) -> Architecture:
    """Return what a suspect's file holds: the owner's architecture, where nothing else is said.

    Raises:
        UserError: no library has the model.

    """
    found = owner
    if model is not None:
        found = architecture_of(owner_of(model, file, tag))
    elif tag is not None:
        named = architecture_of(owner_of(f"{owner.library}:{owner.name}", file, tag))
        found = dataclasses.replace(owner, tag=named.tag)
    return found if image_size is None else dataclasses.replace(found, image_size=image_size)


@functools.cache
def photographs(preprocess: Preprocess) -> Images:
    """Decode the embedded photographs: activations are compared on them, and no trigger is there.

    A mark's own images may be crops of them where its owner had no others.
    """
    listed = manifest.read("photos", DataSettings("photos"), None)
    return load(listed, range(min(DYNAMIC_IMAGES, len(listed.items))), preprocess)


def references(
    given: Sequence[Key | Path], keys: Sequence[Key], files: Sequence[Path]
) -> dict[Key, VisionModel]:
    """Return the released model of every key, from `files` or beside the key; some have none here.

    Raises:
        UserError: a file is the released model of none of the keys.

    """
    found, used = dict[Key, VisionModel](), set[Path]()
    for one, key in zip(given, keys, strict=True):
        beside = [one.parent / RELEASED] if isinstance(one, Path) else []
        for file in files or [file for file in beside if file.is_file()]:
            loaded = load_weights(file, key.owner)
            if is_released(Reading(file.name, loaded.digest, {}, sketch(loaded.model)), key):
                found[key] = loaded.model
                used.add(file)
                break
    for file in files:
        if file not in used:
            raise UserError(
                f"--reference: expected the released model of a key, got {file.name}, another one"
            )
    return found


def read_file(
    file: Path, keys: Sequence[Key], device: torch.device, bases: Bases = AS_THEY_ARE
) -> Reading:
    """Read an innocent, of the owner's architecture, with every key."""
    return read(file.name, load_weights(file, keys[0].owner), keys, device, bases)


def read(
    name: str,
    loaded: Loaded,
    keys: Sequence[Key],
    device: torch.device,
    bases: Bases = AS_THEY_ARE,
) -> Reading:
    """Read one model with every key, in the basis of the key's released model."""
    found, taken = dict[Key, Evidence | str](), sketch(loaded.model)
    aligned = dict[Key, Alignment]()
    for key in keys:
        model = loaded.model
        try:
            if fit := bases.fit(model, key, device):
                aligned[key], model = fit, rewritten(model, fit)
            found[key] = extract(key.reader, key.secret, model, device)
        except Incompatible as error:
            found[key] = str(error)
    return Reading(name, loaded.digest, found, taken, aligned, loaded.notes)


def extract(
    method: Method, secret: Mapping[str, Tensor], model: VisionModel, device: torch.device
) -> Evidence:
    """Read the evidence off a model, with what `protect` left and nothing else."""
    view = View(model.to(device), method.needs)
    return method.extract(secret, view, nothing_else(model, device))


def nothing_else(model: VisionModel, device: torch.device) -> Context:
    """Return what a reader has beside its secret: no image, and no chance of its own."""
    nothing = Images(torch.empty(0, 3, *model.preprocess.size, dtype=torch.uint8), None, 0, ())
    return Context(device, torch.Generator().manual_seed(0), nothing, nothing)


def is_released(reading: Reading, key: Key) -> bool:
    """Say whether a model is the key's released copy, rounded or not, and not the clean owner."""
    if key.clean_sketch is None or key.released_sketch is None or reading.digest == key.clean:
        return reading.digest == key.released
    to_clean, to_released = (
        copies.cosine(reading.sketch, known) for known in (key.clean_sketch, key.released_sketch)
    )
    return to_released > max(copies.ROUNDED, to_clean)


def near(reading: Reading, other: Sequence[float] | None, least: float) -> bool:
    """Say whether a model is nearer to another, known by its sketch, than a cosine of `least`."""
    return other is not None and copies.cosine(reading.sketch, other) > least


def said_of_bases(keys: Sequence[Key], bases: Bases, suspect: Reading) -> tuple[str, ...]:
    """Say in which basis the suspect was read with each key, once where it is said of several."""
    said = (_said_of_basis(key, bases, suspect.aligned.get(key)) for key in keys)
    return tuple(dict.fromkeys(said))


def _said_of_basis(key: Key, bases: Bases, found: Alignment | None) -> str:
    how = bases.how(key)
    if key.align == "none":
        return "read as it is: a suspect's own head answers alike in any basis"
    if how == "none":
        return "read as it is, and so were innocents: align was turned off"
    if found is None:
        return (
            f"read as it is: the released model is not here (no {RELEASED} beside the key; "
            "--reference FILE names it), so a copy in another basis is overlooked"
        )
    if found.stage == "none":
        return f"read as it is: it could not be aligned ({found.notes.get('reason')})"
    before = "" if found.before is None else f"{found.before:.3f} before, "
    return (
        f"read in the basis of the released model, and so were innocents (align {how}, "
        f"{found.stage}): distance of the embeddings {before}{found.residual:.3f} after"
    )


def said_of_digests(keys: Sequence[Key], suspect: Reading) -> Iterator[str]:
    """Say of which key's models the suspect is one, weight by weight: no chance is in that."""
    for key in keys:
        whose = f" to {key.user}" if key.user else ""
        if suspect.digest == key.released:
            same = "the owner's model" if key.released == key.clean else f"the copy released{whose}"
            yield f"the suspect's backbone is bit for bit {same}, commitment {key.commitment}"
        elif suspect.digest == key.clean:
            yield f"the suspect's backbone is bit for bit the clean owner, {key.commitment}"
