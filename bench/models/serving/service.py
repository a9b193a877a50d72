"""Answer questions as a server does: map them, refuse some, map the answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.models.serving.maps import DETECTORS, changed, impossible, seeds_of, told
from bench.models.vision import Served, VisionModel
from bench.records.nouns import UserError

Read = Callable[[Tensor], Tensor]
"""What maps final tokens (b, n, d) to what is asked for."""


class Service:
    """A model as its clients meet it; it remembers what it was asked.

    Without anything between it is the model itself. Images are (b, 3, h, w) in [0, 1].
    """

    def __init__(self, model: VisionModel) -> None:
        self._model = model
        self._served = model.architecture.served or ()
        if why := impossible(self._served):
            raise UserError(f"served: {why}")
        self._seen: list[Tensor] = [torch.empty(0) for _ in self._served]  # a detector's memory
        self.asked = 0
        self.refused = 0

    @property
    def answered(self) -> float:
        """Return the share of questions that were not refused; 1 before any."""
        return 1 - self.refused / self.asked if self.asked else 1.0

    def ask(self, images: Tensor, read: Read, scores: bool = False) -> Tensor:
        """Answer with what `read` makes of the model's final tokens: features, or `scores`."""
        if not self._served:
            return read(self._model.forward_features(images))
        return self._guarded(
            images, lambda tokens: told(read(tokens), self._served, images, scores)
        )

    def ask_tokens(self, images: Tensor, read: Read) -> Tensor:
        """Answer with tokens, to a client who has a `read` of his own."""
        if not self._served:
            return read(self._model.forward_features(images))
        return self._guarded(images, lambda tokens: read(told(tokens, self._served, images, False)))

    def _guarded(self, images: Tensor, answer: Read) -> Tensor:
        """Answer, but at random where a detector refuses.

        A refused answer has the numbers of the honest one in another order. So nobody can tell it
        by their spread, and of classes none is likelier than another.
        """
        changed_images = changed(images, self._served, images)
        tokens = self._model.forward_features(changed_images)
        refused = torch.zeros(len(images), dtype=torch.bool, device=tokens.device)
        memory = list(self._seen)
        for i, how in enumerate(self._served):
            if how.kind in DETECTORS:
                found, memory[i] = suspicion(self._model, how, changed_images, tokens, memory[i])
                refused |= found < how.bound
        made = answer(tokens).clone()
        for row in refused.nonzero().flatten().tolist():
            seed = seeds_of(images[row : row + 1], _salt(self._served))[0]
            order = torch.randperm(made.shape[-1], generator=torch.Generator().manual_seed(seed))
            made[row] = made[row][..., order.to(made.device)]
        # Only now: what ran out of memory is asked again, in parts.
        self._seen, self.asked = memory, self.asked + len(images)
        self.refused += int(refused.sum())
        return made


def answers(model: VisionModel, images: Tensor) -> Tensor:
    """Return what a client gets who asks once: class scores where there is a head, or features."""
    service = Service(model)
    if model.architecture.head is None:
        return service.ask(images, model.embedding)
    return service.ask(images, model.forward_head, scores=True)


def suspicion(
    model: VisionModel, how: Served, images: Tensor, tokens: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how far each question is from suspect, (b,), and the memory with them in it.

    Lower is more suspect: nearer to earlier ones, or less like itself once it is compressed.
    Features (b, d) are of unit length; pixels are those that the model sees.
    """
    if how.kind == "detect.pixels":
        return _nearness(model.normalise(images).flatten(1), seen, int(how.amount))
    features = F.normalize(model.embedding(tokens).flatten(1), dim=1)
    if how.kind == "detect.jpeg":
        again = changed(images, (Served("jpeg", how.amount),), images)
        squeezed = model.embedding(model.forward_features(again)).flatten(1)
        return F.cosine_similarity(features, squeezed, dim=1), seen
    return _nearness(features, seen, int(how.amount))


def _nearness(asked: Tensor, seen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean distance of questions (b, d) to the nearest earlier ones, and all of them."""
    before = torch.cat([seen.to(asked), asked]) if len(seen) else asked
    first = len(before) - len(asked)
    apart = torch.cdist(asked, before)  # (b, seen + b)
    rows = torch.arange(len(asked), device=apart.device)[:, None]
    columns = torch.arange(len(before), device=apart.device)
    apart = apart.where(columns < first + rows, torch.inf)  # asked earlier, in this batch or before
    nearest = apart.topk(min(count, len(before)), dim=1, largest=False).values
    known = nearest.isfinite()
    mean = nearest.where(known, 0).sum(1) / known.sum(1).clamp_min(1)
    return mean.where(known.any(1), torch.inf), before


def bound_for(found: Tensor, share: float) -> float:
    """Return the bound below which the share of what was found of clean images (n,) lies.

    What is infinite, such as how far the first question is from earlier ones, is never below.
    """
    ordered = found[found.isfinite()].sort().values
    least = round(share * len(found))
    return float(ordered[min(least, len(ordered) - 1)]) if len(ordered) else 0.0


def _salt(served: tuple[Served, ...]) -> int:
    return next(how.seed for how in served if how.kind in DETECTORS)
