"""Bind a claim before the model goes out: who makes it, by which rule, with a key nobody chose.

A key that was chosen after its suspect proves nothing, and neither does the best of many. So an
owner first registers an *intent*: a hash of his name, the method with all its settings and how
suspects are aligned, the weights of his clean model, his images, and a salt. The registry answers
with a nonce. The key is drawn from both, so that none of its randomness is anybody's choice, and
its commitment is registered in turn, which binds the secret and the rule. Whether a secret was
drawn so is seen by making it again, see `bench.runs.claims.replaying`.

Images are named by the digest of their listing. Keys from before they were bound have none, and
verify as ever.

A registry is a file of JSON lines that only grows: each line holds the hash of the one before. Who
keeps it vouches for dates and names, and hands out the nonces. Kept by the owner himself it shows
nothing but that he did not change its end: publish its last hash.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bench.records.nouns import Json, Spec, UserError, canonical, how_many
from bench.runs.claims.key import Key, read_all

FORMAT = 1
"""Version of the lines; a reader refuses any other."""

FIRST = "0" * 64
"""What the first line follows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: an intent with the nonce it was given, or the commitment of a key, by a holder.

    `date` is in UTC, to the second; `intent` is the number of the line that a key follows from.
    """

    line: int
    date: str
    kind: Literal["intent", "key"]
    holder: str
    value: str
    follows: str
    nonce: str = ""
    intent: int | None = None
    format: int = FORMAT

    @property
    def text(self) -> str:
        """Return the line without its end."""
        return canonical({k: v for k, v in asdict(self).items() if v not in ("", None)})

    @property
    def digest(self) -> str:
        """Return what the next line follows."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Intent:
    """What an owner keeps of an intent until his key is made."""

    holder: str
    line: int
    nonce: str
    salt: str
    images: str = ""  # the digest of the owner's; "" of an intent that binds none


@dataclass(frozen=True, slots=True)
class Standing:
    """What a registry says of a key: since when, in which line, and how many its holder meant."""

    date: str
    line: int
    holder: str
    intents: int  # or keys, where more followed from fewer intents
    registry: str  # what its first line says, whole
    images: str  # the digest of the owner's that the intent binds, "" if none


def intend(path: Path, holder: str, method: Spec, clean: str, images: str = "") -> Intent:
    """Register that a key will be made of a clean model and images; return it with its nonce.

    Raises:
        UserError: the holder has no name, or the registry is no such file.

    """
    if not holder.strip():
        raise UserError("--holder: expected the name that claims are made in, got none")
    salt = secrets.token_hex(32)
    value = _hash([holder, method.json(), clean, salt, *_named(images)])
    made = _append(path, "intent", holder, value, nonce=secrets.token_hex(32))
    return Intent(holder, made.line, made.nonce, salt, images)


def refuse_seed(seed: int | None) -> None:
    """Refuse a seed of somebody's choice where the registry's nonce decides.

    Raises:
        UserError: there is one.

    """
    if seed is not None:
        raise UserError("--seed: expected none with --registry, whose nonce the key is drawn from")


def bound(intent: Intent, rule: str, alpha: float) -> dict[str, Json]:
    """Return what a key holds beside its secret: its intent opened, and how it will be judged."""
    opened = {k: v for k, v in asdict(intent).items() if k != "images" or v}
    return {**opened, "rule": rule, "alpha": alpha}


def generator(intent: Intent, method: Spec, clean: str) -> torch.Generator:
    """Return the randomness of a key that follows from an intent, the whole of it."""
    drawn = [intent.holder, method.json(), clean, intent.nonce, intent.salt]
    return _seeded([*drawn, *_named(intent.images)])


def generator_of(key: Key) -> torch.Generator:
    """Return the randomness that a bound key must have been drawn with.

    Raises:
        UserError: the key is bound to nothing.

    """
    said = _bound(key)
    drawn = [said["holder"], key.method.json(), key.clean, said["nonce"], said["salt"]]
    return _seeded([*drawn, *_named(images_of(key))])


def images_of(key: Key) -> str:
    """Return the digest of the owner's images that a key's intent binds, "" if it binds none.

    Raises:
        UserError: the key is bound to nothing.

    """
    return str(_bound(key).get("images", ""))


def rule_of(key: Key) -> str:
    """Return the rule of the paper's own that a bound key will be read by.

    Raises:
        UserError: the key is bound to nothing.

    """
    return str(_bound(key)["rule"])


def register(path: Path, key: Key) -> Entry:
    """Register the commitment of a bound key."""
    said = _bound(key)
    return _append(path, "key", said["holder"], key.commitment, intent=said["line"])


def read(path: Path) -> tuple[Entry, ...]:
    """Read a registry in which every line follows from the one before.

    Raises:
        UserError: there is no such file, or a line is missing, changed or none of a registry.

    """
    if not path.is_file():
        raise UserError(f"expected a registry of commitments at {path}, found no such file")
    found: list[Entry] = []
    for number, text in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
        try:
            entry = Entry(**json.loads(text))
            entry.text  # noqa: B018  # what has no canonical form is no line either
        except (TypeError, ValueError, RecursionError):
            raise UserError(
                f"{path}:{number}: expected a line of a registry, got {text[:60]!r}"
            ) from None
        if entry.format != FORMAT:
            raise UserError(f"{path}:{number}: expected format {FORMAT}, got {entry.format}")
        before = found[-1].digest if found else FIRST
        if (entry.line, entry.follows, entry.text) != (number, before, text):
            raise UserError(
                f"{path}:{number}: expected a line that follows from the one before, got another; "
                "the file was changed: take another copy of it"
            )
        found.append(entry)
    return tuple(found)


