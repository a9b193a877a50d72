"""Hold the speed of the bench, and of anybody's plug-ins, to what it was.

Counts repeat on every machine and must not rise. Times do not repeat: one is divided by that of
the fewest passes that could do the work, or by another revision's, side by side on one machine.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bench.records.files import write_atomically
from bench.records.nouns import UserError
from bench.records.table import NOTHING, Table
from bench.runs.machine import device_name, environment, pin_threads
from bench.speed import revisions
from bench.speed.ideal import Counts, Effort, Ratio, effort, matmul_ceiling, settled
from bench.workload import Workload, load, meant_for

Outcome = Literal["holds", "better", "worse", "not measured"]

TOLERANCE = 0.15
"""By how much more time may grow, unless a baseline says otherwise of a workload."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a baseline says of a workload; `ratio` is of its time to its ideal's."""

    counts: Counts
    ratio: float | None = None
    tolerance: float = TOLERANCE


@dataclass(frozen=True, slots=True)
class Baseline:
    """What every workload took when it was found good, and where that was."""

    workloads: Mapping[str, Expected]
    environment: Mapping[str, str]


NOBODY = Baseline({}, {})
"""The baseline where there is none."""


@dataclass(frozen=True, slots=True)
class Row:
    """One number of a workload: what it was, is and may be."""

    workload: str
    what: str
    before: str
    now: str
    limit: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Found:
    """What was found, as a table and in one word."""

    table: Table
    outcome: Outcome


def watch(
    files: Sequence[Path],
    device: torch.device,
    file: Path,
    *,
    check: bool = False,
    update: bool = False,
    base: str | None = None,
) -> Found:
    """Measure the workloads of some files; check them by a baseline, or make that."""
    if base is not None and not check:
        raise UserError("--base: expected --check beside it")
    pin_threads(1)  # times of many threads are those of their waiting
    workloads, baseline = meant_for(device, load(files)), read(file)
    if check:
        rows = against(base, files, workloads, baseline, device) if base else ()
        return held(workloads, device, baseline, rows)  # which times nothing before it may
    return made(workloads, device, baseline, file) if update else shown(workloads, device)


