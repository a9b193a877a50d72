"""Put records into the rows and blocks of tables: which suspects stand beside which.

A block is one owner with one method, a row one attack; each holds the marked copies, the twins and
the strangers that went through it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

from bench.records.nouns import (
    ALIGNED,
    UNTOUCHED,
    Cell,
    Cost,
    Evidence,
    Lineage,
    Outline,
    Record,
    Spec,
    Utility,
    canonical,
    evidence_of,
)
from bench.verdicts.innocents import (
    Innocents,
    core,
    innocents,
    lineage,
    model_name,
    reading_of,
    verdict_on,
    with_digests,
)
from bench.verdicts.intervals import Spread, spread
from bench.verdicts.verdict import Verdict, detection_curve

LONGEST_LABEL = 48
"""Letters; a longer name gets a number and moves to the legend."""

LONGEST_REASON = 48
"""Letters; the record keeps the whole of it."""

OTHER_KEY = "another owner's mark"
"""The row of copies of the owner that were marked with another key than the one read with."""

MARKED_AND_TWINS: tuple[Lineage, ...] = ("released", "owner")
"""The suspects made from the owner's model, marked and unmarked."""

USABLE = 0.5
"""The share of the owner's utility, counted from a guess, that a thief must be left with: with less
a copy is no theft that anybody would commit, and what is read off it says little. By convention."""

NO_THEFT = "no usable theft"
"""What tables say of copies that are worth less."""

WORTHLESS = (
    f"{NO_THEFT}: the copies keep less than {USABLE:g} of what the unattacked owner does better "
    "than a guess, or, on a thief's own task, of what the best attack reached there; what is read "
    "off them, or is not, says little."
)

LOST = (
    "incompatible 1/2: of 2 copies the method could not read 1, which is the thief's success: it "
    "counts as a claim that is lost. So does undecided, where the untouched copy is decided."
)

Task = tuple[str, str]
"""A metric and what it was measured on."""

TAUS = tuple(range(8))
"""The bit errors of the paper's Fig. 3."""


@dataclass(frozen=True)
class CellResult:
    """One cell of the outline with the record that answers it, if there is one."""

    key: str
    cell: Cell
    record: Record | None

    @property
    def evidence(self) -> Evidence | None:
        """Return what was read off the suspect, if it was read."""
        return self.record.evidence if self.record else None

    @cached_property
    def lineage(self) -> Lineage:
        """Return what the suspect descends from, as far as it is known."""
        return lineage(self.record) if self.record else self.cell.lineage

    @property
    def hole(self) -> str:
        """Say in words why there is no number; empty if there is one."""
        if self.record is None:
            return "hole"
        if self.evidence:
            return ""
        reason = " ".join(self.record.reason.split())
        return f"{self.record.status}: {_short(reason)}" if reason else self.record.status


@dataclass(frozen=True)
class Row:
    """One attack under one claim: its cells by what their suspects descend from."""

    label: str
    suspects: Mapping[Lineage, Sequence[CellResult]]

    @property
    def chain(self) -> tuple[Spec, ...]:
        """Return what was done to the suspects."""
        return core(next(result.cell for group in self.suspects.values() for result in group))

    @property
    def undone(self) -> bool:
        """Say whether an attack on the released model gave back the clean owner."""
        return any(result.cell.lineage == "released" for result in self.suspects["owner"])

    def records(self, origin: Lineage) -> list[Record]:
        """Return the records of one population that carry evidence."""
        return _with_evidence(self.suspects[origin])

    def measured(self, origin: Lineage) -> list[tuple[Record, Utility]]:
        """Return the records of suspects that were held to a task, be they read or not."""
        found = (result.record for result in self.suspects[origin])
        return [(record, record.utility) for record in found if record and record.utility]

    @property
    def unread(self) -> int:
        """Count the marked copies that the method cannot read at all: lost claims."""
        found = (result.record for result in self.suspects["released"])
        return len({reading_of(r) for r in found if r and r.status == "incompatible"})

    def by_task(self, origin: Lineage) -> dict[Task, float]:
        """Return the mean utility of one population on each task it was held to."""
        found: dict[Task, list[tuple[Record, float]]] = {}
        for record, utility in self.measured(origin):
            found.setdefault(task_of(utility), []).append((record, utility.value))
        return {task: fmean(per_model(values)) for task, values in found.items()}

    def usable(self, least: Mapping[Task, float]) -> bool:
        """Say whether the copies are worth stealing, as far as anything tells."""
        worth = self.by_task("released")
        return all(value >= least.get(task, 0.0) for task, value in worth.items())


