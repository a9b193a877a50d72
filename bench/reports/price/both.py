"""Set what thieves evade beside what accusers forge: two numbers that no method can have for free.

A method that calls everybody owned loses no claim, and every innocent to the first accuser. One
that calls nobody owned loses no innocent, and every claim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.records.nouns import Outline, Record
from bench.records.table import NOTHING, Table
from bench.reports.blocks import Block, grouped
from bench.reports.price.accusers import Claim, claims_of
from bench.reports.price.prices import Bills, copies

LEGEND = (
    "evasion: the share of usable attacked copies on which the claim does not stand: not owned, "
    "undecided, or not readable; in brackets how many copies. forgery: the share of innocent "
    "strangers that the best accuser makes his, and who that is; committed: the same where every "
    "key must have been registered before. own model: the share of owners whose own model is "
    "another's by the best claim, without a commitment. Methods come by the worse of evasion and "
    "committed forgery, then by both together: who calls everybody owned, or nobody, is last."
)


@dataclass(frozen=True, slots=True)
class Both:
    """What is lost by one method: claims to thieves, innocents to accusers; shares in [0, 1].

    None where nothing was tried.
    """

    key: tuple[str, str]  # of its block
    owner: str
    method: str
    evasion: float | None
    copies: int
    forgery: float | None
    forger: str
    committed: float | None
    own: float | None

    @property
    def rank(self) -> tuple[float, float, float, float]:
        """Return what orders methods, the best first; what was not tried counts as lost."""
        evaded, kept = _or_lost(self.evasion), _or_lost(self.committed)
        return max(evaded, kept), evaded + kept, kept, _or_lost(self.forgery)


def _or_lost(share: float | None) -> float:
    return 1.0 if share is None else share


def both(outline: Outline, records: Mapping[str, Record]) -> list[Both]:
    """Return both numbers of every owner and method that somebody accused with, the best first."""
    bills = Bills.of(outline, records.values())
    forged: dict[str, list[Claim]] = {}
    for claim in claims_of(outline, records):
        cell = claim.results[0].cell
        forged.setdefault(cell.owner.text + cell.method.text, []).append(claim)
    found = []
    for block in grouped(outline, records)[0]:
        cell = block.cell
        claims = forged.get(cell.owner.text + cell.method.unaligned.text)
        if claims:
            stands = list(_stands(block, bills, outline.alpha))
            found.append(_both(block, stands, claims, outline.alpha))
    return sorted(found, key=lambda one: (one.owner, one.rank))


def _stands(block: Block, bills: Bills, alpha: float) -> Iterator[bool]:
    """Yield of every attacked copy that is worth stealing whether the claim on it stands."""
    usable = {row.label for row in block.rows if row.usable(block.least)}
    for copy in copies(block, bills, alpha):
        if not copy.untouched and copy.attack in usable:
            yield copy.outcome == "owned"


def _both(block: Block, stands: Sequence[bool], claims: Sequence[Claim], alpha: float) -> Both:
    lost: dict[str, list[bool]] = {}
    kept: dict[str, list[bool]] = {}
    own: dict[str, list[bool]] = {}
    for claim in claims:
        for accused in claim.readings:
            verdict = claim.verdict(accused, alpha)
            owned = verdict.outcome == "owned"
            if claim.against_owner:
                own.setdefault(claim.accuser, []).append(owned)
                continue
            left = claim.committed(accused, alpha)
            # What too few strangers leave undecided is no innocent saved.
            if verdict.outcome != "undecided":
                lost.setdefault(claim.accuser, []).append(owned)
            if left is None or left.outcome != "undecided":
                held = left is not None and left.outcome == "owned"
                kept.setdefault(claim.accuser, []).append(held)
    forger = max(lost, key=lambda name: fmean(lost[name]), default="")
    return Both(
        key=block.key,
        owner=block.owner,
        method=block.method,
        evasion=1 - fmean(stands) if stands else None,
        copies=len(stands),
        forgery=fmean(lost[forger]) if forger else None,
        forger=forger,
        committed=_most(kept),
        own=_most(own),
    )


def _most(shares: Mapping[str, Sequence[bool]]) -> float | None:
    return max((fmean(found) for found in shares.values()), default=None)


def tables(outline: Outline, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """Return one table, or none where nobody accuses."""
    found = both(outline, records)
    if not found:
        return ()
    made = Table(
        name="Evasion and forgery",
        caption=f"what thieves and accusers take from every method ({outline.heading})",
        columns=("owner", "method", "evasion", "forgery", "committed", "own model"),
        rows=tuple((one.owner, one.method, *_cells(one)) for one in found),
        notes=(LEGEND, *outline.reductions),
        heads=1,
    )
    return (made,)


def _cells(one: Both) -> tuple[str, ...]:
    evaded = NOTHING if one.evasion is None else f"{one.evasion:.3f} ({one.copies})"
    forged = NOTHING if one.forgery is None else f"{one.forgery:.3f}"
    return (
        evaded,
        f"{forged}: {one.forger}" if one.forgery else forged,
        *(NOTHING if share is None else f"{share:.3f}" for share in (one.committed, one.own)),
    )
