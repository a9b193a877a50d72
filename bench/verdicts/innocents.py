"""Say who is innocent: which records are models that a suspect may be ranked among."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from bench.records.nouns import UNTOUCHED, Cell, Lineage, Record, Spec, canonical, evidence_of
from bench.verdicts.verdict import (
    Counted,
    Null,
    Outcome,
    Verdict,
    decide,
    decide_exactly,
    innocents_needed,
)

WHOLE = ""
"""The attack that a model left untouched went through."""

PUBLIC = "the public model"
"""What stands for an attack where nobody attacked: what an owner finetuned its own from."""

TRAINED_APART = "embedded"
"""The library whose models were each trained from scratch, for this bench."""

Scores = Mapping[str, float]
"""A score for each innocent that counts as one, by name."""


@dataclass(frozen=True)  # without slots, so that clusters are formed once
class Innocents:
    """The innocents of one claim, by what was done to them: nothing (`WHOLE`), or an attack.

    Strangers are named by the weights they were trained to, or by their family. `descendants` are
    models by their weights, None for a fingerprint; `other_keys` are copies of the clean owner
    marked with another key, by that key. `clean` is the highest score of the clean owner itself;
    None if not read, or for a fingerprint. `public` is that of the public model it was finetuned
    from, None if not read. Of a mark both are among the descendants too.
    """

    strangers: Mapping[str, Scores] = field(default_factory=dict)
    descendants: Mapping[str, Scores] | None = None
    other_keys: Mapping[str, Scores] = field(default_factory=dict)
    clean: float | None = None
    public: float | None = None

    @property
    def bar(self) -> float | None:
        """Return the score that a copy must exceed: the highest of the known innocents.

        A fingerprint names what a model was trained on from. Others finetune the same public model:
        what is no nearer to the owner's than that one is may be theirs, whatever strangers say.
        """
        known = (self.clean, self.public)
        return max((score for score in known if score is not None), default=None)

    @cached_property
    def clusters(self) -> tuple[Scores, ...]:
        """Return the descendants attack by attack; attacks that gave one model are one cluster."""
        found: list[dict[str, float]] = []
        for _, models in sorted((self.descendants or {}).items()):
            alike = [cluster for cluster in found if not cluster.keys().isdisjoint(models)]
            found = [cluster for cluster in found if cluster not in alike]
            found.append({k: v for cluster in (*alike, models) for k, v in cluster.items()})
        return tuple(found)

    def against(self, attack: str, alpha: float) -> tuple[Null, ...]:
        """Return the innocents that a suspect is ranked among after an attack, kind by kind.

        Descendants of one attack are alike. So they are ranked within the suspect's own attack,
        where it has twins enough for `alpha`, or else attack by attack, the highest score of each.
        Strangers of a mark are untouched: were an attack to lift anybody's score, it would lift its
        twins', too, which must be outscored as well.
        """
        if self.descendants is None:
            scores = _ordered(self.strangers.get(attack))
            return (Null("strangers", scores, _alike(attack), self.bar),)
        return (
            Null("strangers", _ordered(self.strangers.get(WHOLE)), "untouched"),
            self._descended(attack, innocents_needed(alpha)),
            self._marked_otherwise(attack),
        )

    def _descended(self, attack: str, needed: int) -> Null:
        twins = (self.descendants or {}).get(attack, {})
        if len(twins) >= needed:
            return Null("descendants", _ordered(twins), "within the attack", self.bar)
        highest = tuple(sorted(max(cluster.values()) for cluster in self.clusters))
        # Twins too few to rank are known innocents all the same: of this very attack.
        known = (self.bar, *twins.values())
        bar = max((score for score in known if score is not None), default=None)
        return Null("descendants", highest, "clusters", bar)

    def _marked_otherwise(self, attack: str) -> Null:
        alike = _ordered(self.other_keys.get(attack))
        # Copies left untouched are no draws of attacked ones, and yet known to be innocent.
        whole = [] if alike else _ordered(self.other_keys.get(WHOLE))
        return Null("other keys", alike, _alike(attack), max(whole, default=None))


def _alike(attack: str) -> Counted:
    return "untouched" if attack == WHOLE else "attacked alike"


def _ordered(scores: Scores | None) -> Sequence[float]:
    return tuple(sorted((scores or {}).values()))


def core(cell: Cell) -> tuple[Spec, ...]:
    """Return what was done to the suspect, without the control that says who it is."""
    chain = cell.attack[1:] if cell.lineage == "stranger" else cell.attack
    return tuple(step for step in chain if step.name != UNTOUCHED)


def attack_of(cell: Cell) -> str:
    """Name what was done to the suspect, whatever seed it was done with; `WHOLE` if nothing was."""
    return " > ".join(step.text for step in core(cell))


def secret_of(record: Record) -> str:
    """Name the secret a suspect is read with: owner, method and the secret's digest.

    So keys that are one and the same are one. An older record tells its method seed alone.
    """
    return _secret(record.cell, _digest_of(record) or record.cell.method_seed)


def _secret(cell: Cell, key: str | int) -> str:
    return f"[{cell.owner.text},{cell.method.text},{key}]"


def _digest_of(record: Record) -> str:
    digest: str = record.notes.get("protect", {}).get("secret_digest", "")
    return digest


def secret_digests(records: Iterable[Record]) -> dict[str, str]:
    """Map every key, by owner, method and seed, to its secret's digest, where records agree."""
    found: dict[str, set[str]] = {}
    for record in records:
        if digest := _digest_of(record):
            found.setdefault(_secret(record.cell, record.cell.method_seed), set()).add(digest)
    return {key: digests.pop() for key, digests in found.items() if len(digests) == 1}


