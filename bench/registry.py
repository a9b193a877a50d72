"""Find methods and attacks by name, whoever wrote them.

A plug-in is a frozen dataclass: its fields are its settings. The decorator names it, the entry
point says where it lives, and nothing is imported before somebody asks for it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.metadata
import inspect
import json
import re
import reprlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bench.types import Attack, Json, Method, Spec, UserError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")
C = TypeVar("C", bound=type)

# Defaults are validated too: `amount: float = 1` must hash like `amount: 1.0` in a suite.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)
"""How every text a user wrote is checked: no guessing, no leftovers, no NaN."""

_EXPECTED = {
    "bool_type": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "none_required": "nothing",
    "string_pattern_mismatch": "letters, digits, '_', '-' and '.' only",
    "string_type": "text",
    "tuple_type": "a list",
}


class SettingError(UserError):
    """A name or a setting that cannot be used, in the words of whoever wrote it.

    `where` leads from the mapping that was checked to the culprit, e.g. `("layers", 2)`.
    """

    def __init__(self, message: str, where: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.where = where


class Origin(NamedTuple):
    """Where a plug-in comes from: "module:Class" and, if it was installed, its distribution."""

    value: str
    distribution: str


class Source(NamedTuple):
    """What a plug-in says of itself, in one line each: what it does, and the paper it follows."""

    summary: str
    paper: str


class Registry(Generic[T]):
    """A table of plug-in classes of one kind, filled on demand from an entry-point group."""

    def __init__(self, kind: str, protocol: type[T]) -> None:
        self.kind = kind
        self.group = f"bench.{kind}s"
        self._required = {*protocol.__annotations__, *vars(protocol)}
        self._plugins: dict[str, tuple[type, int]] = {}

    def register(self, name: str, *, version: int = 1) -> Callable[[C], C]:
        """Name a class; `version` rises whenever its numbers would change."""

        def decorate(cls: C) -> C:
            self._check(name, cls)
            self._plugins[name] = (cls, version)
            return cls

        return decorate

    def names(self) -> list[str]:
        """List every known name, sorted, without importing any plug-in."""
        return sorted(self._plugins.keys() | self._announced.keys())

    def get(self, name: str) -> type[T]:
        """Return the class called `name`, importing the module that holds it if need be."""
        return self._find(name)[0]

    def build(self, name: str, args: Mapping[str, Any]) -> T:
        """Make an instance from plain settings, rejecting unknown or ill-typed ones."""
        cls = self.get(name)
        try:
            return settings(cls, args)
        except SettingError as error:
            raise SettingError(f"{self.kind} '{name}': {error}", error.where) from None

    def spec(self, name: str, args: Mapping[str, Any]) -> Spec:
        """Return `name` with every setting spelled out, defaults included, as it is hashed."""
        instance = self.build(name, args)
        cls, version = self._plugins[name]
        return Spec(name, _adapter(cls).dump_python(instance, mode="json"), version)

    def origin(self, name: str) -> Origin:
        """Say where `name` comes from, without importing it if an entry point announces it."""
        for point in self._announced.get(name, ()):
            return Origin(point.value, point.dist.name if point.dist else "")
        return Origin(_where(self.get(name)), "")

    def source(self, name: str) -> Source:
        """Return what the docstrings of `name` and of its module say of it."""
        cls = self.get(name)
        own = inspect.cleandoc(cls.__doc__ or "")
        module = inspect.getdoc(sys.modules[cls.__module__]) or ""
        cited = [
            p for p in f"{own}\n\n{module}".split("\n\n") if re.search(r"https?://|arXiv", p)
        ] or [""]
        return Source(own.partition("\n")[0], " ".join(cited[0].split()).removeprefix("Source: "))

    def _check(self, name: str, cls: type) -> None:
        label = f"{self.kind} '{name}': {_where(cls)}"
        if not (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):  # type: ignore[attr-defined]
            raise SettingError(f"{label} must be a frozen dataclass")
        missing = sorted(m for m in self._required if m[0] != "_" and not hasattr(cls, m))
        if missing:
            raise SettingError(f"{label} lacks {', '.join(missing)}")
        if "name" in cls.__dataclass_fields__:
            raise SettingError(f"{label} has a setting 'name': that is the plug-in's own")
        known = self._plugins.get(name, (cls, 0))[0]
        if _where(known) != _where(cls):  # equal places: a module or notebook cell run again
            message = f"{self.kind} '{name}' is claimed by {_where(known)} and {_where(cls)}"
            raise SettingError(message, ("name",))

    def _find(self, name: str) -> tuple[type[T], int]:
        points = self._announced.get(name, [])
        if len({point.value for point in points}) > 1:
            claims = " and ".join(f"{p.value} ({p.dist.name if p.dist else '?'})" for p in points)
            raise SettingError(f"{self.kind} '{name}' is claimed by {claims}", ("name",))
        if points:
            self._load(name, points[0])
        if name not in self._plugins:
            message = f"no {self.kind} named '{name}'{suggestion(name, self.names())}"
            raise SettingError(message, ("name",))
        return self._plugins[name]

    def _load(self, name: str, point: EntryPoint) -> None:
        try:
            loaded = point.load()
        except SettingError:
            raise
        except Exception as error:  # an import runs foreign code, which may fail in any way
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            message = f"{self.kind} '{name}': cannot import {point.value} ({reason})"
            raise SettingError(message, ("name",)) from error
        if self._plugins.get(name, (None,))[0] is not loaded:
            message = f"{self.kind} '{name}': {point.value} does not register itself by that name"
            raise SettingError(message, ("name",))

    @functools.cached_property
    def _announced(self) -> Mapping[str, list[EntryPoint]]:
        found = defaultdict(list)
        for point in importlib.metadata.entry_points(group=self.group):
            found[point.name].append(point)
        return found


def settings(cls: type[T], value: Json) -> T:
    """Make a frozen dataclass from the plain mapping a user wrote, or say what is wrong with it."""
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise SettingError(f"expected a mapping, got {_shown(value)}")
    try:
        return _validated(cls, value)
    except ValidationError as error:
        raise _explained(cls, value, error) from None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the way out of a wrong name: the nearest one and the list of all."""
    names = list(known)
    return f"{_nearest(name, names) or ';'} known: {', '.join(names) or 'none'}"


