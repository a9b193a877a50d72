"""Carry out `bench schema`: print what a suite file may hold as JSON Schema, for editors.

Plug-ins are in it with their settings, whoever wrote them. What only a function knows, such as
whether a data set that is named is there, is left open, and `bench check` says it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from bench.cli.parser import OK, Command
from bench.data.settings import LOADERS, DataSettings
from bench.models.libraries import LIBRARIES
from bench.records.explained import schema_of
from bench.records.nouns import Json
from bench.registry import ACCUSERS, ATTACKS, METHODS, Registry
from bench.suite.innocents import AUTO, InnocentSettings
from bench.suite.owners import OwnerSettings

DRAFT = "https://json-schema.org/draft/2020-12/schema"

COMMON = {"data": {"type": "string"}}
"""What an entry may name beside the settings of its plug-in: a data set of the suite."""


def suite_schema() -> dict[str, Json]:
    """Return the schema of a suite file."""
    from bench.suite.grid import Suite

    found = schema_of(Suite)
    properties, shared = dict(found["properties"]), dict(found.get("$defs", {}))
    for registry, entry in ((METHODS, "method"), (ATTACKS, "attack"), (ACCUSERS, "accuser")):
        for name in registry.names():
            shared |= _shared(registry, name)
            shared[f"{entry}.{name}"] = _entry(registry, name)
        shared[entry] = {"oneOf": [{"$ref": f"#/$defs/{entry}.{n}"} for n in registry.names()]}
    shared |= schema_of(OwnerSettings).get("$defs", {}) | {"owner": _owner(), "data": _data()}
    step = {"$ref": "#/$defs/attack"}
    chain = {"anyOf": [step, {"type": "array", "items": step, "minItems": 1}]}
    files = {"type": "array", "items": {"type": "string"}}
    properties |= {
        "include": files,
        "parts": files,
        "owners": {"type": "array", "items": {"$ref": "#/$defs/owner"}, "minItems": 1},
        "methods": {"type": "array", "items": {"$ref": "#/$defs/method"}, "minItems": 1},
        "attacks": {"type": "array", "items": chain, "minItems": 1},
        "accusers": {"type": "array", "items": {"$ref": "#/$defs/accuser"}},
        "data": {"type": "object", "additionalProperties": {"$ref": "#/$defs/data"}},
        "innocents": _innocents(chain),
    }
    return {
        "$schema": DRAFT,
        "title": "a suite of bench",
        "type": "object",
        "properties": properties,
        "required": ["name"],  # an included file may bring the rest
        "additionalProperties": False,
        "$defs": shared,
    }


def _owner() -> dict[str, Json]:
    """Return the schema of an owner: one of the libraries names it."""
    found = schema_of(OwnerSettings)
    own = {k: v for k, v in found["properties"].items() if k not in ("library", "name")}
    libraries: dict[str, Json] = {name: {"type": "string"} for name in LIBRARIES.names()}
    one = [{"required": [name]} for name in libraries]
    return {**found, "properties": {**libraries, **own}, "required": [], "oneOf": one}


def _data() -> dict[str, Json]:
    """Return the schema of a data set, whose loader may go without saying."""
    found = schema_of(DataSettings)
    loader = {"enum": [*LOADERS.names()]}
    return {**found, "properties": {**found["properties"], "loader": loader}, "required": []}


def _innocents(chain: Json) -> dict[str, Json]:
    """Return the schema of the innocents: whose models, and which attacks on the clean owner."""
    found = schema_of(InnocentSettings)
    lists = {"models": {"$ref": "#/$defs/owner"}, "descendants": chain}
    made = {name: {"type": "array", "items": items} for name, items in lists.items()}
    return {**found, "properties": {**found["properties"], **made}}


def _shared(registry: Registry[Any], name: str) -> dict[str, Json]:
    found: dict[str, Json] = schema_of(registry.get(name)).get("$defs", {})
    return found


def _entry(registry: Registry[Any], name: str) -> dict[str, Json]:
    """Return the schema of one plug-in in a suite: its name, and its settings with defaults."""
    cls = registry.get(name)
    found = schema_of(cls)
    own = dict(found.get("properties", {}))
    if "enum" in own.get("precision", {}):  # the plan chooses it, by the machine
        named = own["precision"]["enum"]
        own["precision"] = {**own["precision"], "enum": [*named, AUTO]}
    aligned: dict[str, Json] = {"align": {}} if registry is METHODS else {}
    named = {"const": name, "description": registry.source(name).summary}
    wanted = [
        field.name
        for field in dataclasses.fields(cls)
        if field.name in own and "default" not in own[field.name]
    ]
    return {
        "type": "object",
        "properties": {**COMMON, **aligned, **own, "name": named},
        "required": ["name", *(name for name in wanted if name in found.get("required", ()))],
        "additionalProperties": False,
    }


def _arguments(command: argparse.ArgumentParser) -> None:
    command.epilog = (
        "bench schema > suite.schema.json, and in a suite's first line: "
        "# yaml-language-server: $schema=suite.schema.json"
    )


def print_schema(arguments: argparse.Namespace) -> int:
    """Print the schema of suites."""
    print(json.dumps(suite_schema(), indent=1))
    return OK


SCHEMA = Command("schema", "print the JSON Schema of suites, for editors", _arguments, print_schema)
