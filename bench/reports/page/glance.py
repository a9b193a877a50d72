"""Lay out the answer on one screen of a terminal: a map in letters, and three findings.

It is the map that begins the page. Only ASCII is used, so any terminal and any file shows it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from bench.records.nouns import Outline, Record, how_many
from bench.reports.blocks import grouped
from bench.reports.page.answers import MIXED, VERDICTS, Answer, Kind, Map, maps
from bench.reports.price.kinds import UNTOUCHED_ROW

LETTERS = {
    "owned": "O",
    MIXED: "~",
    "undecided": "?",
    "incompatible": "-",
    "not owned": "x",
    "skipped": "s",
    "failed": "!",
    "hole": ".",
}
"""The letter of every state, from the best for an owner to what was not asked to its end."""

WORDS = {
    MIXED: "owned in part",
    "incompatible": "cannot be read",
    "skipped": "skipped",
    "hole": "not run yet",
}
"""States whose names would not be understood by themselves."""

IN_PART = {
    "owned": "owned after",
    MIXED: "owned in part after",
    "not owned": "not owned after",
    "undecided": "undecided after",
    "incompatible": "cannot be read after",
}
"""How a sentence on one method begins what it says of attacks of one state, in order."""

NAMED = 3
"""Attacks of one state that a sentence on one method names; of more, it says how many."""

NOBODY = "No method is owned after any attack, so none can be said to take most."

ROWS = 30
"""Attacks that fit on a screen; of more, each kind shows the worst."""

CELL, NAME = 8, 34
"""Letters of a cell, and at most of an attack's name."""


def lines(outline: Outline, records: Mapping[str, Record], width: int = 120) -> list[str]:
    """Return the lines of a map per owner, and of what they say together."""
    blocks, _ = grouped(outline, records)
    drawn = maps(outline, records, blocks)
    title = f"Who is still recognised after what ({outline.heading})"
    found = [*_wrapped(title, "", width), ""]
    for one in drawn:
        found += _map(one, width)
    states = {answer.state for one in drawn for _, _, answer in _answers(one)}
    legend = ", ".join(
        f"{letter} {WORDS.get(state, state)}"
        for state, letter in LETTERS.items()
        if state in states
    )
    found += _wrapped(f"{legend}; the number is the rate, by the method's own rule", "", width)
    for sentence in findings(drawn):
        found += _wrapped(sentence, "* ", width)
    return found


