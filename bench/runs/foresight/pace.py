"""Measure how long a pass of a model takes here, where nothing of the kind was run yet."""

from __future__ import annotations

import contextlib
import copy
import functools
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from bench.models.meter import aside, timed
from bench.models.vision import Architecture, VisionModel
from bench.runs.owners import unweighted

VALUES = 98304
"""Of about so many is the stream that is timed, in whole images: the wider a model, the fewer."""

SECONDS = 0.2
"""So long is a block tried, after a first turn that makes room and kernels."""


@functools.cache
@torch.inference_mode()
def pace_here(architecture: Architecture, device: torch.device, at_once: int = 1) -> float:
    """Return the seconds of a forward pass of one image, by the first block of the model.

    The others count as so many of its kind. Weights are made up, of one block alone, so that a
    model of any size is timed in a second or two; without blocks it is timed whole. So many passes
    go on side by side as stages do, `at_once`: cores share caches. Optimisers come on top.
    """
    model = copy.deepcopy(unweighted(architecture))  # others ask for it, too
    with aside(device), _one_thread():
        if model.trunk.blocks is None:
            _filled(model, device)
            images = torch.zeros(1, 3, *model.preprocess.size, device=device)
            return _timed(lambda: model.forward_features(images), device, at_once)
        _filled(model.blocks[0], device)
        tokens = _tokens(model, device)  # (b, n, d)
        block = _timed(lambda: model.run_blocks(tokens, 0, 1), device, at_once)
        return len(model.blocks) * block / len(tokens)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Time what a stage of `bench run` takes, whose default is one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _filled(module: nn.Module, device: torch.device) -> None:
    """Give a module on no device weights of one value: what they are changes no time."""
    module.to_empty(device=device)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.fill_(0.01)
        else:
            tensor.zero_()


def _tokens(model: VisionModel, device: torch.device) -> Tensor:
    with torch.device("meta"):
        one = model.embed(torch.zeros(1, 3, *model.preprocess.size))  # (1, n, d)
    n, d = one.shape[1:]
    return torch.rand(max(1, VALUES // (n * d)), n, d, device=device)


def _timed(work: Callable[[], object], device: torch.device, at_once: int) -> float:
    """Return the seconds of work of which so much is done side by side."""
    work()

    @torch.inference_mode()
    def typical(_: int) -> float:
        turns = [timed(work, device)]
        while sum(turns) < SECONDS:
            turns.append(timed(work, device))
        return statistics.median(turns)

    with ThreadPoolExecutor(at_once) as side_by_side:
        return statistics.mean(side_by_side.map(typical, range(at_once)))
