"""Check what a user wrote against a frozen dataclass, or say in one line what is wrong with it."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import json
import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from bench.records.nouns import Json, Precision, UserError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


T = TypeVar("T")

Reading = Annotated[T, Field(json_schema_extra={"reading": True})]
"""A method's setting that decides how suspects are read, and nothing of what `protect` makes.

`tau: Reading[PositiveShare] = 0.5` leaves the protected model and its secret as they are for any
tau, so these are shared. Between batches of another size they may differ in rounding.
"""

Later = Annotated[T, Field(json_schema_extra={"later": True})]
"""A setting that its plug-in got after suites had been run: its default goes without saying.

`mixup: Later[NotNegative] = 0.0` leaves every key as it was before there was mixup, for a default
must do what the plug-in did without the setting. Any other value is a part of the key.
"""

Positive = Annotated[int, Field(gt=0)]
"""A whole number of 1 or more."""

Count = Annotated[int, Field(ge=0)]
"""A whole number of 0 or more."""

PositiveFloat = Annotated[float, Field(gt=0)]
"""A number above 0."""

NotNegative = Annotated[float, Field(ge=0)]
"""A number of 0 or more."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A share in [0, 1]: none, all or a part."""

PositiveShare = Annotated[float, Field(gt=0, le=1)]
"""A share in (0, 1]: never none."""

PartialShare = Annotated[float, Field(ge=0, lt=1)]
"""A share in [0, 1): never all."""

OpenShare = Annotated[float, Field(gt=0, lt=1)]
"""A share in (0, 1): neither none nor all."""

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
    return f"{nearest(name, names) or ';'} known: {', '.join(names) or 'none'}"


def _validated(cls: type[T], value: Json) -> T:
    # JSON is where a list may stand for a tuple and a word for an enum, however strict.
    adapter: TypeAdapter[T] = adapter_of(cls)  # type: ignore[arg-type]
    return adapter.validate_json(json.dumps(value, default=_plain))


def _plain(value: object) -> str:
    return str(value.value if isinstance(value, enum.Enum) else value)


@functools.cache
def adapter_of(cls: type) -> TypeAdapter[Any]:
    """Return what checks and writes the settings of a dataclass."""
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
    near = nearest(str(given), re.findall(r"'([^']*)'", expected))
    return f"{label}expected {expected}, got {_shown(given)}{near}"


def _expected(error: ErrorDetails) -> str:
    if error["type"].startswith(("greater_than", "less_than")):
        return error["msg"].replace("Input should be", "a number")
    if error["type"] == "string_too_long":
        return f"{error['ctx']['max_length']} letters at most"
    return _EXPECTED.get(error["type"], error["msg"].removeprefix("Input should be "))


def nearest(name: str, names: Sequence[str]) -> str:
    """Ask whether the nearest of these names was meant; nothing if none is near.

    Capitals do not count, and a part of a name may stand for it: l1 for prune.l1.
    """
    meant = name.casefold()
    whole = {known.casefold(): known for known in reversed(names)}
    parts = {part: known for known in reversed(names) for part in known.casefold().split(".")}
    for words in (whole, parts):
        if near := difflib.get_close_matches(meant, words, n=1):
            return f"; did you mean '{words[near[0]]}'?"
    return ""


CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux says what a processor is."""

BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Instructions that multiply matrices of bfloat16, by Linux's names."""

GPUS = Path("/dev")
"""Where Linux lists NVIDIA's GPUs, as nvidia0 and so on."""


def fast_precision() -> Precision:
    """Return bfloat16 where a GPU or the processor has instructions for it, else float32.

    What the system says is asked, and no library: plans are made without one.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    gpu = not hidden and any(GPUS.glob("nvidia[0-9]*"))
    return "bfloat16" if gpu or has_bfloat16() else "float32"


def has_bfloat16() -> bool:
    """Say whether this processor has instructions for bfloat16."""
    said = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    flags = (line.partition(":")[2] for line in said if line.startswith(("flags", "Features")))
    return not {*BFLOAT16}.isdisjoint(next(flags, "").split())


def _shown(value: Json) -> str:
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else reprlib.repr(value)
