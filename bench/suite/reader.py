"""Turn a YAML file into the grid of questions it asks, or into one line that says what is wrong."""

from __future__ import annotations

import dataclasses
import functools
import re
import reprlib
from pathlib import Path
from typing import TypeVar, cast

import yaml
from yaml import MappingNode, Mark, Node, ScalarNode, SequenceNode

from bench.models.libraries import LIBRARIES
from bench.records.nouns import Json, Spec, UserError
from bench.records.settings import SettingError, settings, suggestion
from bench.suite.grid import Composed, Suite, with_align

T = TypeVar("T")


def load(path: Path) -> Suite:
    """Read one suite file and all it includes, checked; every error begins with its file:line."""
    return _load(path, ())


def tree(path: Path) -> MappingNode:
    """Read a suite file and all it includes as the nodes of one tree, unchecked."""
    return _read(path, ())


def plain(node: Node) -> Json:
    """Return what a node of a suite says, as numbers and text."""
    return _Loader("").construct_document(node)


def _load(path: Path, above: tuple[Path, ...]) -> Suite:
    node = _read(path, ())
    try:
        value = _Loader("").construct_document(node)
        if "parts" in value:
            return _joined(settings(Composed, value), path, (*above, path))
        suite = settings(Suite, with_align(value))
    except yaml.YAMLError as error:
        raise _syntax(path, error) from None
    except SettingError as error:
        raise UserError(f"{_place(node, error.where)}: {error}") from None
    return dataclasses.replace(  # an include may bring what another one, or the file, lists too
        suite,
        owners=_distinct(suite.owners),
        methods=_distinct(suite.methods),
        attacks=_distinct(suite.attacks),
        seeds=_distinct(suite.seeds),
        innocents=dataclasses.replace(
            suite.innocents, descendants=_distinct(suite.innocents.descendants)
        ),
        reductions=_distinct(suite.reductions),
        accusers=_distinct(suite.accusers),
    )


def _joined(cover: Composed, path: Path, above: tuple[Path, ...]) -> Suite:
    """Lay the parts a suite names beside each other: a grid each, but one set of data for all.

    Including them would make one grid of all their lists, every mark of a sweep by every attack.
    """
    parts = list[Suite]()
    for i, name in enumerate(cover.parts):
        file, where = path.parent / name, ("parts", i)
        if file.resolve() in [p.resolve() for p in above]:
            raise SettingError(f"expected parts without a circle, got '{name}' in itself", where)
        if not file.is_file():
            raise SettingError(f"no file '{name}'{_neighbours(file)}", where)
        part = _load(file, above)
        _refuse_strife([*parts, part], where)
        parts.append(part)
    first = parts[0]
    models = _distinct(tuple(m for part in parts for m in part.innocents.models))
    return dataclasses.replace(
        first,
        name=cover.name,
        title=cover.title,
        owners=_distinct(tuple(owner for part in parts for owner in part.owners)),
        methods=_distinct(tuple(method for part in parts for method in part.methods)),
        attacks=_distinct(tuple(chain for part in parts for chain in part.attacks)),
        data={name: data for part in parts for name, data in part.data.items()},
        innocents=dataclasses.replace(first.innocents, models=models),
        accusers=_distinct(tuple(accuser for part in parts for accuser in part.accusers)),
        reductions=_distinct((*cover.reductions, *(r for part in parts for r in part.reductions))),
        parts=tuple(grid for part in parts for grid in part.parts or (part,)),
    )


def _refuse_strife(parts: list[Suite], where: tuple[str | int, ...]) -> None:
    """Refuse a part that is at odds with the first about what one suite has one of."""
    first, last = parts[0], parts[-1]
    said: dict[str, tuple[object, object]] = {
        "alpha": (first.alpha, last.alpha),
        "innocents: pretraining_steps": (
            first.innocents.pretraining_steps,
            last.innocents.pretraining_steps,
        ),
    }
    for part in parts[:-1]:
        for name in part.data.keys() & last.data.keys():
            said[f"data '{name}'"] = (part.data[name], last.data[name])
    for what, (one, other) in said.items():
        if one != other:
            raise SettingError(f"{what}: expected the same in all parts, it is another here", where)


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    """Return each value once; specs hold mappings, so their texts are what is looked up."""
    found = dict[object, T]()
    for value in values:
        found.setdefault(_text_of(value), value)
    return tuple(found.values())


def _text_of(value: object) -> object:
    """Return what stands for a value and for no other of its kind."""
    if isinstance(value, Spec):
        return value.text
    return tuple(map(_text_of, value)) if isinstance(value, tuple) else value


BLANK = re.compile("[ ]*(?:#[^\0\r\n\x85\u2028\u2029]*)?")
"""Spaces and a comment, up to the end of their line."""

