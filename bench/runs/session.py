"""Run a suite: carry out what is left of its plan and write a record for every cell."""

from __future__ import annotations

import contextlib
import functools
import time
import uuid
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.records import ledger
from bench.records.leases import KEPT, Leases, drop_spare
from bench.records.ledger import Results
from bench.records.nouns import (
    EARLIER,
    Cell,
    Cost,
    Evidence,
    ExactNull,
    Fidelity,
    Json,
    Outline,
    Record,
    Rule,
    UserError,
    Utility,
    how_many,
)
from bench.records.settings import has_bfloat16
from bench.records.store import Artefact, Store
from bench.suite import sources
from bench.suite.graph import Plan, Question, Stage, steps
from bench.suite.grid import departures
from bench.suite.sources import UNKNOWN
from bench.suite.todo import near_notes, spare_copies

# What needs torch is imported by those who carry out stages: a run that is done already needs none.
if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from bench.runs.engines import Failure, Look
    from bench.runs.laboratory import Laboratory

    Engine = Callable[[Laboratory, Sequence[Question]], Iterator[tuple[Question, Failure | None]]]
    """Carries out the stages of questions; yields each, with the reason if it has no answer."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a run is about to do: how many cells of how many, where, and which are asked at all.

    `stages` are those of the whole plan, by key.
    """

    suite: str
    todo: int
    cells: int
    where: str
    asked: tuple[Cell, ...] = ()
    stages: Mapping[str, Stage] = field(default_factory=dict)


Stale = Literal["warn", "remake"]
"""What becomes of artefacts and answers of other code: they are told of, or made again."""

Watch = Callable[[Start, Iterator[Record]], Iterable[Record]]
"""Looks on: told of the start, it passes the records on as they come."""


def unwatched(start: Start, records: Iterator[Record]) -> Iterator[Record]:
    """Pass the records on and say nothing."""
    return records


def unseen(busy: Collection[str], left: Collection[str]) -> None:
    """Look at no stage."""


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a suite: its plan, where results and data lie, and how it is carried out.

    `workers` is None for as many as there is room for; `address` is that of a Ray cluster. What was
    made by other code is told of, or made again where `stale` says so. What the user should know of
    on the way is told to `note`, a line at a time; `look` is told which stages it is at.
    """

    plan: Plan
    results: Path
    data: Path | None = None
    device: str = "auto"
    engine: Literal["processes", "ray"] = "processes"
    address: str | None = None
    workers: int | None = None
    threads: int = 1
    compile: bool = False
    drop_copies: bool = False
    stale: Stale = "warn"
    note: Callable[[str], None] = print
    watch: Watch = unwatched
    look: Look = unseen

    @property
    def home(self) -> Path:
        """Return the folder of this suite's results."""
        return self.results / self.plan.suite.name

    @property
    def store(self) -> Store:
        """Open the store, which all suites of a folder of results share."""
        return Store(self.results / ".store")


def run(session: Session) -> Results:
    """Answer the cells that have no record yet; write the outline and the records."""
    _see_to_other_code(session)
    if todo := unanswered(session.plan, session.home):
        _answer_all(session, todo)
    else:
        _write_outline(session.plan, session.home)
        if session.drop_copies:
            _drop_copies(session)
    return ledger.read_results(session.home)


def _see_to_other_code(session: Session) -> None:
    """Tell of what was made by other code, or forget it and what follows from it.

    Raises:
        UserError: it is to be forgotten, and another run is on this store.

    """
    plan, store = session.plan, session.store
    found = sources.other_code(plan, store, ledger.answers(session.home))
    if session.stale == "warn" or not found:
        for line in sources.told(found):
            session.note(f"note: {line}")
        return
    gone = sources.to_remake(plan, store, found)
    again = {q.key for q in plan.questions if not gone.isdisjoint(q.stages)} | set(found.answers)
    with Leases(store.leases) as leases, leases.behind_the_door() as alone:
        if not alone:
            raise UserError(
                "--stale remake: expected no run on this store, one is at it; wait for its end"
            )
        ledger.withdraw(session.home, again)
        for key in gone:
            store.remove(key)
    removed, withdrawn = how_many(len(gone), "artefact"), how_many(len(again), "answer")
    what = f"{removed} removed, {withdrawn} withdrawn"
    session.note(f"note: other code: {what}, to be made again")


def unanswered(plan: Plan, home: Path) -> list[Question]:
    """Return the questions a run would ask: those without a record, and those that failed."""
    answered = ledger.answers(home)
    if not answered:
        return list(plan.questions)
    settled = {key for key, record in answered.items() if record.status != "failed"}
    return [q for q in plan.questions if q.key not in settled]


