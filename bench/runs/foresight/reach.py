"""Foresee whom the methods of a plan can read, from shapes alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch

from bench.data.images import Images
from bench.models.vision import Architecture
from bench.records.nouns import Access, Incompatible, Readout, Spec, how_many
from bench.registry import METHODS
from bench.reports.blocks import labelled
from bench.runs.owners import architecture_at, unweighted
from bench.suite.graph import Plan, Question
from bench.training.readout import head_for
from bench.types import SaysUnreadable
from bench.verdicts.innocents import WHOLE, attack_of, family
from bench.verdicts.verdict import innocents_needed


@dataclass(frozen=True, slots=True)
class Reach:
    """How many strangers of a claim its method can read, as far as shapes tell before a run."""

    owner: str
    method: Spec
    attacked: bool  # alike, for a fingerprint
    listed: int
    readable: int
    unknown: int  # of the readable: nothing tells of them
    draws: int  # as how many the readable count at most: those of a family are one

    def text(self, alpha: float) -> str:
        """Say how many can be read, and whether they are too few for any verdict."""
        alike = " attacked alike" if self.attacked else ""
        parts = [f"{self.readable} of {how_many(self.listed, 'stranger')}{alike} can be read"]
        if self.unknown:
            parts.append(f"{self.unknown} of them as far as is known before a run")
        if self.draws < self.readable:
            parts.append(f"counted as {self.draws} at most")
        needed = innocents_needed(alpha)
        short = f"; {needed} are needed at alpha = {alpha:g}: verdicts stay undecided"
        return ", ".join(parts) + (short if self.draws < needed else "")


def reaches(plan: Plan) -> list[Reach]:
    """Count whom each method can read, of claims with strangers of other shapes than the owner's.

    Strangers of a mark are untouched; those of a fingerprint count attack by attack. Shapes are
    those they start with.
    """
    claims: dict[tuple[str, str, str], dict[str, Question]] = {}
    for question in plan.questions:
        cell = question.cell
        if cell.lineage == "stranger" and cell.accuser is None and not question.skip:
            attack = WHOLE if question.marks else attack_of(cell)
            strangers = claims.setdefault((cell.owner.text, cell.method.text, attack), {})
            strangers[(cell.other_model or cell.attack[0]).text] = question
    model = functools.cache(functools.partial(architecture_at, plan))
    methods = {question.cell.method.text: question.cell.method for question in plan.questions}
    why = functools.cache(lambda name, *models: _unreadable(methods[name], *models))
    found = list[Reach]()
    for (_, name, attack), strangers in claims.items():
        claim = next(iter(strangers.values()))
        owner, suspects = model(claim.owner), {s: model(q.suspect) for s, q in strangers.items()}
        if all(_alike(owner, suspect) for suspect in suspects.values()):
            continue
        said = {s: why(name, owner, suspect) for s, suspect in suspects.items()}
        read = [s for s, reason in said.items() if not reason]
        unknown = sum(said[s] is None for s in read)
        models = {s: strangers[s].cell.other_model for s in read}
        draws = {(model and family(model)) or s for s, model in models.items()}
        counts = len(said), len(read), unknown, len(draws)
        found.append(Reach(claim.cell.owner.name, methods[name], attack != WHOLE, *counts))
    return found


def _unreadable(method: Spec, owner: Architecture, suspect: Architecture) -> str | None:
    """Say why a suspect cannot be read; empty if it can, None if nobody knows before a run."""
    plugin = METHODS.build(method.name, method.args)
    if method.align != "none" and not _alike(owner, suspect):
        return None  # aligned it may take the owner's shape
    if plugin.needs in Access.BLACK_BOX:
        return _without_head(method.args.get("readout", "native"), owner, suspect)
    if not isinstance(plugin, SaysUnreadable):
        return "" if _alike(owner, suspect) else None
    try:
        with torch.device("meta"), torch.no_grad():
            return plugin.unreadable(unweighted(owner), unweighted(suspect))
    except Incompatible as error:
        return str(error)


def _alike(one: Architecture, other: Architecture) -> bool:
    return replace(one, head=other.head) == other


@functools.cache
def _without_head(how: Readout, owner: Architecture, suspect: Architecture) -> str:
    """Say why nothing answers for a suspect in the owner's classes; empty if a head does."""
    none = Images(torch.empty(0, 3, 1, 1, dtype=torch.uint8), None, 0, ())
    try:
        if how != "relinear":  # which fits whatever gives features
            head_for(how, unweighted(suspect), unweighted(owner), none, torch.device("meta"))
    except Incompatible as error:
        return str(error)
    return ""


def said_of(plan: Plan) -> list[str]:
    """Say whom methods can read, in a line for all methods of an owner of which the same is so."""
    lines: dict[tuple[str, str], dict[str, Spec]] = {}
    found = reaches(plan)
    for reach in found:
        told = lines.setdefault((reach.owner, reach.text(plan.suite.alpha)), {})
        told[reach.method.text] = reach.method
    label = labelled(reach.method for reach in found)
    return [
        f"{owner}: {', '.join(map(label, methods.values()))}: {text}"
        for (owner, text), methods in lines.items()
    ]
