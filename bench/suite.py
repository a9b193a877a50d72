"""Turn a YAML file into the grid of questions it asks, or into one line that says what is wrong."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Literal, TypeVar, get_args

import yaml
from pydantic import BeforeValidator, Field, PlainValidator
from yaml import MappingNode, Mark, Node, ScalarNode, SequenceNode

from bench.manifest import DataSettings
from bench.recipe import RECIPE, Shape
from bench.registry import ATTACKS, METHODS, Registry, SettingError, settings, suggestion
from bench.statistics import innocents_needed
from bench.types import Json, Spec, UserError

T = TypeVar("T")
Library = Literal["embedded", "timm", "open_clip"]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]

EMBEDDED = ("mini",)
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


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
    lr: Annotated[float, Field(ge=0)] | None = None
    batch: Positive = 32
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

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

    `weights` is "hub" (what the library publishes or embeds), "random" (drawn from `seed`) or a
    file, relative to the data root or absolute. `revision` pins weights from the hub to one of its
    commits. `digest` is what the weights must be, as records name them (`owner_digest`): others are
    refused. `classifier` gives a model without one of its own the label space that methods asking
    for labels need.
    """

    library: Library
    name: str
    weights: str = "hub"
    pretrained: str | None = None  # open_clip's tag, for weights from the hub
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    image_size: Annotated[int, Field(gt=0)] | None = None
    seed: Count = 0
    classifier: Classifier = None

    def __post_init__(self) -> None:
        if self.library == "embedded" and self.name not in EMBEDDED:
            hint = suggestion(self.name, EMBEDDED)
            raise SettingError(f"no embedded model '{self.name}'{hint}", ("name",))
        if self.from_file and PurePath(self.weights).suffix not in WEIGHT_FILES:
            known = f"hub, random or a file ending in {', '.join(WEIGHT_FILES)}"
            raise SettingError(f"weights: expected {known}, got '{self.weights}'", ("weights",))
        if self.library == "embedded" and self.image_size is not None:
            raise SettingError("image_size: expected none, mini has its own", ("image_size",))
        if self.seed and self.weights != "random":
            raise SettingError("seed: expected none unless weights is random", ("seed",))
        tagged = self.library == "open_clip" and self.weights == "hub"
        if tagged and self.pretrained is None:
            hint = "expected open_clip's tag of the weights, such as openai"
            raise SettingError(f"pretrained: {hint}, got none")
        if self.pretrained is not None and not tagged:
            message = "pretrained: expected none unless open_clip takes its weights from the hub"
            raise SettingError(message, ("pretrained",))
        if self.revision is not None and not self.from_hub:
            message = "revision: expected none unless the weights come from the hub"
            raise SettingError(message, ("revision",))

    @property
    def from_file(self) -> bool:
        """Say whether the weights lie in a file of the user's."""
        return self.weights not in ("hub", "random")

    @property
    def from_hub(self) -> bool:
        """Say whether the weights are fetched by a library from where it publishes them."""
        return self.weights == "hub" and self.library != "embedded"

    def spec(self) -> Spec:
        """Return the owner as cells name it: without a path, which its weights' digest replaces."""
        args = dataclasses.asdict(self) | {"weights": "file" if self.from_file else self.weights}
        del args["name"], args["digest"]  # what is expected does not change what is there
        for name in ("classifier", "revision"):
            if args[name] is None:
                del args[name]
        return Spec(self.name, args)


@dataclass(frozen=True, slots=True)
class InnocentSettings:
    """How many innocent models calibrate a verdict.

    `twin_seeds` counts attack seeds per attack; of the `strangers`, the first `attacked_strangers`
    also go through the attacks. `pretraining_steps` below the owner's own makes weaker strangers.
    `other_shapes` counts strangers of each embedded shape but the owner's. `other_keys` counts,
    per claim on a mark, copies of the owner marked with another key: the suite's other seeds first,
    then seeds beyond them. `models` never met the owner: each is read as it comes.
    """

    strangers: Count = 19
    twin_seeds: Count = 6
    attacked_strangers: Count = 0
    pretraining_steps: Annotated[int, Field(gt=0)] = RECIPE.steps
    other_shapes: Count = 0
    other_keys: Count = 0
    models: tuple[Model, ...] = ()

    @property
    def independent(self) -> int:
        """Count the models that owe the owner nothing, if all of them can be read."""
        others = len(get_args(Shape)) - 1
        return self.strangers + self.other_shapes * others + len(self.models)