@dataclass(frozen=True)
class Block:
    """Everything asked about one owner with one method."""

    owner: str
    method: str
    results: Sequence[CellResult]
    rows: Sequence[Row]

    @property
    def cell(self) -> Cell:
        """Return its first cell: all are of one owner and one method."""
        return self.results[0].cell

    @property
    def key(self) -> tuple[str, str]:
        """Tell it from all others by owner and method, whole: their names may be alike."""
        return self.cell.owner.text, self.cell.method.text

    @cached_property
    def records(self) -> list[Record]:
        """Return every record there is."""
        return [result.record for result in self.results if result.record]

    @cached_property
    def with_evidence(self) -> list[Record]:
        """Return the records that carry evidence."""
        return _with_evidence(self.results)

    @property
    def aligned(self) -> bool:
        """Say whether suspects were written in the reference's basis before they were read."""
        return self.cell.method.align != "none"

    @property
    def sample(self) -> Evidence | None:
        """Return the first evidence there is: its rule, unit and chance are the method's."""
        return evidence_of(self.with_evidence[0]) if self.with_evidence else None

    @cached_property
    def access(self) -> str:
        """Return what the method needed to see, in words; empty if no record tells."""
        return "; ".join(sorted({record.access for record in self.records if record.access}))

    @cached_property
    def least(self) -> Mapping[Task, float]:
        """Return the least utility of a usable theft, by task.

        It is counted from that of the unattacked owner; on a thief's task, which it was not held
        to, from the best that any attack on it reached, as a mean over models.
        """
        best: dict[Task, tuple[bool, float]] = {}
        chance: dict[Task, float] = {}
        for row in self.rows:
            for origin in reversed(MARKED_AND_TWINS):  # a marked model is the owner's no more
                whole = row.label == UNTOUCHED
                for task, value in row.by_task(origin).items():
                    held = best.get(task, (False, 0.0))
                    best[task] = held if held[0] else max(held, (whole, value))
                chance |= {task_of(utility): utility.chance for _, utility in row.measured(origin)}
        return {t: chance[t] + USABLE * (best[t][1] - chance[t]) for t in best}

    @cached_property
    def nulls(self) -> Mapping[str, Innocents]:
        """Return the innocents that suspects are ranked among, by claim."""
        return innocents(self.records)


def _with_evidence(results: Sequence[CellResult]) -> list[Record]:
    return [r.record for r in results if r.record is not None and r.record.evidence is not None]


@dataclass(frozen=True)
class _Labels:
    """Short names for specs, with a legend of those that had to be numbered."""

    texts: Mapping[str, str]
    legend: tuple[str, ...]

    def __call__(self, *chain: Spec) -> str:
        return " > ".join(self.texts[step.text] for step in chain)


def grouped(outline: Outline, records: Mapping[str, Record]) -> tuple[list[Block], list[str]]:
    """Group the outline's honest claims by owner and method, in the outline's order."""
    asked = [(key, cell) for key, cell in outline.cells if cell.accuser is None]
    cells = [cell for _, cell in asked]
    owners = labelled(cell.owner for cell in cells)
    methods = labelled(cell.method for cell in cells)
    steps = labelled(
        (step for cell in cells if cell.base == "released" for step in core(cell)),
        beside=(step for cell in cells for step in (*core(cell), *_control(cell))),
    )
    told = {record.key: record for record in with_digests(records.values())}
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for key, cell in asked:
        result = CellResult(key, cell, told.get(key))
        groups.setdefault((cell.owner.text, cell.method.text), []).append(result)
    blocks = [
        Block(owners(one.cell.owner), methods(one.cell.method), results, _rows(results, steps))
        for results in groups.values()
        for one in results[:1]  # all are of one owner and one method
    ]
    return blocks, [*owners.legend, *methods.legend, *steps.legend]


def by_method(
    outline: Outline, records: Mapping[str, Record]
) -> list[tuple[str, str, Sequence[Record]]]:
    """Return all records of every owner with every method, after the two names."""
    blocks, _ = grouped(outline, records)
    return [(block.owner, block.method, block.records) for block in blocks]


