"""Look at a model through the access that a method declared, and no further."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.models import meter
from bench.models.serving import Service
from bench.models.vision import VisionModel, clone
from bench.records.nouns import Access


class View:
    """A suspect as its verifier sees it: no more than the access declared, every query counted.

    `head` maps the suspect's final tokens (b, n, d) to class scores (b, k), as its own would. If it
    is `grafted` it is the verifier's, who then asks a served suspect for features, not for scores.
    Only who asks for weights sees through what a suspect is served with.
    """

    def __init__(
        self,
        model: VisionModel,
        access: Access,
        head: Callable[[Tensor], Tensor] | None = None,
        grafted: bool = False,
    ) -> None:
        self._model = clone(model).requires_grad_(False)
        self._service = Service(self._model)
        self._head = head or self._model.forward_head
        self._grafted = grafted
        self._access = access
        self.queries = 0

    def labels(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to predicted classes (b,)."""
        return self._asked(Access.LABELS, self._logits, images).argmax(1)

    def logits(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to class scores (b, k)."""
        return self._asked(Access.LOGITS, self._logits, images)

    def features(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to pooled features (b, d)."""
        return self._asked(Access.FEATURES, self._features, images)

    @property
    def answered(self) -> float:
        """Return the share of queries that were not refused."""
        return self._service.answered

    @property
    def network(self) -> VisionModel:
        """Return the network itself, in eval mode and frozen."""
        self._refuse(Access.WEIGHTS)
        return self._model

    def _features(self, images: Tensor) -> Tensor:
        return self._service.ask(images, self._model.embedding)

    def _logits(self, images: Tensor) -> Tensor:
        if self._grafted:
            return self._service.ask_tokens(images, self._head)
        return self._service.ask(images, self._head, scores=True)

    @torch.no_grad()
    def _asked(self, wanted: Access, ask: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        self._refuse(wanted)
        found = ask(images)
        self.queries += len(images)  # only now: what ran out of memory is asked again, in parts
        meter.count(queries=len(images))
        return found

    def _refuse(self, wanted: Access) -> None:
        if wanted not in self._access:
            raise PermissionError(
                f"expected use of {self._access.text or 'nothing'} only, as declared in `needs`, "
                f"got a request for {wanted.text}"
            )
