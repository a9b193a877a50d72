"""Check that records are what the bench wrote: their keys, their outline, their artefacts.

A record names its cell and, by its key, the stages that answered it. Where the store lies beside
the results, the stages are found again by that key and must say what the record says of evidence,
weights, utility and fidelity; costs and notes are not compared, which a stage that was made again
may give anew. Without a store a record is held to the outline and to its own numbers, and printed
tables to the records: verdicts and p-values are recounted. What was not checked is counted, and not
called good.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from bench.records import ledger
from bench.records.files import file_digest
from bench.records.nouns import (
    Cell,
    Evidence,
    Fidelity,
    Json,
    Record,
    UserError,
    Utility,
    canonical,
    how_many,
    unpacked,
)
from bench.records.store import Artefact, Store
from bench.records.table import NOTHING, Table, beside
from bench.suite.graph import Question, Stage
from bench.verdicts.bounds import contradicts

Outcome = Literal["holds", "does not hold", "not verified"]

NO_STORE = (
    "rows contradict neither outline nor themselves; not held to what was read: no store beside "
    "the results"
)

SINGLE = 1e-6
"""How far a share in single precision may lie from the count it is of."""

NO_STAGES = "rows could not be verified: the store has no stages that give its key"

ENTRY = "entry.json"
"""What a leaderboard says of a submission, where its maker put it beside the records."""

NOT_STORED = "rows could not be verified: a cell without evidence leaves nothing in the store"


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of checking one row of a file, or one file of the store."""

    place: str
    key: str
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, slots=True)
class Recount:
    """What came of printing a folder's tables again: what follows from its records, what does not.

    `rows`, `verdicts` and `p_values` count what the tables beside the records say and these give.
    """

    tables: int
    rows: int
    verdicts: int
    p_values: int
    wrong: tuple[Checked, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stages:
    """The artefacts of one possible answer."""

    extract: Artefact
    utility: Artefact
    fidelity: Artefact | None
    suspect: Artefact
    owner: Artefact

    def key(self, cell: Cell) -> str:
        """Return the key of a record that these stages answer."""
        fidelity = self.fidelity.key if self.fidelity else None
        stages = (self.suspect.key, self.extract.key, self.utility.key)
        question = Question(cell, "", True, self.owner.key, "", *stages, fidelity)
        return question.key

    def contradictions(self, record: Record) -> Iterator[str]:
        """Yield what the record says otherwise than the store."""
        found = self.fidelity.payload["fidelity"] if self.fidelity else None
        price, utility = found and Fidelity(**found), Utility(**self.utility.payload["utility"])
        for name, ours, theirs in (
            ("evidence", _plain(record.evidence), _told(self.extract.payload["evidence"])),
            ("suspect digest", record.suspect_digest, self.suspect.payload["digest"]),
            ("owner digest", record.owner_digest, self.owner.payload["digest"]),
            # By way of the nouns: an older store has fewer fields.
            ("utility", _plain(record.utility), _plain(utility)),
            ("fidelity", _plain(record.fidelity), _plain(price)),
        ):
            if ours != theirs:  # as values: a threshold of 5 is one of 5.0
                yield f"its {name} is not the one in the store"


class _StoreIndex:
    """A store, read once, and the answers its artefacts could give, by what was read."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.artefacts = {artefact.key: artefact for artefact in store}
        self.by_reading: dict[tuple[float, ...], list[_Stages]] = {}
        self.faults: dict[str, str] = {}
        for stages in self._answers():
            read = stages.extract.payload["evidence"]
            self.by_reading.setdefault(_reading(read), []).append(stages)

    def _answers(self) -> Iterator[_Stages]:
        utilities = self._by_parents("utility")
        fidelities = self._by_parents("fidelity")
        for extract in self._of("extract"):
            protect, read, owner_key = extract.parents
            suspect, owner = self._suspect(read), self.artefacts.get(owner_key)
            if suspect is None or owner is None:
                continue
            for utility in utilities.get((suspect.key,), ()):
                for fidelity in (None, *fidelities.get((owner.key, protect), ())):
                    yield _Stages(extract, utility, fidelity, suspect, owner)

    def _suspect(self, key: str) -> Artefact | None:
        """Return the model that was read, which may have been aligned before."""
        found = self.artefacts.get(key)
        aligned = found is not None and found.kind == "align"
        return self.artefacts.get(found.parents[0]) if found and aligned else found

    def _of(self, kind: str) -> Iterator[Artefact]:
        return (artefact for artefact in self.artefacts.values() if artefact.kind == kind)

    def _by_parents(self, kind: str) -> Mapping[tuple[str, ...], Sequence[Artefact]]:
        found: dict[tuple[str, ...], list[Artefact]] = {}
        for artefact in self._of(kind):
            found.setdefault(artefact.parents, []).append(artefact)
        return found

    def alike(self, record: Record) -> list[_Stages]:
        """Return the answers that read the same evidence off the same weights."""
        found = self.by_reading.get(_reading(_plain(record.evidence)), ())
        return [s for s in found if s.suspect.payload["digest"] == record.suspect_digest]

    def others(self, record: Record) -> Iterator[_Stages]:
        """Yield the answers read with a secret of the record's method and seed."""
        for stages in (s for group in self.by_reading.values() for s in group):
            protect = self.artefacts.get(stages.extract.parents[0])
            if protect is None or (
                protect.recipe["method"]["name"] == record.cell.method.name
                and protect.recipe["seed"] == record.cell.method_seed
            ):
                yield stages

    def start(self, stages: _Stages) -> str:
        """Return the key of what the suspect was made from: a release, an owner or a cohort."""
        artefact = stages.suspect
        while artefact.kind == "attack" and artefact.parents[0] in self.artefacts:
            artefact = self.artefacts[artefact.parents[0]]
        return artefact.key

    def fault(self, key: str) -> str:
        """Say what is wrong with an artefact or with what it was made from; empty if nothing is.

        A parent that is not in the store any more is no fault: nothing says that it was a bad one.
        """
        if key not in self.faults:
            self.faults[key] = self._fault(key)
        return self.faults[key]

    def _fault(self, key: str) -> str:
        artefact = self.artefacts.get(key)
        if artefact is None:
            return f"{key} is damaged" if self.store.damaged(key) else ""
        if self.store.damaged(key):
            return f"{artefact.kind} {key} is damaged: its bytes are not those recorded"
        if _stage_key(artefact) != key:
            return f"{artefact.kind} {key} is not named by its recipe"
        return next(filter(None, map(self.fault, artefact.parents)), "")

    def unreadable(self) -> Iterator[str]:
        """Yield the keys under which something lies that is no whole artefact."""
        for path in sorted(self.store.root.glob("??/*.json")):
            if path.stem not in self.artefacts:
                yield path.stem


def _plain(value: Evidence | Utility | Fidelity | None) -> Json:
    """Write a part of a record as the store holds it."""
    if value is None:
        return None
    kept = {k: v for k, v in dataclasses.asdict(value).items() if k != "notes"}
    return _told(json.loads(canonical(kept)))


def _told(found: Json) -> Json:
    """Leave out an exact null that nobody declared: evidence without one does not name it."""
    return {k: v for k, v in found.items() if (k, v) != ("null", None)}


def _reading(evidence: Json) -> tuple[float, ...]:
    return (*evidence["agreement"], *evidence["statistic"])


def _stage_key(artefact: Artefact) -> str:
    kind: Json = artefact.kind  # the kinds of a stage are checked where stages are made
    return Stage(kind, artefact.recipe, artefact.parents).key


def verify(folder: Path) -> tuple[Checked, ...]:
    """Check every row of a folder of results, and its store's sidecars, in order.

    Raises:
        UserError: there is no such folder.

    """
    if not folder.is_dir():
        raise UserError(
            f"expected a folder of results, found none at {folder}{ledger.results_near(folder)}"
        )
    root, outline = folder.parent / ".store", folder / "suite.json"
    index = _StoreIndex(Store(root)) if root.is_dir() else None
    asked: dict[str, Cell] = {}
    checked: list[Checked] = []
    if outline.exists():
        try:
            asked = dict(ledger.read_outline(outline).cells)
        except UserError as error:
            checked.append(_unread(str(outline), error))
    checked += _entry(folder)
    checked += _rows(folder, asked, index)
    for key in index.unreadable() if index else ():
        why = "damaged: its sidecar is not as it was written"
        checked.append(Checked(str(root), key, "does not hold", why))
    return tuple(checked)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the outline and of every file of records, by its path in the folder."""
    files = [folder / "suite.json", *folder.rglob("*.jsonl")]
    named = {file.relative_to(folder).as_posix(): file for file in files if file.is_file()}
    return {name: file_digest(named[name]) for name in sorted(named)}


def _entry(folder: Path) -> Iterator[Checked]:
    """Check the entry of a leaderboard that lies beside records, if one does."""
    path = folder / ENTRY
    if not path.exists():
        return
    try:
        told = json.loads(path.read_bytes())["files"]
    except (ValueError, KeyError, TypeError):
        yield Checked(str(path), "", "does not hold", "it is no entry of a leaderboard")
        return
    moved = "it is of other files than lie here; make the leaderboard again"
    holds = told == digests(folder)
    yield Checked(str(path), "", "holds" if holds else "does not hold", "" if holds else moved)


def _rows(folder: Path, asked: Mapping[str, Cell], index: _StoreIndex | None) -> Iterator[Checked]:
    for place, line in ledger.lines(folder):
        try:
            record = ledger.parse(line, place)
        except UserError as error:
            yield _unread(place, error)
            continue
        if record is not None:
            yield Checked(place, record.key, *_checked(record, asked.get(record.key), index))


def _unread(place: str, error: UserError) -> Checked:
    return Checked(place, "", "does not hold", str(error).removeprefix(f"{place}: "))


def _checked(record: Record, asked: Cell | None, index: _StoreIndex | None) -> tuple[Outcome, str]:
    if asked is not None and asked != record.cell:
        return "does not hold", "the outline has another cell under its key"
    if record.status == "skipped":
        empty = Question(record.cell, "", True, "", "", "", "", "", None, record.reason)
        if empty.key != record.key:
            return "does not hold", "its key is not that of its cell and reason"
        return "holds", ""
    held: tuple[Outcome, str] = ("not verified", NOT_STORED)
    if record.evidence is not None:
        held = _against(record, index) if index else ("not verified", NO_STORE)
    wrong = "" if held[0] == "does not hold" else next(_within(record), "")
    return ("does not hold", wrong) if wrong else held


def _within(record: Record) -> Iterator[str]:
    """Yield what a record says otherwise than it says itself, of bits and of images."""
    if record.evidence is not None and contradicts(record.evidence):
        yield "its bit errors are not those of its agreement"
    found = list[tuple[str, float, str, int]]()
    if u := record.utility:
        found.append(("utility", u.value, u.right, u.n))
    if f := record.fidelity:
        images = f.probe_images
        found += [
            ("owner's probe accuracy", f.owner_probe_accuracy, f.owner_probe_right, images),
            ("released probe accuracy", f.released_probe_accuracy, f.released_probe_right, images),
        ]
    for name, share, right, n in found:
        # Older records do not say which; shares were taken in single precision.
        if right and n and abs(sum(unpacked(right, n)) / n - share) > SINGLE:
            yield f"its {name} is not the share of the {how_many(n, 'image')} it got right"


def _against(record: Record, index: _StoreIndex) -> tuple[Outcome, str]:
    """Check a record with evidence against the stages that its key names."""
    # Evidence that was altered is found under none: then every stage of this secret is tried.
    found = _named(record, index.alike(record)) or _named(record, index.others(record))
    if found is None:
        return "not verified", NO_STAGES  # equal evidence under another key may be another cell's
    stages = (found.extract, found.utility, found.fidelity)
    faults = [index.fault(stage.key) for stage in stages if stage is not None]
    start = index.start(found)
    protect, _, owner = found.extract.parents
    # A mark is stolen with the release that carries it, a fingerprint with the owner's model.
    if record.cell.base == "released" and start == (owner if record.marks else protect):
        faults.append("it takes a fingerprint for a mark, or a mark for a fingerprint")
    wrong = next(filter(None, (*found.contradictions(record), *faults)), "")
    return ("does not hold", wrong) if wrong else ("holds", "")


def _named(record: Record, answers: Iterable[_Stages]) -> _Stages | None:
    return next((stages for stages in answers if stages.key(record.cell) == record.key), None)


def recount(folder: Path, made: Iterable[Table]) -> Recount:
    """Hold the tables that lie beside records, as values and as text, to those made of them now."""
    tables = rows = verdicts = p_values = 0
    wrong = list[Checked]()
    for table in made:
        there = {path: text for path, text in beside(folder, table).items() if path.is_file()}
        found = [row for path, text in there.items() for row in _otherwise(path, text)]
        wrong += found
        if there and not found:
            tables, rows = tables + 1, rows + len(table.rows)
            verdicts += _filled(table, "verdict")
            p_values += _filled(table, "p")
    return Recount(tables, rows, verdicts, p_values, tuple(wrong))


def _otherwise(path: Path, text: str) -> Iterator[Checked]:
    """Yield every line of a file that is not the line of a text."""
    told = path.read_text("utf-8", errors="replace").splitlines()
    for number, (theirs, ours) in enumerate(zip_longest(told, text.splitlines()), start=1):
        if theirs != ours:
            why = "it does not follow from the records; `bench report` prints what does"
            yield Checked(f"{path}:{number}", "", "does not hold", why)


def _filled(table: Table, column: str) -> int:
    """Count the cells of a column in which something stands."""
    places = [i for i, name in enumerate(table.columns) if name == column]
    return sum(row[i] not in (NOTHING, "") for row in table.rows for i in places)


def lines(checked: Sequence[Checked], recounts: Sequence[Recount] = ()) -> Iterator[str]:
    """Yield a line for every row that does not hold, then what came of all, then what did not."""
    counts = Counter(row.outcome for row in checked)
    for row in (*checked, *(row for found in recounts for row in found.wrong)):
        if row.outcome == "does not hold":
            yield " ".join(filter(None, (f"{row.place}:", row.key, row.why)))
    if counts["holds"] or counts["does not hold"] or not checked:
        yield f"{counts['holds']} of {len(checked)} rows hold, {counts['does not hold']} do not"
    reasons = Counter(row.why for row in checked if row.outcome == "not verified")
    yield from (f"{count} {why}" for why, count in sorted(reasons.items()))
    tables, rows, verdicts, p_values = (
        sum(getattr(found, name) for found in recounts)
        for name in ("tables", "rows", "verdicts", "p_values")
    )
    if tables:
        within = f"{how_many(verdicts, 'verdict')} and {how_many(p_values, 'p-value')} among them"
        of = f"{how_many(rows, 'row')} of {how_many(tables, 'printed table')}"
        yield f"{of} follow from the records, {within}"
    elif not any(found.wrong for found in recounts):
        yield "no verdict was recounted: no tables beside the records"
