"""Find by name what packages announce by entry points, and import it once somebody asks."""

from __future__ import annotations

import functools
import importlib.metadata
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

from bench.records.settings import SettingError, suggestion

T = TypeVar("T")

NONE: Mapping[str, str] = MappingProxyType({})


class Origin(NamedTuple):
    """Where a plug-in comes from: "module:Class" and, if it was installed, its distribution."""

    value: str
    distribution: str


class Announced:
    """The names of one kind of plug-in, and where each lives: "module:attribute".

    Those of `built_in` come first. `key` is the setting in which a user names one.
    """

    def __init__(
        self, kind: str, key: str = "name", built_in: Mapping[str, str] = NONE, group: str = ""
    ) -> None:
        self.kind = kind
        self.key = key
        self.group = group or f"bench.{kind}s"
        self._built_in = built_in
        self._origins: dict[str, tuple[object, Origin]] = {}  # with what was announced

    def origin_of(self, name: str) -> Origin | None:
        """Say where `name` comes from, without importing it."""
        points = self._announced.get(name)
        if not points:
            return None
        known = self._origins.get(name)
        if known is None or known[0] is not points:
            point = points[0]  # whose distribution's name is read from a file, every time
            made = Origin(point.value, point.dist.name if point.dist else "")
            known = self._origins[name] = points, made
        return known[1]

    def point(self, name: str) -> EntryPoint | None:
        """Return where `name` lives, or refuse it if two claim it."""
        points = self._announced.get(name, [])
        if len({point.value for point in points}) > 1:
            claims = " and ".join(f"{p.value} ({self._whose(p)})" for p in points)
            raise self.refused(f"{self.kind} '{name}' is claimed by {claims}")
        return points[0] if points else None

    def imported(self, point: EntryPoint) -> object:
        """Import what lives there, or say in one line why that cannot be done."""
        try:
            return point.load()
        except SettingError:
            raise
        except Exception as error:  # an import runs foreign code, which may fail in any way
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            message = f"{self.kind} '{point.name}': cannot import {point.value} ({reason})"
            raise self.refused(message) from error

    def refused(self, message: str) -> SettingError:
        """Make the error that blames the setting in which a plug-in was named."""
        return SettingError(message, (self.key,))

    def _whose(self, point: EntryPoint) -> str:
        if point.value == self._built_in.get(point.name):
            return "built in"
        return point.dist.name if point.dist else "?"

    @functools.cached_property
    def _announced(self) -> Mapping[str, list[EntryPoint]]:
        found = defaultdict(list)
        for name, value in self._built_in.items():
            found[name].append(EntryPoint(name, value, self.group))
        for point in importlib.metadata.entry_points(group=self.group):
            found[point.name].append(point)
        return found


class Values(Announced, Generic[T]):
    """A table of values of one type, each imported when it is first asked for."""

    def __init__(
        self,
        kind: str,
        of: type[T],
        key: str = "name",
        built_in: Mapping[str, str] = NONE,
        group: str = "",
    ) -> None:
        super().__init__(kind, key, built_in, group)
        self._of = of
        self._found: dict[str, T] = {}

    def names(self) -> list[str]:
        """List every known name without importing any: those built in, then others, sorted."""
        return [*self._built_in, *sorted(self._announced.keys() - self._built_in.keys())]

    def get(self, name: str) -> T:
        """Return the value called `name`, importing the module that holds it if need be."""
        if name not in self._found:
            point = self.point(name)
            if point is None:
                message = f"no {self.kind} named '{name}'{suggestion(name, self.names())}"
                raise self.refused(message)
            value = self.imported(point)
            if not isinstance(value, self._of):
                wanted, got = self._of.__name__, type(value).__name__
                message = (
                    f"{self.kind} '{name}': expected {point.value} to be a {wanted}, got {got}"
                )
                raise self.refused(message)
            self._found[name] = value
        return self._found[name]
