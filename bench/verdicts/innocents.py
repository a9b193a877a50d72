"""Say who is innocent: which records are models that a suspect may be ranked among."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.records.nouns import Cell, Lineage, Record, evidence_of


@dataclass(frozen=True, slots=True)
class Innocents:
    """One score per innocent model; `descendants` is None for a fingerprint.

    `clean` is the highest score of the clean owner itself and `public` that of the public model it
    was finetuned from, both among the descendants; None if not read, or for a fingerprint.
    `other_keys` are the copies of the clean owner marked with another key, which are not.
    """

    strangers: tuple[float, ...]
    descendants: tuple[float, ...] | None
    clean: float | None = None
    other_keys: tuple[float, ...] = ()
    public: float | None = None

    @property
    def bar(self) -> float | None:
        """Return the score that a mark must exceed: the highest of the known innocents."""
        known = (self.clean, self.public, *self.other_keys)
        return max((score for score in known if score is not None), default=None)


def secret_of(cell: Cell) -> str:
    """Name the secret a cell is read with: owner, method and method seed."""
    return f"[{cell.owner.text},{cell.method.text},{cell.method_seed}]"


def lineage(record: Record) -> Lineage:
    """Say what the suspect descends from: weights digest first, then how it was made.

    Equal weights are one model: whatever made a copy of the clean owner, it is the clean owner,
    which is innocent of a mark and is itself the released model of a fingerprint.
    """
    if is_clean_owner(record):
        return "owner" if record.marks else "released"
    return record.cell.lineage


def is_clean_owner(record: Record) -> bool:
    """Say whether the suspect has the clean owner's weights."""
    return bool(record.suspect_digest) and record.suspect_digest == record.owner_digest


def innocents(records: Iterable[Record]) -> dict[str, Innocents]:
    """Collect, for every claim, one score per distinct innocent model read with its secret.

    Descendants are told apart by their weights. Strangers are told apart by the weights they were
    trained to, and each enters with the highest score over its attacked versions. That would be
    conservative were every stranger attacked as the suspect was; most are left untouched, so p
    against strangers is that of a model left untouched, and an attack that lifts anybody's score
    passes for ownership of a fingerprint. For a mark the twins, attacked alike, answer for the
    attack. A suspect with the owner's own weights is never a stranger (see `lineage`).
    """
    read = list(records)
    trained = trained_strangers(read)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    clean: dict[str, float] = {}
    public: dict[str, float] = {}
    marks: dict[str, bool] = {}
    for record in read:
        name, origin = secret_of(record.cell), lineage(record)
        group = "other key" if is_other_key(record) else origin
        marks[name] = record.marks
        nulls = scores.setdefault(
            name, {"stranger": {}, "owner": {}, "released": {}, "other key": {}}
        )
        if record.evidence is None:
            continue
        who, score = innocent_name(record, trained), record.evidence.score
        nulls[group][who] = max(score, nulls[group].get(who, score))
        if origin == "owner" and is_clean_owner(record):
            clean[name] = max(score, clean.get(name, score))
        elif origin == "owner" and record.cell.base == "other model":
            public[name] = max(score, public.get(name, score))
    return {
        name: Innocents(
            strangers=tuple(sorted(nulls["stranger"].values())),
            descendants=tuple(sorted(nulls["owner"].values())) if marks[name] else None,
            clean=clean.get(name),
            public=public.get(name),
            other_keys=tuple(sorted(nulls["other key"].values())) if marks[name] else (),
        )
        for name, nulls in scores.items()
    }


def is_other_key(record: Record) -> bool:
    """Say whether the suspect is the owner's model marked with another key than the claim's."""
    return record.cell.base == "other key" and not is_clean_owner(record)


def trained_strangers(records: Iterable[Record]) -> dict[str, str]:
    """Map what makes a stranger to the weights it was trained to, where these are written down."""
    return {_stranger(r.cell): r.suspect_digest for r in records if _is_whole_stranger(r)}


def innocent_name(record: Record, trained: Mapping[str, str]) -> str:
    """Name a stranger by the weights it was trained to, whatever was done to it; others as made.

    `trained` is what `trained_strangers` says of all records there are: one model under two names
    is one stranger.
    """
    if lineage(record) != "stranger":
        return model_name(record)
    return trained.get(_stranger(record.cell)) or _stranger(record.cell)


def _stranger(cell: Cell) -> str:
    """Name a stranger, whatever was done to it: by the control that makes it, or as a model."""
    return (cell.other_model or cell.attack[0]).text


def _is_whole_stranger(record: Record) -> bool:
    """Say whether the suspect is a stranger as it was trained, with its weights written down."""
    untouched = len(record.cell.attack) == 1  # the control that makes it, or leaves it as it is
    return bool(record.suspect_digest) and untouched and lineage(record) == "stranger"


def model_name(record: Record) -> str:
    """Name the suspect by its weights, or by its cell where no weights were written down."""
    return record.suspect_digest or record.key


@dataclass(frozen=True, slots=True)
class Population:
    """The suspects read with one secret: one record per distinct model, in order of name."""

    marked: tuple[Record, ...]
    twins: tuple[Record, ...]  # empty for a fingerprint: the owner's descendants are guilty
    strangers: tuple[Record, ...]
    other_keys: tuple[Record, ...] = ()  # the owner's model marked with another key

    @property
    def innocent(self) -> tuple[Record, ...]:
        """Return all whom the owner must not be recognised in."""
        return self.twins + self.other_keys + self.strangers


def populations(records: Iterable[Record]) -> dict[str, Population]:
    """Collect, for every claim, the suspects with evidence, each model once.

    Of a model that comes more than once the conservative record stays: the lowest score of a marked
    copy, the highest of an innocent. Attacked versions of a stranger are one stranger.
    """
    read = list(records)
    trained = trained_strangers(read)
    found: dict[str, dict[str, dict[str, Record]]] = {}
    for record in read:
        if record.evidence is None:
            continue
        origin = "other key" if is_other_key(record) else lineage(record)
        groups = found.setdefault(
            secret_of(record.cell), {"released": {}, "owner": {}, "stranger": {}, "other key": {}}
        )
        name = innocent_name(record, trained)
        held = groups[origin].setdefault(name, record)
        higher = (evidence_of(record).score, record.key) > (evidence_of(held).score, held.key)
        if held is not record and higher != (origin == "released"):
            groups[origin][name] = record
    ordered = {c: {o: _in_order(g) for o, g in groups.items()} for c, groups in found.items()}
    return {
        c: Population(g["released"], g["owner"], g["stranger"], g["other key"])
        for c, g in ordered.items()
    }


def _in_order(models: Mapping[str, Record]) -> tuple[Record, ...]:
    return tuple(record for _, record in sorted(models.items()))
