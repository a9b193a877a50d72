"""Say what the settings of a dataclass mean and what they may be, by its docstring and its types.

A docstring explains settings in its list, one or several at a time: "* `lr`, `warmup`: ...".
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic.json_schema import GenerateJsonSchema

from bench.records.settings import adapter_of

ITEM = re.compile(r"^\* (.+(?:\n {2}.+)*)", re.MULTILINE)

NAMES = re.compile(r"(?:^|(?<=\. ))(`\w+`(?:, `\w+`)*)(?: \([^)]*\))?: ")
"""Where an explanation begins: at the head of an item, or of a sentence in it."""


CLOSED: Mapping[str, list[object]] = {"null": [None], "boolean": [True, False]}
"""All values of types that have few, by their name in a JSON schema."""

OPEN = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
}
"""The others, in words."""


class _Lenient(GenerateJsonSchema):
    """Leave open what a setting may be where only a function knows."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


class Setting(NamedTuple):
    """A setting, its default as a suite would write it, and what else it may be, in words."""

    name: str
    default: str | None
    allowed: str

    @property
    def text(self) -> str:
        """Write all of it in a line, with the name as code."""
        default = "" if self.default is None else f" = {self.default}"
        return f"`{self.name}`{default}" + (f" ({self.allowed})" if self.allowed else "")


class Explanation(NamedTuple):
    """Settings that are explained together, and how: in no words where the docstring has none."""

    settings: tuple[Setting, ...]
    note: str

    @property
    def text(self) -> str:
        """Write all of it in a line."""
        names = ", ".join(setting.text for setting in self.settings)
        return f"{names}: {self.note}" if self.note else names


def schema_of(cls: type) -> dict[str, Any]:
    """Return the JSON schema of a dataclass; what only a function knows is left open in it."""
    return adapter_of(cls).json_schema(schema_generator=_Lenient)


def explained(cls: type) -> tuple[Explanation, ...]:
    """Explain every setting of a dataclass once, in the order of its fields."""
    schema = schema_of(cls)
    properties, shared = schema.get("properties", {}), schema.get("$defs", {})
    left = [field.name for field in dataclasses.fields(cls) if field.name in properties]
    notes = {name: found for found in _notes(cls) for name in found[0]}
    made = list[Explanation]()
    while left:
        names, note = notes.get(left[0], ((left[0],), ""))
        together = [name for name in names if name in left]
        left = [name for name in left if name not in together]
        settings = (_setting(name, properties[name], shared) for name in together)
        made.append(Explanation(tuple(settings), note))
    return tuple(made)


@functools.cache
def reading(cls: type) -> dict[str, list[object]]:
    """Return the settings of a dataclass that are marked as `Reading`, with their words, if any."""
    found = adapter_of(cls).json_schema(schema_generator=_Lenient).get("properties", {})
    return {name: schema.get("enum", []) for name, schema in found.items() if schema.get("reading")}


@functools.cache
def later(cls: type) -> dict[str, object]:
    """Return the settings of a dataclass that are marked as `Later`, with their defaults."""
    found = adapter_of(cls).json_schema(schema_generator=_Lenient).get("properties", {})
    marked = {name: schema for name, schema in found.items() if schema.get("later")}
    return {name: schema["default"] for name, schema in marked.items() if "default" in schema}


def _notes(cls: type) -> Iterator[tuple[tuple[str, ...], str]]:
    """Take a docstring's list apart: the names of settings, and what is said of them."""
    for item in ITEM.findall(inspect.cleandoc(cls.__doc__ or "")):
        text = " ".join(item.split())
        heads = [*NAMES.finditer(text)]
        ends = [head.start() for head in heads[1:]] + [len(text)]
        for head, end in zip(heads, ends, strict=True):
            yield tuple(re.findall(r"\w+", head[1])), text[head.end() : end].strip()


def _setting(name: str, schema: Mapping[str, Any], shared: Mapping[str, Any]) -> Setting:
    default = _written(schema["default"]) if "default" in schema else None
    kinds = list(dict.fromkeys(_kinds(schema, shared)))
    others = [kind for kind in kinds if kind != default]
    words = ", ".join(others[:-1]) + (" or " if others[1:] else "") + "".join(others[-1:])
    return Setting(name, default, f"or {words}" if words and default in kinds else words)


def _kinds(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> Iterator[str]:
    """Name all that a setting may be, kind by kind, words one by one."""
    if "$ref" in schema:
        schema = shared[schema["$ref"].rpartition("/")[2]]
    for each in schema.get("anyOf", ()):
        yield from _kinds(each, shared)
    words: list[object] = schema.get("enum", [schema["const"]] if "const" in schema else [])
    kind: str = schema.get("type", "")
    if words or kind in CLOSED:
        yield from map(_written, words or CLOSED[kind])
    elif kind:
        yield _range(schema) or OPEN[kind]


def _range(schema: Mapping[str, Any]) -> str:
    """Say between which bounds a number lies; empty if it has none."""
    above, whole = schema.get("exclusiveMinimum"), schema.get("type") == "integer"
    least = above + 1 if whole and above is not None else schema.get("minimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f"{least:g} to {most:g}"
    said = {
        "{:g} or more": least,
        "above {:g}": None if whole else above,
        "at most {:g}": most,
        "below {:g}": below,
        "a multiple of {:g}": schema.get("multipleOf"),
    }
    return ", ".join(words.format(bound) for words, bound in said.items() if bound is not None)


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
