"""What one stage produced, on its way to the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bench.models.vision import VisionModel
from bench.models.weights import weights_digest
from bench.records.nouns import Json


@dataclass(frozen=True, slots=True)
class Made:
    """What one stage produced, and its own timing where the whole stage's would mislead."""

    payload: Mapping[str, Json]
    tensors: Mapping[str, Tensor] | None = None
    seconds: float | None = None
    ideal_seconds: float | None = None

    @staticmethod
    def of(
        model: VisionModel, notes: Mapping[str, Json] | None = None, prefix: str = "model."
    ) -> Made:
        """Write a model down: its architecture, its digest and its tensors."""
        payload = {
            "architecture": model.architecture.json(),
            "digest": weights_digest(model),
            "notes": dict(notes or {}),
        }
        return Made(payload, {f"{prefix}{k}": v for k, v in model.state_dict().items()})
