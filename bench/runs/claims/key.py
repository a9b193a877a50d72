"""Keep an owner's claim on a model in one file: the secret, how to read it, and whose it is.

A key is a safetensors file: its tensors are the secret, its metadata the facts as JSON and the
commitment, SHA-256 over both. Whoever published the commitment before the model can show later that
the key is as old as that, and nobody else can make a key that fits it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bench.models.vision import Architecture
from bench.records.files import stands_for, write_atomically
from bench.records.nouns import ALIGN, Access, Align, Json, Spec, UserError, canonical
from bench.records.settings import nearest
from bench.registry import METHODS, unhelped
from bench.types import Method

FORMAT = 1
"""Version of the file; a reader refuses any other."""

KEY, RELEASED = "key.safetensors", "model.safetensors"
"""The files that an owner is left with: what is kept secret and what goes out."""


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """What proves a claim: a secret, the method that reads it, and the two models it is about.

    `owner` describes the unmarked model; `clean` and `released` name the weights of the unmarked
    and of the released backbone. `clean_score` and `released_score` are the agreement read off each
    when the key was made. `user` is whom this copy was released to, "" where there is one for all;
    `others_score` is the highest agreement read off a copy of another user's. The sketches are of
    the two models' weights, to know copies of them that were rounded; old keys have none. `bound`
    opens what was registered before the key was drawn, and says by which rule it will be judged;
    None of a key that was never registered.
    """

    secret: Mapping[str, Tensor]
    method: Spec
    owner: Architecture
    clean: str
    released: str
    clean_score: float
    released_score: float
    user: str = ""
    others_score: float | None = None
    clean_sketch: Sequence[float] | None = None
    released_sketch: Sequence[float] | None = None
    bound: Mapping[str, Json] | None = None

    def facts(self) -> Json:
        """Return all but the secret, as it is stored; no path is in it.

        Of a registered key the seed follows from what it is bound to, of others it is not there.
        """
        return {
            "format": FORMAT,
            "method": self.method.json(),
            "owner": self.owner.json(),
            "clean": self.clean,
            "released": self.released,
            "clean_score": self.clean_score,
            "released_score": self.released_score,
            "user": self.user,
            "others_score": self.others_score,
            # Left out where there are none: the commitment of an old key was made without.
            **{name: list(value) for name, value in self._sketches.items()},
            **({} if self.bound is None else {"bound": dict(self.bound)}),
        }

    @property
    def _sketches(self) -> dict[str, Sequence[float]]:
        both = {"clean_sketch": self.clean_sketch, "released_sketch": self.released_sketch}
        return {name: value for name, value in both.items() if value is not None}

    @property
    def commitment(self) -> str:
        """Return what to publish before the model: 64 hex digits that tell nothing of the key."""
        return _commitment(canonical(self.facts()), self.secret)

    @property
    def align(self) -> Align:
        """Return how suspects are aligned before they are read with this key."""
        return aligning(self.method)

    @property
    def reader(self) -> Method:
        """Build the method, with the settings it was used with.

        Raises:
            UserError: there is no such method here, or it reads otherwise than when it was used.

        """
        spec = METHODS.spec(self.method.name, self.method.args)
        if spec != self.method:
            raise UserError(
                f"expected a key of {spec.name} version {spec.version}, got version "
                f"{self.method.version}; read it with the bench that made it"
            )
        return METHODS.build(spec.name, spec.args)


def aligning(method: Spec) -> Align:
    """Return how a claim's suspects are aligned before they are read: as was said, else `auto`.

    A method that asks a suspect's own head is answered alike in any basis. For an exact null none
    is aligned: the released model, in whose basis it would be read, knows the secret.
    """
    cls = METHODS.get(method.name)
    if Access.WEIGHTS not in cls.needs or unhelped(cls, method.args):
        return "none"
    return method.align if ALIGN in method.args else "auto"


def with_rule(method: Spec) -> Spec:
    """Have a method say how its claim's suspects are aligned, so that the key commits to it."""
    how = aligning(method)
    if how == "none" and method.align != "none":
        raise UserError(
            f"{method.name}: align: expected none, got {method.align}; a claim's suspects answer "
            "by heads of their own, alike in any basis"
        )
    return method if how == "none" else METHODS.spec(method.name, {**method.args, ALIGN: how})


