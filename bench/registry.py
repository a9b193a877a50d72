"""Find methods, attacks and accusers by name, whoever wrote them.

A plug-in is a frozen dataclass: its fields are its settings. The decorator names it, the entry
point says where it lives, and nothing is imported before somebody asks for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import AfterValidator
from pydantic.errors import PydanticUndefinedAnnotation

from bench.records.explained import later, reading
from bench.records.nouns import ALIGN, Access, Align, Json, Spec
from bench.records.plugins import Announced, Origin
from bench.records.settings import SettingError, adapter_of, settings, suggestion
from bench.types import (
    Accuser,
    Attack,
    CountsAccusing,
    CountsExtracting,
    CountsImages,
    CountsPasses,
    CountsProtecting,
    CountsQueries,
    HasForgery,
    HasPrecision,
    HasReadout,
    IsAdaptive,
    IsExact,
    Method,
    NamesData,
    NeedsLabels,
    RedrawsBits,
    SaysChange,
    SaysTunable,
    SaysUnfit,
    SaysUnreadable,
    SaysUnsuited,
    StatesFacts,
    TakesQueries,
    TracesUsers,
    UsesBase,
    UsesCopies,
    UsesHead,
    UsesSurrogates,
)

T = TypeVar("T")

S = TypeVar("S")

M = TypeVar("M", bound=Method)

C = TypeVar("C", bound=type)

A = TypeVar("A", bound=Attack)

F = TypeVar("F", bound=Accuser)

OPTIONAL: Mapping[str, tuple[type, ...]] = {
    "method": (
        *(HasReadout, HasPrecision, CountsProtecting, CountsExtracting),
        *(SaysUnreadable, SaysUnfit),
        *(SaysTunable, RedrawsBits, TracesUsers, StatesFacts, HasForgery, TakesQueries),
    ),
    "attack": (
        *(NamesData, NeedsLabels, UsesBase, UsesHead, UsesCopies, CountsPasses),
        *(SaysChange, IsExact, IsAdaptive, CountsImages, CountsQueries),
    ),
    "accuser": (UsesSurrogates, SaysUnsuited, CountsAccusing),
}
"""What plug-ins of a kind may have beside what they must."""

ALIKE = 0.85
"""How alike two names are, in [0, 1], where one is taken for the other misspelt."""


class Source(NamedTuple):
    """What a plug-in says of itself, in one line each: what it does, and the paper it follows."""

    summary: str
    paper: str


@dataclasses.dataclass(frozen=True)
class _Aligned:
    """What a method entry may say beside the plug-in's own settings."""

    align: Align = "none"


