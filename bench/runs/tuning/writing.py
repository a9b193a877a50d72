"""Write a suite anew with the settings that were chosen, and a comment that says how."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from bench.records.files import write_atomically
from bench.records.nouns import Json, UserError
from bench.registry import METHODS
from bench.runs.tuning.candidates import Terms, ranges
from bench.runs.tuning.choice import Choice
from bench.suite import reader
from bench.suite.innocents import named_spec
from bench.verdicts.pairs import price_text

WIDTH = 98
"""Letters of a line of comment."""


def command(suite: Path, terms: Terms) -> str:
    """Return the command that tunes alike."""
    cosine = f" --cosine {terms.cosine:g}" if terms.cosine else ""
    passes = "" if terms.passes is None else f" --passes {terms.passes:g}"
    return (
        f"bench tune {suite.name} --budget {terms.budget} --price {terms.price:g}{cosine}{passes} "
        f"--seed {terms.seed}"
    )


def fragment(suite: Path, terms: Terms, choices: Sequence[Choice]) -> str:
    """Return the suite's `methods` with the chosen settings, as YAML."""
    chosen = {choice.entry.text: choice for choice in choices}
    lines = ["methods:", *_comment(f"Tuned by `{command(suite, terms)}`: {_how(terms)}", 2)]
    for node in _entries(reader.tree(suite)):
        written = dict(reader.plain(node))
        choice = chosen.get(named_spec(METHODS, dict(written)).text)
        if choice is not None:
            lines += [*_comment(_why(choice), 2), f"  - {_flow(written | _changed(choice))}"]
    return "\n".join(lines) + "\n"


def write(file: Path, suite: Path, terms: Terms, choices: Sequence[Choice]) -> None:
    """Write a copy of a suite with the chosen settings, which is called `NAME-tuned`.

    A suite of one file keeps all else as it stands there; of one that includes others, comments and
    layout are lost. The file is read back before it counts.

    Raises:
        UserError: it would overwrite the suite itself.

    """
    if file.resolve() == suite.resolve():
        raise UserError(f"--write: expected another file than the suite itself, got {file}")
    methods, tree = fragment(suite, terms, choices), reader.tree(suite)
    name = f"{reader.load(suite).name}-tuned"
    text = suite.read_text("utf-8")
    root = yaml.compose(text)
    assert isinstance(root, MappingNode), "it was just loaded"
    if root.flow_style or "include" in {key.value for key, _ in root.value}:
        made = _serialised(tree, name, methods)
    else:
        made = _replaced(text, root, {"name": f"name: {name}\n", "methods": methods})
    write_atomically(file, made.encode())
    reader.load(file)


def _how(terms: Terms) -> str:
    return (
        f"{terms.budget} candidates each, judged on the owner's data alone, at a price of at most "
        f"{terms.price:g} of its own task. No suspect was read. suites/README.md has the rule."
    )


def _why(choice: Choice) -> str:
    trial = choice.trial
    if trial is None or not trial.owners:
        return f"{choice.why}."
    said = f"margin {trial.margin:+.3f}, price {price_text(trial.price)}"
    return f"From: {trial.candidate.origin}; {choice.why}; {said}."


def _changed(choice: Choice) -> dict[str, Json]:
    """Return the tunable settings in which the chosen one differs from the suite's entry."""
    old, new = choice.entry.args, choice.chosen.args
    return {
        name: new[name]
        for name in ranges(METHODS.get(choice.entry.name))
        if new.get(name) != old.get(name)
    }


def _comment(text: str, indent: int) -> list[str]:
    lead = " " * indent + "# "
    return textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=lead)


def _flow(entry: Mapping[str, Json]) -> str:
    return yaml.safe_dump(
        dict(entry), default_flow_style=True, sort_keys=False, width=math.inf
    ).strip()


def _entries(tree: MappingNode) -> Iterator[Node]:
    for key, value in tree.value:
        if key.value == "methods":
            yield from value.value


def _replaced(text: str, root: MappingNode, new: Mapping[str, str]) -> str:
    """Put new lines for some keys; comments that stand above the next key stay with it."""
    lines = text.splitlines(keepends=True)
    starts = [key.start_mark.line for key, _ in root.value] + [len(lines)]
    names = [key.value for key, _ in root.value]
    spans = dict(zip(names, itertools.pairwise(starts), strict=True))
    for name in sorted(new, key=lambda n: -spans[n][0]):
        first, after = spans[name]
        while after > first + 1 and lines[after - 1].strip()[:1] in ("", "#"):
            if lines[after - 1][:1] == " ":
                break  # an indented comment is the key's own
            after -= 1
        lines[first:after] = [new[name]]
    return "".join(lines)


def _serialised(tree: MappingNode, name: str, methods: str) -> str:
    """Write a suite with all it includes as one file."""
    parts = yaml.compose(methods)
    assert isinstance(parts, MappingNode)
    new: dict[str, Any] = {
        "name": ScalarNode("tag:yaml.org,2002:str", name),
        "methods": next(value for _, value in parts.value if isinstance(value, SequenceNode)),
    }
    pairs = [(key, new.get(key.value, value)) for key, value in tree.value]
    comments = [line[2:] for line in methods.splitlines() if line.startswith("  #")]
    return "\n".join(comments) + "\n" + yaml.serialize(MappingNode(tree.tag, pairs))