def with_digests(records: Iterable[Record]) -> list[Record]:
    """Have records that came to nothing say the digest that others of their key say."""
    read = list(records)
    digests = secret_digests(read)
    return [_told(record, digests) for record in read]


def _told(record: Record, digests: Mapping[str, str]) -> Record:
    digest = digests.get(_secret(record.cell, record.cell.method_seed))
    if digest is None or _digest_of(record):
        return record
    protect = {**record.notes.get("protect", {}), "secret_digest": digest}
    return dataclasses.replace(record, notes={**record.notes, "protect": protect})


def reading_of(record: Record) -> str:
    """Name what was read, suspect and secret: of one name is one reading, however often asked.

    Where a suspect could not be read its weights are not told. Copies of a fingerprint's model are
    then one if they were made alike; those of a mark come from each key's own model.
    """
    made = record.key
    if not record.marks:
        made = canonical({**dataclasses.asdict(record.cell), "method_seed": None})
    return f"{secret_of(record)} {record.suspect_digest or made}"


def same_keys(records: Iterable[Record]) -> str:
    """Say in words which method seeds gave one and the same key; empty if each gave its own."""
    seeds: dict[str, set[int]] = {}
    for record in records:
        seeds.setdefault(secret_of(record), set()).add(record.cell.method_seed)
    shared = sorted(sorted(same) for same in seeds.values() if len(same) > 1)
    told = (" and ".join(map(str, same)) for same in shared)
    return "; ".join(
        f"method seeds {numbers} give one and the same key, which counts as one" for numbers in told
    )


def other_key(cell: Cell, digests: Mapping[str, str]) -> str:
    """Name the other key that a suspect was marked with, by its secret's digest where known."""
    assert cell.other_seed is not None
    return f"key {digests.get(_secret(cell, cell.other_seed), cell.other_seed)}"


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
    """Collect, for every claim, one score per distinct innocent read with its secret.

    What counts more than once enters with its highest score. The strangers of a mark count whole,
    whatever was done to them. A suspect with the owner's own weights is never a stranger (see
    `lineage`).
    """
    read = list(records)
    trained, digests = trained_strangers(read), secret_digests(read)
    found: dict[str, _Found] = {}
    for record in read:
        claim = found.setdefault(secret_of(record), _Found(record.marks))
        if record.evidence is not None:
            claim.add(record, trained, digests)
    return {name: claim.innocents() for name, claim in found.items()}