def sentence(outline: Outline, records: Mapping[str, Record]) -> str:
    """Say of the one method that is asked what became of its claims; nothing if nothing did."""
    blocks, _ = grouped(outline, records)
    [drawn] = maps(outline, records, blocks)
    told: dict[str, list[str]] = {}
    for _, label, answer in _answers(drawn):
        told.setdefault(answer.state, []).append(f"{label} {answer.rate}".strip())
    parts = [f"{words} {_listed(told[state])}" for state, words in IN_PART.items() if state in told]
    innocents = drawn.innocents[0].split(" ")[0]
    if parts and innocents[:1].isdigit():
        parts.append(f"innocents at most {innocents}")
    return "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    """Name attacks, or the first of many and how many there are."""
    if len(names) <= NAMED + 1:
        return ", ".join(names)
    return f"{how_many(len(names), 'attack')} ({', '.join(names[:NAMED])}, ...)"


def _map(one: Map, width: int) -> Iterator[str]:
    """Yield an owner's map, as many methods side by side as there is room for."""
    count = sum(len(kind.rows) for kind in one.kinds)
    kinds = one.kinds if count <= ROWS else [_worst(kind) for kind in one.kinds]
    name = min(NAME, max(len(label) for kind in kinds for label, _ in kind.rows) + 2)
    side = max(1, (width - name) // CELL)
    for start in range(0, len(one.columns), side):
        shown = range(start, min(start + side, len(one.columns)))
        numbers = "".join(f"{number + 1:<{CELL}}" for number in shown)
        yield f"{_cut(one.owner, name - 1):<{name}}{numbers}".rstrip()
        for kind in kinds:
            for label, answers in kind.rows:
                cells = "".join(f"{_cell(answers[number]):<{CELL}}" for number in shown)
                yield f"{_cut(label, name - 1):<{name}}{cells}".rstrip()
        innocents = "".join(f"{'  ' + one.innocents[n].split(' ')[0]:<{CELL}}" for n in shown)
        yield f"{_cut('innocents, at most', name - 1):<{name}}{innocents}".rstrip()
        named = [f"{n + 1} {one.columns[n].method} ({one.columns[n].seen})" for n in shown]
        yield from _wrapped(f"{one.owner}: {', '.join(named)}", "", width)
        yield ""


def _worst(kind: Kind) -> Kind:
    """Keep of every method the answer that is worst for its owner."""
    if len(kind.rows) < 2:
        return kind
    columns = zip(*(answers for _, answers in kind.rows), strict=True)
    worst = [max(filter(None, column), key=_badness, default=None) for column in columns]
    return Kind(kind.name, [(f"{kind.name}, worst of {len(kind.rows)}", worst)])


def _badness(answer: Answer) -> tuple[int, float]:
    """Order answers: what was asked to its end first, by verdict, then by rate."""
    answered = ("owned", MIXED, "undecided", "incompatible", "not owned")
    rank = answered.index(answer.state) if answer.state in answered else -1
    return rank, -float(answer.rate or 0)


def _cell(answer: Answer | None) -> str:
    return "" if answer is None else f"{LETTERS[answer.state]} {answer.rate}".rstrip()


def _cut(text: str, width: int) -> str:
    """Shorten a name in its middle: what tells names apart stands at their ends."""
    if len(text) <= width:
        return text
    head = (width - 2) // 2
    return f"{text[:head]}..{text[len(text) - (width - 2 - head) :]}"


def _wrapped(text: str, mark: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=mark, subsequent_indent="  ")


def _answers(one: Map) -> Iterator[tuple[int, str, Answer]]:
    """Yield every answer with its column and the name of its attack."""
    for kind in one.kinds:
        for label, answers in kind.rows:
            yield from ((n, label, answer) for n, answer in enumerate(answers) if answer)


def findings(drawn: Sequence[Map]) -> list[str]:
    """Say in three sentences which claim lasts, which attack takes most, what innocents show."""
    several = len(drawn) > 1
    claims: dict[str, list[Answer]] = {}
    attacks: dict[str, list[Answer]] = {}
    undecided, asked, unread = 0, 0, 0
    for one in drawn:
        untouched = {
            label for kind in one.kinds if kind.name == UNTOUCHED_ROW for label, _ in kind.rows
        }
        for number, label, answer in _answers(one):
            told = answer.state in (*VERDICTS, MIXED)
            if label in untouched or answer.forged or not told:
                continue
            method = one.columns[number].method
            claims.setdefault(f"{one.owner}: {method}" if several else method, []).append(answer)
            attacks.setdefault(label, []).append(answer)
            asked += 1
            undecided += answer.state == "undecided"
            unread += answer.state == "incompatible"
    if not asked:
        return ["No attack has been answered yet."]
    lost = not any(map(_owned, claims.values()))
    return [
        *([NOBODY] if lost else [_lasting(claims), _gravest(attacks)]),
        f"{undecided} of {how_many(asked, 'cell')} are undecided and {unread} cannot be read; "
        f"{_innocents(drawn)}",
    ]


def _owned(answers: Sequence[Answer]) -> int:
    return sum(answer.state == "owned" for answer in answers)


def _lasting(claims: Mapping[str, Sequence[Answer]]) -> str:
    most = max(_owned(answers) / len(answers) for answers in claims.values())
    best = [m for m, answers in claims.items() if _owned(answers) / len(answers) == most]
    after = f"{_owned(claims[best[0]])} of {how_many(len(claims[best[0]]), 'attack')}"
    return f"Longest recognised: {_some(best)}, owned after {after}."


def _gravest(attacks: Mapping[str, Sequence[Answer]]) -> str:
    least = min(_owned(answers) / len(answers) for answers in attacks.values())
    if least == 1:
        return "No attack takes a claim away."
    worst = [a for a, answers in attacks.items() if _owned(answers) / len(answers) == least]
    left = f"{_owned(attacks[worst[0]])} of {len(attacks[worst[0]])}"
    return f"What takes most: {_some(worst)}; claims still owned after it: {left}."


def _innocents(drawn: Sequence[Map]) -> str:
    """Name the innocent on which a method's own rule is met most."""
    rates = [
        (float(first), column.method)
        for one in drawn
        for column, text in zip(one.columns, one.innocents, strict=True)
        if (first := text.split(" ")[0]).replace(".", "", 1).isdigit()
    ]
    if not rates:
        return "no innocent has been read."
    rate, method = max(rates)
    return f"the highest rate off an innocent is {rate:.3f}, by {method}."


def _some(names: Sequence[str]) -> str:
    """List two names, and count the others."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
