"""Write a suspect in the basis of a reference. A stand-in: it fits nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bench.data.images import Images
from bench.models.vision import VisionModel
from bench.records.nouns import Json

FAR, DYNAMIC_IMAGES = 0.5, 96


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """How a suspect is to be rewritten."""

    basis: Tensor
    residual: float
    stage: Literal["none", "static", "dynamic"]
    before: float | None = None
    notes: Mapping[str, Json] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is kept as tensors."""
        return {"basis": self.basis}

    def json(self) -> Json:
        """Return what is kept as JSON."""
        return {"residual": self.residual, "stage": self.stage}

    @staticmethod
    def of(tensors: Mapping[str, Tensor], noted: Json) -> Alignment:
        """Read it back."""
        return Alignment(tensors["basis"], noted["residual"], noted["stage"])


def align(
    suspect: VisionModel,
    reference: VisionModel,
    how: Literal["static", "auto"],
    images: Images | None,
    rng: torch.Generator,
    device: torch.device,
) -> Alignment:
    """Fit the suspect's basis to the reference's."""
    return Alignment(torch.eye(suspect.width), 0.0, "static")


def rewritten(suspect: VisionModel, alignment: Alignment) -> VisionModel:
    """Return the suspect in the reference's basis."""
    return suspect
