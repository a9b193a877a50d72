"""Say by which code a stage is carried out, and what in a store was made by other code.

Keys name what was asked for. A digest beside each artefact names the source that answered: of its
plug-in, with what that imports of its own package, and of the bench's part of the stage. Comments,
docstrings, layout and stated facts are no part of it. Sources are read and not imported: nothing
needs torch.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.records.nouns import Json, Record, canonical, how_many
from bench.records.store import Store
from bench.registry import ACCUSERS, ATTACKS, METHODS
from bench.suite.graph import Kind, Plan, Stage

UNKNOWN = "unknown"
"""The digest of a source that cannot be read, as in a notebook: it equals none but itself."""

WAY_OUT = "`bench run --stale remake` makes them again, and what follows from them"

_MODELS = (
    *("bench.models.vision", "bench.models.backbones", "bench.models.building"),
    *("bench.models.heads", "bench.models.weights", "bench.models.libraries"),
)

_IMAGES = ("bench.data.images", "bench.data.embedded", "bench.data.drawing")

_TRAINING = ("bench.training.loop", "bench.training.microbatch", "bench.models.surgery")

_DRAWS = "bench.runs.laboratory:Laboratory._context"

WORK: Mapping[Kind, tuple[str, ...]] = {
    "owner": ("bench.runs.laboratory:Laboratory._owner", "bench.runs.owners", *_MODELS),
    "classifier": (
        *("bench.runs.laboratory:Laboratory._classifier", _DRAWS),
        *("bench.training.readout:with_classifier", "bench.training.probe:pooled_features"),
        *(*_TRAINING, *_MODELS, *_IMAGES),
    ),
    "cohort": (
        *("bench.runs.laboratory:Laboratory._cohort", "bench.training.pretraining"),
        *(*_MODELS, *_IMAGES),
    ),
    "protect": (
        *("bench.runs.laboratory:Laboratory._protect", _DRAWS),
        *("bench.training.activations", "bench.training.labels"),
        *(*_TRAINING, *_MODELS, *_IMAGES),
    ),
    "attack": (
        *("bench.runs.laboratory:Laboratory._attack", _DRAWS, "bench.models.symmetry"),
        "bench.models.serving",
        *(*_TRAINING, *_MODELS, *_IMAGES),
    ),
    "align": (
        *("bench.runs.laboratory:Laboratory._align", _DRAWS, "bench.models.symmetry"),
        *(*_MODELS, *_IMAGES),
    ),
    "extract": (
        *("bench.runs.laboratory:Laboratory._extract", _DRAWS, "bench.models.suspect"),
        "bench.models.serving",
        *("bench.training.labels", "bench.training.readout", "bench.training.probe:fit_linear"),
        *("bench.training.probe:RIDGE", *_MODELS, *_IMAGES),
    ),
    "utility": (
        *(
            "bench.runs.laboratory:Laboratory._utility",
            "bench.runs.laboratory:Laboratory._own_test",
        ),
        "bench.models.serving",
        *("bench.training.probe", *_MODELS, *_IMAGES),
    ),
    "fidelity": (
        *("bench.runs.laboratory:Laboratory._fidelity", "bench.training.probe"),
        *(*_MODELS, *_IMAGES),
    ),
    "hardness": (
        *("bench.runs.laboratory:Laboratory._hardness", "bench.training.hardness"),
        *("bench.training.similarity", "bench.training.readout", *_MODELS, *_IMAGES),
    ),
    "accuse": (
        *("bench.runs.laboratory:Laboratory._accuse", "bench.runs.accusing", _DRAWS),
        *("bench.training.activations", "bench.training.labels", "bench.training.readout"),
        *("bench.models.suspect", *_TRAINING, *_MODELS, *_IMAGES),
    ),
}
"""The bench's part of each stage: packages and modules, or what one defines, after a colon."""


def code_of(stage: Stage, known: Mapping[str, Stage]) -> dict[str, str]:
    """Return the digests of the code that would carry a stage out now, by plug-in and by stage."""
    named, plugins = stage, dict[str, str]()
    if stage.kind == "extract":
        named = known[stage.parents[0]]
    if forger := named.recipe.get("accuser"):
        place = ACCUSERS.origin(forger["name"]).value
        plugins = {forger["name"]: plugin_digest(place)}
    spec = named.recipe.get("method") or named.recipe.get("step")
    registry = METHODS if "method" in named.recipe else ATTACKS
    plugin = {spec["name"]: plugin_digest(registry.origin(spec["name"]).value)} if spec else {}
    return {**plugins, **plugin, stage.kind: stage_digest(stage.kind)}


@dataclass(frozen=True, slots=True)
class OtherCode:
    """What of a plan was made by other code than is here now.

    `artefacts` are keys by plug-in and by stage, those under "" that do not say by what code they
    were made; `answers` are keys of questions.
    """

    artefacts: Mapping[str, Sequence[str]]
    answers: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.artefacts or self.answers)


def other_code(plan: Plan, store: Store, records: Mapping[str, Record]) -> OtherCode:
    """Find what was made by other code; what an answer of today's follows from is not looked at."""
    answers = answered_by_others(plan, records)
    if not records:
        return OtherCode(made_by_others(plan, store, plan.stages.keys()), answers)
    behind = set(answers)
    fresh = [q.stages for q in plan.questions if q.key in records and q.key not in behind]
    seen = plan.lineage(itertools.chain(*fresh))
    return OtherCode(made_by_others(plan, store, plan.stages.keys() - seen), answers)


