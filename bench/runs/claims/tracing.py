"""Give every user a copy of one claim, and say whose copy a suspect was made from."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.data.images import Images
from bench.models.suspect import View
from bench.models.vision import VisionModel
from bench.models.weights import Loaded, headless, release, sketch, weights_digest
from bench.records.nouns import Evidence, Spec, UserError
from bench.registry import METHODS
from bench.runs.claims.key import KEY, RELEASED, Key, write
from bench.runs.claims.making import Claim, generator
from bench.runs.claims.reading import extract, nothing_else
from bench.types import Context, TracesUsers
from bench.verdicts.exact.coins import log10_p


@dataclass(frozen=True, slots=True)
class Traced:
    """A user, and how seldom an innocent user's bits agree as well: log10 p, times all users."""

    user: int
    evidence: Evidence
    log10_p: float


@dataclass(frozen=True, slots=True)
class Trace:
    """Whose copies a suspect was made from, at a level that holds for all users together.

    `closest` are the users whose bits agree best, best first: 64 at most, and no more are named.
    """

    suspect: str
    users: int
    alpha: float
    closest: tuple[Traced, ...]
    notes: tuple[str, ...] = ()  # what was understood of the suspect's file

    @property
    def named(self) -> tuple[Traced, ...]:
        """Return the users whose copies it was made from; that any is innocent has chance alpha."""
        return tuple(one for one in self.closest if one.log10_p <= math.log10(self.alpha))


def copy_for_users(
    owner: VisionModel,
    key: Key,
    pools: tuple[Images, Images],
    homes: Mapping[str, Path],
    device: torch.device,
    watch: Callable[[Claim], object],
) -> tuple[Claim, ...]:
    """Make a copy of a key's claim for every user, and write it with its key to the user's home.

    Raises:
        UserError: the method gives no copies, the model is not the key's, or a user is no number.

    """
    digest = weights_digest(headless(owner))
    if digest != key.clean:
        raise UserError(
            f"--copy-of: expected the key's unmarked model {key.clean[:12]}, got {digest[:12]}"
        )
    claims = []
    for user, home in homes.items():
        method, spec = _numbered(key, user)
        context = Context(device, generator(None, user), *pools)
        made = method.copied(key.secret, owner.to(device), context)  # whole, as it was marked
        secret = {name: value.detach().cpu() for name, value in made.secret.items()}
        reader = METHODS.build(spec.name, spec.args)
        released = extract(reader, secret, made.model, device)
        clean = extract(reader, secret, headless(owner), device)
        written = dataclasses.replace(
            key,
            secret=secret,
            method=spec,
            released=weights_digest(headless(made.model.cpu())),
            clean_score=clean.score,
            released_score=released.score,
            user=user,
            others_score=None,
            bound=None,  # the intent was for the first copy's method and nonce
            released_sketch=sketch(made.model),
        )
        release(made.model, home / RELEASED)
        write(home / KEY, written)
        claims.append(Claim(written, released, clean, home / KEY, home / RELEASED))
        watch(claims[-1])
    return tuple(claims)


def trace(
    name: str,
    loaded: Loaded,
    key: Key,
    users: int,
    alpha: float,
    device: torch.device,
) -> Trace:
    """Say whose copies a suspect was made from, of the users 0 .. `users` - 1.

    p of each is exact, and taken times `users` (Bonferroni). Several are named where copies were
    averaged: each of them gave a copy away.

    Raises:
        UserError: the key's method does not tell users apart, or a number is out of range.
        Incompatible: the suspect cannot be read.

    """
    if not 0 < alpha < 1:
        raise UserError(f"--alpha: expected a level between 0 and 1, got {alpha}")
    if users < 1:
        raise UserError(f"--users: expected 1 user at least, got {users}")
    method = _tracing(key)
    view = View(loaded.model.to(device), key.reader.needs)
    found = method.closest(key.secret, view, nothing_else(loaded.model, device), users)
    return Trace(
        name,
        users,
        alpha,
        tuple(
            Traced(user, evidence, min(0.0, log10_p(evidence) + math.log10(users)))
            for user, evidence in found.items()
        ),
        loaded.notes,
    )


def _tracing(key: Key) -> TracesUsers:
    reader = key.reader
    if not isinstance(reader, TracesUsers):
        known = [n for n in METHODS.names() if issubclass(METHODS.get(n), TracesUsers)]
        raise UserError(
            f"expected a key of a method that tells users apart ({', '.join(known)}), got one of "
            f"{key.method.name}"
        )
    return reader


def _numbered(key: Key, user: str) -> tuple[TracesUsers, Spec]:
    _tracing(key)
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", user):
        raise UserError(f"--users: expected numbers such as 1,2, got '{user}'")
    spec = METHODS.spec(key.method.name, {**key.method.args, "user": int(user)})
    if spec == key.method:
        raise UserError(f"--users: expected others than the key's own, got {user}")
    made = METHODS.build(spec.name, spec.args)
    assert isinstance(made, TracesUsers)
    return made, spec
