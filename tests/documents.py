"""Read what the documents show: their blocks, commands, links, tables and sentences."""

import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from bench.cli.parser import parser
from bench.cli.program import COMMANDS

ROOT = Path(__file__).parent.parent

GENERATED = ("attacks/README.md", "attacks/accusers/README.md", "methods/README.md")
"""Documents that a command prints: from `BY_NAME` on their sentences are of docstrings."""

BY_NAME = "\n## By name\n"

FENCE = r"^```(?P<language>\w*)\n(?P<text>.*?)^```$"
CODE = re.compile(FENCE + r"|(?<!`)`(?P<inline>[^`\n]+)`(?!`)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(FENCE, re.MULTILINE | re.DOTALL)

# A command ends with its line, or where a comment, another command or a redirection begins.
COMMAND = re.compile(r"(?:^|[/\s])bench ((?:[^\n#&|;>\\]|\\\n)+)")

THE_READERS = ("mine", "/data", "/shared", "/tmp")
"""Where the files lie that readers bring, or a drawn sample may."""


class Command(NamedTuple):
    """What a reader would type after `bench`."""

    words: list[str]

    def parsed(self) -> Namespace:
        return parser(COMMANDS).parse_args(self.words)


def documents() -> list[Path]:
    found = [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/README.md")]
    hidden = [
        path for path in found if any(p.startswith(".") for p in path.relative_to(ROOT).parts)
    ]
    return sorted(path for path in {*found} - {*hidden} if path.is_file())


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


def blocks(document: Path, language: str) -> list[str]:
    found = BLOCK.finditer(document.read_text())
    return [block["text"] for block in found if block["language"] == language]


def suites(document: Path) -> dict[str, str]:
    """The suites a document shows, by the file a reader saves each in."""
    named = re.compile(r"^name: ([\w.-]+)$", re.MULTILINE)
    shown = [(named.search(text), text) for text in blocks(document, "yaml")]
    return {f"{found[1]}.yaml": text for found, text in shown if found}


def code(document: Path) -> Iterator[tuple[str, str]]:
    """All code in order, block by block, with its language; "inline" for what stands in a line."""
    for found in CODE.finditer(document.read_text()):
        inline = found["inline"]
        yield ("inline", inline) if inline else (found["language"], found["text"])


def commands(text: str) -> list[Command]:
    found = COMMAND.findall(text)
    return [Command(shlex.split(words.replace("\\\n", " "))) for words in found]


def shown(document: Path) -> Iterator[Command]:
    """Every command that a document shows with its arguments."""
    for language, text in code(document):
        if language in ("", "bash", "sh") or (language == "inline" and "bench " in text):
            yield from (c for c in commands(text) if language != "inline" or len(c.words) > 1)


def missing(document: Path) -> Iterator[str]:
    """Files a command names that neither the tree has, nor its reader, nor a line above made."""
    made = {*suites(document), *scripts(document)}
    for command in shown(document):
        given = vars(command.parsed())
        made |= outputs(given)
        for value in given.values():
            for path in value if isinstance(value, list) else [value]:
                if isinstance(path, Path) and not there(path, made):
                    yield f"{' '.join(command.words)}: {path}"


def outputs(given: dict[str, object]) -> set[str]:
    """What a command leaves behind."""
    made = {str(given[name]) for name in ("output", "folder") if given.get(name)}
    if given.get("update"):
        made.add(str(given["baseline"]))
    if "engine" in given:
        suite = PurePath(str(given["suite"]))
        made.add(str(PurePath(str(given["results"])) / suite.stem))
    return made


def scripts(document: Path) -> set[str]:
    """Python files a document shows, each named in its first line."""
    return set(re.findall(r'^```python\n"""(\w+\.py)"""$', document.read_text(), re.MULTILINE))


def there(path: Path, made: set[str]) -> bool:
    brought = any(path.is_relative_to(place) for place in THE_READERS)
    return brought or any(path.is_relative_to(m) for m in made) or (ROOT / path).exists()


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """Relative links: the file, and the heading in it if one is named."""
    text = CODE.sub("", document.read_text())
    for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if not re.match(r"\w+:", target):
            yield document.parent / target if target else document, heading


def headings(document: Path) -> set[str]:
    """Headings as links spell them."""
    found = re.findall(r"^#+ (.+)$", BLOCK.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found}


def sentences(document: Path) -> Iterator[str]:
    """Running text, sentence by sentence: no code, no tables, no headings."""
    text = document.read_text()
    if name(document) in GENERATED:
        text = text.partition(BY_NAME)[0]
    text = re.sub(r"\]\([^)]*\)", "]", BLOCK.sub("", text))
    text = re.sub(r"^(\||#|<!--).*$", "", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|^\* ", text, flags=re.MULTILINE):
        yield from re.split(r"(?<=[.!?])\s+(?=[A-Z`*\[\"])", paragraph.strip())


def numbers(document: Path) -> Iterator[tuple[str, str]]:
    """Tables of numbers from elsewhere: where from, and their rows."""
    table = r"^<!-- numbers from (.+) -->\n((?:\|.*\n)+)"
    yield from re.findall(table, document.read_text(), re.MULTILINE)
