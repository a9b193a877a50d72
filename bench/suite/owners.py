"""What a suite may say of a model somebody owns, and of its classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from bench.models.libraries import EMBEDDED, LIBRARIES
from bench.records.files import file_digest
from bench.records.nouns import Json, Spec, UserError
from bench.records.settings import (
    Count,
    NotNegative,
    PartialShare,
    Positive,
    SettingError,
    settings,
    suggestion,
)

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
"""How the names of files of weights end."""


@dataclass(frozen=True, slots=True)
class ClassifierSettings:
    """The owner's classifier: [CLS; mean patch], norm, dropout, linear (ActiveMark, section 5.1).

    It is trained on the owner's images of `data`, with AdamW, on the `backbone` as it is or through
    it; the paper gives no number and finetunes. `lr` is by default 1e-2, or 1e-4 through the
    backbone.
    """

    data: str
    backbone: Literal["frozen", "finetuned"] = "frozen"
    epochs: Positive = 30
    lr: NotNegative | None = None
    batch: Positive = 32
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    weight_decay: NotNegative = 0.01
    dropout: PartialShare = 0.1

    def __post_init__(self) -> None:
        if self.lr is None:
            object.__setattr__(self, "lr", 1e-2 if self.backbone == "frozen" else 1e-4)


Classifier = Annotated[
    ClassifierSettings | None,
    PlainValidator(lambda v: None if v is None else settings(ClassifierSettings, v)),
]


@dataclass(frozen=True, slots=True)
class OwnerSettings:
    """A model somebody owns: which library builds it, and where its weights come from.

    `weights` is "hub" (what the library publishes, or what came with it), "random" (drawn from
    `seed`) or a file, relative to the data root or absolute. Preprocessing and activation follow
    the tag `pretrained`, wherever the weights come from. `revision` pins weights from the hub
    to one of its commits. `digest` is what the weights must be, as records name them
    (`owner_digest`): others are refused. `entry` says which of several sets of weights in a file
    is meant, such as state_dict beside an average. `classes` is how many the classifier in a file
    has, where not the library's own number: it then comes along. `family` is for innocents: of one
    family, models count as one. `classifier` gives a model without one of its own the label space
    that methods asking for labels need.
    """

    library: str
    name: str
    weights: str = "hub"
    pretrained: str | None = None  # open_clip's tag
    entry: str | None = None
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    image_size: Positive | None = None
    classes: Positive | None = None
    seed: Count = 0
    classifier: Classifier = None
    family: str | None = None

    def __post_init__(self) -> None:
        self._look_beside()
        if self.from_file and not self.weights.endswith(WEIGHT_FILES):
            known = f"hub, random or a file ending in {', '.join(WEIGHT_FILES)}"
            raise SettingError(f"weights: expected {known}, got '{self.weights}'", ("weights",))
        if self.entry is not None and not self.from_file:
            raise SettingError("entry: expected none unless weights is a file", ("entry",))
        if self.classes is not None and not self.from_file:
            raise SettingError("classes: expected none unless weights is a file", ("classes",))
        if self.seed and self.weights != "random":
            raise SettingError("seed: expected none unless weights is random", ("seed",))
        self._check_library()
        if self.revision is not None and not self.from_hub:
            message = "revision: expected none unless the weights come from the hub"
            raise SettingError(message, ("revision",))

    def _look_beside(self) -> None:
        """Take the weights that lie in a folder, where a library's name of a model is one."""
        found = LIBRARIES.get(self.library).beside(self.name) if self.weights == "hub" else None
        if found is not None:
            object.__setattr__(self, "weights", str(found[0]))

    def _check_library(self) -> None:
        library, who = LIBRARIES.get(self.library), self.library
        if library.names and self.name not in library.names:
            hint = suggestion(self.name, library.names)
            raise SettingError(f"no {who} model '{self.name}'{hint}", ("name",))
        if self.image_size is not None and not library.resizes:
            message = f"image_size: expected none, {self.name} has its own"
            raise SettingError(message, ("image_size",))
        if self.classes is not None and library.classifies is None:
            message = f"classes: expected none, {who} models have no classifier of their own"
            raise SettingError(message, ("classes",))
        if self.from_hub and library.published is None:
            message = f"weights: expected random or a file, {who} publishes none; got hub"
            raise SettingError(message, ("weights",))
        if self.from_hub and library.tag and self.pretrained is None:
            hint = f"expected {who}'s tag of the weights, such as {library.tag}"
            raise SettingError(f"pretrained: {hint}, got none")
        if self.pretrained is not None and not library.tag:
            way_out = f"{who} has no tags of weights, a model's name has it all"
            raise SettingError(f"pretrained: expected none, {way_out}", ("pretrained",))

    @property
    def from_file(self) -> bool:
        """Say whether the weights lie in a file of the user's."""
        return self.weights not in ("hub", "random")

    @property
    def from_hub(self) -> bool:
        """Say whether the weights are fetched by a library from where it publishes them."""
        return self.weights == "hub" and self.shipped is None

    @property
    def shipped(self) -> Path | None:
        """Return the file of weights that came with the library, if these are meant."""
        folder = LIBRARIES.get(self.library).shipped if self.weights == "hub" else None
        return folder and folder / f"{self.name}.safetensors"

    def spec(self) -> Spec:
        """Return the owner as cells name it: without a path, which its weights' digest replaces."""
        args = dataclasses.asdict(self) | {"weights": "file" if self.from_file else self.weights}
        # What is expected of weights, or counted with them, does not change what is there.
        del args["name"], args["digest"], args["family"]
        for name in ("classifier", "revision", "entry", "classes"):
            if args[name] is None:
                del args[name]
        beside = LIBRARIES.get(self.library).beside(self.name)
        if beside is None:
            return Spec(self.name, args)
        # A folder is named by what is in it, wherever it lies.
        return Spec(Path(self.name).expanduser().resolve().name, args | {"config": beside[1]})


