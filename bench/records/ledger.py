"""Append-only records on disk: one JSON object per line, one file per run.

Beside them lies the outline of the suite that was run, which is all a report needs besides records.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import marshal
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from bench.records.files import write_atomically
from bench.records.nouns import (
    SCHEMA,
    Cell,
    Json,
    Outline,
    Record,
    Spec,
    StepFacts,
    UserError,
    canonical,
    uncollected,
)
from bench.records.settings import nearest

T = TypeVar("T")

MOST_SHARED = 100_000
"""Values of one kind kept for sharing; where there are more, sharing would not pay."""

_RECORD = TypeAdapter(Record)

_OUTLINE = TypeAdapter(Outline)

_SPEC = TypeAdapter(Spec)

_SPECS = TypeAdapter(list[Spec])

NO_RECORD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading a line in one go may end in; what is wrong with it, the slow way says in words."""

ACCUSING = ("accuser", "accused")
"""The fields of a cell that are left out where they say nothing."""

_PREFERENCE = {"ok": 0, "incompatible": 1, "skipped": 1, "failed": 2}


@dataclass(frozen=True, slots=True)
class Results:
    """What a folder of results holds: what was asked, and the answers by key."""

    outline: Outline
    records: Mapping[str, Record]

    @property
    def failed(self) -> tuple[Record, ...]:
        """Return the records of cells that failed, of those the outline asks."""
        asked = {key for key, _ in self.outline.cells}
        return tuple(r for k, r in self.records.items() if k in asked and r.status == "failed")


def read_results(folder: Path) -> Results:
    """Read a folder of results.

    Raises:
        UserError: there is no outline, or a file is not as the bench writes it.

    """
    return Results(read_outline(folder / "suite.json"), answers(folder))


def append(path: Path, record: Record) -> None:
    """Write one record, whole, at the end of `path`, and see it onto the disk."""
    line = f"{_text(record)}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        _mend(file)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> Iterator[Record]:
    """Yield every record under `folder`; the line a killed run left unfinished is passed over."""
    shared = _Shared()
    for place, line in lines(folder):
        record = parse(line, place, shared)
        if record is not None:
            yield record


class _Shared:
    """Parts that many records have in common, each built once.

    A hundred thousand records are made of few specs, notes and numbers: held once they fit a
    laptop's memory, and whoever compares them compares an object with itself.
    """

    def __init__(self) -> None:
        self._specs: dict[bytes, Spec] = {}
        self._notes: dict[bytes, Json] = {}
        self._numbers = _Numbers()

    def within(self, record: Mapping[str, Json]) -> dict[str, Json]:
        """Return a record's fields, as they were parsed, with these parts in their places."""
        return {
            **record,
            "cell": _with_specs(record["cell"], self._spec),
            "evidence": record["evidence"] and self._evidence(record["evidence"]),
            "notes": {stage: self._note(noted) for stage, noted in record["notes"].items()},
        }

    def _spec(self, value: Json) -> Spec:
        key = _bytes(value)
        if key not in self._specs:
            self._specs[key] = _SPEC.validate_python(value)
        return self._specs[key]

    def _evidence(self, value: Mapping[str, Json]) -> dict[str, Json]:
        kept = self._numbers.__getitem__
        agreement, statistic = map(kept, value["agreement"]), map(kept, value["statistic"])
        return {**value, "agreement": tuple(agreement), "statistic": tuple(statistic)}

    def _note(self, value: Json) -> Json:
        full = len(self._notes) > MOST_SHARED
        return value if full else self._notes.setdefault(_bytes(value), value)


class _Numbers(dict[float, float]):
    """Numbers by themselves, each as the object it was first met as."""

    def __missing__(self, number: float) -> float:
        number = float(number)  # or 5 would stand for 5.0
        if len(self) < MOST_SHARED:
            self[number] = number
        return number


def _bytes(value: Json) -> bytes:
    """Tell values apart, 1 from 1.0 and True too; never read back, and faster than JSON."""
    return marshal.dumps(value, 2)


