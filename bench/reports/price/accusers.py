"""Say whether an innocent is lost to an accuser who cheats, with and without a commitment.

A forged claim is judged as an honest one is: the accused is ranked among strangers that the accuser
does not choose, or by its exact null. Two things favour the accuser. A judge knows no descendants
of a clean model that is only said to be one. And no claim of his is refused before it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from bench.records.nouns import (
    POPULATIONS,
    Cell,
    Evidence,
    Outline,
    Record,
    StoppedBy,
    evidence_of,
)
from bench.records.table import NOTHING, Table
from bench.reports.blocks import CellResult, labelled
from bench.reports.notes import distinct
from bench.verdicts.innocents import innocent_name, trained_strangers, with_digests
from bench.verdicts.verdict import Null, Verdict, decide, decide_exactly

REFUSED: Mapping[StoppedBy, str] = {
    "count": "its holder registered every key that he tried, and the level pays for each",
    "date": "the key was registered after the model that it accuses was there",
    "name": "the key is registered, by another holder",
    "replay": "the committed method, model and seed make another secret, as a replay shows",
}
"""Why a registered commitment stops a forged claim, by the check that does."""

LEGEND = (
    "accused: innocents, each owned or not by the verdict, at the suite's alpha. rate, score: of "
    "the forged key on the accused, means; others: of the same keys on the strangers that each is "
    "ranked among, the mean rate and the highest score. keys: how many the accuser chose from. "
    "with commitment: what is left of the claim once every key must have been registered before "
    "the accused model was there. A key chosen from K registered ones is judged at alpha / K; what "
    "is refused before it is read is owned by nobody.",
    "Refused says which check of a registered commitment stops the claim; here it is declared, and "
    "not carried out. `bench verify --replay` carries out a replay of a claim that is at hand.",
    "A claim is ranked among strangers alone, for nobody can check of which clean model a forged "
    "mark is said to descend: for a mark these verdicts favour the accuser.",
)


@dataclass(frozen=True)
class Claim:
    """One claim that an accuser made up, with all that was read with its key, in order."""

    owner: str
    method: str
    accuser: str
    seed: int
    accused: int | None
    results: Sequence[CellResult]

    @cached_property
    def strangers(self) -> list[CellResult]:
        """Return the models that owe nobody anything, the accused among them."""
        return [r for r in self.results if r.cell.lineage == "stranger"]

    @cached_property
    def notes(self) -> Mapping[str, object]:
        """Return what was noted when the claim was made up; empty if nothing was read."""
        found = (r.record.notes.get("protect", {}) for r in self.results if r.record)
        return next(filter(None, found), {})

    @property
    def tried(self) -> int:
        """Count the keys that the accuser chose from."""
        tried = self.notes.get("keys_tried", 1)
        return tried if isinstance(tried, int) else 1

    @property
    def against_owner(self) -> bool:
        """Say whether it is the true owner who is accused."""
        return any(r.cell.lineage != "stranger" for r in self.results)

    @cached_property
    def readings(self) -> list[Record]:
        """Return what was read of the accused; of a claim made blindly, of everybody in turn."""
        if self.against_owner:
            found = [r for r in self.results if r.cell.base == "released"]
        elif self.accused is None:
            found = self.strangers
        else:
            found = self.strangers[self.accused : self.accused + 1]
        return [r.record for r in found if r.record is not None and r.record.evidence is not None]

    def others(self, accused: Record) -> list[Evidence]:
        """Return what was read of strangers beside the accused, each model once."""
        read = [r.record for r in self.strangers if r.record and r.record.evidence]
        trained, found = trained_strangers(read), dict[str, Evidence]()
        who = innocent_name(accused, trained)
        for record in read:  # a family is one stranger, as in any verdict
            name, seen = innocent_name(record, trained), evidence_of(record)
            if name != who and (name not in found or seen.score > found[name].score):
                found[name] = seen
        return list(found.values())

    def verdict(self, accused: Record, alpha: float) -> Verdict:
        """Judge one accused model as any suspect is."""
        evidence = evidence_of(accused)
        if evidence.null is not None:
            return decide_exactly(evidence, alpha)
        scores = tuple(sorted(e.score for e in self.others(accused)))
        return decide(evidence.score, [Null("strangers", scores, "untouched")], alpha)

    def committed(self, accused: Record, alpha: float) -> Verdict | None:
        """Judge what a registered commitment leaves of the claim; None where that is nothing."""
        if self.notes.get("stopped_by") != "count":
            return None
        return self.verdict(accused, alpha / self.tried)


def claims_of(outline: Outline, records: Mapping[str, Record]) -> list[Claim]:
    """Group the cells of forged claims, in the outline's order; the owner's own readings apart."""
    cells = [(key, cell) for key, cell in outline.cells if cell.accuser is not None]
    owners = labelled(cell.owner for _, cell in cells)
    methods = labelled(cell.method for _, cell in cells)
    accusers = labelled(cell.accuser for _, cell in cells if cell.accuser is not None)
    told = {record.key: record for record in with_digests(records.values())}
    found: dict[tuple[str, str, str, int, int | None], list[CellResult]] = {}
    for key, cell in cells:
        assert cell.accuser is not None
        names = owners(cell.owner), methods(cell.method), accusers(cell.accuser)
        claim = found.setdefault((*names, cell.method_seed, cell.accused), [])
        if cell.other_seed is None:
            claim.append(CellResult(key, cell, told.get(key)))
    return [Claim(*names, results) for names, results in found.items()]


@dataclass(frozen=True)
class Forged:
    """Every cell of one accuser with one method, and the verdicts on whom he accuses, by key."""

    owner: str
    method: str
    accuser: str
    results: Sequence[CellResult]
    verdicts: Mapping[str, Verdict]


def forged(outline: Outline, records: Mapping[str, Record]) -> list[Forged]:
    """List all cells of accusers by owner, method and accuser, in the outline's order."""
    cells = [(key, cell) for key, cell in outline.cells if cell.accuser is not None]
    owners = labelled(cell.owner for _, cell in cells)
    methods = labelled(cell.method for _, cell in cells)
    accusers = labelled(cell.accuser for _, cell in cells if cell.accuser is not None)
    verdicts = {
        accused.key: claim.verdict(accused, outline.alpha)
        for claim in claims_of(outline, records)
        for accused in claim.readings
    }
    found: dict[tuple[str, str, str], list[CellResult]] = {}
    for key, cell in cells:
        assert cell.accuser is not None
        names = owners(cell.owner), methods(cell.method), accusers(cell.accuser)
        found.setdefault(names, []).append(CellResult(key, cell, records.get(key)))
    return [Forged(*names, results, verdicts) for names, results in found.items()]