def mapping_of(value: Json, example: str) -> Mapping[str, Json]:
    """Return a mapping that a user wrote."""
    if not isinstance(value, Mapping):
        raise SettingError(f"expected a mapping such as {{{example}}}, got {value!r}")
    return value


def owner_of(
    text: str,
    weights: str,
    pretrained: str | None,
    image_size: int | None = None,
    entry: str | None = None,
) -> OwnerSettings:
    """Return the model that LIBRARY:NAME names, as a suite would have it."""
    library, _, name = text.rpartition(":")
    value = {"library": library or EMBEDDED, "name": name, "weights": weights}
    given = {"pretrained": pretrained, "image_size": image_size, "entry": entry}
    return settings(OwnerSettings, value | {k: v for k, v in given.items() if v is not None})


def owner_from(value: Json) -> OwnerSettings:
    """Read a model somebody owns: its library is the key of its name."""
    entry, listed = dict(mapping_of(value, "timm: vit_base_patch16_224")), LIBRARIES.names()
    own = [f.name for f in dataclasses.fields(OwnerSettings) if f.name not in ("library", "name")]
    known = [*listed, *own]
    for key in entry:
        if key not in known:
            raise SettingError(f"no setting '{key}'{suggestion(key, known)}", (key,))
    found = [key for key in listed if key in entry]
    if len(found) != 1:
        wanted, got = ", ".join(listed), " and ".join(found)
        raise SettingError(f"expected one of {wanted}, got {got or 'none'}")
    named = {"library": found[0], "name": entry.pop(found[0])}
    try:
        return settings(OwnerSettings, {**named, **entry})
    except SettingError as error:
        where = tuple(found) if error.where in (("name",), ("library",)) else error.where
        raise SettingError(str(error), where) from None


def model_from(value: Json) -> OwnerSettings:
    """Read a model that never met the owner."""
    model = owner_from(value)
    if model.weights == "random":
        hint = "expected hub or a file, got random; an untrained network is nobody's model"
        raise SettingError(f"weights: {hint}", ("weights",))
    if model.classifier is not None:
        hint = "expected none, the model is read as it comes"
        raise SettingError(f"classifier: {hint}", ("classifier",))
    return model


def owned_from(value: Json) -> OwnerSettings:
    """Read a model somebody owns, which is no innocent of any family."""
    owner = owner_from(value)
    if owner.family is not None:
        hint = "expected none, it is models listed as innocents that may count as one"
        raise SettingError(f"family: {hint}", ("family",))
    return owner


Owner = Annotated[OwnerSettings, PlainValidator(owned_from)]

Model = Annotated[OwnerSettings, PlainValidator(model_from)]


def weights_identity(owner: OwnerSettings, data_dir: Path | None, assume: bool = False) -> str:
    """Name an owner's weights by content: a file by its bytes, a draw by its seed.

    Weights from a hub are named "hub": their digest is recorded when they are first loaded, and the
    loaded copy is kept, so later runs need no network. `assume` gives a file that is not there a
    name too.
    """
    if owner.shipped is not None:
        return file_digest(owner.shipped)[:16]
    if owner.from_file:
        try:
            return file_digest(weights_file(owner, data_dir))[:16]
        except UserError:
            if not assume:
                raise
            return f"not there: {owner.weights}"
    return f"random {owner.seed}" if owner.weights == "random" else "hub"


def weights_file(owner: OwnerSettings, data_dir: Path | None) -> Path:
    """Find the file an owner's weights lie in."""
    path = Path(owner.weights).expanduser()
    found = path if data_dir is None else data_dir / path
    if not found.is_file():
        what = "got a folder; name a file in it" if found.is_dir() else "found no such file"
        raise UserError(
            f"owner '{owner.name}': expected weights at {found}, {what}; "
            "--data DIR or BENCH_DATA sets where relative paths start"
        )
    return found