def _rows(results: Sequence[CellResult], steps: _Labels) -> list[Row]:
    """Make a row per attack, then one per control: strangers stand beside what they went through.

    Innocents that are no copies of the owner's shape, or no copies of its clean model, have rows
    of their own. Rows come in the order of first mention, whichever population comes first.
    """
    rows: dict[str, dict[Lineage, list[CellResult]]] = {}
    controls: dict[str, dict[Lineage, list[CellResult]]] = {}
    for result in results:
        done, who = core(result.cell), _control(result.cell)
        if beside := _stands_beside(result.cell):
            rows.setdefault(steps(*done) or UNTOUCHED, _empty())[result.lineage].append(result)
        if result.cell.base == "other key":
            label = " > ".join([OTHER_KEY, *([steps(*done)] if done else [])])
            controls.setdefault(label, _empty())[result.lineage].append(result)
        elif who and not (beside and done):
            controls.setdefault(steps(*who, *done), _empty())[result.lineage].append(result)
    if UNTOUCHED in rows and not (rows[UNTOUCHED]["released"] or rows[UNTOUCHED]["owner"]):
        del rows[UNTOUCHED]  # nobody asked for the untouched model: its strangers are a control's
    return [Row(label, suspects) for label, suspects in (rows | controls).items()]


def _empty() -> dict[Lineage, list[CellResult]]:
    return {"released": [], "owner": [], "stranger": []}


def _stands_beside(cell: Cell) -> bool:
    """Say whether a suspect compares with marked copies: of the owner's shape, of no other key."""
    shape = cell.attack[0].args.get("shape", cell.owner.name)
    alike = cell.lineage != "stranger" or shape == cell.owner.name
    return cell.base in ("released", "owner") and alike


def _control(cell: Cell) -> tuple[Spec, ...]:
    """Return what makes a stranger, whichever of its strangers it is: a control, or a model."""
    if cell.other_model is not None:
        return (cell.other_model,)
    if cell.lineage != "stranger":
        return ()
    first = cell.attack[0]
    kind = {name: value for name, value in first.args.items() if name != "index"}
    return (Spec(first.name, kind, first.version),)


def labelled(specs: Iterable[Spec], beside: Iterable[Spec] = ()) -> _Labels:
    """Name specs by name and by the settings that tell them from others of that name.

    What stands `beside` them is named after them, and makes no name of theirs longer. An aligned
    reading is called as the raw one, and aligned.
    """
    texts: dict[str, str] = {}
    legend: list[str] = []
    given, around = list(specs), list(beside)
    ours, others = (_families(s.unaligned for s in listed) for listed in (given, around))
    every = {n: ours.get(n, {}) | others.get(n, {}) for n in (*ours, *others)}
    for named, among in ((ours, ours), (others, every)):
        _name(named, among, texts, legend)
    aligned = (spec for spec in (*given, *around) if spec.align != "none")
    texts |= {s.text: f"{texts[s.unaligned.text]} {ALIGNED[s.align]}" for s in aligned}
    return _Labels(texts, tuple(legend))


def _families(specs: Iterable[Spec]) -> dict[str, dict[str, Spec]]:
    families: dict[str, dict[str, Spec]] = {}
    for spec in specs:
        families.setdefault(spec.name, {})[spec.text] = spec
    return families


def _name(
    named: Mapping[str, Mapping[str, Spec]],
    among: Mapping[str, Mapping[str, Spec]],
    texts: dict[str, str],
    legend: list[str],
) -> None:
    """Add the labels of what is `named` and has none, told from all it is `among`."""
    for name in named:
        family = among[name]
        specs = list(family.values())
        telling = _telling(specs)
        shown = _words(specs, telling) or telling
        told, usual = [list(shown) for _ in specs], _usual(specs, telling)
        odd = [[s for s in telling if _value(spec, s) != usual[s]] for spec in specs]
        if _long(name, specs, told) and not _long(name, specs, odd):
            told, shown = odd, telling
            rest = ", ".join(f"{setting}={value}" for setting, value in usual.items())
            legend.append(f"{name}: {rest}, but for what a name says")
        for number, (key, spec) in enumerate(family.items(), start=1):
            if key in texts:
                continue
            label = _label(name, spec, told[number - 1])
            hidden = [setting for setting in telling if setting not in shown]
            if len(label) > LONGEST_LABEL or label in texts.values():
                label, hidden = f"{name} #{number}", telling
            if hidden:
                legend.append(f"{label}: {', '.join(_setting(spec, s) for s in hidden)}")
            texts[key] = label


