"""Lay before an accuser what he looks at, and write down the claim that he makes up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.data.images import Images
from bench.models.heads import Head
from bench.models.surgery import with_head
from bench.models.suspect import View
from bench.models.vision import VisionModel, clone
from bench.models.weights import secret_digest
from bench.records.nouns import Readout
from bench.runs.made import Made
from bench.training.readout import head_for
from bench.types import Accuser, Case, Context, Method, Protected, Suspect


@dataclass
class Looked:
    """What an accuser looks at, one model after the other.

    `how` says whose head answers where his method asks for labels, as it will say to a judge; his
    labelled `images` fit a head that is fitted anew.
    """

    method: Method
    own: VisionModel
    how: Readout | None
    images: Images
    device: torch.device
    innocent: VisionModel | None = None
    suspect: Suspect | None = None
    surrogates: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    victim: Protected | None = None

    def add(self, role: str, model: VisionModel, secret: Mapping[str, Tensor]) -> None:
        """Add a model he looks at, in its role."""
        if role == "victim":
            self.victim = Protected(model, secret)
            return
        head = self._head(model)
        if role == "surrogate":
            self.surrogates.append(_scores(model, head))
        else:
            self.suspect = View(model, self.method.needs, head)
            self.innocent = model if self.how in (None, "native") else self._grafted(model)

    def case(self) -> Case:
        """Return what there is."""
        return Case(
            method=self.method,
            own=self.own,
            innocent=self.innocent,
            suspect=self.suspect,
            surrogates=tuple(self.surrogates),
            victim=self.victim,
        )

    def _head(self, model: VisionModel) -> Callable[[Tensor], Tensor] | None:
        if self.how is None:
            return None
        return head_for(self.how, model, self.own, self.images, self.device)

    def _grafted(self, model: VisionModel) -> VisionModel | None:
        """Give the accuser's head to an innocent; None where no model answers as the judge hears.

        A head that a judge fits anew stands in no model, and a library's own in none but its own.
        The innocent may be of another shape: whether the head fits it was seen before.
        """
        asked = self.own.architecture.head
        if self.how != "graft" or self.own.head is None or not isinstance(asked, Head):
            return None
        whole = with_head(model, asked, torch.Generator())
        assert whole.head is not None, "it was given one"
        whole.head.load_state_dict(self.own.head.state_dict())
        return whole.eval()


def _scores(
    model: VisionModel, head: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """Return what maps images (b, 3, h, w) to scores (b, k), through which gradients pass."""
    frozen = clone(model).requires_grad_(False)
    ask = head or frozen.forward_head
    return lambda images: ask(frozen.forward_features(images))


def made(accuser: Accuser, case: Case, ctx: Context) -> Made:
    """Have a claim made up; the notes say how many keys were tried and what would refuse it.

    The accuser's model is kept where it is another than his clean one.
    """
    forged = accuser.accuse(case, ctx)
    notes = {
        "keys_tried": 1,
        **forged.notes,
        "accuses": accuser.accuses,
        "post_hoc": accuser.post_hoc,
        "stopped_by": accuser.stopped_by,
        "secret_digest": secret_digest(forged.secret),
    }
    kept = Made.of(forged.model.cpu(), notes, "model.")
    model = kept.tensors if accuser.accuses == "owner" and kept.tensors else {}
    secret = {f"secret.{name}": value for name, value in forged.secret.items()}
    return dataclasses.replace(kept, tensors={**model, **secret})