def _validated(cls: type[T], value: Json) -> T:
    # JSON is where a list may stand for a tuple and a word for an enum, however strict.
    adapter: TypeAdapter[T] = _adapter(cls)  # type: ignore[arg-type]
    return adapter.validate_json(json.dumps(value, default=str))


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    cls.__pydantic_config__ = STRICT  # type: ignore[attr-defined]
    return TypeAdapter(cls)


def _explained(cls: type, value: Mapping[str, Json], error: ValidationError) -> SettingError:
    unknown = "unexpected_keyword_argument"  # told first: a misspelt key is also a missing one
    found = sorted(error.errors(), key=lambda e: e["type"] != unknown)
    loc, cause = found[0]["loc"], found[0].get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        return SettingError(str(cause), (*loc, *cause.where))
    known = [field.name for field in dataclasses.fields(cls)]
    # A union complains once for each of its types, in a place of its own below the setting.
    alike = [e for e in found if len(e["loc"]) > 1 and e["loc"][:-1] == loc[:-1]]
    return SettingError(_complaint(alike or found[:1], known), loc or _culprit(cls, value))


def _culprit(cls: type, value: Mapping[str, Json]) -> tuple[str, ...]:
    """Find the setting a dataclass refuses even on its own; its own error does not say which."""
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory}
    least = {key: value[key] for key in value if key in required}
    for key in value:
        try:
            _validated(cls, {**least, key: value[key]})
        except ValidationError as error:
            if error.errors()[0]["type"] == "value_error":
                return (key,)
    return ()


def _complaint(errors: Sequence[ErrorDetails], known: Iterable[str]) -> str:
    """Say in our words what pydantic found: "expected X, got Y" plus the way out."""
    error = errors[0]
    loc, context, given = error["loc"], error.get("ctx", {}), error["input"]
    label = "".join(f"{part}: " for part in loc[:1])
    match error["type"]:
        case "unexpected_keyword_argument":
            return f"no setting '{loc[-1]}'{suggestion(str(loc[-1]), known)}"
        case "missing":
            return f"expected a value for '{'.'.join(map(str, loc))}', got none"
        case "value_error":
            return str(context["error"])
        case "too_short":
            return f"{label}expected at least {context['min_length']}, got none"
    expected = " or ".join(dict.fromkeys(map(_expected, errors)))
    near = _nearest(str(given), re.findall(r"'([^']*)'", expected))
    return f"{label}expected {expected}, got {_shown(given)}{near}"


def _expected(error: ErrorDetails) -> str:
    if error["type"].startswith(("greater_than", "less_than")):
        return error["msg"].replace("Input should be", "a number")
    return _EXPECTED.get(error["type"], error["msg"].removeprefix("Input should be "))


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _shown(value: Json) -> str:
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else reprlib.repr(value)


def _where(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


METHODS: Registry[Method] = Registry("method", Method)  # type: ignore[type-abstract]
ATTACKS: Registry[Attack] = Registry("attack", Attack)  # type: ignore[type-abstract]

M = TypeVar("M", bound=Method)
A = TypeVar("A", bound=Attack)


def method(name: str, *, version: int = 1) -> Callable[[type[M]], type[M]]:
    """Register a method; a class that does not satisfy `Method` fails type checking right here."""
    return METHODS.register(name, version=version)


def attack(name: str, *, version: int = 1) -> Callable[[type[A]], type[A]]:
    """Register an attack; a class that does not satisfy `Attack` fails type checking right here."""
    return ATTACKS.register(name, version=version)