def kind_of(cell: Cell) -> str:
    """Say whose key a suspect is read with: a dispute's is the owner's, on what a thief shows."""
    if cell.accuser is None:
        return "honest"
    return "forged" if cell.other_seed is None else "dispute"


def suspect_of(cell: Cell) -> str:
    """Say what an accuser's suspect is, as tables call it, or that he shows it as his own."""
    return "shown as his" if cell.base == "accuser" else POPULATIONS[cell.lineage]


def tables(outline: Outline, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """Return what became of every accuser's claims, and of disputes; none where nobody accuses."""
    claims = claims_of(outline, records)
    if not claims:
        return ()
    return (
        _accusers(outline, claims),
        *(table for table in (_disputes(outline, records),) if table.rows),
    )


def _accusers(outline: Outline, claims: Sequence[Claim]) -> Table:
    groups: dict[tuple[str, str, str], list[Claim]] = {}
    for claim in claims:
        groups.setdefault((claim.owner, claim.method, claim.accuser), []).append(claim)
    stopped = {c.notes.get("stopped_by") for c in claims}
    return Table(
        name="Accusers",
        caption=f"innocents that a forged claim makes somebody's ({outline.heading})",
        columns=(
            *("owner", "method", "accuser", "accuses", "keys", "rate", "score"),
            *("others' rate", "others' highest", "owned", "with commitment"),
        ),
        rows=tuple((*names[:2], *_row(made, outline.alpha)) for names, made in groups.items()),
        notes=(
            *LEGEND,
            *(f"{name}: {why}." for name, why in REFUSED.items() if name in stopped),
            *outline.reductions,
        ),
        heads=2,
    )


def _row(claims: Sequence[Claim], alpha: float) -> tuple[str, ...]:
    """Write one accuser's claims with one method, over seeds and innocents."""
    first = claims[0]
    read = [(claim, accused) for claim in claims for accused in claim.readings]
    if not read:
        why = distinct(r.hole for claim in claims for r in claim.results if r.hole)
        return (first.accuser, "; ".join(why) or NOTHING, *[NOTHING] * 7)
    evidence = [evidence_of(accused) for _, accused in read]
    others = [found for claim, accused in read for found in claim.others(accused)]
    owned = [claim.verdict(accused, alpha) for claim, accused in read]
    return (
        first.accuser,
        "the owner" if first.against_owner else "strangers",
        " to ".join(map(str, sorted({claim.tried for claim in claims}))),
        f"{fmean(e.rate for e in evidence):.3f}",
        f"{fmean(e.score for e in evidence):.3f}",
        f"{fmean(e.rate for e in others):.3f}" if others else NOTHING,
        f"{max(e.score for e in others):.3f}" if others else NOTHING,
        _counted(owned),
        _with_commitment(read, alpha),
    )


def _counted(verdicts: Sequence[Verdict]) -> str:
    owned = sum(verdict.outcome == "owned" for verdict in verdicts)
    undecided = sum(verdict.outcome == "undecided" for verdict in verdicts)
    said = f"{owned}/{len(verdicts)}"
    return f"{said}, undecided {undecided}" if undecided else said


def _with_commitment(read: Sequence[tuple[Claim, Record]], alpha: float) -> str:
    left = [claim.committed(accused, alpha) for claim, accused in read]
    judged = [verdict for verdict in left if verdict is not None]
    if not judged:
        return f"refused: {read[0][0].notes.get('stopped_by', NOTHING)}"
    return _counted(judged)


def _disputes(outline: Outline, records: Mapping[str, Record]) -> Table:
    """Return both claims on both models, where an accuser shows a model of his own."""
    asked: dict[tuple[str, str, str], list[CellResult]] = {}
    cells = [(key, cell) for key, cell in outline.cells if cell.accuser is not None]
    owners = labelled(cell.owner for _, cell in cells)
    methods = labelled(cell.method for _, cell in cells)
    accusers = labelled(cell.accuser for _, cell in cells if cell.accuser is not None)
    for key, cell in cells:
        if cell.accuser is not None and cell.base in ("accuser", "released"):
            names = owners(cell.owner), methods(cell.method), accusers(cell.accuser)
            asked.setdefault(names, []).append(CellResult(key, cell, records.get(key)))
    return Table(
        name="Disputes",
        caption=f"both claims on the model that the accuser shows ({outline.heading})",
        columns=(
            *("owner", "method", "accuser", "his key on the owner's", "his key on his"),
            "the owner's key on his",
        ),
        rows=tuple((*names, *_both(found)) for names, found in asked.items()),
        notes=(
            "rates, means over keys. Where both keys are found on the accuser's model and his is "
            "not on the owner's, the owner can show a model with his mark alone, and the accuser "
            "cannot. Where each finds the other's, only dates decide.",
        ),
        heads=2,
    )


def _both(found: Sequence[CellResult]) -> Iterator[str]:
    def rates(base: str, owners: bool) -> str:
        read = [
            r.evidence.rate
            for r in found
            if r.evidence and r.cell.base == base and (r.cell.other_seed is not None) == owners
        ]
        return f"{fmean(read):.3f}" if read else NOTHING

    yield rates("released", False)
    yield rates("accuser", False)
    yield rates("accuser", True)
