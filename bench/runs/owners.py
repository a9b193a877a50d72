"""Load an owner's model: from the package, a library's hub, a file, at random, or its shapes."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.models.building import blank, build, randomised
from bench.models.heads import Head
from bench.models.libraries import EMBEDDED, LIBRARIES, Place, hub
from bench.models.vision import Architecture, VisionModel
from bench.models.weights import Loaded, load_weights, refuse_infinite
from bench.records.nouns import Json, UserError, first_line, how_many
from bench.records.settings import SettingError
from bench.suite.todo import start

if TYPE_CHECKING:
    from bench.suite.graph import Plan
    from bench.suite.owners import OwnerSettings


def load_owner(owner: OwnerSettings, file: Path | None) -> VisionModel:
    """Return the owner's model on the CPU, in eval mode; `file` holds weights given by path.

    A model keeps its library's own classifier where it has one.

    Raises:
        UserError: no library has the name, the file cannot be read or is of another architecture,
            or the hub is unreachable.

    """
    architecture = architecture_of(owner)
    file = owner.shipped or file
    if file is not None:
        loaded = load_weights(file, architecture, owner.entry)
        if found := [*loaded.notes, *_left_out(loaded)]:
            loaded.model.notes = {"weights": found}
        return loaded.model
    if owner.weights == "random":
        return randomised(architecture, owner.seed)
    model = _from_hub(architecture, owner.revision)
    refuse_infinite(model, f"{owner.library} {owner.name}")
    return model


def _left_out(loaded: Loaded) -> list[str]:
    """Say which tensors of a file are no part of the model."""
    parts = ", ".join(
        f"{part} ({how_many(count, 'tensor')})" for part, count in loaded.ignored.items()
    )
    return [f"left out, as no part of the backbone: {parts}"] if parts else []


def refuse_others(owner: OwnerSettings, digest: str) -> None:
    """Refuse weights of this digest where the owner's entry expects another.

    Raises:
        UserError: the weights are not the ones expected.

    """
    if owner.digest not in (None, digest):
        whence = "pin a `revision`" if owner.from_hub else "copy the file again"
        raise UserError(
            f"owner '{owner.name}': expected weights of digest {owner.digest}, got {digest}: "
            f"these are others; {whence}, or change `digest` if they are meant"
        )


def fetch(place: Place) -> None:
    """Bring weights from the hub into its cache here.

    Raises:
        UserError: the hub does not have them, or does not answer.

    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if not hub.answers():
        raise UserError(f"{place.repository}: expected weights on the hub, which does not answer")
    said = ""
    for file in place.files:
        try:
            hf_hub_download(place.repository, file, revision=place.revision)
        except EntryNotFoundError as error:
            said = first_line(error)
        except hub.failures() as error:
            said = f"{type(error).__name__}: {first_line(error)}"
            break
        else:
            return
    raise UserError(f"{place.repository}: expected weights on the hub, could not get them ({said})")


def place(owner: OwnerSettings) -> Place | None:
    """Find where a library keeps the weights of an owner; None if not on the hub.

    Raises:
        UserError: no library has the name.

    """
    found = LIBRARIES.get(owner.library).place(architecture_of(owner))
    return found and dataclasses.replace(found, revision=owner.revision)


def architecture_of(owner: OwnerSettings) -> Architecture:
    """Return all but the weights of the model an owner names.

    Raises:
        UserError: no library has the name.

    """
    library = LIBRARIES.get(owner.library)
    bare = Architecture(owner.library, owner.name, owner.image_size, tag=owner.pretrained)
    library.check(bare)
    bare = library.describe(bare, owner.revision)
    if owner.classes is not None:
        return dataclasses.replace(bare, head="own", classes=owner.classes)
    keeps_head = library.classifies is not None and library.classifies(bare)
    return dataclasses.replace(bare, head="own") if keeps_head else bare


@functools.cache
def unweighted(architecture: Architecture) -> VisionModel:
    """Build a model of shapes without weights: nothing is drawn, nothing is fetched."""
    with torch.device("meta"):
        return blank(architecture)


def architecture_at(plan: Plan, key: str) -> Architecture:
    """Return all but the weights of what a stage starts from, with the classifier an owner got."""
    made, first = plan.stages[key], start(plan.stages[key], plan.stages)
    if first.kind == "cohort":
        return Architecture(EMBEDDED, str(first.recipe.get("shape", "mini")))
    bare = architecture_of(plan.owners[first.key])
    if made.kind != "classifier":
        return bare
    return dataclasses.replace(bare, head=Head(len(plan.manifest(made.recipe["data"]).classes)))


def _from_hub(architecture: Architecture, revision: str | None) -> VisionModel:
    answers = hub.answers()
    try:
        with hub.cache_only(not answers):
            return build(architecture, pretrained=True, revision=revision)
    except UserError:
        raise
    except hub.failures() as error:
        silent = "the hub does not answer and there is no copy of them here"
        reason = f"{type(error).__name__}: {first_line(error)}" if answers else silent
        raise UserError(
            f"{architecture.library} {architecture.name}: expected weights from the model hub, "
            f"could not get them ({reason}); give a file as `weights:`"
        ) from None


def called(owner: OwnerSettings) -> str:
    """Name a model and, where it lies in a file, the file."""
    return f"{owner.name} ({Path(owner.weights).name})" if owner.from_file else owner.name


def refuse_two_heads(owner: OwnerSettings, head: Json) -> None:
    """Refuse a classifier for a model that was loaded with a head of its own."""
    if head is not None:
        raise SettingError(
            f"owner '{owner.name}': classifier: expected none, the model has its own; leave it out "
            "and the model's own classifier is used",
            ("classifier",),
        )
