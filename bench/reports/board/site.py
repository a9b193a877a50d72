"""Write a leaderboard as a static site: pages that open from a disk and ask for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean
from urllib.parse import quote, urlencode

from bench.records.files import write_atomically
from bench.records.nouns import Json, Outline, Record, UserError, how_many
from bench.records.table import NOTHING
from bench.reports import tidy
from bench.reports.board.entries import Entry, Standing
from bench.reports.board.ranks import Order, order
from bench.reports.notes import distinct
from bench.reports.price.grid import mean_text

INDEX, ENTRY, CELLS, WHOLE = "index.html", "entry.json", "cells.csv", "leaderboard.json"

SCRIPTS = ("sort.js", "board.js")


@dataclass(frozen=True)
class Submission:
    """An entry with the page of its report, and what the page is of."""

    entry: Entry
    page: str
    outline: Outline
    records: Mapping[str, Record]


@dataclass(frozen=True)
class Line:
    """A row of the board: a method for one owner, each number with the place of its records."""

    number: int
    method: str
    settings: str
    access: str
    seen: str
    submission: str
    slug: str
    letters: str
    rank: str
    keys: int
    numbers: Sequence[tuple[str, str]]  # texts, and the addresses that they lead to


@dataclass(frozen=True)
class Track:
    """Rows that compare: one owner, one list of attacks, one alpha."""

    owner: str
    attacks: str  # digest of the list
    titles: str  # of the results that it is of
    lines: Sequence[Line]
    drawing: str
    said: str


def write(output: Path, submissions: Sequence[Submission]) -> list[Path]:
    """Write the site and return its files; pages of submissions first, the board last.

    Raises:
        UserError: there is nothing to list, or one submission comes twice.

    """
    slugs = [submission.entry.slug for submission in submissions]
    if not slugs:
        raise UserError("expected folders of results, got none")
    if twice := [slug for slug in distinct(slugs) if slugs.count(slug) > 1]:
        raise UserError(f"expected every folder once, got the same records twice: {twice[0]}")
    made = []
    for one in submissions:
        home = output / one.entry.slug
        write_atomically(home / INDEX, one.page.encode())
        write_atomically(home / ENTRY, _text(one.entry.json()))
        tidy.write(home / CELLS, tidy.rows(one.outline, one.records))
        made += [home / INDEX, home / ENTRY, home / CELLS]
    entries = [submission.entry for submission in submissions]
    write_atomically(output / WHOLE, _text([entry.json() for entry in entries]))
    write_atomically(output / INDEX, board(entries).encode())
    return [*made, output / WHOLE, output / INDEX]


def _text(value: Json) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def board(entries: Sequence[Entry]) -> str:
    """Return the page that lists all methods of all entries."""
    import jinja2

    templates = resources.files("bench.reports").joinpath("templates")
    script = "".join(templates.joinpath(name).read_text("utf-8") for name in SCRIPTS)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bench.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    tracks = [*_tracks(entries)]
    return environment.get_template("board.html").render(
        entries=entries,
        tracks=tracks,
        owners=distinct(track.owner for track in tracks),
        seen=distinct(line.seen for track in tracks for line in track.lines),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _tracks(entries: Sequence[Entry]) -> Iterator[Track]:
    found: dict[tuple[str, str], list[tuple[Entry, Standing]]] = {}
    for entry in entries:
        for standing in entry.standings:
            found.setdefault((standing.owner, entry.attacks), []).append((entry, standing))
    # Of an owner, the most methods first.
    for (owner, attacks), rows in sorted(found.items(), key=lambda one: (one[0][0], -len(one[1]))):
        yield _track(owner, attacks, rows)


def _track(owner: str, attacks: str, rows: Sequence[tuple[Entry, Standing]]) -> Track:
    names = {str(n): standing for n, (_, standing) in enumerate(rows)}
    # A claim that nobody can decide is no lost one, and none that stands.
    scored = {name: s.score for name, s in names.items() if s.score and not s.open}
    seeds = sorted(set.intersection(*(set(score) for score in scored.values()))) if scored else []
    found = order({name: [score[seed] for seed in seeds] for name, score in scored.items()})
    letters = {_letter(n): group for n, group in enumerate(found.groups)}
    ordered = sorted(names, key=lambda name: _place(name, names[name], found))
    lines = [
        _line(number, *rows[int(name)], found.ranks.get(name), _letters(name, letters))
        for number, name in enumerate(ordered, start=1)
    ]
    numbers = {name: number for number, name in enumerate(ordered, start=1)}
    drawing = _drawing(found, numbers) if found.difference is not None else ""
    titles = "; ".join(distinct(entry.title or entry.name for entry, _ in rows))
    return Track(owner, attacks, titles, lines, drawing, _said(found, len(names) - len(scored)))


def _place(name: str, standing: Standing, found: Order) -> tuple[float, float]:
    """Order rows by mean rank, then by mean score, those without either last."""
    score = fmean(standing.score.values()) if standing.score else -1.0
    return found.ranks.get(name, float("inf")), -score


def _letter(number: int) -> str:
    """Return a letter of the alphabet, and after the last one letters twice over."""
    again, place = divmod(number, len(string.ascii_lowercase))
    return string.ascii_lowercase[place] * (again + 1)


def _letters(name: str, letters: Mapping[str, Sequence[str]]) -> str:
    return " ".join(letter for letter, group in letters.items() if name in group)


def _said(found: Order, unranked: int) -> str:
    """Say what can be told of the order of a track's methods, and by what."""
    left = f"Not ranked, for budgets are undecided: {how_many(unranked, 'method')}. "
    return (left if unranked else "") + _told_apart(found)