class Registry(Announced, Generic[T]):
    """A table of plug-in classes of one kind, filled on demand from an entry-point group."""

    def __init__(self, kind: str, protocol: type[T]) -> None:
        super().__init__(kind)
        self._required = _members(protocol)
        self._plugins: dict[str, tuple[type, int]] = {}
        self._seen: dict[str, object] = {}  # what was announced of those that were looked up

    def register(self, name: str, *, version: int = 1) -> Callable[[C], C]:
        """Name a class; `version` rises whenever its numbers would change."""

        def decorate(cls: C) -> C:
            self._check(name, cls)
            self._check_calls(name, cls)
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
        """Make an instance from plain settings, rejecting unknown or ill-typed ones.

        How suspects are aligned is checked and left to the bench: no plug-in knows it.
        """
        cls = self.get(name)
        if self.kind != "method" or ALIGN not in args:
            return self._settings(name, cls, args)
        said = self._settings(name, _Aligned, {ALIGN: args[ALIGN]})
        made = self._settings(name, cls, {k: v for k, v in args.items() if k != ALIGN})
        if said.align != "none" and (why := unhelped(cls, args)):
            raise SettingError(f"method '{name}': align: expected none, got {said.align}; {why}")
        return made

    def spec(self, name: str, args: Mapping[str, Any]) -> Spec:
        """Return `name` with every setting spelled out, defaults included, as it is hashed.

        Suspects read as they are go without saying, as they did before they could be aligned. So
        do the defaults of settings that are marked as `Later`.
        """
        instance = self.build(name, args)
        cls, version = self._plugins[name]
        told, unsaid = adapter_of(cls).dump_python(instance, mode="json"), later(cls)
        own = {k: v for k, v in told.items() if k not in unsaid or v != unsaid[k]}
        aligned = {ALIGN: args[ALIGN]} if args.get(ALIGN, "none") != "none" else {}
        return Spec(name, {**own, **aligned}, version)

    def reading(self, name: str) -> tuple[str, ...]:
        """List the settings that decide how a suspect is read, and nothing before."""
        cls = self.get(name)
        marked, known = reading(cls), {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        # Whose head answers is the bench's to see to: no `protect` knows it, marked or not.
        asks = "readout" in known and getattr(cls, "needs", Access.ALL) in Access.BLACK_BOX
        return tuple(dict.fromkeys((*marked, *(["readout"] if asks else []))))

    def origin(self, name: str) -> Origin:
        """Say where `name` comes from, without importing it if an entry point announces it."""
        return self.origin_of(name) or Origin(_where(self.get(name)), "")

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
        missing = sorted(m for m in self._required if not hasattr(cls, m))
        if missing:
            raise SettingError(f"{label} lacks {', '.join(missing)}")
        if "name" in cls.__dataclass_fields__:
            raise SettingError(f"{label} has a setting 'name': that is the plug-in's own")
        if ALIGN in cls.__dataclass_fields__:
            raise SettingError(f"{label} has a setting '{ALIGN}': that is the bench's own")
        self._check_optional(label, cls)
        self._check_reading(label, cls)
        known = self._plugins.get(name, (cls, 0))[0]
        if _where(known) != _where(cls):  # equal places: a module or notebook cell run again
            places = f"{_where(known)} and {_where(cls)}"
            raise self.refused(f"{self.kind} '{name}' is claimed by {places}")

    def _check_optional(self, label: str, cls: type) -> None:
        """Refuse what the bench would pass over in silence: a near miss, a member of no use."""
        optional = {name: kind for kind in OPTIONAL[self.kind] for name in _members(kind)}
        settings_of = {field.name for field in dataclasses.fields(cls)}
        own = {name for name in {*dir(cls), *settings_of} if name[0] != "_"}
        for name in sorted(own - optional.keys() - self._required):
            near = difflib.get_close_matches(name, optional.keys() - own, 1, ALIKE)
            if near:
                raise SettingError(f"{label} has '{name}'; did you mean '{near[0]}'?")
        for name in sorted(own & optional.keys()):
            if wrong := _wrong(cls, name, optional[name]):
                raise SettingError(f"{label}: {wrong}")
        for name in getattr(cls, "tunable", ()):
            if name not in settings_of:
                hint = suggestion(name, sorted(settings_of))
                raise SettingError(f"{label}: tunable: no setting '{name}'{hint}")

    def _check_reading(self, label: str, cls: type) -> None:
        """Refuse settings of reading where nothing is read."""
        if self.kind == "method":
            return
        with contextlib.suppress(PydanticUndefinedAnnotation):  # its module is still being made
            if marked := reading(cls):
                name = next(iter(marked))
                hint = "expected that of methods alone, leave it out"
                raise SettingError(f"{label} marks '{name}' as Reading; {hint}")

    def _check_calls(self, name: str, cls: type) -> None:
        """Have a class refuse in Python what `build` refuses in a suite, in the same words."""
        init: Callable[..., None] = cls.__init__  # type: ignore[misc]
        fields = [field.name for field in dataclasses.fields(cls) if field.init]

        @functools.wraps(init)
        def checked(instance: object, *args: Any, **kwargs: Any) -> None:
            self._settings(name, cls, {**dict(zip(fields, args, strict=False)), **kwargs})
            init(instance, *args, **kwargs)

        if not hasattr(init, "__wrapped__"):  # registered before, or its base was
            cls.__init__ = checked  # type: ignore[misc]

    def _settings(self, name: str, cls: type[S], args: Mapping[str, Any]) -> S:
        try:
            return settings(cls, args)
        except SettingError as error:
            raise SettingError(f"{self.kind} '{name}': {error}", error.where) from None

    def _find(self, name: str) -> tuple[type[T], int]:
        told = self._announced.get(name)
        if name in self._plugins and name in self._seen and self._seen[name] is told:
            return self._plugins[name]
        if point := self.point(name):
            self._load(name, point)
        if name not in self._plugins:
            raise self.refused(f"no {self.kind} named '{name}'{suggestion(name, self.names())}")
        self._seen[name] = told
        return self._plugins[name]

    def _load(self, name: str, point: EntryPoint) -> None:
        loaded = self.imported(point)
        if self._plugins.get(name, (None,))[0] is not loaded:
            message = f"{self.kind} '{name}': {point.value} does not register itself by that name"
            raise self.refused(message)


def has_exact_null(cls: type) -> bool:
    """Say whether a method's evidence has an exact null: its verdicts need no innocents."""
    return issubclass(cls, RedrawsBits)


def unhelped(cls: type, args: Mapping[str, Any]) -> str:
    """Say why aligning a suspect cannot help a method read it; empty if it can.

    An exact change of basis leaves what a suspect answers as it is: it hides from who reads
    weights, and from a head that was made for the owner's basis. Aligning looks at the released
    model, which knows the secret: a reading whose null is exact must not.
    """
    if has_exact_null(cls):
        return "its null is exact for suspects that are read without a look at the released model"
    needs, readout = cls.needs, args.get("readout", getattr(cls, "readout", "native"))  # type: ignore[attr-defined]
    if Access.WEIGHTS in needs or (needs in Access.BLACK_BOX and readout == "graft"):
        return ""
    if needs not in Access.BLACK_BOX:
        return f"it reads {needs.text}, and only what reads weights is written in another basis"
    heads = {"native": "the suspect's own head", "relinear": "a head fitted anew"}
    way_out = "; readout: graft can be" if hasattr(cls, "readout") else ""
    return f"{heads[readout]} answers in any basis{way_out}"


def _members(protocol: type) -> set[str]:
    return {name for name in {*protocol.__annotations__, *vars(protocol)} if name[0] != "_"}


def _wrong(cls: type, name: str, protocol: type) -> str:
    """Say in what a member is not of the kind a protocol asks for; empty if it is."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    value, hint = getattr(cls, name, dataclasses.MISSING), get_type_hints(protocol).get(name)
    if hint is None:
        return "" if callable(value) else f"{name}: expected a method, got something else"
    flag = get_origin(hint) is ClassVar
    if flag and name in fields:
        return f"{name}: expected a ClassVar, got a setting"
    if not flag and name not in fields:
        return f"{name}: expected a setting, got something else"
    given = value if flag else fields[name].default
    if given is dataclasses.MISSING:
        return ""
    kind = get_args(hint)[0] if flag else hint
    if dataclasses.is_dataclass(kind):  # one of our own nouns, which no suite can write
        wanted, got = getattr(kind, "__name__", ""), type(value).__name__
        return "" if isinstance(value, kind) else f"{name}: expected {wanted}(...), got {got}"  # type: ignore[arg-type]
    member = dataclasses.make_dataclass("Member", [(name, kind)])
    try:
        settings(member, {name: given})
    except SettingError as error:
        return str(error)
    return ""


def _where(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


METHODS: Registry[Method] = Registry("method", Method)  # type: ignore[type-abstract]

ATTACKS: Registry[Attack] = Registry("attack", Attack)  # type: ignore[type-abstract]

ACCUSERS: Registry[Accuser] = Registry("accuser", Accuser)  # type: ignore[type-abstract]


def _marking(given: Mapping[str, Json]) -> Mapping[str, Json]:
    """Spell out a method that marks, with its version, so that a key names all that it does.

    How suspects are read is left out: no mark depends on it.
    """
    name, beside = given.get("name"), ("name", "version")
    if not isinstance(name, str):
        raise SettingError(f"expected the name of a method, got {name!r}", ("name",))
    spec = METHODS.spec(name, {k: v for k, v in given.items() if k not in beside}).unaligned
    if not METHODS.get(name).marks:
        raise SettingError(f"expected a method that marks, got the fingerprint '{name}'", ("name",))
    read = METHODS.reading(name)
    args = {k: v for k, v in spec.args.items() if k not in read}
    return {"name": name, **args, "version": spec.version}


Marking = Annotated[Mapping[str, Json], AfterValidator(_marking)]
"""A setting that names a method that marks, with its settings, as a suite does: `{name: ...}`."""


def marking(given: Mapping[str, Json]) -> Method:
    """Make the method that a setting of type `Marking` names."""
    spelt = _marking(given)
    args = {name: value for name, value in spelt.items() if name not in ("name", "version")}
    return METHODS.build(spelt["name"], args)


def method(name: str, *, version: int = 1) -> Callable[[type[M]], type[M]]:
    """Register a method; a class that does not satisfy `Method` fails type checking right here."""
    return METHODS.register(name, version=version)


def attack(name: str, *, version: int = 1) -> Callable[[type[A]], type[A]]:
    """Register an attack; a class that does not satisfy `Attack` fails type checking right here."""
    return ATTACKS.register(name, version=version)


def accuser(name: str, *, version: int = 1) -> Callable[[type[F]], type[F]]:
    """Register an accuser; a class that is no `Accuser` fails type checking right here."""
    return ACCUSERS.register(name, version=version)
