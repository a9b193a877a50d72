"""The nouns of the benchmark: what was asked, what was found, and what it cost.

Nothing here computes on tensors and nothing here imports torch: a report must be readable on a
laptop that has never seen a GPU.
"""

from __future__ import annotations

import contextlib
import enum
import gc
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

SCHEMA = 1
"""Version of records, artefacts and keys together; a reader refuses any other."""

Json = Any
"""A value that survives `json.dumps` unchanged."""


SCORE_DECIMALS = 9
"""Of a score: the order in which equal agreements were summed must not rank one above another."""


class UserError(ValueError):
    """Something the user can put right; printed as one line, exit status 2."""


class Incompatible(Exception):
    """A suspect the method cannot read at all; an outcome of its own, never a true negative."""


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, cut short, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def shown(text: str) -> str:
    """Return a text as one line that prints: what a name of a file may hold else is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def how_many(n: int, one: str, many: str = "") -> str:
    """Write a count with its noun, of which `many` is the plural unless that is made with an s."""
    return f"{n} {one if n == 1 else many or f'{one}s'}"


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Make millions of values that hold no circles, and do not look for any meanwhile."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def canonical(value: Json) -> str:
    """Write a value as the one JSON text that stands for it; NaN and infinity are refused."""
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(*parts: Json) -> str:
    """Name a value by its content: 16 hex digits of SHA-256 over canonical JSON."""
    return digest_of(canonical(parts))


def digest_of(text: str) -> str:
    """Name what a canonical text says: whoever has the text of its parts need not write it anew."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Access(enum.Flag):
    """What can be seen of a suspect. A method's `needs` must lie within what is offered."""

    LABELS = enum.auto()  # decisions in the owner's own label space
    LOGITS = enum.auto()  # scores in the owner's own label space
    FEATURES = enum.auto()  # the encoder's output, whatever head sits on it
    WEIGHTS = enum.auto()  # the network itself: weights and hidden states
    OWN_HEAD = enum.auto()  # with LABELS: of the suspect's own head, in whatever classes it has
    BLACK_BOX = LABELS | LOGITS
    ENCODER = FEATURES | WEIGHTS
    ALL = BLACK_BOX | ENCODER

    @property
    def text(self) -> str:
        """Return the members in words, as tables print them: "features, weights"."""
        # Iterating yields the single ones, in their order.
        return ", ".join(str(a.name).lower().replace("_", " ") for a in self)


Lineage = Literal["released", "owner", "stranger"]
"""What a suspect descends from: the released model, the clean owner's, or neither."""

Status = Literal["ok", "skipped", "incompatible", "failed"]

Precision = Literal["float32", "bfloat16"]
"""Of the passes: "bfloat16" uses autocast; weights, gradients and optimiser stay in float32."""

Readout = Literal["graft", "relinear", "native"]
"""How a suspect's labels are obtained: from the owner's head put on the suspect's backbone (graft),
from a linear head fitted anew on the suspect's frozen features with the owner's labelled images
(relinear), or from the suspect's own head (native), only where label spaces agree."""

Align = Literal["none", "static", "auto"]
"""What is undone before a suspect is read: nothing, or a change of basis, in which it is written as
the reference is. The fit is to static tensors, and in `auto`, where these tell too little, to
activations."""

ALIGN = "align"
"""The setting of a reading that is the bench's own: a spec names it where it is not "none"."""

ALIGN_VERSION = 2
"""Of the rule by which a basis is fitted: in another, readings of changed copies are others."""

ALIGNED: Mapping[Align, str] = {"none": "", "static": "aligned", "auto": "auto-aligned"}
"""What tables call readings of suspects that were aligned before."""


