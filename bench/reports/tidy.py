"""Write every cell of a report as one row of typed columns, for whoever computes on them.

Tables are for readers: a cell of theirs is a sentence. Here a column holds numbers or it does not.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from bench.records.files import write_atomically, written_whole
from bench.records.nouns import (
    POPULATIONS,
    Cell,
    Cost,
    Evidence,
    Fidelity,
    Json,
    Outline,
    Record,
    UserError,
    Utility,
    canonical,
)
from bench.reports.blocks import Block, CellResult, grouped
from bench.reports.price.accusers import Forged, forged, kind_of, suspect_of
from bench.reports.price.prices import Bills
from bench.verdicts.innocents import core, verdict_on
from bench.verdicts.verdict import Verdict

if TYPE_CHECKING:
    from pandas import DataFrame

Value = str | int | float | bool | None
Row = Mapping[str, Value]

STAGES = ("protect", "attack", "extract")
"""Whose costs have columns."""

COLUMNS: Mapping[str, type[str] | type[int] | type[float] | type[bool]] = {
    **dict.fromkeys(("key", "suite", "kind", "owner", "method", "accuser"), str),
    **dict.fromkeys(("accused",), int),
    **dict.fromkeys(("attack", "suspect", "status", "reason", "change"), str),
    **dict.fromkeys(("exact", "marks"), bool),
    **dict.fromkeys(("method_seed", "attack_seed", "other_seed"), int),
    **dict.fromkeys(("needs", "statistic", "unit", "verdict", "reservation"), str),
    **dict.fromkeys(("rate", "score", "statistic_mean", "threshold", "chance"), float),
    **dict.fromkeys(("p", "log10_p"), float),
    **dict.fromkeys(("queries",), int),
    **dict.fromkeys(("metric", "task"), str),
    **dict.fromkeys(("utility",), float),
    **dict.fromkeys(("test_images",), int),
    **dict.fromkeys(("cosine", "owner_probe", "released_probe"), float),
    **{
        f"{stage}_{what}": float
        for stage in STAGES
        for what in ("seconds", "ideal_seconds", "forward", "backward", "peak_mb")
    },
    **dict.fromkeys(("device", "suspect_digest", "owner_digest"), str),
    **dict.fromkeys(("owner_settings", "method_settings", "attack_settings"), str),
    **dict.fromkeys(("accuser_settings",), str),
}
"""Every column with its type, in order. Where nothing is known a value is missing, never 0.