def _mapping(value: Json, example: str) -> Mapping[str, Json]:
    if not isinstance(value, Mapping):
        raise SettingError(f"expected a mapping such as {{{example}}}, got {value!r}")
    return value


def _owner(value: Json) -> OwnerSettings:
    entry = dict(_mapping(value, "timm: vit_base_patch16_224"))
    own = [f.name for f in dataclasses.fields(OwnerSettings) if f.name not in ("library", "name")]
    known = [*get_args(Library), *own]
    for key in entry:
        if key not in known:
            raise SettingError(f"no setting '{key}'{suggestion(key, known)}", (key,))
    found = [key for key in get_args(Library) if key in entry]
    if len(found) != 1:
        wanted = ", ".join(get_args(Library))
        raise SettingError(f"expected one of {wanted}, got {' and '.join(found) or 'none'}")
    named = {"library": found[0], "name": entry.pop(found[0])}
    try:
        return settings(OwnerSettings, {**named, **entry})
    except SettingError as error:
        where = tuple(found) if error.where == ("name",) else error.where
        raise SettingError(str(error), where) from None


def _model(value: Json) -> OwnerSettings:
    model = _owner(value)
    if model.weights == "random":
        hint = "expected hub or a file, got random; an untrained network is nobody's model"
        raise SettingError(f"weights: {hint}", ("weights",))
    if model.classifier is not None:
        hint = "expected none, the model is read as it comes"
        raise SettingError(f"classifier: {hint}", ("classifier",))
    return model


def _spec(registry: Registry[T], value: Json) -> Spec:
    args = dict(_mapping(value, "name: ..."))
    name = args.pop("name", None)
    if not isinstance(name, str):
        raise SettingError(f"expected the name of a {registry.kind}, got {name!r}", ("name",))
    return registry.spec(name, args)


def _chain(value: Json) -> Json:
    return tuple(value) if isinstance(value, list) else (value,)


def _named_loaders(value: Json) -> Json:
    return {
        name: {"loader": name, **entry} if isinstance(entry, Mapping) else entry
        for name, entry in _mapping(value, "digits: {}").items()
    }


def _no_parts(value: Json) -> tuple[Suite, ...]:
    assert not value, "a suite of parts is loaded part by part"
    return ()


