"""Say of a suspect whether it is the model that a key was made for.

Whatever the method, a claim is judged by rank among innocent models, given as files: strangers that
owe the owner nothing and, for a mark, descendants of the clean owner. A method whose evidence has
an exact null is judged by that, and needs none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.models.checkpoints import listed
from bench.models.vision import Architecture
from bench.models.weights import load_weights
from bench.records.nouns import Evidence, UserError
from bench.runs.claims.key import Key, is_key
from bench.runs.claims.reading import (
    AS_THEY_ARE,
    Bases,
    Reading,
    is_released,
    near,
    read,
    read_file,
    said_of_bases,
    said_of_digests,
)
from bench.runs.claims.replaying import Replay
from bench.suite.owners import WEIGHT_FILES
from bench.verdicts import copies
from bench.verdicts.verdict import Null, Verdict, decide, decide_exactly

OUTCOMES = ("owned", "undecided", "not owned", "incompatible")
"""What keys may say; of several keys the first of these that one of them came to counts."""

Model = Sequence[Reading]
"""The readings of one model, which may lie in several files."""


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """What one key says of the suspect: evidence and verdict, or why it could not be read.

    `verdict` is at the level alpha / `keys`: with many keys, one fits by chance more easily.
    """

    key: Key
    evidence: Evidence | str
    verdict: Verdict | None
    known: float  # highest agreement of a model known to be innocent of this key
    keys: int

    @property
    def p_value(self) -> float | None:
        """Return the p-value corrected for the number of keys (Bonferroni)."""
        p = self.verdict.p_value if self.verdict else None
        return None if p is None else min(1.0, p * self.keys)

    @property
    def log10_p(self) -> float | None:
        """Return log10 of the corrected p-value of an exact null, None without one."""
        p = self.verdict.log10_p if self.verdict else None
        return None if p is None else min(0.0, p + math.log10(self.keys))

    @property
    def rarity(self) -> tuple[float, float]:
        """Return what orders findings by p, those too small for a float among themselves."""
        p = self.p_value
        return (1.0 if p is None else p, 0.0 if self.log10_p is None else self.log10_p)

    @property
    def outcome(self) -> str:
        """Return the verdict in a word or two."""
        return self.verdict.outcome if self.verdict else "incompatible"


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """What every key says of one suspect at the level `alpha`, and what it was read as."""

    suspect: str
    architecture: str
    ignored: Mapping[str, int]  # tensors that are no part of the backbone, by part
    alpha: float
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()  # what was understood of the suspect's file
    bases: tuple[str, ...] = ()  # in what basis it was read with the keys, and innocents with it
    replays: tuple[Replay, ...] = ()  # one a key, in their order, where any were asked for
    copy_of: Key | None = None  # whose released copy it is, bit for bit

    @property
    def evidence(self) -> Mapping[Key, Evidence | str]:
        """Return what every key read off the suspect, or why it could not."""
        return {found.key: found.evidence for found in self.findings}

    @property
    def heard(self) -> tuple[Finding, ...]:
        """Return the findings of keys that speak at all: whose secret no replay has refused."""
        refused = [replay.key for replay in self.replays if replay.follows is False]
        return tuple(found for found in self.findings if found.key not in refused)

    @property
    def outcome(self) -> str:
        """Return the verdict of all keys together: owned where one of them says so.

        It is not owned where every key was refused, and undecided where a replay could not tell.
        """
        said = {self._said(finding) for finding in self.heard}
        return next((outcome for outcome in OUTCOMES if outcome in said), "not owned")

    def _said(self, found: Finding) -> str:
        untold = any(one.key is found.key and one.follows is None for one in self.replays)
        return "undecided" if untold and found.outcome == "owned" else found.outcome

    @property
    def named(self) -> Finding | None:
        """Return the finding of the key that fits best, None if none does."""
        owned = [found for found in self.heard if self._said(found) == "owned"]
        return min(owned, key=lambda found: (*found.rarity, -_score(found)), default=None)


def weight_files(folder: str | Path | None) -> list[Path]:
    """List the files of weights in a folder and below it; keys among them are passed over.

    Raises:
        UserError: there is no such folder, or there are none in it.

    """
    if folder is None:
        return []
    folder = Path(folder)
    found = [
        p for p in sorted(folder.rglob("*")) if p.name.endswith(WEIGHT_FILES) and not is_key(p)
    ]
    if not found:
        what = "none in it" if folder.is_dir() else "no such folder"
        what = "a file: name the folder it lies in" if folder.is_file() else what
        raise UserError(f"expected files of weights in {folder}, found {what}")
    return found


def verify(
    file: Path,
    architecture: Architecture,
    keys: Sequence[Key],
    innocents: tuple[Sequence[Path], Sequence[Path]],
    alpha: float,
    device: torch.device,
    entry: str | None = None,
    bases: Bases = AS_THEY_ARE,
) -> Verification:
    """Read a suspect and the innocents, strangers and descendants, with every key, and judge.

    All are read alike: what aligns the suspect aligns each innocent.
    """
    if is_key(file):
        raise UserError(f"{file.name}: expected a suspect's weights, got a key of `bench protect`")
    loaded = load_weights(file, architecture, entry, any_size=True)
    suspect = read(file.name, loaded, keys, device, bases)
    strangers, descendants = (
        [read_file(f, keys, device, bases) for f in files] for files in innocents
    )
    said = _said_of_copies(keys, suspect, strangers, descendants)
    return Verification(
        file.name,
        loaded.model.architecture.name,
        loaded.ignored,
        alpha,
        tuple(judge(keys, suspect, strangers, descendants, alpha)),
        (*loaded.notes, *_said_of_files([*strangers, *descendants]), *said),
        bases=said_of_bases(keys, bases, suspect),
        copy_of=next((k for k in keys if k.clean != k.released == suspect.digest), None),
    )


def _said_of_files(innocents: Sequence[Reading]) -> list[str]:
    """Say what was understood of innocents' files, once where it is said of several."""
    files = dict[str, list[str]]()
    for reading in innocents:
        for note in reading.notes:
            files.setdefault(note, []).append(reading.name)
    return [f"{listed(names)}: {note}" for note, names in files.items()]