def standing(entries: Sequence[Entry], key: Key, seen: str | None = None) -> Standing:
    """Say what a registry shows of a key; `seen` is the date on which the suspect was there.

    Raises:
        UserError: the key binds nothing, or something of it is missing or does not fit.

    """
    said = _bound(key)
    mine = [e for e in entries if e.kind == "key" and e.value == key.commitment]
    if not mine:
        raise UserError(f"the commitment {key.commitment} is not in the registry")
    entry, intent = mine[0], next((e for e in entries if e.line == said["line"]), None)
    if entry.holder != said["holder"]:
        raise UserError(f"the key is {said['holder']}'s, and {entry.holder} registered it")
    if intent is None or intent.kind != "intent" or entry.intent != intent.line:
        raise UserError(f"line {said['line']} of the registry is not the intent of this key")
    images = images_of(key)
    opened = _hash([said["holder"], key.method.json(), key.clean, said["salt"], *_named(images)])
    if intent.value != opened or intent.holder != said["holder"]:
        raise UserError(
            f"the intent in line {intent.line} is of another holder, method, align, clean model or "
            "images"
        )
    if intent.nonce != said["nonce"]:
        raise UserError(f"the key was drawn with another nonce than line {intent.line} gives")
    if seen is not None and entry.date[:10] >= _day(seen):
        raise UserError(
            f"the key was registered on {entry.date[:10]}, the suspect was there on {_day(seen)}"
        )
    # Several keys may follow from one intent: whichever there are more of were chosen among.
    meant = max(
        sum(e.kind == kind and e.holder == entry.holder for e in entries)
        for kind in ("intent", "key")
    )
    return Standing(entry.date, entry.line, entry.holder, meant, entries[0].digest, images)


def level(alpha: float, standings: Sequence[Standing], keys: int) -> float:
    """Return the level for all keys together that pays for every key that their holders meant.

    What is registered and not shown may be what did not fit.
    """
    meant = sum({(s.registry, s.holder): s.intents for s in standings}.values())
    return alpha if meant <= keys else alpha * keys / meant


def shown(
    given: Sequence[Key | Path],
    commitments: Sequence[str] | None,
    alpha: float,
    seen: str | None = None,
) -> tuple[list[Key], list[Standing]]:
    """Read keys, and hold them to what was published: hashes, or the files of registries.

    Raises:
        UserError: something of a key is missing or does not fit, or the two kinds are mixed.

    """
    registries = [Path(one) for one in commitments or () if Path(one).is_file()]
    if registries and commitments and len(registries) < len(commitments):
        raise UserError("--commitment: expected hashes or registries, got some of both")
    keys = read_all(given, None if registries else commitments)
    if registries:
        return keys, _stand(registries, keys, alpha, seen)
    if seen is not None:
        raise UserError("--seen: expected a registry after --commitment, which has dates")
    return keys, []


def _stand(
    registries: Sequence[Path], keys: Sequence[Key], alpha: float, seen: str | None
) -> list[Standing]:
    entries = [read(path) for path in registries]
    found = []
    for key in keys:
        if (bound := _bound(key)["alpha"]) != alpha:
            raise UserError(f"--alpha: expected {bound:g}, as the key is bound to, got {alpha:g}")
        there = [e for e in entries if any(one.value == key.commitment for one in e)]
        found.append(standing((there or entries)[0], key, seen))
    return found


def said(standings: Sequence[Standing], alpha: float, level: float) -> Iterator[str]:
    """Say in a line each what registries show, and what the level pays for."""
    for one in standings:
        yield f"registered by {one.holder} on {one.date}, line {one.line}"
        bound = f"the owner's images {one.images}" if one.images else "none of the owner's images"
        yield f"its intent binds {bound}"
    for (_, holder), intents in {(s.registry, s.holder): s.intents for s in standings}.items():
        if level < alpha:
            keys = how_many(intents, "key")
            yield f"{holder} meant to make {keys}: the level {alpha:g} becomes {level:g}"


def _bound(key: Key) -> Mapping[str, Any]:
    if key.bound is None:
        raise UserError(
            "the key is bound to no holder, rule and nonce; `bench protect --registry FILE` makes "
            "one that is"
        )
    return key.bound


def _append(
    path: Path,
    kind: Literal["intent", "key"],
    holder: str,
    value: str,
    nonce: str = "",
    intent: int | None = None,
) -> Entry:
    import fcntl  # no Windows has it, and nothing else here needs it

    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two who register at once one comes first
        there = read(path)
        follows = there[-1].digest if there else FIRST
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        made = Entry(len(there) + 1, date, kind, holder, value, follows, nonce, intent)
        file.write(f"{made.text}\n")
    return made


def _day(text: str) -> str:
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise UserError(f"--seen: expected a date such as 2026-05-31, got '{text}'") from None


def _named(images: str) -> list[Json]:
    # Left out where there are none: old intents were hashed, and old keys drawn, without.
    return [images] if images else []


def _hash(value: Json) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _seeded(value: Json) -> torch.Generator:
    # PyTorch's CPU generator keeps 32 bits of a seed: the rest of the hash says where to start.
    digest = bytes.fromhex(_hash(value))
    rng = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    torch.rand(int.from_bytes(digest[4:7], "big"), generator=rng)
    return rng
