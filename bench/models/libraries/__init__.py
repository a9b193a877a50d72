"""Find the libraries that models come from by name, whoever wrote them; no torch is needed.

A library is one value in one file. The entry point says where it lies, and nothing is imported
before somebody names it.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.nouns import first_line
from bench.records.settings import SettingError, suggestion

if TYPE_CHECKING:
    from bench.models.vision import Architecture, VisionModel

EMBEDDED = "embedded"
"""The library of the models that come with the bench, and of the strangers it trains."""

GROUP = "bench.libraries"
"""The entry points of libraries that are not ours."""

OURS = {
    EMBEDDED: "bench.models.libraries.embedded:EMBEDDED",
    "timm": "bench.models.libraries.timm:TIMM",
    "open_clip": "bench.models.libraries.open_clip:OPEN_CLIP",
}
"""Where the built-in ones lie."""


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


def _no_names(architecture: Architecture) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """Where models come from: how one is named, made and laid out, and whose weights it may have.

    `make` builds a model with whatever first weights the library draws. The other functions are
    for libraries that have more: `check` refuses names or tags that it does not know, where `names`
    does not list all; `classifies` says whether weights come with a classifier of their own, which
    is then kept; `published` builds a model with the weights it publishes, at a commit if one is
    asked for, and `place` says where on the hub these lie; `in_python` is the line that makes the
    model a released file loads into.
    """

    summary: str  # for `bench list models`
    make: Callable[[Architecture], VisionModel]
    names: tuple[str, ...] = ()  # of all its models; none: too many to list
    check: Callable[[Architecture], None] = _nothing
    classifies: Callable[[Architecture], bool] | None = None
    published: Callable[[Architecture, str | None], VisionModel] | None = None
    place: Callable[[Architecture], Place | None] = _nothing
    in_python: Callable[[Architecture], str | None] = _nothing
    shipped: Path | None = None  # the folder of NAME.safetensors, where weights came with it
    tag: str = ""  # such as this one; none: a model's name says which weights are meant
    resizes: bool = True  # models can be made for images of another size

    # Files of weights: what stands before all names, and under which prefixes lies what is ours
    # under others. Of several layouts the one counts that most names fit.
    prefix: str = ""
    layouts: tuple[Mapping[str, str], ...] = ({"": "trunk."},)
    surplus: Callable[[Architecture], tuple[str, ...]] = _no_names  # prefixes of ours to leave out


def names() -> list[str]:
    """List the names of all libraries, the built-in ones first, without importing any."""
    return [*OURS, *sorted(_announced().keys() - OURS.keys())]


@functools.cache
def find(name: str) -> Library:
    """Return the library called `name`, importing the module that holds it.

    Raises:
        SettingError: there is none of this name, or it is not to be had.

    """
    points = _announced().get(name, [])
    if not points:
        raise SettingError(f"no library '{name}'{suggestion(name, names())}", ("library",))
    if len({point.value for point in points}) > 1:
        claims = " and ".join(f"{p.value} ({p.dist.name if p.dist else 'bench'})" for p in points)
        raise SettingError(f"library '{name}' is claimed by {claims}", ("library",))
    try:
        loaded = points[0].load()
    except SettingError:
        raise
    except Exception as error:  # an import runs foreign code, which may fail in any way
        reason = f"{type(error).__name__}: {first_line(error)}"
        message = f"library '{name}': cannot import {points[0].value} ({reason})"
        raise SettingError(message, ("library",)) from error
    if not isinstance(loaded, Library):
        wanted = f"expected a Library at {points[0].value}, got a {type(loaded).__name__}"
        raise SettingError(f"library '{name}': {wanted}", ("library",))
    return loaded


@functools.cache
def _announced() -> Mapping[str, list[EntryPoint]]:
    found = defaultdict(list)
    for name, place in OURS.items():
        found[name].append(EntryPoint(name, place, GROUP))
    for point in importlib.metadata.entry_points(group=GROUP):
        found[point.name].append(point)
    return found