DEEPEST = 64
"""Levels of lists and mappings; our own suites have six."""

REPEATED = 100_000
"""Nodes that anchors may stand for, all together: some lines of them can stand for billions."""


ALIASES = 10_000
"""Places where an anchor may stand again; a file with more was made to take long."""


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everybody expects; no, off, 01, 1:30 and dates are text.

    These are the numbers and truth values of YAML 1.2, and underscores in numbers. Comments are
    passed over line by line, for letter by letter a million lines take a minute.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - the shape PyYAML wants
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = aliases = 0

    def scan_to_next_token(self) -> None:
        """Go on to the next token; a line break may be followed by a key."""
        if self.index == 0 and self.peek() == "\ufeff":
            self.forward()
        while True:
            beyond = BLANK.match(self.buffer, self.pointer)
            passed = beyond.end() - self.pointer if beyond else 0
            self.pointer += passed
            self.index += passed
            self.column += passed
            if not self.scan_line_break():  # type: ignore[no-untyped-call]
                return
            if not self.flow_level:
                self.allow_simple_key = True

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Compose a node that is not nested too deeply, and no anchor once too often."""
        self.aliases += bool(self.check_event(yaml.AliasEvent))
        if self.aliases > ALIASES:
            begun = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise UserError(f"{_at(begun)}: expected at most {ALIASES:,} aliases of anchors")
        if self.depth >= DEEPEST:
            begun = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise UserError(f"{_at(begun)}: expected at most {DEEPEST} levels of nesting")
        self.depth += 1
        try:
            node: Node | None = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Json:
        """Make a value of a node; what its tag promises and its text is not, is refused."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, ValueError) as error:
            if isinstance(error, UserError) or not isinstance(node, ScalarNode):
                raise
            kind, said = node.tag.rpartition(":")[2], reprlib.repr(node.value)
            message = f"expected what YAML calls {kind}, got {said}"
            raise UserError(f"{_at(node.start_mark)}: {message}") from None


for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][\d_]*)", "-+0123456789"),
    ("float", r"[-+]?(0|[1-9][\d_]*)?\.\d[\d_]*([eE][-+]?\d+)?", "-+.0123456789"),
    ("float", r"[-+]?(0|[1-9][\d_]*)\.?([eE][-+]?\d+)?", "-+0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    _tag = f"tag:yaml.org,2002:{_kind}"
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))

PLUGINS = ("methods", "attacks", "accusers")
"""Lists of plug-ins in a suite."""

TEXTS = frozenset(
    {"name", "title", "path", "weights", "pretrained", "revision", "digest", "loader", "dataset"}
    | {"data", "probe", "owner_images", "reductions", "parts"}
)
"""Settings that are text whatever it looks like, as are names of models and of data sets."""


def _as_written(node: Node, text: bool, named: frozenset[str]) -> Node:
    """Have every key, and every value that is a name, be the text that stands there."""
    if isinstance(node, SequenceNode):
        items = [_as_written(item, text, named) for item in node.value]
        return SequenceNode(node.tag, items, node.start_mark, node.end_mark)
    if isinstance(node, MappingNode):
        pairs = list[tuple[Node, Node]]()
        for key, value in node.value:
            # What else a plug-in calls its settings is its own affair.
            inner = named & {"name", "data"} if key.value in PLUGINS else named
            known = _as_written(key, True, named), _as_written(value, key.value in named, inner)
            pairs.append(known)
        return MappingNode(node.tag, pairs, node.start_mark, node.end_mark)
    if text and node.tag.endswith((":bool", ":int", ":float")):
        return ScalarNode("tag:yaml.org,2002:str", node.value, node.start_mark, node.end_mark)
    return node


def _read(path: Path, stack: tuple[Path, ...]) -> MappingNode:
    """Parse a file and put what it includes beneath it, lines remembered."""
    node = own(path)
    included = [value for key, value in node.value if key.value == "include"]
    base = [_include(item, path, (*stack, path)) for value in included for item in _items(value)]
    node.value = [(key, value) for key, value in node.value if key.value != "include"]
    return cast(MappingNode, functools.reduce(_merge, [*base, node]))


def own(path: Path) -> MappingNode:
    """Parse a file alone: what it includes is named under `include`."""
    try:
        text = _text(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}{_neighbours(path)}") from None
    try:
        loader = _Loader(text)
        loader.name = str(path)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise _syntax(path, error) from None
    if not isinstance(node, MappingNode):
        raise UserError(f"{path}:1: expected a mapping that begins like 'name: demo'")
    _refuse_repetition(node)
    _check(node)
    node = _as_written(node, False, TEXTS | set(LIBRARIES.names()))
    known = [f.name for f in dataclasses.fields(Suite)] + ["include"]
    for key, _ in node.value:
        if key.value not in known:
            hint = suggestion(key.value, known)
            raise UserError(f"{_at(key.start_mark)}: no setting '{key.value}'{hint}")
    return MappingNode(node.tag, [*node.value], node.start_mark)