def homes(output: Path, users: Sequence[str]) -> dict[str, Path]:
    """Return where the files of every user go; a single one needs no name.

    Raises:
        UserError: two users have one name, one has none that a folder may have, or there is a key.

    """
    named = all(re.fullmatch(r"\w[\w.-]*", user) for user in users) and len(users) > 0
    if list(users) != [""] and (len(set(users)) < len(users) or not named):
        names = ",".join(users)
        raise UserError(f"--users: expected different names such as alice,bob, got {names}")
    found = {user: output / user for user in users}
    for home in found.values():
        for name in (KEY, RELEASED):
            refuse_to_replace(home / name)  # before the work, not after it
        there = next(place for place in (home, *home.absolute().parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise UserError(f"expected a folder to write {home} to, got {there}")
    return found


def refuse_to_replace(path: Path) -> None:
    """Refuse a place that is taken: a key that is lost is a claim that is lost."""
    if path.exists():
        raise UserError(f"expected no file yet at {path}, found one; choose another folder")


def write(path: Path, key: Key) -> None:
    """Write a key where there is none yet, readable by its owner alone."""
    refuse_to_replace(path)
    plain = {name: value.cpu().contiguous().clone() for name, value in key.secret.items()}
    facts = {"claim": canonical(key.facts()), "commitment": key.commitment}
    write_atomically(path, save(plain, facts))
    path.chmod(0o600)


def is_key(path: Path) -> bool:
    """Say whether a file is a key rather than the weights of a model."""
    try:
        with safe_open(path, "pt") as file:
            return "claim" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_all(given: Sequence[Key | Path], published: Sequence[str] | None) -> list[Key]:
    """Return different keys about models of one architecture, each of them published if any is.

    Raises:
        UserError: there is no key, two are the same or do not go together, or one was never
            published.

    """
    if not given:
        raise UserError("--key: expected one key at least, got none")
    keys = [one if isinstance(one, Key) else read(one) for one in given]
    if len({key.commitment for key in keys}) < len(keys):
        raise UserError("--key: expected different keys, got one twice")
    if len({canonical(key.owner.json()) for key in keys}) > 1:
        names = ", ".join(key.owner.name for key in keys)
        raise UserError(f"--key: expected keys of one owner's model, got those of {names}")
    for one, key in zip(given, keys, strict=True):
        if published is not None and key.commitment not in map(str.lower, published):
            name = one.name if isinstance(one, Path) else key.method.name
            raise UserError(
                f"{name}: expected the published commitment {' or '.join(published)}, got a "
                f"key of {key.commitment}: another key, or one made afterwards"
            )
    return keys


def read(path: Path) -> Key:
    """Read a key whose every byte is as it was when it was made.

    Raises:
        UserError: the file is missing, damaged, no key, or does not match its commitment.

    """
    found, secret = _opened(path)
    if "claim" not in found:
        raise UserError(
            f"{path.name}: expected a key of `bench protect`, got other tensors; its keys are "
            f"called {KEY}"
        )
    if found.get("commitment") != _commitment(found["claim"], secret):
        raise UserError(
            f"{path.name}: expected a key that matches its commitment, got a changed one; "
            "take another copy of it"
        )
    try:
        facts: dict[str, Any] = json.loads(found["claim"])
        if facts.pop("format") != FORMAT:
            raise UserError(f"{path.name}: expected a key of format {FORMAT}, got another one")
        method, owner = Spec(**facts.pop("method")), Architecture.of(facts.pop("owner"))
        return Key(secret, method, owner, **facts)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
        raise UserError(f"{path.name}: expected the facts of a key, got others") from None


def _opened(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    if not path.is_file():
        there = [file.name for file in path.parent.glob("*.safetensors")]
        inside = f"a folder; name {path / KEY}" if (path / KEY).is_file() else "no such file"
        raise UserError(f"expected a key at {path}, found {inside}{nearest(path.name, there)}")
    if what := stands_for(path):
        raise UserError(f"{path.name}: expected a key of `bench protect`, got {what}")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise UserError(
            f"{path.name}: expected a key of `bench protect`, got a damaged file or none of its "
            f"kind ({reason}); take another copy of it"
        ) from None


def _commitment(facts: str, secret: Mapping[str, Tensor]) -> str:
    """Hash the facts, and every tensor by name, type, shape and bytes."""
    tensors = {
        name: [str(value.dtype), list(value.shape), hashlib.sha256(_bytes(value)).hexdigest()]
        for name, value in secret.items()
    }
    return hashlib.sha256(canonical([facts, tensors]).encode()).hexdigest()


def _bytes(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
