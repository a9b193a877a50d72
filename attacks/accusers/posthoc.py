"""Claims made up after the fact: the accuser has the innocent model, and fits a secret to it.

No paper has them all. Secrets fitted to a model that is there are the ambiguity attacks of L. Fan,
K. W. Ng, C. S. Chan, "Rethinking deep neural network ownership verification: embedding passports to
defeat ambiguity attacks", NeurIPS 2019, https://arxiv.org/abs/1909.07830. The best of several keys
and the fingerprint of another's model are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.registry import accuser
from bench.types import (
    Case,
    Context,
    CountsExtracting,
    CountsProtecting,
    HasForgery,
    Incompatible,
    Method,
    Passes,
    Positive,
    Protected,
    RedrawsBits,
    Sizes,
    StoppedBy,
    Suspect,
)


@accuser("post_hoc.search")
@dataclass(frozen=True, slots=True)
class Search:
    """Make honest keys of his own model, and claim with the one that fits the innocent best.

    Each key is drawn as the method says. Of a method whose secret holds bits of its own, only the
    bits are drawn anew, which costs no training.

    * `draws`: how many keys he tries, K. A registry that lists them all divides the level by K; an
      accuser with one key makes an honest claim.
    * `trained`: also tries several keys of a mark of which each takes a training.
    """

    accuses: ClassVar[Literal["stranger", "owner"]] = "stranger"
    post_hoc: ClassVar[bool] = True
    stopped_by: ClassVar[StoppedBy] = "count"

    draws: Positive = 10
    trained: bool = False

    def accuse(self, case: Case, ctx: Context) -> Protected:
        """Return the best of the keys; the notes hold the scores of the first and of the best."""
        suspect = _suspect(case)
        scores, best = list[float](), None
        for made in self._keys(case, ctx):  # one after the other: each holds a model
            score = case.method.extract(made.secret, suspect, ctx).score
            if best is None or score > max(scores):
                best = made
            scores.append(score)
        assert best is not None, "there is one key at least"
        noted = {"keys_tried": self.draws, "first_score": scores[0], "best_score": max(scores)}
        return dataclasses.replace(best, notes={**best.notes, **noted})

    def unsuited(self, method: Method) -> str:
        """Say that every key takes a training, where that is not wished."""
        dear = method.marks and not isinstance(method, RedrawsBits)
        if dear and self.draws > 1 and not self.trained:
            return "every key takes a training; `trained: true` makes them"
        return ""

    def passes(self, method: Method, sizes: Sizes) -> Passes | None:
        """Count the protections and readings of all keys."""
        if not isinstance(method, CountsProtecting) or not isinstance(method, CountsExtracting):
            return None
        made, read = method.protect_passes(sizes), method.extract_passes(sizes)
        protected = 1 if isinstance(method, RedrawsBits) else self.draws
        return Passes(
            protected * made.forward + self.draws * read.forward,
            protected * made.backward + self.draws * read.backward,
            made.frozen,
            made.bound,
        )

    def _keys(self, case: Case, ctx: Context) -> Iterator[Protected]:
        first = case.method.protect(case.own, ctx)
        yield first
        for _ in range(self.draws - 1):
            if isinstance(case.method, RedrawsBits):
                secret = case.method.redrawn(first.secret, ctx.rng)
                yield dataclasses.replace(first, secret=secret)
            else:
                yield case.method.protect(case.own, ctx)


@accuser("post_hoc.forge")
@dataclass(frozen=True, slots=True)
class Forge:
    """Fit a secret to the innocent as the method's own file says it can be done.

    That is a formula where a secret is solved for (weights projected on a matrix of the accuser's
    choice), or training where one is learnt (a codec on a frozen model). Where a setting of the
    method trains nothing of the model, a key made with it on the innocent replays: of that the date
    alone is wrong, as in `post_hoc.backdate`.
    """

    accuses: ClassVar[Literal["stranger", "owner"]] = "stranger"
    post_hoc: ClassVar[bool] = True
    stopped_by: ClassVar[StoppedBy] = "replay"

    def accuse(self, case: Case, ctx: Context) -> Protected:
        """Return the fitted secret beside his own clean model."""
        assert isinstance(case.method, HasForgery), "nobody asks who is unsuited"
        return Protected(case.own, case.method.forged(_suspect(case), ctx))

    def unsuited(self, method: Method) -> str:
        """Say that the method tells of no way to fit its secret."""
        return "" if isinstance(method, HasForgery) else "no way to fit its secret is written down"

    def passes(self, method: Method, sizes: Sizes) -> Passes | None:
        """Count those of protecting, at most: fitting trains no more than that."""
        if not isinstance(method, CountsProtecting):
            return None
        return dataclasses.replace(method.protect_passes(sizes), bound="at most")


@accuser("post_hoc.backdate")
@dataclass(frozen=True, slots=True)
class Backdate:
    """Fingerprint the innocent as if it were his own model, and say that the key is the older.

    Every fingerprint can be had so by whoever has the model's weights. A registered commitment
    refuses it for its date alone: the key replays.
    """

    accuses: ClassVar[Literal["stranger", "owner"]] = "stranger"
    post_hoc: ClassVar[bool] = True
    stopped_by: ClassVar[StoppedBy] = "date"

    def accuse(self, case: Case, ctx: Context) -> Protected:
        """Return what the method keeps of the innocent.

        Raises:
            Incompatible: the head that a judge hears stands in no model that could be protected.

        """
        _suspect(case)
        if case.innocent is None:
            raise Incompatible(
                "expected answers by a head of ours, got one that is fitted anew or a library's own"
            )
        return case.method.protect(case.innocent, ctx)

    def unsuited(self, method: Method) -> str:
        """Say that a mark is no part of a model that nobody marked."""
        return "a mark has to be put in, and the innocent stays as it is" if method.marks else ""

    def passes(self, method: Method, sizes: Sizes) -> Passes | None:
        """Count those of protecting."""
        return method.protect_passes(sizes) if isinstance(method, CountsProtecting) else None


def _suspect(case: Case) -> Suspect:
    assert case.suspect is not None, "whoever is post hoc gets an innocent"
    return case.suspect