def verdict_on(record: Record, nulls: Mapping[str, Innocents], alpha: float) -> Verdict:
    """Judge a suspect with evidence among the innocents of its claim, by what was done to it.

    Evidence with an exact null is judged by that alone.
    """
    if (evidence := evidence_of(record)).null is not None:
        return decide_exactly(evidence, alpha)
    null = nulls[secret_of(record)].against(attack_of(record.cell), alpha)
    return decide(evidence.score, null, alpha)


def outcomes(
    records: Iterable[Record], nulls: Mapping[str, Innocents], alpha: float
) -> dict[str, Outcome]:
    """Say of every copy of the released model, by `copy_of`, what became of the claim.

    A copy that the method cannot read is not owned, nor one that an attack left undecided where
    the untouched one is decided: both are the thief's success. Where fewer innocents than needed
    were attacked alike, it is the suite that leaves it undecided, and it stays so.
    """
    read, needed = list(records), innocents_needed(alpha)
    copies = {copy_of(r): r for r in read if lineage(r) == "released"}
    alike = Counter(_claim_after(r) for r in read if lineage(r) == "stranger")
    found = {n: verdict_on(r, nulls, alpha).outcome for n, r in copies.items() if r.evidence}
    found |= {n: "not owned" for n, r in copies.items() if r.status == "incompatible"}
    decidable = {
        secret_of(copies[name])
        for name, outcome in found.items()
        if outcome != "undecided" and attack_of(copies[name].cell) == WHOLE
    }
    lost = {
        name
        for name, outcome in found.items()
        if outcome == "undecided"
        and attack_of(copies[name].cell) != WHOLE
        and secret_of(copies[name]) in decidable
        and (copies[name].marks or alike[_claim_after(copies[name])] >= needed)
    }
    return {**found, **dict.fromkeys(lost, "not owned")}


def _claim_after(record: Record) -> tuple[str, str]:
    return secret_of(record), attack_of(record.cell)


def copy_of(record: Record) -> str:
    """Name a copy by what was done to it and what was read."""
    return f"{attack_of(record.cell)} {reading_of(record)}"


def without_untouched(records: Iterable[Record]) -> list[Record]:
    """Leave out the released model as it is: nobody took it, and it is the easiest to own."""
    return [r for r in records if lineage(r) != "released" or attack_of(r.cell) != WHOLE]


class _Found:
    """What the records of one claim have told so far."""

    def __init__(self, marks: bool) -> None:
        self.marks = marks
        self.groups: dict[str, dict[str, dict[str, float]]] = {}
        self.known: dict[str, float] = {}

    def add(self, record: Record, trained: Mapping[str, str], digests: Mapping[str, str]) -> None:
        origin, attack, score = lineage(record), attack_of(record.cell), evidence_of(record).score
        group, name = str(origin), innocent_name(record, trained)
        if is_public(record) and not self.marks:
            _raise(self.known, "public", score)
            return  # no stranger: it is what the owner's own weights come from
        if is_other_key(record):
            seed = record.cell.other_seed
            group, name = "other key", name if seed is None else other_key(record.cell, digests)
        elif origin == "stranger" and self.marks:
            attack = WHOLE
        elif origin == "owner" and is_clean_owner(record):
            _raise(self.known, "clean", score)
        elif origin == "owner" and record.cell.base == "other model":
            _raise(self.known, "public", score)
            attack = PUBLIC
        _raise(self.groups.setdefault(group, {}).setdefault(attack, {}), name, score)

    def innocents(self) -> Innocents:
        strangers = self.groups.get("stranger", {})
        if not self.marks:
            return Innocents(strangers, public=self.known.get("public"))
        return Innocents(
            strangers=strangers,
            descendants=self.groups.get("owner", {}),
            other_keys=self.groups.get("other key", {}),
            clean=self.known.get("clean"),
            public=self.known.get("public"),
        )


def _raise(scores: dict[str, float], name: str, score: float) -> None:
    """Have a name keep the highest of its scores."""
    scores[name] = max(score, scores.get(name, score))