@dataclass(frozen=True)  # without slots, so that the text is written once
class Spec:
    """A plug-in named with its arguments: how a suite, a store key and a record refer to it."""

    name: str
    args: Mapping[str, Json] = field(default_factory=dict)
    version: int = 1

    @property
    def align(self) -> Align:
        """Return what is undone before a suspect is read; of a method alone."""
        return cast(Align, self.args.get(ALIGN, "none"))

    @property
    def unaligned(self) -> Spec:
        """Return the same plug-in reading suspects as they are."""
        args = {name: value for name, value in self.args.items() if name != ALIGN}
        return self if len(args) == len(self.args) else Spec(self.name, args, self.version)

    def json(self) -> Json:
        """Return the canonical form that is hashed and stored."""
        return {"name": self.name, "args": dict(self.args), "version": self.version}

    @cached_property
    def text(self) -> str:
        """Return the one text that stands for this spec and no other."""
        return canonical(self.json())


@dataclass(frozen=True, slots=True)
class Cell:
    """One question: does `method` still recognise `owner` in this suspect?

    The suspect starts from `base` (the released model, the clean owner for a twin, the same owner's
    model marked with another key, or another model) and goes through `attack`,
    step by step, with the randomness of `attack_seed`. `lineage` follows from the two: a control in
    the chain makes a stranger.

    With an `accuser` the claim is his, and forged: `accused` counts the innocent whose model he had
    when he forged it, None if he had none. The base "accuser" is the model that he shows as his;
    with `other_seed` it is the owner who reads that model, with the key of this seed.
    """

    owner: Spec
    method: Spec
    method_seed: int
    base: Literal["released", "owner", "other key", "other model", "accuser"]
    attack: tuple[Spec, ...]
    attack_seed: int
    lineage: Lineage
    other_seed: int | None = None  # of the other key
    other_model: Spec | None = None
    accuser: Spec | None = None
    accused: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A paper's own decision on one query, e.g. `bit errors <= 5`; never our verdict."""

    statistic: str
    comparison: Literal["<=", "<", ">="]
    threshold: float

    def holds(self, value: float) -> bool:
        """Say whether one query counts as a detection under this rule."""
        if self.comparison == "<=":
            return value <= self.threshold
        return value < self.threshold if self.comparison == "<" else value >= self.threshold

    def count(self, values: Iterable[float]) -> int:
        """Return how many queries count as detections; many at once are faster than one by one."""
        bound = float(self.threshold)
        holds = {"<=": bound.__ge__, "<": bound.__gt__, ">=": bound.__le__}[self.comparison]
        return sum(map(holds, values))

    @property
    def text(self) -> str:
        """Return the rule as tables print it."""
        return f"{self.statistic} {self.comparison} {self.threshold:g}"


@dataclass(frozen=True, slots=True)
class ExactNull:
    """What evidence says of any model that owes the released one nothing: coins, by design.

    A query's agreement then lies on either side of 1/2 by a fair coin of its own, at a distance
    that no coin had a part in. So a p-value follows from the evidence alone, without innocents.
    The distance is a whole number of steps of 1 / (2 `levels`): with one level a query is a bit,
    which agrees or not, or was not read (1/2); with more it counts by how plainly it was read.
    """

    levels: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 255:
            raise ValueError(f"expected 1 to 255 levels, got {self.levels}")

    @property
    def text(self) -> str:
        """Return the distribution in words."""
        return "binomial" if self.levels == 1 else f"sign flips at {self.levels} levels"

    def steps(self, agreement: Iterable[float]) -> tuple[int, ...]:
        """Return how many steps each query lies above 1/2, or below it.

        Raises:
            ValueError: an agreement lies between two steps.

        """
        exact = [(2 * a - 1) * self.levels for a in agreement]
        steps = tuple(map(round, exact))
        between = [(s + self.levels) / (2 * self.levels) for s in exact if abs(s - round(s)) > 1e-6]
        if between:
            raise ValueError(
                f"expected agreements in steps of 1/{2 * self.levels} from 1/2, got {between[:3]}"
            )
        return steps