Method = Annotated[Spec, PlainValidator(lambda value: _spec(METHODS, value))]
Step = Annotated[Spec, PlainValidator(lambda value: _spec(ATTACKS, value))]
Chain = Annotated[tuple[Step, ...], Field(min_length=1), BeforeValidator(_chain)]
Owner = Annotated[OwnerSettings, PlainValidator(_owner)]
Model = Annotated[OwnerSettings, PlainValidator(_model)]
Data = Annotated[DataSettings, PlainValidator(functools.partial(settings, DataSettings))]
Innocents = Annotated[
    InnocentSettings, PlainValidator(functools.partial(settings, InnocentSettings))
]
NotEmpty = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Suite:
    """A grid: every owner by every method by every attack chain by every seed.

    `owner_images` and `probe` name data sets: what the owner marks and reads with, and the labelled
    images on which models without a head of their own are probed. `reductions` says, for reading,
    what this suite does more cheaply than the paper. A suite of `parts` asks what they ask, each
    its own grid; its other fields then hold what those of the parts come to.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    owners: Annotated[tuple[Owner, ...], NotEmpty]
    methods: Annotated[tuple[Method, ...], NotEmpty]
    attacks: Annotated[tuple[Chain, ...], NotEmpty]
    data: Annotated[Mapping[str, Data], NotEmpty, BeforeValidator(_named_loaders)]
    owner_images: str
    probe: str
    title: str = ""
    seeds: Annotated[tuple[Count, ...], NotEmpty] = (0,)
    innocents: Innocents = InnocentSettings()
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    reductions: tuple[str, ...] = ()
    parts: Annotated[tuple[Suite, ...], PlainValidator(_no_parts)] = ()

    def __post_init__(self) -> None:
        self._require("owner_images", self.owner_images, ("owner_images",))
        self._require("probe", self.probe, ("probe",))
        for i, owner in enumerate(self.owners):
            if owner.classifier is not None:
                self._require_labels(owner.classifier.data, ("owners", i, "classifier", "data"))
        for i, chain in enumerate(self.attacks):
            for j, step in enumerate(chain):
                if step.args.get("data"):
                    where = ("attacks", i, j, "data")
                    self._require(f"attack '{step.name}': data", step.args["data"], where)

    def _require(self, reader: str, name: str, where: tuple[str | int, ...]) -> None:
        if name not in self.data:
            message = f"{reader}: no data set '{name}'{suggestion(name, self.data)}"
            raise SettingError(message, where)

    def _require_labels(self, name: str, where: tuple[str | int, ...]) -> None:
        self._require("classifier: data", name, where)
        data = self.data[name]
        if data.masked or data.loader == "photos":  # a folder's labels are not known so early
            found = f"'{name}' (loader '{data.loader}')"
            raise SettingError(f"classifier: data: expected labelled images, got {found}", where)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say, in sentences, what this suite cannot decide however it turns out."""
        if self.parts:
            return tuple(f"{part.name}: {said}" for part in self.parts for said in part.warnings)
        found = []
        needed, asked = innocents_needed(self.alpha), self.innocents.independent
        if asked < needed:
            found.append(
                f"alpha = {self.alpha:g} needs {needed} strangers, the suite asks for {asked}: "
                "verdicts will be undecided"
            )
        steps = self.innocents.pretraining_steps
        if asked and steps != RECIPE.steps:
            found.append(
                f"strangers are trained for {steps} steps, the embedded owner for {RECIPE.steps}: "
                "they are weaker models than the owner's peers would be"
            )
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Cover:
    """What a suite of parts says of itself; everything else is theirs."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    parts: Annotated[tuple[str, ...], NotEmpty]
    title: str = ""
    reductions: tuple[str, ...] = ()


def load(path: Path) -> Suite:
    """Read one suite file and all it includes, checked; every error begins with its file:line."""
    return _load(path, ())


def _load(path: Path, above: tuple[Path, ...]) -> Suite:
    node = _read(path, ())
    try:
        value = _Loader("").construct_document(node)
        if "parts" in value:
            return _joined(settings(Cover, value), path, (*above, path))
        suite = settings(Suite, value)
    except yaml.YAMLError as error:
        raise _syntax(path, error) from None
    except SettingError as error:
        raise UserError(f"{_place(node, error.where)}: {error}") from None
    return dataclasses.replace(  # an include may bring what another one, or the file, lists too
        suite,
        owners=_distinct(suite.owners),
        methods=_distinct(suite.methods),
        attacks=_distinct(suite.attacks),
        seeds=_distinct(suite.seeds),
        reductions=_distinct(suite.reductions),
    )


def _joined(cover: Cover, path: Path, above: tuple[Path, ...]) -> Suite:
    """Lay the parts a suite names beside each other: a grid each, but one set of data for all.

    Including them would make one grid of all their lists, every mark of a sweep by every attack.
    """
    parts = list[Suite]()
    for i, name in enumerate(cover.parts):
        file, where = path.parent / name, ("parts", i)
        if file.resolve() in [p.resolve() for p in above]:
            raise SettingError(f"expected parts without a circle, got '{name}' in itself", where)
        if not file.is_file():
            raise SettingError(f"no file '{name}'{_neighbours(file)}", where)
        part = _load(file, above)
        _refuse_strife([*parts, part], where)
        parts.append(part)
    first = parts[0]
    models = _distinct(tuple(m for part in parts for m in part.innocents.models))
    return dataclasses.replace(
        first,
        name=cover.name,
        title=cover.title,
        owners=_distinct(tuple(owner for part in parts for owner in part.owners)),
        methods=_distinct(tuple(method for part in parts for method in part.methods)),
        attacks=_distinct(tuple(chain for part in parts for chain in part.attacks)),
        data={name: data for part in parts for name, data in part.data.items()},
        innocents=dataclasses.replace(first.innocents, models=models),
        reductions=_distinct((*cover.reductions, *(r for part in parts for r in part.reductions))),
        parts=tuple(grid for part in parts for grid in part.parts or (part,)),
    )


def _refuse_strife(parts: list[Suite], where: tuple[str | int, ...]) -> None:
    """Refuse a part that is at odds with the first about what one suite has one of."""
    first, last = parts[0], parts[-1]
    said: dict[str, tuple[object, object]] = {
        "alpha": (first.alpha, last.alpha),
        "innocents: pretraining_steps": (
            first.innocents.pretraining_steps,
            last.innocents.pretraining_steps,
        ),
    }
    for part in parts[:-1]:
        for name in part.data.keys() & last.data.keys():
            said[f"data '{name}'"] = (part.data[name], last.data[name])
    for what, (one, other) in said.items():
        if one != other:
            raise SettingError(f"{what}: expected the same in all parts, it is another here", where)


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(value for i, value in enumerate(values) if value not in values[:i])


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everybody expects, and a date is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the shape PyYAML wants
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _read(path: Path, stack: tuple[Path, ...]) -> Node:
    """Parse a file and put what it includes beneath it, lines remembered."""
    try:
        with path.open("rb") as file:
            node = _Loader(file).get_single_node()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}{_neighbours(path)}") from None
    except yaml.YAMLError as error:
        raise _syntax(path, error) from None
    if not isinstance(node, MappingNode):
        raise UserError(f"{path}:1: expected a mapping that begins like 'name: demo'")
    _check(node)
    known = [f.name for f in dataclasses.fields(Suite)] + ["include"]
    for key, _ in node.value:
        if key.value not in known:
            hint = suggestion(key.value, known)
            raise UserError(f"{_at(key.start_mark)}: no setting '{key.value}'{hint}")
    own = MappingNode(node.tag, [], node.start_mark)
    own.value = [(key, value) for key, value in node.value if key.value != "include"]
    included = [value for key, value in node.value if key.value == "include"]
    base = [_include(item, path, (*stack, path)) for value in included for item in _items(value)]
    return functools.reduce(_merge, [*base, own])


def _items(node: Node) -> list[ScalarNode]:
    items = node.value if isinstance(node, SequenceNode) else [None]
    if not all(isinstance(item, ScalarNode) for item in items):
        raise UserError(f"{_at(node.start_mark)}: expected a list of files such as [other.yaml]")
    return list(items)


def _include(item: ScalarNode, path: Path, stack: tuple[Path, ...]) -> Node:
    target = path.parent / item.value
    place = _at(item.start_mark)
    if target.resolve() in [p.resolve() for p in stack]:
        ring = " -> ".join(p.name for p in (*stack, target))
        raise UserError(f"{place}: expected includes without a circle, got {ring}")
    if not target.is_file():
        raise UserError(f"{place}: no file '{item.value}' to include{_neighbours(target)}")
    return _read(target, stack)


def _neighbours(path: Path) -> str:
    return suggestion(path.name, sorted(p.name for p in path.parent.glob("*.yaml")))


def _check(node: Node, above: tuple[Node, ...] = ()) -> None:
    """Refuse keys given twice, keys that are not words, and anchors that contain themselves."""
    if node in above:
        raise UserError(f"{_at(node.start_mark)}: an anchor that contains itself")
    if isinstance(node, SequenceNode):
        for item in node.value:
            _check(item, (*above, node))
    if isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            place = _at(key.start_mark)
            if not isinstance(key, ScalarNode):
                raise UserError(f"{place}: expected a word as key, got a list or a mapping")
            if key.value in lines:
                raise UserError(f"{place}: '{key.value}' already stands on line {lines[key.value]}")
            lines[key.value] = key.start_mark.line + 1
            _check(value, (*above, node))


def _merge(base: Node, own: Node) -> Node:
    """Lay one tree over another: lists join, mappings merge, of two scalars `own` stays."""
    if isinstance(base, MappingNode) and isinstance(own, MappingNode):
        pairs = {key.value: (key, value) for key, value in base.value}
        for key, value in own.value:
            _, under = pairs.get(key.value, (key, value))
            pairs[key.value] = (key, value if under is value else _merge(under, value))
        return MappingNode(own.tag, list(pairs.values()), own.start_mark)
    if isinstance(base, SequenceNode) and isinstance(own, SequenceNode):
        return SequenceNode(own.tag, base.value + own.value, own.start_mark)
    return own


def _place(node: Node, where: tuple[str | int, ...]) -> str:
    """Follow a path of keys and positions as far as the text goes, and return its file:line."""
    mark = node.start_mark
    for part in where:
        if isinstance(node, MappingNode):
            found = [(k.start_mark, v) for k, v in node.value if k.value == part]
            mark, node = found[-1] if found else (mark, node)
        elif isinstance(node, SequenceNode) and part in range(len(node.value)):
            node = node.value[part]
            mark = node.start_mark
    return _at(mark)


def _at(mark: Mark) -> str:
    return f"{mark.name}:{mark.line + 1}"


def _syntax(path: Path, error: yaml.YAMLError) -> UserError:
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        return UserError(f"{_at(mark)}: this is not YAML: {error.problem}")
    line = path.read_bytes()[: getattr(error, "position", 0)].count(b"\n") + 1
    return UserError(f"{path}:{line}: this is not text in UTF-8")