def _answer_all(session: Session, todo: Sequence[Question]) -> None:
    from bench.models.vision import refuse_no_compiler
    from bench.runs.laboratory import Laboratory, load_owners

    plan, home = session.plan, session.home
    with _threads(session.threads), _engine(session) as (engine, device, where):
        if session.compile and session.engine != "ray":  # whose nodes say so themselves
            refuse_no_compiler(device)
        laboratory = Laboratory(
            plan,
            session.store,
            session.data,
            device,
            session.note,
            session.compile,
            session.drop_copies,
        )
        _tell_of_bfloat16(session, device)
        load_owners(laboratory)
        _write_outline(plan, home)  # only now: a run that cannot start changes no report
        cells = tuple(question.cell for question in plan.questions)
        start = Start(plan.suite.name, len(todo), len(cells), where, cells, plan.stages)
        for _ in session.watch(start, answer(laboratory, todo, engine, _records_file(home))):
            pass


def _tell_of_bfloat16(session: Session, device: torch.device) -> None:
    """Say once what bfloat16 costs where it was asked for and the processor cannot do it."""
    from bench.runs.machine import bfloat16_factor

    suite = session.plan.suite
    asked = [*suite.methods, *(step for chain in suite.attacks for step in chain)]
    chosen = any(spec.args.get("precision") == "bfloat16" for spec in asked)
    if not chosen or device.type != "cpu" or session.engine == "ray" or has_bfloat16():
        return
    session.note(
        "note: precision: bfloat16 is asked for, and this CPU has no instructions for it: a layer "
        f"takes {bfloat16_factor():.2g} times as long as in float32; `precision: auto` takes what "
        "is fast where the plan is made"
    )


@contextlib.contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Have this process work with so many threads, and its user with as many as before."""
    import torch

    from bench.runs.machine import pin_threads

    before = torch.get_num_threads()
    pin_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _engine(session: Session) -> Iterator[tuple[Engine, torch.device, str]]:
    """Yield what carries out the stages, the device of this process, and in words where they go."""
    from bench.runs import engines
    from bench.runs.machine import device_name, find_device

    threads, workers = session.threads, session.workers
    if session.engine == "ray":
        from bench.runs import cluster

        with cluster.connected(session.address):
            there = cluster.choose_device(session.device, threads)
            where = cluster.size(there, threads)
            on_ray = functools.partial(
                cluster.on_ray, device=there, threads=threads, workers=workers, look=session.look
            )
            yield on_ray, find_device("cpu"), where
        return
    if session.address is not None:
        raise UserError("--address: expected none without --engine ray")
    device = find_device(session.device)
    workers = workers or side_by_side(device, threads)
    engine: Engine = functools.partial(engines.serial, look=session.look)
    if workers > 1:
        engine = functools.partial(
            engines.processes, workers=workers, threads=threads, look=session.look
        )
    yield engine, device, device_name(device)


def side_by_side(device: torch.device, threads: int) -> int:
    """Return how many stages run at once unless told: by cores, and 1.5 GB of memory each."""
    from bench.runs.machine import available_memory_mb, usable_cores

    if device.type == "cuda":
        return 1
    return max(1, min(usable_cores() // threads, int(available_memory_mb() // 1500), 8))


def _drop_copies(session: Session) -> None:
    """Drop what an earlier run kept, unless another run is here that may count on it."""
    store = session.store
    with Leases(store.leases) as leases:
        if not drop_spare(store, leases, spare_copies(session.plan, ())):
            session.note(f"note: {KEPT}")


def _write_outline(plan: Plan, home: Path) -> None:
    suite = plan.suite
    cells = tuple((q.key, q.cell) for q in plan.questions)
    reductions = (
        *(f"Reduced: {text}" for text in suite.reductions),
        *(f"Not the default: {text}" for text in departures(suite)),
    )
    outline = Outline(
        *(suite.name, suite.title, suite.alpha, cells, reductions, plan.warnings), steps(plan)
    )
    ledger.write_outline(home / "suite.json", outline)


def _records_file(home: Path) -> Path:
    """Name a new file of records: time-stamped for people, unique for concurrent runs."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return home / "records" / f"{stamp}-{uuid.uuid4().hex[:8]}.jsonl"


def answer(
    laboratory: Laboratory, questions: Sequence[Question], engine: Engine, records: Path
) -> Iterator[Record]:
    """Answer each question, append its record and yield it; a failure becomes a record too."""
    for question, failure in engine(laboratory, questions):
        record = _record(laboratory, question, failure)
        ledger.append(records, record)
        yield record