def lines(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every line written under `folder`, after its place as "file:line"."""
    for path in sorted(folder.rglob("*.jsonl")):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield f"{path}:{number}", line


def parse(line: bytes, place: str, shared: _Shared | None = None) -> Record | None:
    """Read one line; None if it is unfinished.

    Raises:
        UserError: it is no record, or one of another schema; the message begins with `place`.

    """
    with contextlib.suppress(*NO_RECORD):
        value = from_json(line, allow_inf_nan=False)
        record = _RECORD.validate_python((shared or _Shared()).within(value))
        if record.schema == SCHEMA:
            return record
    try:
        value = _parsed(line)
    except ValueError as error:
        if not line.endswith(b"\n"):  # torn: a record counts once its whole line is there
            return None
        raise UserError(f"{place}: expected a record ({error}); delete the line") from None
    _check_schema(value, place)
    return _validated(_RECORD, value, place)


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """Keep one record per key, in the order of the keys: an answer before a failure.

    Among equals the content decides, never the order in which they come.
    """
    kept: dict[str, Record] = {}
    for record in records:
        held = kept.setdefault(record.key, record)
        if held is not record and _precedes(record, held):
            kept[record.key] = record
    return dict(sorted(kept.items()))


def answers(folder: Path) -> dict[str, Record]:
    """Return what `latest` keeps of `folder`, read in one go."""
    with uncollected():  # records make no cycles, and looking for some among so many takes seconds
        return latest(read(folder))


def withdraw(folder: Path, keys: Container[str]) -> None:
    """Take the records of some cells out of every file, into one beside it that nobody reads."""
    for path in sorted(folder.rglob("*.jsonl")):
        kept, gone = list[bytes](), list[bytes]()
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            record = parse(line, f"{path}:{number}")
            (gone if record is not None and record.key in keys else kept).append(line)
        if not gone:
            continue
        with path.with_suffix(".withdrawn").open("ab") as file:
            file.writelines(gone)
        if kept:
            write_atomically(path, b"".join(kept))
        else:
            path.unlink()


def write_outline(path: Path, outline: Outline) -> None:
    """Replace the outline at `path`; its bytes depend on what was asked alone.

    Cells name specs by number: thousands of cells are made of a few dozen specs.
    """
    numbers: dict[str, int] = {}

    def number(spec: Spec) -> int:
        return numbers.setdefault(spec.text, len(numbers))

    value = _fields(outline)
    value["cells"] = [(key, _with_specs(_said(cell), number)) for key, cell in outline.cells]
    if steps := [(number(spec), _facts(facts)) for spec, facts in value.pop("steps")]:
        value["steps"] = steps
    value["specs"] = [json.loads(text) for text in numbers]
    text = canonical({"schema": SCHEMA, "outline": value})
    write_atomically(path, f"{text}\n".encode())


def _facts(facts: StepFacts) -> dict[str, Json]:
    """Return what is known of a step: one that counts no queries is written as it always was."""
    found = dataclasses.asdict(facts)
    return {name: value for name, value in found.items() if (name, value) != ("queries", None)}


def read_outline(path: Path) -> Outline:
    """Read back what `write_outline` wrote, or wrote when it still spelt out every spec."""
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = f"{error.strerror}; `bench run` writes it, give the folder it wrote to"
        raise UserError(f"{path}: {hint}{results_near(path.parent)}") from None
    try:
        value = _parsed(data)
    except ValueError as error:
        raise UserError(f"{path}: expected JSON ({error}); run the suite again") from None
    _check_schema(value, str(path))
    outline = value.get("outline")
    if isinstance(outline, dict) and "specs" in outline:
        specs = _validated(_SPECS, outline.pop("specs"), str(path))
        try:
            for _, cell in outline["cells"]:
                cell |= _with_specs(cell, specs.__getitem__)
            outline["steps"] = [(specs[n], facts) for n, facts in outline.get("steps", [])]
        except (LookupError, TypeError, ValueError) as error:
            hint = f"expected cells made of numbered specs ({error}); run the suite again"
            raise UserError(f"{path}: {hint}") from None
    return _validated(_OUTLINE, outline, str(path))


def results_near(folder: Path) -> str:
    """Ask for the folder of results whose name is nearest to this one, in which there are none."""
    above = next((p for p in folder.parents if p.is_dir()), Path())
    above = Path("results") if above == Path() else above
    if above.absolute() == Path(above.absolute().anchor):
        return ""  # nobody waits for a whole disk to be searched
    # Suites write into results, we publish one folder further down.
    files = [*above.glob("*/suite.json"), *above.glob("*/*/suite.json")]
    known = {file.parent.as_posix(): file.parent.name for file in sorted(files)}
    if found := nearest(folder.as_posix(), [*known]):
        return found
    named = {name: path for path, name in reversed(known.items())}
    close = difflib.get_close_matches(folder.name, named, n=1)
    return f"; did you mean '{named[close[0]]}'?" if close else ""


def _fields(value: Outline | Cell) -> dict[str, Json]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _said(cell: Cell) -> dict[str, Json]:
    """Return a cell's fields; honest claims are written as they were before there were accusers."""
    silent = {name for name in ACCUSING if getattr(cell, name) is None}
    return {name: value for name, value in _fields(cell).items() if name not in silent}


def _with_specs(cell: Mapping[str, Json], change: Callable[[Json], Json]) -> dict[str, Json]:
    """Return a cell's fields with every spec, or every number of one, changed for the other."""
    other, accuser = cell.get("other_model"), cell.get("accuser")
    return {
        **cell,
        "owner": change(cell["owner"]),
        "method": change(cell["method"]),
        "attack": [change(step) for step in cell["attack"]],
        "other_model": None if other is None else change(other),
        **({} if accuser is None else {"accuser": change(accuser)}),
    }


def _mend(file: BinaryIO) -> None:
    """Close a last line whose newline a killed run never wrote, or cut it off if it is torn."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    *_, last = file
    try:
        _parsed(last)
        file.write(b"\n")
    except ValueError:
        file.truncate(file.tell() - len(last))


def _parsed(data: bytes) -> dict[str, Json]:
    value = json.loads(data, parse_constant=_refuse)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object, not {value!r:.40}")  # noqa: TRY004 - callers speak for it
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _check_schema(value: dict[str, Json], place: str) -> None:
    found = value.get("schema")
    if found != SCHEMA:
        newer = isinstance(found, int) and found > SCHEMA
        remedy = "upgrade the bench" if newer else "run its suite again"
        message = f"{place}: expected schema {SCHEMA}, got {found}; {remedy} or move the file away"
        raise UserError(message)


def _validated(adapter: TypeAdapter[T], value: Json, place: str) -> T:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{place}: {where}: {first['msg']}; run the suite again") from None


def _precedes(one: Record, other: Record) -> bool:
    here, there = _PREFERENCE[one.status], _PREFERENCE[other.status]
    return _text(one) < _text(other) if here == there else here < there


def _text(record: Record) -> str:
    # What `extract` noted stands among the record's notes, with that of other stages.
    # Without an exact null evidence is written as it was before there were any.
    exact = record.evidence is not None and record.evidence.null is not None
    silent = {name for name in ACCUSING if getattr(record.cell, name) is None}
    left_out = {"evidence": {"notes"} if exact else {"notes", "null"}, "cell": silent}
    return canonical(_RECORD.dump_python(record, warnings=False, exclude=left_out))