def shown(workloads: Mapping[str, Workload], device: torch.device) -> Found:
    """Measure every workload; say what it reaches of the device's ceiling, too."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ceiling = matmul_ceiling(device, dtype)
    efforts = {name: effort(work, device, ceiling=ceiling) for name, work in workloads.items()}
    kind = str(dtype).removeprefix("torch.")
    note = f"ceiling: {ceiling / 1e12:.3g} TFLOP/s, measured on square {kind} matrices"
    return Found(_overview(efforts, device, note), _measured(efforts.values()))


def made(
    workloads: Mapping[str, Workload], device: torch.device, before: Baseline, file: Path
) -> Found:
    """Measure every workload and write the baseline; tolerances stay as they were.

    Raises:
        UserError: a workload could not be measured; nothing is written.

    """
    efforts = {name: effort(work, device) for name, work in workloads.items()}
    expected = dict[str, Expected]()
    for name, found in efforts.items():
        if found.counts is None:
            raise UserError(f"--update: expected to measure {name}, got {found.reason}")
        known = before.workloads.get(name)
        tolerance = TOLERANCE if known is None else known.tolerance
        ratio = None if found.ratio is None else round(found.ratio.median, 3)
        expected[name] = Expected(found.counts, ratio, tolerance)
    write(file, Baseline(expected, environment(device)))
    return Found(_overview(efforts, device, f"written to {file}"), _measured(efforts.values()))


def held(
    workloads: Mapping[str, Workload],
    device: torch.device,
    baseline: Baseline,
    others: Iterable[Row] = (),
) -> Found:
    """Hold every workload to the baseline; `others` are the rows of another revision, if any.

    Raises:
        UserError: the baseline was made on another device, whose ratios say nothing here.

    """
    here, then = environment(device), baseline.environment
    if then and then.get("device") != here["device"]:
        raise UserError(
            f"--baseline: expected one made on {here['device']}, got one made on "
            f"{then.get('device')}; name another, or make it with --update"
        )
    theirs = list(others)
    rows = list[Row]()
    for name in sorted({*workloads, *baseline.workloads}):
        rows += _judged(name, workloads.get(name), baseline.workloads.get(name), device)
    rows += theirs
    moved = sorted(k for k in {*here, *then} if then and here.get(k) != then.get(k))
    notes = [f"{k}: {then.get(k)} when the baseline was made, {here.get(k)} now" for k in moved]
    outcome = _worst(rows)
    if any(row.outcome == "better" for row in rows):
        notes.append("better than the baseline allows: --update lowers it")
    if not rows:
        notes.append("nothing ran: there is neither a workload nor a baseline")
    return Found(_verdicts(rows, notes, outcome), outcome)


def against(
    base: str,
    files: Sequence[Path],
    workloads: Iterable[str],
    baseline: Baseline,
    device: torch.device,
) -> Iterator[Row]:
    """Time every workload in turns, by the working tree and by revision `base`.

    What is found slower is timed again, by two new processes: where the memory of a process lies
    can make it a fifth slower for as long as it lives.
    """

    def raced(names: Iterable[str]) -> Iterator[Row]:
        with revisions.revisions(base, files, str(device)) as (old, new):
            for name in names:
                known, what = baseline.workloads.get(name), f"ratio to {base}"
                limit = 1 + (known.tolerance if known else TOLERANCE)
                try:
                    for ask in (old, new):
                        ask(name)
                    ratio = settled(functools.partial(_turns, new, old), limit)
                except revisions.Unmeasured as error:
                    yield _unmeasured(name, what, str(error))
                else:
                    yield _ratio_row(name, what, 1.0, ratio, limit)

    slower = list[str]()
    for row in raced(workloads):
        if row.outcome == "worse":
            slower.append(row.workload)
        else:
            yield row
    if slower:
        yield from raced(slower)


def _turns(new: revisions.Ask, old: revisions.Ask, new_first: bool) -> float:
    spent = {ask: ask(None) for ask in ((new, old) if new_first else (old, new))}
    return spent[new] / spent[old]


def read(file: Path) -> Baseline:
    """Read a baseline; there may be none.

    Raises:
        UserError: it is not as `write` writes it.

    """
    if not file.exists():
        return NOBODY
    try:
        text = json.loads(file.read_text())
        known = {
            name: Expected(Counts(**one["counts"]), one["ratio"], one["tolerance"])
            for name, one in text["workloads"].items()
        }
        return Baseline(known, dict(text["environment"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"expected a baseline, got {file}; move it away, and --update makes one"
        ) from None


def write(file: Path, baseline: Baseline) -> None:
    """Write a baseline so that people can read it and a diff shows what moved."""
    known = {name: dataclasses.asdict(one) for name, one in baseline.workloads.items()}
    text = {"workloads": known, "environment": dict(baseline.environment)}
    write_atomically(file, f"{json.dumps(text, indent=2, sort_keys=True)}\n".encode())


def _judged(
    name: str, workload: Workload | None, known: Expected | None, device: torch.device
) -> Iterator[Row]:
    if workload is None:
        yield _unmeasured(name, "everything", "in the baseline, and no workload here")
        return
    limit = _limit(workload, known)
    found = effort(workload, device, limit)
    if found.counts is None:
        yield _unmeasured(name, "everything", found.reason)
        return
    if known is None:
        yield _unmeasured(name, "counts", "not in the baseline; --update adds it")
    else:
        yield from _count_rows(name, known.counts, found.counts)
    before = None if known is None else known.ratio
    if found.ratio is not None and limit is not None:
        yield _ratio_row(name, "ratio to ideal", before, found.ratio, limit)
    elif before is not None:
        yield _unmeasured(name, "ratio to ideal", "in the baseline, and no ideal here")
    elif found.ratio is not None:
        yield _unmeasured(name, "ratio to ideal", "not in the baseline; --update adds it")


def _limit(workload: Workload, known: Expected | None) -> float | None:
    """Return how long work may take by its ideal: what is promised, or less where it was less."""
    limits = [] if workload.limit is None else [workload.limit]
    if known is not None and known.ratio is not None:
        limits.append(known.ratio * (1 + known.tolerance))
    return min(limits, default=None)


def _count_rows(name: str, before: Counts, now: Counts) -> Iterator[Row]:
    was, found = dataclasses.asdict(before), dataclasses.asdict(now)
    moved = [what for what in found if found[what] != was[what]]
    for what in moved:
        outcome: Outcome = "worse" if found[what] > was[what] else "better"
        known = f"{was[what]:,.10g}"
        yield Row(name, what, known, f"{found[what]:,.10g}", known, outcome)
    if not moved:
        yield Row(name, "counts", NOTHING, "the same", NOTHING, "holds")


def _ratio_row(name: str, what: str, before: float | None, now: Ratio, limit: float) -> Row:
    """Judge a ratio; one above the limit, whose interval is not, may be noise as well."""
    outcome: Outcome = "holds"
    if now.median > limit:
        outcome = "worse" if now.low > limit else "not measured"
    was = NOTHING if before is None else f"{before:.2f}"
    return Row(name, what, was, _interval(now), f"{limit:.2f}", outcome)


def _unmeasured(name: str, what: str, why: str) -> Row:
    return Row(name, what, NOTHING, why, NOTHING, "not measured")


def _worst(rows: Sequence[Row]) -> Outcome:
    """Return the verdict on all: where nothing ran it is never that everything holds."""
    outcomes = {row.outcome for row in rows}
    if "worse" in outcomes:
        return "worse"
    return "not measured" if "not measured" in outcomes or not rows else "holds"


def _measured(efforts: Iterable[Effort]) -> Outcome:
    counts = [found.counts for found in efforts]
    return "holds" if counts and all(counts) else "not measured"


def _verdicts(rows: Sequence[Row], notes: Sequence[str], outcome: Outcome) -> Table:
    order = ("worse", "not measured", "better", "holds")
    return Table(
        name="Speed",
        caption=f"against the baseline: {outcome}",
        columns=("workload", "what", "baseline", "here", "at most", "outcome"),
        rows=tuple(
            (row.workload, row.what, row.before, row.now, row.limit, row.outcome)
            for row in sorted(rows, key=lambda row: order.index(row.outcome))
        ),
        notes=(*notes, "a ratio is a median, with an interval of 99 % in brackets"),
    )


def _overview(efforts: Mapping[str, Effort], device: torch.device, note: str) -> Table:
    names = tuple(field.name for field in dataclasses.fields(Counts))
    return Table(
        name="Speed",
        caption=device_name(device),
        columns=("workload", *names, "ratio to ideal", "of ceiling"),
        rows=tuple((name, *_cells(found, len(names))) for name, found in efforts.items()),
        notes=(
            *(f"{name}: not measured: {e.reason}" for name, e in efforts.items() if e.reason),
            note,
            "passes are images through the whole depth, steps those of optimisers, bytes those of "
            "tensors in the store; the ideal is the fewest passes that could do the work",
        ),
    )


def _cells(found: Effort, width: int) -> tuple[str, ...]:
    if found.counts is None:
        return (NOTHING,) * (width + 2)
    counts = (f"{value:,.7g}" for value in dataclasses.astuple(found.counts))
    ratio = NOTHING if found.ratio is None else _interval(found.ratio)
    return *counts, ratio, NOTHING if found.share is None else f"{found.share:.0%}"


def _interval(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