def _told_apart(found: Order) -> str:
    if len(found.ranks) < 2:
        return "Nothing to compare."
    if found.difference is None:
        return (
            f"{how_many(found.keys, 'key')} in common: nothing is ordered, for that takes two at "
            "least, and many more to tell close methods apart."
        )
    friedman = "" if found.p_value is None else f"Friedman p = {found.p_value:.3g}; "
    return (
        f"{friedman}Nemenyi: mean ranks over {found.keys} keys differ by more than chance from "
        f"{found.difference:.2f} on, at 5 %. Methods with a letter in common are not told apart. "
        "Keys share this owner and its innocents."
    )


def _line(number: int, entry: Entry, standing: Standing, rank: float | None, letters: str) -> Line:
    def to(part: str) -> str:
        chosen = urlencode({"method": json.dumps([standing.method]), "at": part}, quote_via=quote)
        return f"{entry.slug}/{INDEX}#{chosen}"

    price = "" if standing.price == NOTHING else f"; {standing.price}"
    cosine = NOTHING if standing.cosine is None else f"{standing.cosine:.3f}"
    times = (standing.embed_seconds, standing.extract_seconds)
    level = "; ".join(f"{kind} {text}" for kind, text in standing.level.items())
    undecided = f", {standing.undecided} undecided" if standing.undecided else ""
    lost = f"{mean_text([*standing.evasion.values()])} of {standing.copies}{undecided}"
    opened = f", undecided {standing.open:.3f}" if standing.open else ""
    return Line(
        number=number,
        method=standing.method,
        settings=standing.settings,
        access=standing.access,
        seen=standing.seen,
        submission=entry.name,
        slug=entry.slug,
        letters=letters,
        rank=NOTHING if rank is None else f"{rank:.2f}",
        keys=len(standing.score),
        numbers=(
            (f"{mean_text([*standing.score.values()])}{opened}", to("prices")),
            (lost if standing.copies else NOTHING, to("answers")),
            (standing.forgery, to("answers")),
            (f"{cosine}{price}", to("methods")),
            (level or NOTHING, to("methods")),
            (" / ".join(NOTHING if t is None else f"{t:.3g}" for t in times), to("methods")),
        ),
    )


WIDTH, TOP, STEP, LEFT = 560, 46, 12, 20
"""Of a drawing of ranks, in units of its own."""


def _drawing(found: Order, numbers: Mapping[str, int]) -> str:
    """Draw mean ranks on a line, and beneath it a bar for every set that is not told apart."""
    assert found.difference is not None
    most = max(len(found.ranks), 2)

    def x(rank: float) -> float:
        return round(LEFT + (rank - 1) / (most - 1) * (WIDTH - 2 * LEFT), 1)

    groups = [group for group in found.groups if len(group) > 1]
    height = TOP + 12 + STEP * len(groups)
    ruler = min(found.difference, most - 1)
    parts = [
        f'<path class="axis" d="M{x(1):g} {TOP}H{x(most):g}"/>',
        f'<path class="rule" d="M{x(1):g} 8H{x(1 + ruler):g}"/>',
        f'<text x="{x(1):g}" y="20">critical difference {found.difference:.2f}</text>',
    ]
    for name, rank in found.ranks.items():
        parts.append(f'<circle class="copies" cx="{x(rank):g}" cy="{TOP}" r="4"/>')
        parts.append(f'<text class="mid" x="{x(rank):g}" y="{TOP - 8}">{numbers[name]}</text>')
    for place, group in enumerate(groups, start=1):
        ends = [found.ranks[name] for name in group]
        y = TOP + STEP * place
        parts.append(f'<path class="copies" d="M{x(min(ends)) - 5:g} {y}H{x(max(ends)) + 5:g}"/>')
    label = "mean ranks, 1 the best; bars join what is not told apart"
    opening = f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'
    return f"{opening}{''.join(parts)}</svg>"