def _long(name: str, specs: Sequence[Spec], told: Sequence[Sequence[str]]) -> bool:
    """Say whether a label of a family that tells these settings is too long."""
    pairs = zip(specs, told, strict=True)
    return any(len(_label(name, *pair)) > LONGEST_LABEL for pair in pairs)


def _label(name: str, spec: Spec, told: Sequence[str]) -> str:
    return " ".join([name, *(_setting(spec, setting) for setting in told)])


def _usual(specs: Sequence[Spec], telling: Sequence[str]) -> dict[str, str]:
    """Return of every telling setting the value that most of a family have, the first of equals."""
    counts = {setting: Counter(_value(spec, setting) for spec in specs) for setting in telling}
    return {setting: count.most_common(1)[0][0] for setting, count in counts.items()}


def _words(family: Sequence[Spec], telling: Sequence[str]) -> list[str]:
    """Return the fewest telling settings that are words and tell the family apart, or none."""
    words = [s for s in telling if all(isinstance(spec.args.get(s), str) for spec in family)]
    words.sort(key="variant".__ne__)  # a variant names a whole set of choices, so it goes first
    for chosen in ([], *([word] for word in words), words):
        apart = {tuple(str(spec.args[s]) for s in chosen) for spec in family}
        if len(apart) == len(family):
            return chosen
    return []


def _telling(family: Sequence[Spec]) -> list[str]:
    """Return the settings that take more than one value in a family of specs."""
    names = sorted({setting for spec in family for setting in spec.args})
    telling = [n for n in names if len({canonical(spec.args.get(n)) for spec in family}) > 1]
    return telling + (["version"] if len({spec.version for spec in family}) > 1 else [])


def _value(spec: Spec, name: str) -> str:
    value = spec.version if name == "version" else spec.args.get(name)
    return value if isinstance(value, str) else canonical(value)


def _setting(spec: Spec, name: str) -> str:
    value = spec.version if name == "version" else spec.args.get(name)
    # A word speaks for itself ("cosine"), a number does not ("amount=0.4").
    return value if isinstance(value, str) else f"{name}={canonical(value)}"


def task_of(utility: Utility) -> Task:
    """Name what a utility was measured by and on."""
    return utility.metric, utility.task


def judged(row: Row, nulls: Mapping[str, Innocents], alpha: float) -> list[Verdict]:
    """Judge every marked copy of a row, once, against the innocents read with its secret."""
    once = {reading_of(record): record for record in row.records("released")}
    return [verdict_on(record, nulls, alpha) for record in once.values()]


def any_unread(blocks: Iterable[Block]) -> bool:
    """Say whether any marked copy could not be read."""
    return any(row.unread for block in blocks for row in block.rows)


def detection(row: Row, origin: Lineage) -> Spread | None:
    """Return a population's detection rate with both spreads, or None without evidence."""
    records = row.records(origin)
    if not records:
        return None
    rates = per_model((record, evidence_of(record).rate) for record in records)
    return spread(rates, min(len(evidence_of(record).agreement) for record in records))


def rates_by_tau(records: Sequence[Record]) -> list[list[float]]:
    """Return for every tau one rate per model."""
    models: dict[str, list[tuple[float, ...]]] = {}
    for record in records:
        curve = detection_curve(evidence_of(record), TAUS)
        models.setdefault(model_name(record), []).append(curve)
    means = [
        curves[0] if len(curves) == 1 else tuple(map(fmean, zip(*curves, strict=True)))
        for curves in models.values()
    ]
    return [list(rates) for rates in zip(*means, strict=True)]


def per_model(readings: Iterable[tuple[Record, float]]) -> list[float]:
    """Return one value per distinct model: a model read with two secrets is still one model."""
    models: dict[str, list[float]] = {}
    for record, value in readings:
        models.setdefault(model_name(record), []).append(value)
    return [values[0] if len(values) == 1 else fmean(values) for values in models.values()]


def _short(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else reason[: LONGEST_REASON - 1] + "…"


def reading_cost(record: Record) -> Cost:
    """Return what it cost to read a suspect, and before that to align it if it was."""
    read, before = record.costs["extract"], record.costs.get("align")
    if before is None:
        return read
    return replace(
        read,
        seconds=read.seconds + before.seconds,
        forward_passes=read.forward_passes + before.forward_passes,
        backward_passes=read.backward_passes + before.backward_passes,
        peak_memory_mb=max(read.peak_memory_mb, before.peak_memory_mb),
    )
