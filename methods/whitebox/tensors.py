"""Find the tensor of a transformer that carries bits, and refuse one of another shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.models import VisionModel
from bench.models.symmetry import read
from bench.types import Incompatible, UserError

Name = Literal["fc1", "fc2", "patch"]
"""The first and the last map of an MLP, and the filters that embed patches."""

Block = int | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Carrier:
    """A tensor by its name and the number of its block; it has M `inputs` for each output."""

    name: Name
    block: int
    outputs: int
    inputs: int

    def tensor(self) -> Tensor:
        """Return what a secret keeps of it; the name is a setting."""
        return torch.tensor([self.block, self.outputs, self.inputs])

    def of(self, model: VisionModel, whole: bool = True) -> nn.Parameter:
        """Return the carrier of a model, (outputs, inputs) or (outputs, 3, h, w).

        Where not the `whole` is read but a mean, the model may have more or fewer outputs.

        Raises:
            Incompatible: the model has none, or one of another shape.

        """
        found = _weight(model, self.name, self.block)
        outputs, inputs = len(found), found[0].numel()
        if inputs != self.inputs or (whole and outputs != self.outputs):
            wanted = f"{self.outputs} x {self.inputs}" if whole else f"any x {self.inputs}"
            raise Incompatible(
                f"expected a tensor '{self.name}' of {wanted} weights, got {outputs} x {inputs} "
                f"in {model.architecture.name}"
            )
        return found


def carrier(model: VisionModel, name: Name, block: Block) -> Carrier:
    """Choose the tensor of a model; "auto" is the block in the middle.

    Raises:
        Incompatible: the model is no transformer with such a tensor.

    """
    number = 0 if name == "patch" else middle(model) if block == "auto" else block
    found = _weight(model, name, number)
    return Carrier(name, number, len(found), found[0].numel())


def found_again(name: Name, place: Tensor) -> Carrier:
    """Read back what `Carrier.tensor` wrote."""
    return Carrier(name, *place.tolist())


def middle(model: VisionModel) -> int:
    """Return the number of the block in the middle."""
    return len(model.blocks) // 2


def refuse_block(model: VisionModel, block: int) -> None:
    """Refuse a model that has no block of this number.

    Raises:
        Incompatible: it has too few.

    """
    if block >= (depth := len(model.blocks)):
        raise Incompatible(f"expected a block {block}, got {depth} blocks, counted from 0")


def _weight(model: VisionModel, name: Name, block: int) -> nn.Parameter:
    refuse_block(model, block)
    try:
        parts = read(model)
    except UserError as error:
        raise Incompatible(str(error).partition("; ")[0]) from None
    if name == "patch":
        return parts.embeddings[0].weight
    mlp = parts.blocks[block][1]
    return mlp.readers[0].weight if name == "fc1" else mlp.writer.weight
