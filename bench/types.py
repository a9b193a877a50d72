"""What a plug-in is made of: the protocol it implements, and the nouns it speaks in.

Nothing here imports torch at run time: a report must be readable on a laptop that has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from bench.records.nouns import Access as Access
from bench.records.nouns import Change as Change
from bench.records.nouns import Evidence as Evidence
from bench.records.nouns import ExactNull as ExactNull
from bench.records.nouns import Incompatible as Incompatible
from bench.records.nouns import Json as Json
from bench.records.nouns import Passes as Passes
from bench.records.nouns import Precision
from bench.records.nouns import Readout as Readout
from bench.records.nouns import Rule as Rule
from bench.records.nouns import Shape as Shape
from bench.records.nouns import Sizes as Sizes
from bench.records.nouns import Spec as Spec
from bench.records.nouns import StoppedBy as StoppedBy
from bench.records.nouns import UserError as UserError
from bench.records.settings import Count as Count
from bench.records.settings import Later as Later
from bench.records.settings import NotNegative as NotNegative
from bench.records.settings import OpenShare as OpenShare
from bench.records.settings import PartialShare as PartialShare
from bench.records.settings import Positive as Positive
from bench.records.settings import PositiveFloat as PositiveFloat
from bench.records.settings import PositiveShare as PositiveShare
from bench.records.settings import Reading as Reading
from bench.records.settings import Share as Share

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.data.images import Images
    from bench.models.vision import VisionModel


@dataclass(frozen=True, slots=True)
class Context:
    """What one party, owner or thief, may draw on.

    `images` and `held_out` are this party's own, split by source photograph; no source is shared
    between owner and thief, nor between `images` and `held_out`. What a thief holds out stays with
    the bench, which measures utility on it: an attack gets none. `rng` lives on the CPU.
    `stranger` gives the i-th independently trained model of the owner's shape (controls only).
    `base` is the public, unmarked model, handed to an attack that says `uses_base = True`.
    `copies` gives the i-th model that the owner released under another key, counted from 0, to an
    attack with a setting `copies`.
    """

    device: torch.device
    rng: torch.Generator
    images: Images
    held_out: Images
    stranger: Callable[[int], VisionModel] | None = None
    base: VisionModel | None = None
    copies: Callable[[int], VisionModel] | None = None


@dataclass(frozen=True, slots=True)
class Protected:
    """A model as its owner releases it, with the secret that will identify it later.

    `secret` must hold tensors only (it is stored without pickling). `ideal_seconds` is the time of
    the fewest passes this protection needs, measured by the method in the same run, if it can say.
    """

    model: VisionModel
    secret: Mapping[str, Tensor]
    notes: Mapping[str, Json] = field(default_factory=dict)
    ideal_seconds: float | None = None


class Suspect(Protocol):
    """A model in someone else's hands, seen only through the access the method declared.

    Images are (b, 3, h, w) floats in [0, 1]; resizing and normalisation are the suspect's own.
    Asking for more than the declared access raises `PermissionError`.
    """

    def labels(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to predicted classes (b,)."""

    def logits(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to class scores (b, k)."""

    def features(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to pooled features (b, d)."""

    @property
    def network(self) -> VisionModel:
        """Return the network itself, in eval mode and frozen; white-box methods only."""


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a method comes from.

    `cited` is who and where, as "Xu et al., NeurIPS"; `id` is what finds it, as "arXiv:2410.14273".
    """

    year: int
    cited: str
    id: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What lists say of a method and the rest of its class does not.

    `unit` names one query, as its evidence does. `paper` is none where there is none. `answers` is
    the question that a high score says yes to. `labelled` is true if the owner's images must be
    labelled. `departures` are what it does otherwise than its paper, each in a line.
    """

    unit: str
    paper: Paper | None = None
    answers: str = "stolen?"
    labelled: bool = False
    departures: tuple[str, ...] = ()


@runtime_checkable
class Method(Protocol):
    """A way to claim a model: mark it or fingerprint it, then recognise it.

    What it may have beside is in `HasReadout`, `HasPrecision`, `CountsProtecting`,
    `CountsExtracting`, `SaysUnreadable`, `SaysTunable`, `RedrawsBits`, `TracesUsers`,
    `StatesFacts`, `HasForgery` and `TakesQueries`.
    """

    needs: ClassVar[Access]
    marks: ClassVar[bool]  # True if `protect` changes the model, False for a fingerprint

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Return the model to release and the secret kept; `owner` is left untouched."""

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Read the evidence off `suspect`, using nothing but `secret`."""


@runtime_checkable
class Attack(Protocol):
    """A way to obtain a suspect from a released model, or (a control) without it.

    What it may have beside is in `NamesData`, `NeedsLabels`, `UsesBase`, `UsesHead`, `UsesCopies`,
    `CountsPasses`, `CountsImages`, `CountsQueries`, `SaysChange`, `IsExact` and `IsAdaptive`.
    """

    offers: ClassVar[Access]  # what the owner may still see of the result
    derived: ClassVar[bool]  # False for a control: its suspect owes the victim nothing
    random: ClassVar[bool]  # False if the result does not depend on the seed

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return a new model; `victim` is left untouched."""


@dataclass(frozen=True, slots=True)
class Case:
    """What an accuser has in hand when he makes up a claim with somebody else's `method`.

    `own` is his own clean model, with a classifier where the method asks for labels. `innocent` is
    the model he is after and `suspect` the same as a judge will read it; None for an accuser who
    does not look at it first. Each of the `surrogates`, public models that the judge ranks nobody
    among, maps images (b, 3, h, w) in [0, 1] to scores (b, k) of his own model's classes; gradients
    pass. `victim` is what the true owner released, with the key that a dispute made known.
    """

    method: Method
    own: VisionModel
    innocent: VisionModel | None = None
    suspect: Suspect | None = None
    surrogates: tuple[Callable[[Tensor], Tensor], ...] = ()
    victim: Protected | None = None


@runtime_checkable
class Accuser(Protocol):
    """A way to make up a claim on a model that owes the accuser nothing.

    What it may have beside is in `UsesSurrogates`, `SaysUnsuited` and `CountsAccusing`.
    """

    accuses: ClassVar[Literal["stranger", "owner"]]  # a third party, or the model's true owner
    post_hoc: ClassVar[bool]  # True if the claim is made up for one innocent, by looking at it
    stopped_by: ClassVar[StoppedBy]

    def accuse(self, case: Case, ctx: Context) -> Protected:
        """Return the forged secret, and the model he shows as the one that he released.

        What is in `case` is left untouched; `ctx` is the accuser's own. The note "keys_tried" says
        how many keys he chose from, 1 if it is not there.
        """


@runtime_checkable
class HasForgery(Protocol):
    """A method of which it is known how a secret is fitted to a model after the fact."""

    def forged(self, suspect: Suspect, ctx: Context) -> Mapping[str, Tensor]:
        """Return a secret that `extract` finds in a suspect, which is left as it is."""


@runtime_checkable
class TakesQueries(Protocol):
    """A method whose secret is a list of images and the labels expected of them."""

    def asked(self) -> int:
        """Count the images of a secret."""

    def of_queries(self, images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Return the secret that asks about images (n, 3, h, w) in [0, 1] and expects labels (n,).

        There are as many as `asked` says.
        """


@runtime_checkable
class HasReadout(Protocol):
    """A method that needs labels or logits alone, and a setting for whose head gives them.

    The bench sees to it: `protect` never knows it, marked as `Reading` or not. Without one the
    suspect's own head answers.
    """

    readout: Readout


@runtime_checkable
class HasPrecision(Protocol):
    """A method with a setting for the precision it reads in, and plain passes are timed in."""

    precision: Precision


@runtime_checkable
class CountsProtecting(Protocol):
    """A method of which plans know what it costs to protect."""

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the passes of `protect`."""


@runtime_checkable
class CountsExtracting(Protocol):
    """A method of which plans know what it costs to read a suspect."""

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the passes of `extract`."""


@runtime_checkable
class SaysUnreadable(Protocol):
    """A method of which plans know, from shapes, whom it cannot read.

    Plans know by themselves whose answers can be had. A method that asks for labels or logits alone
    needs this not.
    """

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say why such a suspect cannot be read; empty where shapes do not tell.

        Both models have shapes and no weights: they lie on PyTorch's meta device.
        """


@runtime_checkable
class SaysUnfit(Protocol):
    """A method that knows from sizes alone where it cannot protect: `bench check` asks it."""

    def unfit(self, sizes: Sizes) -> str:
        """Say why so many images, or such a model, will not do; empty where sizes do not tell."""


@runtime_checkable
class SaysTunable(Protocol):
    """A method that says which of its settings are tuned, and the values each may take.

    Values stand in their order, where they have one: a draw of few covers the range by position.
    A setting that only reading depends on is never tuned, nor how many queries there are.
    """

    tunable: ClassVar[Mapping[str, tuple[Json, ...]]]


@runtime_checkable
class RedrawsBits(Protocol):
    """A method whose evidence has an exact null: its secret holds fair bits of its own.

    They are drawn uniformly and apart from all else, and `extract` looks at them last, to compare.
    Then about any model that owes the released one nothing each query agrees by a fair coin, and
    `Evidence.null` says how p follows. `bench.testing` redraws the bits to see that it is so.
    """

    def redrawn(self, secret: Mapping[str, Tensor], rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return the secret with bits drawn anew from `rng`, and all else as it was."""


@runtime_checkable
class TracesUsers(Protocol):
    """A method that gives each user a copy of their own, and finds whose a suspect is among many.

    Its setting `user` is the number of the user whose copy is made, or read. Its evidence has an
    exact null, and an innocent user's bits are independent of every copy that others were given.
    Then p times the number of users bounds how often one is wrongly named.
    """

    def copied(self, secret: Mapping[str, Tensor], owner: VisionModel, ctx: Context) -> Protected:
        """Return what `protect` does, for this user, with another copy's secret for the rest."""

    def closest(
        self,
        secret: Mapping[str, Tensor],
        suspect: Suspect,
        ctx: Context,
        users: int,
        most: int = 64,
    ) -> Mapping[int, Evidence]:
        """Return the evidence of those of the users 0 .. `users` - 1 who agree best, best first."""


@runtime_checkable
class StatesFacts(Protocol):
    """A method that states what lists say of it. Without it: "not stated"."""

    facts: ClassVar[Facts]


@runtime_checkable
class CountsPasses(Protocol):
    """An attack of which plans know what it costs."""

    def passes(self, sizes: Sizes) -> Passes:
        """Count the passes of `run`; a thief's held-out images are none."""


@runtime_checkable
class CountsImages(Protocol):
    """An attack that leaves some of the thief's images aside: they are no part of its price."""

    def looks_at(self, images: int) -> int:
        """Count those it looks at, of a pool of so many."""


@runtime_checkable
class CountsQueries(Protocol):
    """An attack by a thief who has nothing of the victim but its answers, and counts them."""

    def victim_queries(self, images: int) -> int:
        """Count the images that the victim answers for, of a pool of so many."""


@runtime_checkable
class NamesData(Protocol):
    """An attack with a setting that names the data set whose thief's images it gets.

    An attack without one, or where it is none, gets the probe's.
    """

    data: str | None


@runtime_checkable
class NeedsLabels(Protocol):
    """An attack that learns from labels or masks of the thief's images, if true.

    It refuses images that have none with a `UserError`, as a plan does where it can tell.
    """

    labelled: ClassVar[bool]


@runtime_checkable
class UsesBase(Protocol):
    """An attack that asks for the public, unmarked model as `ctx.base`, if true."""

    uses_base: ClassVar[bool]


@runtime_checkable
class UsesHead(Protocol):
    """An attack whose victim must have a classifier, if true."""

    uses_head: ClassVar[bool]


@runtime_checkable
class UsesCopies(Protocol):
    """An attack with a setting for how many of the owner's copies it takes, the victim among them.

    The others are the same owner's, marked by the same method under keys that are neither the
    claim's nor the victim's: `ctx.copies` gives `copies` - 1 of them. So a twin, which is the clean
    owner in the victim's place, lacks one mark alone. Where nothing is marked, none are to be had.
    """

    copies: int


@runtime_checkable
class SaysChange(Protocol):
    """An attack that says what it changes: tables group rows by it. Without it, "other"."""

    change: ClassVar[Change]


@runtime_checkable
class IsExact(Protocol):
    """An attack whose suspect computes what the victim does, if true, to rounding.

    Final tokens, features and answers agree to 1e-9 in float64 and 1e-4 in float32, in units of
    the largest of the victim's; `bench.testing` checks it.
    """

    exact: ClassVar[bool]


@runtime_checkable
class IsAdaptive(Protocol):
    """An attack by a thief who knows the defence: says what of it he knows."""

    adaptive: ClassVar[str]


@runtime_checkable
class UsesSurrogates(Protocol):
    """An accuser with a setting for how many public models he has."""

    surrogates: int


@runtime_checkable
class SaysUnsuited(Protocol):
    """An accuser who can do nothing with some methods."""

    def unsuited(self, method: Method) -> str:
        """Say why nothing can be made up with a method; empty if something can."""


@runtime_checkable
class CountsAccusing(Protocol):
    """An accuser of whom plans know what he costs with a method."""

    def passes(self, method: Method, sizes: Sizes) -> Passes | None:
        """Count the passes of `accuse`; None where the method does not say its own."""
