"""Methods without torch, and trials as a run leaves them: a test names what it is about."""

from dataclasses import dataclass
from typing import ClassVar

from bench.records.nouns import Access, Spec
from bench.registry import METHODS
from bench.runs.tuning.candidates import Candidate
from bench.runs.tuning.trials import Own, Trial
from bench.types import Reading
from bench.verdicts.pairs import Price


@dataclass(frozen=True)
class Mark:
    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = True
    tunable: ClassVar = {"lr": (0.1, 0.2, 0.3, 0.4), "weight": (1.0, 10.0, 100.0)}

    lr: float = 0.1
    weight: float = 1.0
    images: int = 8
    tau: Reading[int] = 5

    def protect(self, owner, ctx): ...
    def extract(self, secret, suspect, ctx): ...


@dataclass(frozen=True)
class Plain:
    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False

    queries: int = 100

    def protect(self, owner, ctx): ...
    def extract(self, secret, suspect, ctx): ...


def known(monkeypatch):
    """Have the bench know these methods, beside its own."""
    monkeypatch.setitem(METHODS._plugins, "fake.mark", (Mark, 1))
    monkeypatch.setitem(METHODS._plugins, "fake.plain", (Plain, 1))


ENTRY = Spec("fake.mark", {"lr": 0.2})


def trial(
    lr, margin, lost=0.0, origin="drawn", rate=1.0, queries=20, work=1.0, cosine=1.0, clean=0.1
):
    """What came of a setting: how far it is read, and at what price."""
    candidate = Candidate(ENTRY, Spec("fake.mark", {"lr": lr}), origin)
    paid = Price(lost, (lost - 0.01, lost + 0.01), "own task")
    own = Own(rate, clean, 0.5 + margin, 0.5, queries, paid, cosine, work)
    return Trial(candidate, (own,))
