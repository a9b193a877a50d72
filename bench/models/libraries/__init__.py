"""Find the libraries that models come from by name, whoever wrote them; no torch is needed.

A library is one value in one file, and is imported once somebody names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.plugins import Values

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models.vision import Architecture, VisionModel

EMBEDDED = "embedded"
"""The library of the models that come with the bench, and of the strangers it trains."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where on the hub a library keeps weights, and what a copy of them here would be called."""

    repository: str
    files: tuple[str, ...]  # any of which will do
    revision: str | None = None

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


def _nothing(architecture: Architecture) -> None:
    """Find nothing."""


def _nothing_assumed(architecture: Architecture) -> str:
    return ""


def _as_named(architecture: Architecture, revision: str | None) -> Architecture:
    return architecture


def _nothing_beside(name: str) -> None:
    """Find no file."""


def _unchanged(model: VisionModel, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """Where models come from: how one is named, made and laid out, and whose weights it may have.

    `make` builds a model with whatever first weights the library draws. The other functions are
    for libraries that have more: `check` refuses names or tags that it does not know, where `names`
    does not list all; `classifies` says whether weights come with a classifier of their own, which
    is then kept; `published` builds a model with the weights it publishes, at a commit if one is
    asked for, and `place` says where on the hub these lie; `in_python` is the line that makes the
    model a released file loads into; `assumed` says in a line what was taken for granted of weights
    in a file that have no tag. `describe` completes an architecture where a name does not say it
    all, with what lies on the hub at a commit if one is asked for; `beside` finds the weights where
    a name is a folder, and names by a digest what else it says of the model.
    """

    summary: str  # for `bench list models`
    make: Callable[[Architecture], VisionModel]
    names: tuple[str, ...] = ()  # of all its models; none: too many to list
    check: Callable[[Architecture], None] = _nothing
    describe: Callable[[Architecture, str | None], Architecture] = _as_named
    beside: Callable[[str], tuple[Path, str] | None] = _nothing_beside
    classifies: Callable[[Architecture], bool] | None = None
    published: Callable[[Architecture, str | None], VisionModel] | None = None
    place: Callable[[Architecture], Place | None] = _nothing
    in_python: Callable[[Architecture], str | None] = _nothing
    shipped: Path | None = None  # the folder of NAME.safetensors, where weights came with it
    tag: str = ""  # such as this one; none: a model's name says which weights are meant
    assumed: Callable[[Architecture], str] = _nothing_assumed
    resizes: bool = True  # models can be made for images of another size
    version: int = 1  # rises when the same weights would look at other pixels

    # Files of weights: what stands before all names, and under which prefixes lies what is ours
    # under others. Of several layouts the one counts that most names fit. What fits none `convert`
    # may bring into the first: other names, or positions of another grid.
    prefix: str = ""
    layouts: tuple[Mapping[str, str], ...] = ({"": "trunk."},)
    convert: Callable[[VisionModel, Mapping[str, Tensor]], Mapping[str, Tensor]] = _unchanged


LIBRARIES = Values(
    "library",
    Library,
    key="library",
    built_in={
        EMBEDDED: "bench.models.libraries.embedded:EMBEDDED",
        "timm": "bench.models.libraries.timm:TIMM",
        "open_clip": "bench.models.libraries.open_clip:OPEN_CLIP",
        "transformers": "bench.models.libraries.transformers:TRANSFORMERS",
    },
    group="bench.libraries",
)
"""Every library, by the name that is the key of an owner in a suite."""
