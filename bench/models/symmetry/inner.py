"""Move units and bases inside branches, which nothing outside of them sees.

Each function changes every block. Sources: H. Yan et al., "Rethinking white-box watermarks on deep
learning models under neural structural obfuscation", arXiv:2303.09732 (permuting neurons);
B. Zeng et al., "HuRef: human-readable fingerprint for large language models", arXiv:2312.04828,
section 3 (pairs of inverse maps within a head, which its attacks are made of).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.models import VisionModel, clone
from bench.models.symmetry.anatomy import Attention, Linear, Mlp, read
from bench.records.nouns import UserError

CONDITION = 10.0
"""How ill-conditioned a map within a head may be: what rounding grows by."""


def permute_neurons(model: VisionModel, rng: torch.Generator) -> VisionModel:
    """Permute the hidden units of every MLP.

    Raises:
        UserError: no such transformer, or a norm stands among hidden units.

    """
    made = clone(model)
    with torch.no_grad():
        for _, mlp in read(made).blocks:
            _refuse_between(mlp, model)
            order = torch.randperm(mlp.hidden, generator=rng)
            arrange(mlp, order.to(mlp.writer.weight.device))
    return made


def arrange(mlp: Mlp, order: Tensor) -> None:
    """Put the hidden units of an MLP in another order, in place."""
    for reader in mlp.readers:
        rows = len(reader.weight) // mlp.hidden  # 2 where two maps are packed
        for place in _present(reader):
            place.copy_(split(place, 0, rows, mlp.hidden)[:, order].flatten(0, 1))
    mlp.writer.weight.copy_(mlp.writer.weight[:, order])


def permute_heads(model: VisionModel, rng: torch.Generator) -> VisionModel:
    """Permute the heads of every attention.

    Raises:
        UserError: no such transformer, or something stands between values and what reads them.

    """
    made = clone(model)
    with torch.no_grad():
        for attention, _ in read(made).blocks:
            _refuse_between(attention, model)
            order = torch.randperm(attention.heads, generator=rng)
            arrange_heads(attention, order.to(attention.qkv.weight.device))
    return made


def arrange_heads(attention: Attention, order: Tensor) -> None:
    """Put the heads of an attention in another order, in place."""
    for place in _present(attention.qkv):
        packed = split(place, 0, 3, attention.heads, attention.head_dim)
        place.copy_(packed[:, order].flatten(0, 2))
    columns = split(attention.writer.weight, 1, attention.heads, attention.head_dim)
    attention.writer.weight.copy_(columns[:, order].flatten(1, 2))


def mix_queries(model: VisionModel, rng: torch.Generator) -> VisionModel:
    """Map the queries of each head by a random A, and its keys by A^-T.

    Where these are normed, their channels are permuted instead, alike in all heads.

    Raises:
        UserError: no such transformer.

    """
    made = clone(model)
    with torch.no_grad():
        for attention, _ in read(made).blocks:
            if attention.normed:
                _permute_channels(attention, rng)
                continue
            ahead, inverse = _pairs(attention, rng)
            _map_heads(attention, 0, ahead)
            _map_heads(attention, 1, inverse.mT)
    return made


def mix_values(model: VisionModel, rng: torch.Generator) -> VisionModel:
    """Map the values of each head by a random B, and undo it where they are read.

    Raises:
        UserError: no such transformer, or something stands between values and what reads them.

    """
    made = clone(model)
    with torch.no_grad():
        for attention, _ in read(made).blocks:
            _refuse_between(attention, model)
            ahead, inverse = _pairs(attention, rng)
            _map_heads(attention, 2, ahead)
            weight = attention.writer.weight
            columns = split(weight.double(), 1, attention.heads, attention.head_dim)
            weight.copy_(torch.einsum("dhi,hij->dhj", columns, inverse).flatten(1))
    return made


def move_biases(model: VisionModel, sd: float, rng: torch.Generator) -> VisionModel:
    """Add noise with deviation `sd` to the biases of keys, and of values, which is then taken back.

    A bias of keys adds the same to all scores of a query, which softmax does not see; one of values
    is added to every token, since attention sums to one. Where keys are normed, they keep theirs.

    Raises:
        UserError: no such transformer, one without these biases, or something stands between values
            and what reads them.

    """
    made = clone(model)
    with torch.no_grad():
        for attention, _ in read(made).blocks:
            _refuse_between(attention, model)
            bias, after = attention.qkv.bias, attention.writer.bias
            if bias is None or after is None:
                raise UserError(
                    f"expected biases of keys and values, got {model.architecture.name} without; "
                    "choose another freedom"
                )
            _, keys, values = bias.view(3, -1)
            drawn = torch.randn(2, len(keys), generator=rng, dtype=torch.float64).to(bias.device)
            if not attention.normed:
                keys.copy_(keys.double() + sd * drawn[0])
            values.copy_(values.double() + sd * drawn[1])
            after.copy_(after.double() - attention.writer.weight.double() @ (sd * drawn[1]))
    return made


def scale_gates(model: VisionModel, sd: float, rng: torch.Generator) -> VisionModel:
    """Scale the hidden units of gated MLPs: the map without an activation, and what reads it.

    Factors are exp(sd n), n drawn from a normal distribution.

    Raises:
        UserError: no such transformer, one without gates, or a norm stands among hidden units.

    """
    made = clone(model)
    with torch.no_grad():
        for _, mlp in read(made).blocks:
            _refuse_between(mlp, model)
            if not mlp.gated:
                raise UserError(
                    f"expected gated MLPs, got {model.architecture.name}, whose activations "
                    "do not scale; choose another freedom"
                )
            drawn = torch.randn(mlp.hidden, generator=rng, dtype=torch.float64)
            factors = (sd * drawn).exp().to(mlp.writer.weight.device)
            for place in _present(mlp.readers[mlp.plain if len(mlp.readers) > 1 else 0]):
                halves = split(place, 0, -1, mlp.hidden)
                half = halves[mlp.plain if len(mlp.readers) == 1 else 0]
                half.copy_(half.double() * factors.view(-1, *[1] * (half.ndim - 1)))
            mlp.writer.weight.copy_(mlp.writer.weight.double() / factors)
    return made


def split(value: Tensor, axis: int, *sizes: int) -> Tensor:
    """View one axis as several, of which one size may be -1."""
    return value.view(*value.shape[:axis], *sizes, *value.shape[axis + 1 :])


def _present(linear: Linear) -> list[nn.Parameter]:
    return [linear.weight] if linear.bias is None else [linear.weight, linear.bias]


def _refuse_between(branch: Attention | Mlp, model: VisionModel) -> None:
    if branch.between:
        raise UserError(
            f"expected nothing between hidden units and what reads them, got {branch.between} in "
            f"{model.architecture.name}; choose another freedom"
        )


def _pairs(attention: Attention, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a map for each head and its inverse, both (h, c, c)."""
    heads, size = attention.heads, attention.head_dim
    drawn = torch.randn(2, heads, size, size, generator=rng, dtype=torch.float64)
    turn, back = torch.linalg.qr(drawn)[0]
    sizes = CONDITION ** (torch.rand(heads, size, generator=rng, dtype=torch.float64) - 0.5)
    ahead = turn * sizes[:, None] @ back.mT
    inverse = back / sizes[:, None] @ turn.mT
    device = attention.qkv.weight.device
    return ahead.to(device), inverse.to(device)


def _map_heads(attention: Attention, which: int, maps: Tensor) -> None:
    """Map queries (0), keys (1) or values (2) of each head by (h, c, c), in place."""
    for place in _present(attention.qkv):
        part = split(place, 0, 3, attention.heads, attention.head_dim)[which]
        part.copy_(torch.einsum("hij,hj...->hi...", maps, part.double()))


def _permute_channels(attention: Attention, rng: torch.Generator) -> None:
    order = torch.randperm(attention.head_dim, generator=rng).to(attention.qkv.weight.device)
    for place in _present(attention.qkv):
        packed = split(place, 0, 3, attention.heads, attention.head_dim)[:2]
        packed.copy_(packed[:, :, order].clone())
    for norm in (attention.module.q_norm, attention.module.k_norm):
        for parameter in norm.parameters():
            parameter.copy_(parameter[order])
