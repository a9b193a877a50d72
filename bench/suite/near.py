"""Say which of the models that a plan names are one model, once they have been loaded."""

from __future__ import annotations

from bench.records.nouns import Json
from bench.records.store import Artefact, Store
from bench.suite.graph import Plan, Question
from bench.verdicts.copies import NEAR, one_model


def near_models(plan: Plan, store: Store) -> tuple[tuple[str, ...], ...]:
    """Put the stages together whose models are equal or nearly so, in order of the plan.

    Models that were loaded before there were sketches are left out.
    """
    loaded = {key: made for key in plan.owners if (made := store.find(key)) and _sketched(made)}
    keys = list(loaded)
    first = one_model([made.payload["sketch"] for made in loaded.values()], NEAR)
    return tuple(
        tuple(key for key, name in zip(keys, first, strict=True) if name == model)
        for model in dict.fromkeys(first)
    )


def near_notes(plan: Plan, store: Store, question: Question) -> dict[str, Json]:
    """Return which weights an innocent model counts as, where those of others are near its own."""
    if question.cell.other_model is None:
        return {}
    own = plan.stages[question.suspect].parents[0]
    group = next((keys for keys in near_models(plan, store) if own in keys), ())
    first = store.find(group[0]) if len(group) > 1 else None
    return {} if first is None else {"copies": {"one_model": first.payload["digest"]}}


def _sketched(made: Artefact) -> bool:
    return "sketch" in made.payload
