"""Say of a results folder what a leaderboard lists: a row per owner and method, and what it is of.

Numbers are computed from records alone. What nobody tried is said to be untried, never good.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median

from bench.records import ledger
from bench.records.nouns import (
    SCHEMA,
    UNTOUCHED,
    Cell,
    Json,
    Outline,
    Record,
    UserError,
    digest,
)
from bench.records.table import NOTHING
from bench.reports import audit
from bench.reports.blocks import Block, grouped, reading_cost
from bench.reports.price.both import Both, both
from bench.reports.price.grid import STATE_OF, Claims
from bench.reports.price.kinds import SEEN, seen
from bench.reports.price.prices import Bills, copies
from bench.verdicts import level
from bench.verdicts.innocents import core, secret_of
from bench.verdicts.pairs import price_of, price_text

NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Standing:
    """One method for one owner: what a leaderboard says of it."""

    owner: str
    method: str
    settings: str  # as JSON, whole
    access: str
    seen: str  # the most that it must see
    score: Mapping[int, float]  # share of the price grid in which the claim stands, by method seed
    evasion: Mapping[int, float]  # share of usable attacked copies with no claim left, by seed
    copies: int  # attacked and usable
    undecided: int  # of these
    open: float | None  # share of the price grid that is undecided, mean over keys
    forgery: str
    cosine: float | None  # of owner and released model, mean over images and keys
    price: str  # of the owner's own task, or of a probe
    level: Mapping[str, str]  # innocents called owned, by kind
    embed_seconds: float | None
    extract_seconds: float | None


@dataclass(frozen=True)
class Entry:
    """One results folder: whose numbers they are, and what they were measured on."""

    name: str
    title: str
    slug: str
    digest: str  # of all its files together
    files: Mapping[str, str]
    alpha: float
    attacks: str  # digest of what was tried: rows compare where this is one
    versions: Mapping[str, Sequence[str]]
    cells: Mapping[str, int]  # by what became of them
    checked: Mapping[str, int]  # by what `bench verify-results` says
    standings: Sequence[Standing] = field(default=())

    def json(self) -> Json:
        """Return what is written of it for machines."""
        return {"schema": SCHEMA, **asdict(self)}


def read(folder: Path) -> tuple[Entry, Outline, Mapping[str, Record]]:
    """Read a results folder and say what it holds.

    Raises:
        UserError: it is no results folder, or a record in it does not hold.

    """
    results = ledger.read_results(folder)
    checked = Counter(row.outcome for row in audit.verify(folder))
    if wrong := checked["does not hold"]:
        raise UserError(
            f"{folder}: expected records that hold, {wrong} do not; which they are says "
            f"`bench verify-results {folder}`"
        )
    outline, records = results.outline, results.records
    files = audit.digests(folder)
    whole = digest(files)
    blocks, _ = grouped(outline, records)
    bills = Bills.of(outline, records.values())
    forged = {one.key: one for one in both(outline, records)}
    entry = Entry(
        name=outline.name,
        title=outline.heading,
        slug=f"{_slug(outline.name)}-{whole[:8]}",
        digest=whole,
        files=files,
        alpha=outline.alpha,
        attacks=_tried(outline),
        versions=_versions(outline, records),
        cells=_states(outline, records),
        checked=dict(sorted(checked.items())),
        standings=[_standing(outline, block, bills, forged.get(block.key)) for block in blocks],
    )
    return entry, outline, records


def _slug(name: str) -> str:
    """Return a name that no file system takes for a path: a suite's may come from anybody."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "results"


def _tried(outline: Outline) -> str:
    """Name what was tried on released models: chains and alpha, whoever was asked."""
    chains = {_chain(cell) for _, cell in outline.cells if cell.base == "released"}
    return digest(sorted(chains), outline.alpha)


def _chain(cell: Cell) -> str:
    return " > ".join(step.text for step in core(cell)) or UNTOUCHED


def _versions(outline: Outline, records: Mapping[str, Record]) -> dict[str, list[str]]:
    """Return every value of what records say of where they ran."""
    found: dict[str, set[str]] = {}
    for key, _ in outline.cells:
        for name, value in (records[key].environment if key in records else {}).items():
            found.setdefault(name, set()).add(value)
    return {name: sorted(values) for name, values in sorted(found.items())}


def _states(outline: Outline, records: Mapping[str, Record]) -> dict[str, int]:
    states = (records[key].status if key in records else "hole" for key, _ in outline.cells)
    return dict(sorted(Counter(states).items()))


def _standing(outline: Outline, block: Block, bills: Bills, forged: Both | None) -> Standing:
    claims = Claims(block, copies(block, bills, outline.alpha))
    usable = {row.label for row in block.rows if row.chain and row.usable(block.least)}
    attacked = [copy for copy in claims.copies if copy.attack in usable]
    seeds = _seeds(block)
    lost: dict[str, list[bool]] = {}
    for copy in attacked:
        lost.setdefault(copy.key, []).append(STATE_OF[copy.outcome] != "stands")
    scores = dict(zip(claims.keys, claims.scores("stands"), strict=True))
    fidelity = {r.cell.method_seed: r.fidelity for r in block.records if r.fidelity}
    embeds = {r.cell.method_seed: r.costs["protect"] for r in block.records if "protect" in r.costs}
    reads = [reading_cost(r).seconds for r in block.with_evidence if "extract" in r.costs]
    price = price_of(block.records)
    return Standing(
        owner=block.owner,
        method=block.method,
        settings=block.cell.method.text,
        access=block.access or NOTHING,
        seen=(*SEEN, "not told")[seen(block)],
        score={seed: scores[key] for seed, key in seeds.items() if key in scores},
        evasion={seed: fmean(lost[key]) for seed, key in seeds.items() if key in lost},
        copies=len(attacked),
        undecided=sum(STATE_OF[copy.outcome] == "undecided" for copy in attacked),
        open=fmean(claims.scores("undecided")) if claims.keys else None,
        forgery=_forgery(forged),
        cosine=fmean(fmean(f.feature_cosine) for f in fidelity.values()) if fidelity else None,
        price=price_text(price) if price else NOTHING,
        level={str(k): text for k, text in level.checked(block.records, outline.alpha).items()},
        embed_seconds=fmean(c.seconds for c in embeds.values()) if embeds else None,
        extract_seconds=median(reads) if reads else None,
    )


def _seeds(block: Block) -> dict[int, str]:
    """Return the secret of every method seed; of seeds that gave one secret, the first."""
    found: dict[str, int] = {}
    for record in block.records:
        key, seed = secret_of(record), record.cell.method_seed
        found[key] = min(seed, found.get(key, seed))
    return {seed: key for key, seed in sorted(found.items(), key=lambda one: one[1])}


def _forgery(found: Both | None) -> str:
    """Write the share of innocents that the best accuser makes his, or that nobody tried."""
    if found is None or found.forgery is None:
        return NOT_TRIED
    kept = "" if found.committed is None else f"; {found.committed:.3f} with a commitment"
    who = f" ({found.forger})" if found.forgery else ""
    return f"{found.forgery:.3f}{who}{kept}"