`owner`, `method`, `attack` and `accuser` are called as in tables; their settings stand last, whole,
as JSON. `kind` is of the key that a suspect is read with: the owner's is "honest", an accuser's is
"forged", and in a "dispute" the owner's is read on the model that an accuser shows as his. `rate`
to `chance` are of one suspect, `p` and `verdict` of copies of the released model and of whoever an
accuser accuses. Costs are in seconds and in passes of one image through the whole depth; `peak_mb`
in megabytes.
"""


def rows(outline: Outline, records: Mapping[str, Record]) -> list[Row]:
    """Return a row for every cell that was asked, in the order of tables; forged claims last."""
    blocks, _ = grouped(outline, records)
    bills = Bills.of(outline, records.values())
    honest = [row for block in blocks for row in _of_block(outline, block, bills)]
    accused = [row for one in forged(outline, records) for row in _of_accuser(outline, one)]
    return [*honest, *accused]


def _of_accuser(outline: Outline, found: Forged) -> Iterator[Row]:
    for result in found.results:
        assert result.cell.accuser is not None
        yield dict.fromkeys(COLUMNS) | {
            "key": result.key,
            "suite": outline.name,
            "kind": kind_of(result.cell),
            "owner": found.owner,
            "method": found.method,
            "accuser": found.accuser,
            "accused": result.cell.accused,
            "suspect": suspect_of(result.cell),
            "accuser_settings": result.cell.accuser.text,
            **_asked(result.cell),
            **_answered(result),
            **_judged(found.verdicts.get(result.key)),
        }


def _of_block(outline: Outline, block: Block, bills: Bills) -> Iterator[Row]:
    nulls = block.nulls
    verdicts = {
        record.key: verdict_on(record, nulls, outline.alpha)
        for row in block.rows
        for record in row.records("released")
    }
    attacks = {
        result.key: row.label
        for row in block.rows
        for group in row.suspects.values()
        for result in group
    }
    for result in block.results:
        found: dict[str, Value] = dict.fromkeys(COLUMNS)
        chain = core(result.cell)
        known = bool(outline.steps and chain)
        yield found | {
            "key": result.key,
            "suite": outline.name,
            "kind": kind_of(result.cell),
            "owner": block.owner,
            "method": block.method,
            "attack": attacks.get(result.key),
            "suspect": POPULATIONS[result.lineage],
            "change": bills.change(chain) if known else None,
            "exact": bills.exact(chain) if known else None,
            **_asked(result.cell),
            **_answered(result),
            **_judged(verdicts.get(result.key)),
        }


def _asked(cell: Cell) -> dict[str, Value]:
    return {
        "method_seed": cell.method_seed,
        "attack_seed": cell.attack_seed,
        "other_seed": cell.other_seed,
        "owner_settings": cell.owner.text,
        "method_settings": cell.method.text,
        "attack_settings": canonical([step.json() for step in cell.attack]),
    }


def _answered(result: CellResult) -> dict[str, Value]:
    record = result.record
    if record is None:
        return {"status": "hole"}
    costs = (_cost(stage, record.costs[stage]) for stage in STAGES if stage in record.costs)
    return {
        "status": record.status,
        "reason": record.reason or None,
        "needs": record.access or None,
        "marks": record.marks,
        "suspect_digest": record.suspect_digest or None,
        "owner_digest": record.owner_digest or None,
        **(_read(record.evidence) if record.evidence else {}),
        **(_useful(record.utility) if record.utility else {}),
        **(_priced(record.fidelity) if record.fidelity else {}),
        **{name: value for cost in costs for name, value in cost.items()},
        "device": next((c.device for c in record.costs.values() if c.device), None),
    }


def _read(evidence: Evidence) -> dict[str, Value]:
    return {
        "rate": evidence.rate,
        "score": evidence.score,
        "statistic": evidence.rule.statistic,
        "statistic_mean": fmean(evidence.statistic),
        "threshold": float(evidence.rule.threshold),
        "queries": len(evidence.agreement),
        "unit": evidence.unit,
        "chance": evidence.chance,
    }


def _judged(verdict: Verdict | None) -> dict[str, Value]:
    if verdict is None:
        return {}
    return {
        "verdict": verdict.outcome,
        "reservation": verdict.reservation or None,
        "p": verdict.p_value,
        "log10_p": verdict.log10_p,
    }


def _useful(utility: Utility) -> dict[str, Value]:
    return {
        "metric": utility.metric,
        "task": utility.task,
        "utility": utility.value,
        "test_images": utility.n,
    }


def _priced(fidelity: Fidelity) -> dict[str, Value]:
    return {
        "cosine": fmean(fidelity.feature_cosine),
        "owner_probe": fidelity.owner_probe_accuracy,
        "released_probe": fidelity.released_probe_accuracy,
    }


def _cost(stage: str, cost: Cost) -> dict[str, Value]:
    return {
        f"{stage}_seconds": float(cost.seconds),
        f"{stage}_ideal_seconds": cost.ideal_seconds,
        f"{stage}_forward": float(cost.forward_passes),
        f"{stage}_backward": float(cost.backward_passes),
        f"{stage}_peak_mb": float(cost.peak_memory_mb),
    }


DTYPES = {str: "string", int: "Int64", float: "Float64", bool: "boolean"}
"""What pandas calls the types of columns: those in which a value may be missing."""


def frame(found: Sequence[Row]) -> DataFrame:
    """Return the rows for pandas, every column of its type, whatever is missing."""
    import pandas

    made = pandas.DataFrame([dict(row) for row in found], columns=[*COLUMNS], dtype=object)
    return made.astype({name: DTYPES[kind] for name, kind in COLUMNS.items()})


def write(path: Path, found: Sequence[Row]) -> None:
    """Write the rows whole, in the format that the file's suffix names.

    Raises:
        UserError: there is no such format, or what writes it is not installed.

    """
    writer = WRITERS.get(path.suffix)
    if writer is None:
        raise UserError(f"{path}: expected a file named {' or '.join(WRITERS)}")
    writer(path, found)


def _csv(path: Path, found: Sequence[Row]) -> None:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows([_word(row[name]) for name in COLUMNS] for row in found)
    write_atomically(path, text.getvalue().encode())


def _word(value: Value) -> str:
    """Write a value so that nothing of it is lost; empty where it is missing."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _json(path: Path, found: Sequence[Row]) -> None:
    lines: list[Json] = [json.dumps(dict(row), allow_nan=False) for row in found]
    write_atomically(path, ("[" + ",\n".join(lines) + "]\n").encode())


def _parquet(path: Path, found: Sequence[Row]) -> None:
    made = frame(found)
    with written_whole(path) as unfinished:
        try:
            made.to_parquet(unfinished, index=False)
        except ImportError:
            raise UserError(
                f"{path}: Parquet is written by pyarrow, which is not installed; install it, or "
                "name a file .csv or .json"
            ) from None


WRITERS: Mapping[str, Callable[[Path, Sequence[Row]], None]] = {
    ".csv": _csv,
    ".json": _json,
    ".parquet": _parquet,
}
"""What writes a file, by its suffix."""