@dataclass(frozen=True)  # without slots, so that its means are taken once
class Evidence:
    """What a method read off a suspect: its agreement with the secret, query by query.

    `agreement` is in [0, 1] per query, 1 is full agreement; `statistic` is the method's native
    number for the same queries (bit errors, mutation, match), judged by `rule`. `unit` names one
    query, e.g. "image". `chance` is the agreement expected of a model that never met the owner;
    None where nobody knows it beforehand, and strangers have to tell. The method reports what it
    saw; whether that proves ownership is decided in `bench.verdicts`. `notes` are for the reader:
    a record keeps them beside those of `protect`. "compared" and "of" say how much could be read.
    `null` is declared by a method whose secret holds coins of its own, which then decide.
    """

    agreement: tuple[float, ...]
    statistic: tuple[float, ...]
    rule: Rule
    unit: str
    chance: float | None
    notes: Mapping[str, Json] = field(default_factory=dict, compare=False)
    null: ExactNull | None = None

    def __post_init__(self) -> None:
        outside = [a for a in self.agreement if not 0.0 <= a <= 1.0]
        if outside or not self.agreement:
            raise ValueError(f"expected agreements in [0, 1], got {outside[:3] or 'none at all'}")
        if len(self.statistic) != len(self.agreement):
            raise ValueError(
                f"expected one native statistic per query ({len(self.agreement)}), "
                f"got {len(self.statistic)}"
            )
        if self.chance is not None and not 0.0 <= self.chance <= 1.0:
            raise ValueError(f"expected chance in [0, 1], got {self.chance}")
        if self.null is not None:
            self.null.steps(self.agreement)

    @cached_property
    def score(self) -> float:
        """Mean agreement in [0, 1], rounded: the fine score on which verdicts are calibrated."""
        return round(math.fsum(self.agreement) / len(self.agreement), SCORE_DECIMALS)

    @cached_property
    def rate(self) -> float:
        """Share of queries on which the paper's own rule holds, in [0, 1]."""
        return self.rule.count(self.statistic) / len(self.statistic)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one stage cost where it ran; `ideal_seconds` is the fewest passes it needs, timed there.

    Passes are counted in images through the whole depth: a batch of 8 through half the blocks is
    4. `peak_memory_mb` is the process's (CPU) or the device's (GPU) highest mark during the stage.
    """

    seconds: float
    ideal_seconds: float | None = None
    forward_passes: float = 0.0
    backward_passes: float = 0.0
    peak_memory_mb: float = 0.0
    device: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the passes of a stage depend on beside its settings: a party's images and the model."""

    images: int
    held_out: int
    blocks: int
    tokens: int
    width: int


@dataclass(frozen=True, slots=True)
class Passes:
    """What a stage will send through a model, counted as `Cost` counts it.

    `frozen` says that the way back leaves the weights out, which halves its work. Where the number
    depends on what the images turn out to be, `bound` says which side of it this is.
    """

    forward: float = 0.0
    backward: float = 0.0
    frozen: bool = False
    bound: Literal["exact", "at least", "at most", "about"] = "exact"

    @property
    def work(self) -> float:
        """Return how many forward passes these passes are worth."""
        return self.forward + self.backward * (1 if self.frozen else 2)


def packed(right: Iterable[bool]) -> str:
    """Write which images were got right, four to a hexadecimal digit, the first one highest."""
    bits = "".join("01"[bool(one)] for one in right)
    return "".join(f"{int(bits[i : i + 4].ljust(4, '0'), 2):x}" for i in range(0, len(bits), 4))


def unpacked(text: str, n: int) -> tuple[bool, ...]:
    """Read back which of `n` images were got right."""
    return tuple(bit == "1" for digit in text for bit in f"{int(digit, 16):04b}")[:n]