def _text(path: Path) -> str:
    """Read a file as UTF-8, or as UTF-16 if it says so."""
    raw = path.read_bytes()
    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    if not wide and (place := raw.find(b"\0")) >= 0:
        line = raw[:place].count(b"\n") + 1
        raise UserError(f"{path}:{line}: this is not text: it has a NUL byte")
    try:
        return raw.decode("utf-16" if wide else "utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: this is not text in UTF-8") from None


def _refuse_repetition(root: Node) -> None:
    """Refuse anchors that stand for more than anybody would write out."""
    sizes = dict[int, int]()  # by node, with all that it contains; 0 while it is looked into

    def size(node: Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 0
            parts = node.value if isinstance(node, SequenceNode | MappingNode) else ()
            pairs = isinstance(node, MappingNode)
            inner = [part for pair in parts for part in pair] if pairs else parts
            sizes[id(node)] = 1 + sum(map(size, inner))
        return sizes[id(node)]

    if size(root) - len(sizes) > REPEATED:
        place = _at(root.start_mark)
        raise UserError(f"{place}: expected anchors that repeat at most {REPEATED:,} entries")


def _items(node: Node) -> list[ScalarNode]:
    items = node.value if isinstance(node, SequenceNode) else [None]
    if not all(isinstance(item, ScalarNode) for item in items):
        raise UserError(f"{_at(node.start_mark)}: expected a list of files such as [other.yaml]")
    return list(items)


def _include(item: ScalarNode, path: Path, stack: tuple[Path, ...]) -> Node:
    target = path.parent / item.value
    place = _at(item.start_mark)
    if target.resolve() in [p.resolve() for p in stack]:
        ring = " -> ".join(p.name for p in (*stack, target))
        raise UserError(f"{place}: expected includes without a circle, got {ring}")
    if not target.is_file():
        raise UserError(f"{place}: no file '{item.value}' to include{_neighbours(target)}")
    return _read(target, stack)


def _neighbours(path: Path) -> str:
    return suggestion(path.name, sorted(p.name for p in path.parent.glob("*.yaml")))


def _check(node: Node, above: tuple[Node, ...] = ()) -> None:
    """Refuse keys given twice, keys that are not words, and anchors that contain themselves."""
    if node in above:
        raise UserError(f"{_at(node.start_mark)}: an anchor that contains itself")
    if isinstance(node, SequenceNode):
        for item in node.value:
            _check(item, (*above, node))
    if isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            place = _at(key.start_mark)
            if not isinstance(key, ScalarNode):
                raise UserError(f"{place}: expected a word as key, got a list or a mapping")
            if key.value in lines:
                raise UserError(f"{place}: '{key.value}' already stands on line {lines[key.value]}")
            lines[key.value] = key.start_mark.line + 1
            _check(value, (*above, node))


def _merge(base: Node, own: Node) -> Node:
    """Lay one tree over another: lists join, mappings merge, of two scalars `own` stays."""
    if isinstance(base, MappingNode) and isinstance(own, MappingNode):
        pairs = {key.value: (key, value) for key, value in base.value}
        for key, value in own.value:
            _, under = pairs.get(key.value, (key, value))
            pairs[key.value] = (key, value if under is value else _merge(under, value))
        return MappingNode(own.tag, list(pairs.values()), own.start_mark)
    if isinstance(base, SequenceNode) and isinstance(own, SequenceNode):
        return SequenceNode(own.tag, base.value + own.value, own.start_mark)
    return own


def _place(node: Node, where: tuple[str | int, ...]) -> str:
    """Follow a path of keys and positions as far as the text goes, and return its file:line."""
    mark = node.start_mark
    for part in where:
        if isinstance(node, MappingNode):
            found = [(k.start_mark, v) for k, v in node.value if k.value == part]
            mark, node = found[-1] if found else (mark, node)
        elif isinstance(node, SequenceNode) and part in range(len(node.value)):
            node = node.value[part]
            mark = node.start_mark
    return _at(mark)


def _at(mark: Mark) -> str:
    return f"{mark.name}:{mark.line + 1}"


def _syntax(path: Path, error: yaml.YAMLError) -> UserError:
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        return UserError(f"{_at(mark)}: this is not YAML: {error.problem}")
    line = _text(path)[: getattr(error, "position", 0)].count("\n") + 1
    return UserError(f"{path}:{line}: this is not text: it has a control character")