def made_by_others(plan: Plan, store: Store, keys: Collection[str]) -> dict[str, list[str]]:
    """List which of these stages lie in the store, made by other code, by plug-in and by stage."""
    found: dict[str, list[str]] = {}
    there = store.keys() & set(keys)  # few of the millions that a plan may have
    for key, stage in plan.stages.items() if there else ():
        made = store.find(key) if key in there else None
        if made is None:
            continue
        before = made.payload.get("code")
        for name in [""] if before is None else _apart(before, code_of(stage, plan.stages)):
            found.setdefault(name, []).append(key)
    return found


def answered_by_others(plan: Plan, records: Mapping[str, Record]) -> list[str]:
    """List the answers of a plan that say they follow from other code, or do not say from what."""
    if not records:
        return []
    now: dict[str, str] = {}
    for stage in plan.stages.values():
        now |= code_of(stage, plan.stages)
    return [
        question.key
        for question in plan.questions
        if (record := records.get(question.key)) is not None
        and record.status != "skipped"
        and (not record.code or _apart(record.code, now))
    ]


def told(found: OtherCode) -> Iterator[str]:
    """Say in a line each what was made by other code, and the way out."""
    for name, keys in sorted(found.artefacts.items(), key=lambda one: (one[0] in WORK, one[0])):
        count = len(keys)
        what = how_many(count, "artefact")
        if name:
            by = f"the stage {name}" if name in WORK else name
            yield f"{what} in the store made by other code of {by}: {WAY_OUT}"
        else:
            yield f"{what} in the store that do not say by what code they were made: {WAY_OUT}"
    if count := len(found.answers):
        what = how_many(count, "answer follows", "answers follow")
        yield f"{what} from other code than today's, or from nobody knows which: {WAY_OUT}"


def to_remake(plan: Plan, store: Store, found: OtherCode) -> set[str]:
    """Return what was made by other code and all that follows from it, of other suites too."""
    children: dict[str, list[str]] = {}
    for artefact in (*store, *plan.stages.values()):
        for parent in artefact.parents:
            children.setdefault(parent, []).append(artefact.key)
    gone, left = set[str](), [key for keys in found.artefacts.values() for key in keys]
    while left:
        key = left.pop()
        if key not in gone:
            gone.add(key)
            left += children.get(key, [])
    return gone


def _apart(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name, digest in before.items() if now.get(name) != digest]


@functools.cache
def stage_digest(kind: Kind) -> str:
    """Name the source of the bench's part of a stage: 16 hex digits."""
    return _digest([part for place in WORK[kind] for part in _parts(place)])


@functools.cache
def plugin_digest(place: str) -> str:
    """Name the source of a plug-in that lives at "module:Class", with what it imports of its own.

    That is its module, or all modules of its package, and whatever these import that has the same
    first name; the bench is none of it.
    """
    module = place.partition(":")[0]
    seen, left = dict[str, Json](), [module]
    while left:
        name = left.pop()
        for here, path in _modules(name):
            if here not in seen:
                tree = ast.parse(path.read_bytes())
                seen[here] = _plain(tree)
                left += [other for other in _imported(tree, here, path) if _same(other, module)]
    return _digest(sorted(seen.items()))


def _digest(parts: list[Json]) -> str:
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:16] if parts else UNKNOWN


def _parts(place: str) -> Iterator[Json]:
    """Yield the source at "package", "module" or "module:what.it.defines"."""
    module, _, within = place.partition(":")
    for name, path in _modules(module):
        tree: ast.AST = ast.parse(path.read_bytes())
        for step in within.split(".") if within else ():
            tree = next(node for node in ast.iter_child_nodes(tree) if step in _defines(node))
        yield [name, within, _plain(tree)]


def _defines(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _modules(name: str) -> Iterator[tuple[str, Path]]:
    """Yield a module and its file, or all modules of a package; nothing where there is no file."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)  # imports nothing, unlike that of a module within
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    if not rest and spec.origin is not None and spec.submodule_search_locations is None:
        if Path(spec.origin).suffix == ".py":
            yield name, Path(spec.origin)
        return
    for root in spec.submodule_search_locations or ():
        place = Path(root, *rest)
        if place.with_suffix(".py").is_file():
            yield name, place.with_suffix(".py")
        elif rest and place.is_dir():
            for path in sorted(place.rglob("*.py")):
                within = path.relative_to(place).with_suffix("").parts
                yield ".".join([name, *(part for part in within if part != "__init__")]), path


def _imported(tree: ast.AST, module: str, path: Path) -> Iterator[str]:
    """Yield every module that a module's source names in an import, and what might be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            up = node.level - (path.stem == "__init__")
            base = parts[: len(parts) - up] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            yield whole
            yield from (f"{whole}.{alias.name}" for alias in node.names)


def _same(name: str, module: str) -> bool:
    first = module.partition(".")[0]
    return name.startswith(f"{first}.") and first != "bench"


STATED = ("Facts", "Paper")
"""Names of `bench.types` in which a method states what lists say of it."""


def _plain(node: Json) -> Json:
    """Write a syntax tree without what is there for readers alone, alike in any Python."""
    if isinstance(node, ast.AST):
        fields = {name: _plain(value) for name, value in ast.iter_fields(node) if value != []}
        return [type(node).__name__, {k: v for k, v in fields.items() if v is not None}]
    if isinstance(node, list):
        return [_plain(each) for each in node if not (_is_text(each) or _is_stated(each))]
    return None if node is None else repr(node)


def _is_text(node: Json) -> bool:
    """Say whether a statement is a docstring, of whatever stands above it."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_stated(node: Json) -> bool:
    """Say whether a statement, or a name in an import, is there for a method's `facts` alone."""
    if isinstance(node, ast.alias):
        return node.name in STATED and node.asname is None
    return (
        isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "facts"
        and ast.unparse(node.annotation) == "ClassVar[Facts]"
    )
