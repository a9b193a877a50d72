"""Run a suite: carry out what is left of its plan and write a record for every cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.records import ledger
from bench.records.nouns import Cost, Evidence, Fidelity, Json, Record, Rule, UserError, Utility
from bench.records.store import Store
from bench.runs.laboratory import Failure, Laboratory
from bench.suite.graph import Question

if TYPE_CHECKING:
    from collections.abc import Sequence


def run(
    laboratory: Laboratory,
    questions: Sequence[Question],
    engine: Engine,
    records: Path,
) -> Iterator[Record]:
    """Answer each question, append its record and yield it; a failure becomes a record too."""
    for question, failure in engine(laboratory, questions):
        record = _record(laboratory, question, failure)
        ledger.append(records, record)
        yield record


Engine = Callable[[Laboratory, "Sequence[Question]"], Iterator[tuple[Question, Failure | None]]]
"""What carries out the stages of questions and yields each, with the reason if it has no answer."""


def _record(laboratory: Laboratory, question: Question, failure: Failure | None) -> Record:
    plan, store = laboratory.plan, laboratory.store
    known: dict[str, Any] = {
        "key": question.key,
        "suite": plan.suite.name,
        "cell": question.cell,
        "access": question.access,
        "marks": question.marks,
    }
    if question.skip:
        return Record(**known, status="skipped", reason=question.skip)
    if failure is not None:
        known["environment"] = failure.environment
        known["status"] = "incompatible" if failure.incompatible else "failed"
        return Record(**known, reason=failure.reason)
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
    return Record(
        **known,
        status="ok",
        suspect_digest=suspect["digest"],
        owner_digest=owner["digest"],
        evidence=Evidence(**{**found, "rule": Rule(**found["rule"])}),
        utility=Utility(**utility["utility"]),
        fidelity=Fidelity(**fidelity) if fidelity else None,
        notes={name: stage["notes"] for name, stage in stages.items() if "notes" in stage},
        costs={name: Cost(**stage["cost"]) for name, stage in stages.items()},
        environment=extract["environment"],  # where it was read, which may be an earlier run
    )


def _payload(store: Store, key: str) -> dict[str, Json]:
    found = store.find(key)
    if found is None:
        raise UserError(f"the store lost {key} during the run; run the suite again")
    payload: dict[str, Json] = found.payload
    return payload