def judge(
    keys: Sequence[Key],
    suspect: Reading,
    strangers: Sequence[Reading],
    descendants: Sequence[Reading],
    alpha: float,
) -> list[Finding]:
    """Return what every key says of the suspect, each at alpha over the number of keys.

    Innocents count as models: equal weights count once, in whatever precision, and so do strangers
    that are nearly equal (see `bench.verdicts.copies`), with their highest score. A key's own
    released copy among the descendants is left out for this key, and stays one for the others. The
    clean owner and other users' copies are known models, of which chance decides nothing: a suspect
    must score above them whatever its rank (see `bench.verdicts`).

    Raises:
        UserError: a stranger is the owner's model, or a fingerprint was given descendants.

    """
    _refuse_the_owners_own(keys, strangers)
    models = _models(strangers, copies.NEAR), _models(descendants, copies.ROUNDED)
    return [_finding(key, keys, suspect, *models, alpha) for key in keys]


def _score(found: Finding) -> float:
    return found.evidence.score if isinstance(found.evidence, Evidence) else 0.0


def _finding(
    key: Key,
    keys: Sequence[Key],
    suspect: Reading,
    strangers: Sequence[Model],
    descendants: Sequence[Model],
    alpha: float,
) -> Finding:
    evidence, marks = suspect.found[key], key.reader.marks
    if descendants and not marks:
        raise UserError(
            f"--descendants: expected none with the fingerprint {key.method.name}, for which "
            "descendants of the owner's model are guilty; give --strangers alone"
        )
    innocent = [model for model in descendants if not any(is_released(r, key) for r in model)]
    ours = {digest for k in keys for digest in (k.clean, k.released)}
    recorded = [key.clean_score, *([] if key.others_score is None else [key.others_score])]
    known = max(recorded + _scores([m for m in innocent if any(r.digest in ours for r in m)], key))
    if isinstance(evidence, str):
        return Finding(key, evidence, None, known, len(keys))
    if evidence.null is not None:
        verdict = decide_exactly(evidence, alpha / len(keys))
        return Finding(key, evidence, verdict, known, len(keys))
    nulls = [Null("strangers", _scores(strangers, key), "one by one")]
    if marks:
        others = () if key.others_score is None else (key.others_score,)  # the highest of them all
        nulls += [
            Null("descendants", _scores(innocent, key), "one by one", known),
            Null("other keys", others, "one by one"),
        ]
    verdict = decide(evidence.score, nulls, alpha / len(keys))
    return Finding(key, evidence, verdict, known, len(keys))


def _scores(models: Sequence[Model], key: Key) -> list[float]:
    """Return one score per model that this key can read: the others are no innocents."""
    found = [[r.found[key] for r in model] for model in models]
    read = [[e.score for e in model if isinstance(e, Evidence)] for model in found]
    return [max(scores) for scores in read if scores]


def _models(readings: Sequence[Reading], least: float) -> list[Model]:
    """Put readings of one model together, nearer to each other than a cosine of `least`."""
    first = copies.one_model([reading.sketch for reading in readings], least)
    return [
        [r for r, name in zip(readings, first, strict=True) if name == model]
        for model in dict.fromkeys(first)
    ]


def _said_of_copies(
    keys: Sequence[Key],
    suspect: Reading,
    strangers: Sequence[Reading],
    descendants: Sequence[Reading],
) -> list[str]:
    """Say which innocents were one model, and which are nearly the suspect or the owner."""
    said = [*said_of_digests(keys, suspect)]
    for who, given, least in (
        ("strangers", strangers, copies.NEAR),
        ("descendants", descendants, copies.ROUNDED),
    ):
        models = _models(given, least)
        for names in ([r.name for r in model] for model in models if len(model) > 1):
            said.append(f"{' and '.join(names)} are one model among the {who}, and count once")
        for reading in given:
            if near(reading, suspect.sketch, least):
                said.append(f"{reading.name}, among the {who}, is nearly or wholly the suspect")
    for reading in strangers:
        if any(near(reading, key.clean_sketch, copies.NEAR) for key in keys):
            said.append(
                f"{reading.name}, among the strangers, is nearly the owner's model: if it was made "
                "from it, it is none"
            )
    return said


def _refuse_the_owners_own(keys: Sequence[Key], strangers: Sequence[Reading]) -> None:
    own = {key.clean: "the owner's unmarked model" for key in keys}
    own |= {key.released: "a released copy" for key in keys}
    sketches = [(own[k.clean], k.clean_sketch) for k in keys]
    sketches += [(own[k.released], k.released_sketch) for k in keys]
    for reading in strangers:
        rounded = (what for what, known in sketches if near(reading, known, copies.ROUNDED))
        what = own.get(reading.digest) or next(rounded, None)
        if what is not None:
            raise UserError(
                f"{reading.name}: expected a stranger, got {what}; "
                "strangers never met the owner's weights"
            )
