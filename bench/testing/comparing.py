"""Compare models and secrets, and watch what a plug-in leans on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from bench.data.images import Images
from bench.models.building import build
from bench.models.serving import answers
from bench.models.vision import Architecture, VisionModel
from bench.models.weights import load_state
from bench.testing.victims import CPU, context
from bench.types import Context, Protected

T = TypeVar("T")


def _run(
    checks: Sequence[Callable[[T], None]],
    plugin: T,
    note: Callable[[str], object],
    threads: int | None,
) -> None:
    """Run checks in turn, each told of first; an error says in which of them it came."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for number, check in enumerate(checks, start=1):
            promise = (check.__doc__ or "").partition("\n")[0]
            told = f"[{number}/{len(checks)}] {check.__name__}: {promise}"
            note(told)
            try:
                check(plugin)
            except Exception as error:  # whichever it is, it is raised again
                error.add_note(f"{plugin}: {told}")
                raise
    finally:
        torch.set_num_threads(before)


def _alike(name: str, one: Protected, other: Protected) -> bool:
    """Say whether two secrets hold the same under a name, but for rounding."""
    if name not in one.secret or name not in other.secret:
        return False
    here, there = one.secret[name].double(), other.secret[name].double()
    if here.shape != there.shape or not here.numel():
        return here.shape == there.shape
    return bool((here - there).abs().mean() <= 0.01 * here.std(correction=0) + 1e-6)


def _watched(ctx: Context, seen: list[Any]) -> Context:
    """Have every batch drawn from the context's images written down in `seen`."""

    class Watched(Images):
        def batch(self, indices: Tensor | slice, device: torch.device) -> Tensor:
            seen.append(indices if isinstance(indices, slice) else indices.tolist())
            return super().batch(indices, device)

    images = ctx.images
    watched = Watched(**{f.name: getattr(images, f.name) for f in dataclasses.fields(images)})
    return dataclasses.replace(ctx, images=watched)


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Set every global generator a plug-in might lean on, and put them back afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _round_trip(model: VisionModel) -> VisionModel:
    described = Architecture.of(json.loads(json.dumps(model.architecture.json())))
    return load_state(build(described), load(save(model.state_dict())), "the stored weights")


def _outputs(model: VisionModel) -> Tensor:
    with torch.no_grad():
        images = context().images.batch(slice(0, 16), CPU)
        if model.architecture.served:
            return answers(model.eval(), images)
        found: Tensor = model.eval()(images)
    return found


def _snapshot(model: VisionModel) -> dict[str, Tensor]:
    """Return all a caller could find changed: the weights, and flags written as tensors."""
    flags = {f"requires_grad of {n}": p.requires_grad for n, p in model.named_parameters()}
    flags |= {f"mode of {n or 'the model'}": m.training for n, m in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return weights | {name: torch.tensor(flag) for name, flag in flags.items()}


def _head(model: VisionModel) -> dict[str, Tensor]:
    # Parameters alone: what a batch norm counts depends on the victim's features, rightly so.
    return {} if model.head is None else dict(model.head.named_parameters())


def _differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    return [n for n in sorted({*a, *b}) if n not in a or n not in b or not torch.equal(a[n], b[n])]


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], complaint: str) -> None:
    found = _differing(a, b)
    _require(not found, f"{complaint}: {', '.join(found[:3])} ({len(found)} in all)")


def _finite(values: Mapping[str, Tensor], complaint: str) -> None:
    bad = [name for name, value in values.items() if not torch.isfinite(value).all()]
    _require(not bad, f"{complaint} NaN or infinity in {', '.join(bad[:3])}")


def _require(holds: bool, complaint: str) -> None:
    if not holds:  # not `assert`: the contract holds under python -O as well
        raise AssertionError(complaint)
