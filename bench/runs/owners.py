"""Load an owner's model: from the package, a library's hub, a file, or drawn at random."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.data import embedded
from bench.models.libraries import blank, build, randomised
from bench.models.vision import Architecture, VisionModel
from bench.models.weights import load_state, read_weights, renamed
from bench.records.nouns import UserError, first_line

if TYPE_CHECKING:
    from bench.suite.owners import OwnerSettings


WIDTHS = 64
"""What timm calls the classes of a CLIP tower is the width of its projection: a multiple of this,
which no set of labels is that timm has weights for."""

PATIENCE = 10.0
"""Seconds the model hub has to answer at all."""


def load_owner(owner: OwnerSettings, file: Path | None) -> VisionModel:
    """Return the owner's model on the CPU, in eval mode; `file` holds weights given by path.

    A timm model keeps its own classifier where it has one.

    Raises:
        UserError: no library has the name, the file cannot be read or is of another architecture,
            or the hub is unreachable.

    """
    architecture = architecture_of(owner)
    if owner.library == "embedded" and owner.weights == "hub":
        file = embedded.WEIGHTS / f"{owner.name}.safetensors"
    if file is not None:
        model = blank(architecture)
        state = renamed(read_weights(file), model)
        if owner.library == "timm" and _is_projection(owner.name):  # into CLIP's space of texts
            state = {k: v for k, v in state.items() if not k.startswith("trunk.vit.head.")}
        return load_state(model, state, file.name)
    if owner.weights == "random":
        return randomised(architecture, owner.seed)
    return _from_hub(architecture, owner.revision)


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where on the hub a library keeps weights, and what a copy of them here would be called."""

    repository: str
    files: tuple[str, ...]  # any of which will do
    revision: str | None

    @property
    def cached(self) -> bool:
        """Say whether there is a copy here, so that no network is needed."""
        from huggingface_hub import try_to_load_from_cache

        found = [
            try_to_load_from_cache(self.repository, f, revision=self.revision) for f in self.files
        ]
        return any(isinstance(path, str) for path in found)

    @property
    def command(self) -> str:
        """Return the hub's own command that fetches them."""
        pin = f" --revision {self.revision}" if self.revision else ""
        return f"hf download {self.repository} {self.files[0]}{pin}"


def fetch(place: Place) -> None:
    """Bring weights from the hub into its cache here.

    Raises:
        UserError: the hub does not have them, or does not answer.

    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if not _hub_answers():  # its client would go on trying for most of a minute
        raise UserError(f"{place.repository}: expected weights on the hub, which does not answer")
    said = ""
    for file in place.files:
        try:
            hf_hub_download(place.repository, file, revision=place.revision)
        except EntryNotFoundError as error:
            said = first_line(error)
        except Exception as error:  # the hub's client raises whatever its transport does
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
    architecture_of(owner)
    if owner.library == "timm":
        import timm

        config = timm.get_pretrained_cfg(owner.name)
        hub, file = getattr(config, "hf_hub_id", None), getattr(config, "hf_hub_filename", None)
        names = (file,) if file else ("model.safetensors", "pytorch_model.bin")
    else:
        import open_clip

        tag = owner.pretrained or ""
        published = open_clip.get_pretrained_cfg(owner.name, tag).get("hf_hub", "")
        hub, _, file = published.rpartition("/")
        names = (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return Place(hub, names, owner.revision) if hub else None


def architecture_of(owner: OwnerSettings) -> Architecture:
    """Return all but the weights of the model an owner names.

    Raises:
        UserError: no library has the name.

    """
    if owner.library == "open_clip":
        _check_open_clip(owner)
    keeps_head = owner.library == "timm" and _has_classifier(owner.name)
    head: Literal["own"] | None = "own" if keeps_head else None
    return Architecture(owner.library, owner.name, owner.image_size, head, tag=owner.pretrained)


def _has_classifier(name: str) -> bool:
    import timm

    if not timm.is_model(name):
        raise UserError(f"timm has no model '{name}'{_nearest(name, timm.list_models())}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # what timm says of an unknown tag
        tagged = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        raise UserError(f"timm has no weights '{name}'{_nearest(name, tagged)}") from None
    return config is None or (config.num_classes > 0 and not _is_projection(name))


def _is_projection(name: str) -> bool:
    """Say whether what timm calls the classes of these weights are the channels of an embedding."""
    import timm

    config = timm.get_pretrained_cfg(name)
    return config is not None and config.num_classes > 0 and config.num_classes % WIDTHS == 0


def _check_open_clip(owner: OwnerSettings) -> None:
    import open_clip

    names = open_clip.list_models()
    if owner.name not in names:
        raise UserError(f"open_clip has no model '{owner.name}'{_nearest(owner.name, names)}")
    tags, tag = open_clip.list_pretrained_tags_by_model(owner.name), owner.pretrained
    if tag is not None and tag not in tags:
        raise UserError(f"open_clip has no weights '{tag}' of {owner.name}{_nearest(tag, tags)}")


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _from_hub(architecture: Architecture, revision: str | None) -> VisionModel:
    answers = _hub_answers()
    try:
        with _cache_only(not answers):
            return build(architecture, pretrained=True, revision=revision)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises whatever its transport does
        silent = "the hub does not answer and there is no copy of them here"
        reason = f"{type(error).__name__}: {first_line(error)}" if answers else silent
        raise UserError(
            f"{architecture.library} {architecture.name}: expected weights from the model hub, "
            f"could not get them ({reason}); give a file as `weights:`"
        ) from None


def _hub_answers() -> bool:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # its transport, httpx or requests, has its own families of errors
        return False
    return True


@contextmanager
def _cache_only(offline: bool) -> Iterator[None]:
    """Send the hub's client straight to its cache: on its own it retries for most of a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