@dataclass(frozen=True, slots=True)
class Utility:
    """How well a suspect does on its own task, measured by the bench, never by the attack."""

    metric: str  # "accuracy", "mIoU", "probe accuracy"
    value: float  # in [0, 1], higher is better
    task: str  # "digits, thief's test images"
    n: int  # test images
    right: str = ""  # which of them, `packed`; empty for mIoU and in older records
    chance: float = 0.0  # the value of a guess; 0 in older records


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What a mark costs before any attack: released model, without injection, against the owner.

    `feature_cosine` holds one cosine per held-out image; the two probe accuracies are on the same
    `probe_images` test images. The owner's own classifier is asked about the same `own_images` of
    its task before and after, if there is one. What was got right is `packed`; older records say
    neither.
    """

    feature_cosine: tuple[float, ...]
    owner_probe_accuracy: float
    released_probe_accuracy: float
    probe_images: int
    task: str
    owner_probe_right: str = ""
    released_probe_right: str = ""
    own_task: str = ""
    own_images: int = 0
    owner_right: str = ""
    released_right: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What happened when one cell ran; the only thing a report may read."""

    key: str
    suite: str
    cell: Cell
    status: Status
    reason: str = ""
    access: str = ""  # what the method needed to see
    marks: bool = True  # False for a fingerprint: the released model is the owner's
    suspect_digest: str = ""  # of the weights; equal digests are one model
    owner_digest: str = ""
    evidence: Evidence | None = None
    utility: Utility | None = None
    fidelity: Fidelity | None = None
    notes: Mapping[str, Json] = field(default_factory=dict)  # what `protect` and attacks reported
    costs: Mapping[str, Cost] = field(default_factory=dict)  # by stage: protect, attack, ...
    environment: Mapping[str, str] = field(default_factory=dict)  # where the suspect was read
    elsewhere: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by stage, if another
    data: Mapping[str, str] = field(default_factory=dict)  # digests of images, by the suite's names
    code: Mapping[str, str] = field(
        default_factory=dict
    )  # digests of sources, by plug-in and stage
    schema: int = SCHEMA


def evidence_of(record: Record) -> Evidence:
    """Return the evidence of a record that carries some, as whoever asks has made sure."""
    assert record.evidence is not None
    return record.evidence


Change = Literal[
    "exact",
    "compression",
    "finetuning",
    "extraction",
    "merging",
    "serving",
    "forgery",
    "control",
    "other",
]
"""What an attack changes: nothing of the function (exact); weights, to fewer, coarser or noisier
ones without training (compression); weights, by training on (finetuning); the model, for a new one
made from its answers (extraction); weights, by mixing in others (merging); answers, at serving time
(serving); the evidence, where the accuser cheats (forgery). A control makes innocents."""


StoppedBy = Literal["count", "date", "name", "replay"]
"""What of a registered commitment refuses a forged claim: how many its holder registered, of which
the level pays for each; a date after the suspect's; another holder's name; or a secret that the
committed method, model and seed do not make again."""


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What a report must know of a step of an attack, and cannot ask of its plug-in (torch!).

    `images` is how many of the thief's pool it looks at, at most, None where nobody wrote it down;
    `data` the digest of the data set they are of. `queries` is how many images the victim answers
    for, None of an attack that needs no more than weights. `adaptive` says what a thief who knows
    the defence knows; empty for one who does not.
    """

    change: Change = "other"
    exact: bool = False
    adaptive: str = ""
    images: int | None = None
    data: str = ""
    queries: int | None = None


@dataclass(frozen=True, slots=True)
class Outline:
    """What was asked: the suite's cells by key and in its order, and what to print around them.

    `steps` are those that suspects went through; older outlines name none.
    """

    name: str
    title: str
    alpha: float
    cells: tuple[tuple[str, Cell], ...]
    reductions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    steps: tuple[tuple[Spec, StepFacts], ...] = ()

    @property
    def heading(self) -> str:
        """Return what the suite is called in captions."""
        return self.title or self.name


Shape = Literal["mini", "mini-deep", "mini-wide"]
"""The embedded architectures; the owner is a `mini`, the others are for strangers."""

POPULATIONS: Mapping[Lineage, str] = {
    "released": "marked",
    "owner": "twin",
    "stranger": "stranger",
}
"""What tables call suspects, by what they descend from."""

EARLIER = "earlier steps"
"""What records call the cost of a chain's steps before the last, all together."""

UNTOUCHED = "control.identity"
"""The attack that stands for "nothing was done": a plan prices a mark on it."""