def _record(laboratory: Laboratory, question: Question, failure: Failure | None) -> Record:
    plan, store = laboratory.plan, laboratory.store
    known: dict[str, Any] = {
        "key": question.key,
        "suite": plan.suite.name,
        "cell": question.cell,
        "access": question.access,
        "marks": question.marks,
        **_made_from(plan, store, question),
    }
    if question.skip:
        return Record(**known, status="skipped", reason=question.skip)
    if failure is not None:
        known["environment"] = failure.environment
        if not failure.incompatible:
            return Record(**known, status="failed", reason=failure.reason)
        # What cannot be read may still be worth stealing, which is what the thief is after.
        if worth := store.find(question.utility):
            known["utility"] = Utility(**worth.payload["utility"])
        if question.hardness and (alike := store.find(question.hardness)):
            known["notes"] = {"hardness": alike.payload["notes"]}
        costs = _attack_costs(plan, store, question)
        return Record(**known, status="incompatible", reason=failure.reason, costs=costs)
    protect, suspect, extract, utility, owner = (
        _payload(store, key)
        for key in (
            question.protect,
            question.suspect,
            question.extract,
            question.utility,
            question.owner,
        )
    )
    found = extract["evidence"]
    fidelity = _payload(store, question.fidelity)["fidelity"] if question.fidelity else None
    stages = {"protect": protect, "attack": suspect, "extract": extract, "utility": utility}
    if question.align:
        stages["align"] = _payload(store, question.align)
    if question.hardness:
        stages["hardness"] = _payload(store, question.hardness)
    return Record(
        **known,
        status="ok",
        suspect_digest=suspect["digest"],
        owner_digest=owner["digest"],
        evidence=_evidence(found),
        utility=Utility(**utility["utility"]),
        fidelity=Fidelity(**fidelity) if fidelity else None,
        notes=_notes(stages, owner) | near_notes(plan, store, question),
        costs={
            **{name: Cost(**stage["cost"]) for name, stage in stages.items()},
            **_attack_costs(plan, store, question),
        },
        environment=extract["environment"],  # where it was read, which may be an earlier run
        elsewhere={
            name: stage["environment"]
            for name, stage in stages.items()
            if stage["environment"] != extract["environment"]
        },
    )


def _evidence(found: Mapping[str, Json]) -> Evidence:
    """Build evidence as `extract` left it in the store."""
    null = found.get("null")
    parts = {"rule": Rule(**found["rule"]), "null": null and ExactNull(**null)}
    return Evidence(**{**found, **parts})


def _attack_costs(plan: Plan, store: Store, question: Question) -> dict[str, Cost]:
    """Return what the last step of a chain cost, and all before it together."""
    found: list[Cost] = []
    key = question.suspect
    while plan.stages[key].kind == "attack":
        if made := store.find(key):  # a pure copy may be gone, but what it cost is not
            found.append(Cost(**made.payload["cost"]))
        key = plan.stages[key].parents[0]
    last, earlier = found[:1], found[1:]
    return {
        **({"attack": last[0]} if last else {}),
        **({EARLIER: _together(earlier)} if earlier else {}),
    }


def _together(costs: Sequence[Cost]) -> Cost:
    return Cost(
        seconds=sum(cost.seconds for cost in costs),
        forward_passes=sum(cost.forward_passes for cost in costs),
        backward_passes=sum(cost.backward_passes for cost in costs),
        peak_memory_mb=max(cost.peak_memory_mb for cost in costs),
        device=", ".join(sorted({cost.device for cost in costs})),
    )


def _made_from(plan: Plan, store: Store, question: Question) -> dict[str, dict[str, str]]:
    """Name the data and the code of all that an answer follows from; what fails, by today's."""
    used, code = set[Json](), dict[str, set[str]]()
    for key in plan.lineage(question.stages):
        stage, made = plan.stages[key], store.find(key)
        used |= {value for value in stage.recipe.values() if isinstance(value, str)}
        now = sources.code_of(stage, plan.stages)
        before = now if made is None else made.payload.get("code", dict.fromkeys(now, UNKNOWN))
        for name, digest in before.items():
            code.setdefault(name, set()).add(digest)
    return {
        "data": {n: found.digest for n, found in plan.manifests.items() if found.digest in used},
        "code": {name: " and ".join(sorted(found)) for name, found in sorted(code.items())},
    }


def _notes(stages: Mapping[str, Mapping[str, Json]], owner: Mapping[str, Json]) -> dict[str, Json]:
    """Return what the stages of a cell report, and what was understood of the owner's weights."""
    said = {"owner": owner["notes"]["weights"]} if "weights" in owner.get("notes", {}) else {}
    return {name: stage["notes"] for name, stage in stages.items() if "notes" in stage} | said


def _payload(store: Store, key: str) -> dict[str, Json]:
    found = store.find(key)
    if found is None:
        raise UserError(f"the store lost {key} during the run; run the suite again")
    payload: dict[str, Json] = found.payload
    return payload


def collect(store: Store, kept: Container[str]) -> list[Artefact]:
    """Remove all artefacts but those kept, and what runs left behind; return what is gone.

    Raises:
        UserError: a run is on this store.

    """
    with Leases(store.leases) as leases, leases.behind_the_door() as alone:
        if not alone:
            raise UserError(
                "--collect: expected no run on this store, one is at it; wait for its end (where "
                f"it was killed on another machine, empty {store.leases})"
            )
        gone = [artefact for artefact in store if artefact.key not in kept]
        for artefact in gone:
            store.remove(artefact.key)
        for path in [*store.leftovers(), *store.decoded()]:
            path.unlink(missing_ok=True)
    return gone
