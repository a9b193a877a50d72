"""Walk a plan's stages to the answers: one after the other, in the order of the questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bench.plan import missing
from bench.runner import Failure, Laboratory

if TYPE_CHECKING:
    from bench.plan import Question


def serial(
    laboratory: Laboratory, questions: Sequence[Question]
) -> Iterator[tuple[Question, Failure | None]]:
    """Carry out the stages of one question after the other, each stage once.

    A stage that fails is not tried again in this run; the questions that need it fail with its
    reason and the others go on.
    """
    plan, failures = laboratory.plan, dict[str, Failure]()
    for question in questions:
        for key in missing(plan, laboratory.store, [question]):
            stage = plan.stages[key]
            inherited = next((failures[p] for p in stage.parents if p in failures), None)
            if key not in failures and inherited is None:
                try:
                    laboratory.carry_out(stage)
                except Exception as error:  # whatever a plug-in raises is that cell's result
                    failures[key] = Failure.of(error)
            elif inherited is not None:
                failures[key] = inherited
        yield question, next((failures[k] for k in question.stages if k in failures), None)