def is_other_key(record: Record) -> bool:
    """Say whether the suspect is the owner's model marked with another key than the claim's."""
    return record.cell.base == "other key" and not is_clean_owner(record)


def is_public(record: Record) -> bool:
    """Say whether the suspect is the public model that the owner finetuned its own from."""
    owner, other = record.cell.owner, record.cell.other_model
    if record.cell.base != "other model" or other is None or other.name != owner.name:
        return False
    finetuned = owner.args.get("classifier") or {}
    same = {**owner.args, "classifier": None} == {**other.args, "classifier": None}
    return same and finetuned.get("backbone") == "finetuned"


def trained_strangers(records: Iterable[Record]) -> dict[str, str]:
    """Map what makes a stranger to the weights it was trained to, where these are written down.

    Models whose weights are nearly equal have those of the first (see `bench.verdicts.copies`).
    """
    return {_stranger(r.cell): _weights(r) for r in records if _is_whole_stranger(r)}


def _weights(record: Record) -> str:
    first: str = record.notes.get("copies", {}).get("one_model", record.suspect_digest)
    return first


def innocent_name(record: Record, trained: Mapping[str, str]) -> str:
    """Name a stranger by its family or else the weights it was trained to; others as made.

    `trained` is what `trained_strangers` says of all records there are: one model under two names
    is one stranger, and so is a family of several.
    """
    if lineage(record) != "stranger":
        return model_name(record)
    if record.cell.other_model is not None and (kin := family(record.cell.other_model)):
        return kin
    return trained.get(_stranger(record.cell)) or _stranger(record.cell)


def family(model: Spec) -> str:
    """Name the models that count as one stranger: as the suite says, or library and architecture.

    Published models of one architecture share data, recipes and authors: eleven towers of one
    family are not eleven draws. Empty for the embedded ones, which are trained apart.
    """
    library = model.args.get("library", "")
    if given := model.args.get("family"):
        return f"family {given}"
    if library in ("", TRAINED_APART):
        return ""
    stem = re.match(r"[^\W\d_]*", model.name)
    return f"{library} {stem[0] if stem and stem[0] else model.name}"


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
    unread: int = 0  # marked copies that the method cannot read: lost claims

    @property
    def innocent(self) -> tuple[Record, ...]:
        """Return all whom the owner must not be recognised in."""
        return self.twins + self.other_keys + self.strangers


def populations(records: Iterable[Record]) -> dict[str, Population]:
    """Collect, for every claim, the suspects with evidence, each model once, and count the unread.

    Of a model that comes more than once the conservative record stays: the lowest score of a marked
    copy, the highest of an innocent. Attacked versions of a stranger are one stranger.
    """
    read = list(records)
    trained = trained_strangers(read)
    unread = unread_copies(read)
    found: dict[str, dict[str, dict[str, Record]]] = {}
    for record in read:
        if record.evidence is None:
            continue
        origin = "other key" if is_other_key(record) else lineage(record)
        groups = found.setdefault(
            secret_of(record), {"released": {}, "owner": {}, "stranger": {}, "other key": {}}
        )
        name = innocent_name(record, trained)
        held = groups[origin].setdefault(name, record)
        higher = (evidence_of(record).score, record.key) > (evidence_of(held).score, held.key)
        if held is not record and higher != (origin == "released"):
            groups[origin][name] = record
    ordered = {c: {o: _in_order(g) for o, g in groups.items()} for c, groups in found.items()}
    return {
        c: Population(g["released"], g["owner"], g["stranger"], g["other key"], len(unread[c]))
        for c, g in ordered.items()
    }


def unread_copies(records: Iterable[Record]) -> dict[str, set[str]]:
    """Name the marked copies that the method cannot read at all, claim by claim."""
    found: dict[str, set[str]] = {}
    for record in records:
        copies = found.setdefault(secret_of(record), set())
        if record.status == "incompatible" and lineage(record) == "released":
            copies.add(reading_of(record))
    return found


def _in_order(models: Mapping[str, Record]) -> tuple[Record, ...]:
    return tuple(record for _, record in sorted(models.items()))
