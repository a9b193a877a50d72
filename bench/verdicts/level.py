"""Say how often a method's verdicts are wrong about innocents and right about attacked copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from bench.records.nouns import Outline, Record
from bench.records.table import NOTHING, Table
from bench.verdicts import separation
from bench.verdicts.checks.uniform import innocent_evidence
from bench.verdicts.families import ENOUGH_KEYS, holm
from bench.verdicts.innocents import (
    PUBLIC,
    WHOLE,
    Innocents,
    Scores,
    copy_of,
    innocents,
    outcomes,
    populations,
    same_keys,
    secret_of,
    verdict_on,
    without_untouched,
)
from bench.verdicts.intervals import exact, upper_bound
from bench.verdicts.verdict import (
    Kind,
    Outcome,
    Verdict,
    decide,
    decide_exactly,
    innocents_needed,
    rank_p_value,
)

RATE = 0.05
"""The false-positive rate at which detection is stated."""


@dataclass(frozen=True, slots=True)
class FalsePositives:
    """Innocents of one kind called owned, of those judged among others that were enough."""

    called: int
    judged: int

    @property
    def upper(self) -> float:
        """Return the one-sided 95 % Clopper-Pearson bound on the rate; 1 if none was judged."""
        bound = upper_bound(self.called, self.judged)
        return 1.0 if bound is None else bound


def fresh(innocent: Scores, alpha: float) -> FalsePositives:
    """Rank one half of the innocents, by the digests of their names, among the other half.

    Leaving one out instead would count a share of `alpha` at most, whatever the scores.
    """
    null, unseen = (
        [innocent[name] for name in sorted(half)] for half in separation.halves(innocent)
    )
    if len(null) < innocents_needed(alpha):
        return FalsePositives(0, 0)
    called = sum(rank_p_value(score, null) <= alpha for score in unseen)
    return FalsePositives(called, len(unseen))


def unseen_attacks(null: Innocents, alpha: float) -> FalsePositives:
    """Rank the twins of each attack among the clusters of all others, as after an unseen attack.

    The clean owner and the public model must be outscored, and are judged by nobody.
    """
    descendants, called, judged = null.descendants or {}, 0, 0
    known = {*descendants.get(WHOLE, {}), *descendants.get(PUBLIC, {})}
    clusters = null.clusters
    if len(clusters) - 1 < innocents_needed(alpha):
        return FalsePositives(0, 0)
    for cluster in clusters:
        others = [max(other.values()) for other in clusters if other is not cluster]
        scores = [score for name, score in cluster.items() if name not in known]
        judged += len(scores)
        called += sum(
            rank_p_value(score, others) <= alpha and (null.bar is None or score > null.bar)
            for score in scores
        )
    return FalsePositives(called, judged)


def false_positives(null: Innocents, kind: Kind, alpha: float) -> FalsePositives:
    """Count those of one kind that others of their kind would call owned."""
    if kind == "descendants":
        return unseen_attacks(null, alpha)
    groups = null.strangers if kind == "strangers" else null.other_keys
    found = [fresh(group, alpha) for _, group in sorted(groups.items())]
    return FalsePositives(sum(f.called for f in found), sum(f.judged for f in found))


def level_table(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> Table:
    """Return level, power and separation for every (owner, method, records), kind by kind."""
    told = [(owner, method, list(records)) for owner, method, records in groups]
    keys = min((_keys(records) for *_, records in told), default=ENOUGH_KEYS)
    return Table(
        name="Level and power",
        caption=f"verdicts at alpha = {outline.alpha:g} ({outline.heading})",
        columns=(
            *("owner", "method", "innocents", "n", "called owned", "AUC"),
            *(f"TPR at FPR {RATE:g}", "attacked copies owned", "Holm"),
        ),
        rows=tuple(
            (owner, method, *line)
            for owner, method, records in told
            for line in _lines(records, outline.alpha)
        ),
        notes=(
            "n: innocents of one secret that count as one: strangers or families of them, "
            "descendants attack by attack, other keys. attacked: so many went through an attack. "
            "called owned: innocents whose p among "
            "others of their kind alone is at most alpha, with the exact one-sided 95 % bound on "
            "the rate, as if they were independent, of the secret where it is highest. "
            "strangers, other keys: one half, by digest, among the other half, which has not seen "
            "them. descendants: those of one attack among the clusters of all other attacks, and "
            "above the clean owner and the public model, as after an attack that nobody "
            "foresaw. needed: as many would be, where those there can check nothing.",
            "copies: attacked ones of the released model, in every column. The untouched model "
            "itself, which nobody took and which is the easiest, is in none.",
            "AUC: the chance that a copy outscores an innocent of the kind, a tie being no win, "
            f"{separation.interval_note(keys)}. TPR: its exact 95 % interval is over copies; the "
            "threshold is set on half of the innocents of the kind; the rate in round brackets, "
            "with its one-sided 95 % bound, counts the other half. attacked copies owned: "
            "against all kinds, exact 95 % interval as if they were independent, "
            "and the kind that is too few to reach alpha. Holm: those owned when all verdicts of "
            "a method are passed together.",
            "A copy that the method cannot read is not owned and outscores nobody. Nor is one "
            "owned that an attack left undecided, where the untouched copy is decided.",
            *(
                f"{owner}, {method}: {same}."
                for owner, method, records in told
                if (same := same_keys(r for r in records if r.evidence))
            ),
            *(
                f"{owner}, {method}: by an exact null, which needs no innocents. called owned: of "
                "each model read, whose p of that null is at most alpha."
                for owner, method, records in told
                if _exact(records)
            ),
            *outline.reductions,
        ),
        heads=2,
    )


def decidable(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> bool:
    """Say whether any secret was read on innocents enough for a verdict after some attack."""
    groups = list(groups)
    nulls = [null for *_, records in groups for null in innocents(records).values()]
    if any(_exact(records) for *_, records in groups):
        return True
    return any(
        decide(1.0, null.against(attack, outline.alpha), outline.alpha).outcome != "undecided"
        for null in nulls
        for attack in {WHOLE, *null.strangers, *(null.descendants or ())}
    )


def _keys(records: Iterable[Record]) -> int:
    return len({secret_of(record) for record in records if record.evidence})


def _lines(records: Sequence[Record], alpha: float) -> Iterator[tuple[str, ...]]:
    """Yield a line for every kind of innocent that the method has; copies stand in the first."""
    nulls = innocents(records)
    found = outcomes(records, nulls, alpha)
    tried = populations(without_untouched(records))
    read = [population for _, population in sorted(tried.items())]
    copies = [record for population in read for record in population.marked]
    verdicts = [verdict_on(record, nulls, alpha) for record in copies]
    judged = [*zip(verdicts, (found[copy_of(record)] for record in copies), strict=True)]
    unread = sum(population.unread for population in read)
    marked, innocent = separation.readings(records)
    marks = any(null.descendants is not None for null in nulls.values())
    exactly = _exact(records)
    power = (_owned(judged, unread), _together(verdicts, unread, alpha))
    for kind in get_args(Kind) if marks else ("strangers",):
        theirs = innocent.get(kind, ())
        yield (
            kind,
            _counts([*nulls.values()], kind),
            _called_exactly(records, kind, alpha) if exactly else _called(kind, nulls, alpha),
            _separation(marked, theirs),
            _detection(marked, theirs),
            *power,
        )
        power = (NOTHING, NOTHING)


def checked(records: Iterable[Record], alpha: float) -> dict[Kind, str]:
    """Write, for every kind of innocent that a method has, how many are called owned."""
    read = list(records)
    nulls, exactly = innocents(read), _exact(read)
    marks = any(null.descendants is not None for null in nulls.values())
    kinds: tuple[Kind, ...] = get_args(Kind) if marks else ("strangers",)
    if exactly:
        return {kind: _called_exactly(read, kind, alpha) for kind in kinds}
    return {kind: _called(kind, nulls, alpha) for kind in kinds}


def _counts(nulls: Sequence[Innocents], kind: Kind) -> str:
    """Write how many of a kind count as one, untouched, and how many went through an attack."""
    if kind == "descendants":
        return _range(len(null.clusters) for null in nulls)
    groups = [null.strangers if kind == "strangers" else null.other_keys for null in nulls]
    whole = _range(len(group.get(WHOLE, ())) for group in groups)
    alike = [len(g) for group in groups for attack, g in group.items() if attack != WHOLE]
    return f"{whole}, attacked {_range(alike)}" if alike else whole


def _range(counts: Iterable[int]) -> str:
    values = sorted(set(counts))
    if not values:
        return NOTHING
    return str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _called(kind: Kind, nulls: Mapping[str, Innocents], alpha: float) -> str:
    """Write how many innocents of a kind are called owned, or how many it takes to tell."""
    found = [false_positives(null, kind, alpha) for null in nulls.values()]
    judged = [check for check in found if check.judged]
    if not judged:
        needed = innocents_needed(alpha)
        return f"{needed + 1 if kind == 'descendants' else 2 * needed - 1} needed"
    called, asked = sum(c.called for c in judged), sum(c.judged for c in judged)
    return f"{called} of {asked} (<= {max(c.upper for c in judged):.3f})"


def _exact(records: Iterable[Record]) -> bool:
    """Say whether verdicts on these readings are those of an exact null."""
    return any(record.evidence and record.evidence.null for record in records)


def _called_exactly(records: Iterable[Record], kind: Kind, alpha: float) -> str:
    """Write how many innocents of a kind an exact null calls owned, each judged by itself."""
    secrets = innocent_evidence(records).get(kind, [])
    found = [decide_exactly(evidence, alpha) for readings in secrets for evidence in readings]
    called = sum(verdict.outcome == "owned" for verdict in found)
    upper = upper_bound(called, len(found))
    return NOTHING if upper is None else f"{called} of {len(found)} (<= {upper:.3f})"


def _owned(judged: Sequence[tuple[Verdict, Outcome]], unread: int) -> str:
    """Write how many copies are owned of those whose claim was decided, or else lost."""
    decided = [(verdict, outcome) for verdict, outcome in judged if outcome != "undecided"]
    count = len(decided) + unread
    if not count:
        return f"undecided {len(judged)}" if judged else NOTHING
    owned = sum(outcome == "owned" for _, outcome in decided)
    low, high = exact(owned, count, 0.05)
    said = f"{owned} of {count} [{low:.2f}, {high:.2f}]"
    reservations = sorted({verdict.reservation for verdict, _ in decided if verdict.reservation})
    return "; ".join([said, *reservations])


def _separation(
    marked: Sequence[separation.Reading], innocent: Sequence[separation.Reading]
) -> str:
    if not marked or not innocent:
        return NOTHING
    found = separation.separation(marked, innocent)
    low, high = found.interval
    return f"{found.area:.3f} [{low:.3f}, {high:.3f}]"


def _detection(marked: Sequence[separation.Reading], innocent: Sequence[separation.Reading]) -> str:
    """Write the true-positive rate, or how many innocents it would take to state one."""
    found = separation.detection_at(
        [(r.model, r.score) for r in marked], [(r.model, r.score) for r in innocent], RATE
    )
    if found.true_positive_rate is None:
        return f"{found.needed} needed"
    seen = f"{found.false_positives}/{found.held_out}"
    bound = "" if found.upper is None else f" <= {found.upper:.3f}"
    hits = f"{round(found.true_positive_rate * found.marked)}/{found.marked}"
    low, high = found.interval or (0.0, 1.0)
    return f"{found.true_positive_rate:.3f} = {hits} [{low:.2f}, {high:.2f}] (FPR {seen}{bound})"


def _together(verdicts: Sequence[Verdict], unread: int, alpha: float) -> str:
    if not verdicts:
        return f"0 of {unread}" if unread else NOTHING
    family = holm(verdicts, alpha)
    owned = family.outcomes.count("owned")
    text = f"{owned} of {len(verdicts) + unread}"
    exactly = any(verdict.log10_p is not None for verdict in verdicts)
    return text if owned or exactly else f"{text}, {family.needed} needed"
