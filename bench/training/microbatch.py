"""Answer a device's want of memory: go on with smaller batches, and say so.

What counts as such is `torch.OutOfMemoryError`, which PyTorch raises after it has given back what
it kept for later. A batch that no error meets is never cut.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bench.models import meter
from bench.records.nouns import UserError

T = TypeVar("T")


def in_batches(count: int, batch: int, work: Callable[[slice], T]) -> Iterator[T]:
    """Yield what `work` makes of 0 .. count - 1, a slice of `batch` at a time or what fits."""
    return MicroBatches(batch).over(count, work)


@dataclass(slots=True)
class MicroBatches:
    """Batches of `size` images, half as large from then on where the device lacks the memory.

    One for a whole loop remembers what fitted. The smallest size is noted by every running meter.
    """

    size: int

    def over(self, count: int, work: Callable[[slice], T]) -> Iterator[T]:
        """Yield what `work` makes of each slice of 0 .. count - 1, in their order.

        What ran out of memory is done again, in halves: `work` leaves nothing behind when it fails.

        Raises:
            UserError: there is no memory for one image.

        """
        start = 0
        while start < count:
            part = slice(start, min(start + self.size, count))
            found = _tried(functools.partial(work, part))
            if found is None:
                self._halve(part.stop - part.start)
                continue
            yield found[0]
            start = part.stop

    def accumulate(
        self,
        count: int,
        loss_of: Callable[[slice], tuple[Tensor, Tensor]],
        clear: Callable[[], None],
        device: torch.device,
        *generators: torch.Generator,
        share_of: Callable[[slice], float] | None = None,
    ) -> Tensor:
        """Add up the gradients of a batch's mean loss; return the mean of what is reported.

        `loss_of` maps a slice of the batch to its mean loss and to what to report of it; `share_of`
        says how much of the batch's mean it is, by default its share of the images. A batch
        that ran out of memory is taken again from its beginning: `clear` drops its gradients, the
        device's, the global and the given `generators` go back to where they were. In parts, each
        weighted by its share, gradients are those of the whole to rounding (float32: 1e-6 of the
        largest), where losses are means over shares, and nothing is drawn: masks of dropout are
        others, and a batch norm that trains sees parts, and what failed.

        Raises:
            UserError: there is no memory for one image.

        """
        put_back = _draws(device, generators)
        shares = share_of or (lambda part: (part.stop - part.start) / count)
        while (found := _tried(lambda: self._backward(count, loss_of, shares))) is None:
            clear()
            put_back()
            self._halve(min(self.size, count))
        return found[0]

    def _backward(
        self,
        count: int,
        loss_of: Callable[[slice], tuple[Tensor, Tensor]],
        share_of: Callable[[slice], float],
    ) -> Tensor:
        if count <= self.size:
            loss, reported = loss_of(slice(0, count))
            loss.backward()  # type: ignore[no-untyped-call]
            return reported
        parts = list[Tensor]()
        for start in range(0, count, self.size):
            part = slice(start, min(start + self.size, count))
            share = share_of(part)
            loss, reported = loss_of(part)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            parts.append(reported * share)
        return torch.stack(parts).sum(0)

    def _halve(self, tried: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # blocks of the larger size would lie idle
        if tried == 1:
            raise UserError(
                "out of memory with one image at a time: expected more of it; free the device of "
                "other work, or take a larger one, smaller images or precision: bfloat16"
            )
        self.size = tried // 2
        meter.note_micro_batch(self.size)


def _tried(work: Callable[[], T]) -> tuple[T] | None:
    """Return what `work` makes; None, and no pass counted, where it runs out of memory."""
    uncount = meter.bookmark()
    try:
        return (work(),)
    except torch.OutOfMemoryError:
        uncount()
    # Out of the handler, whose frames hold on to tensors; so do circles, all of them young.
    gc.collect(1)
    return None


def _draws(device: torch.device, generators: tuple[torch.Generator, ...]) -> Callable[[], None]:
    """Remember where draws stand; return what puts them back there."""
    drawn = [*generators, torch.default_generator]
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        drawn.append(torch.cuda.default_generators[number])
    states = [generator.get_state() for generator in drawn]

    def put_back() -> None:
        for generator, state in zip(drawn, states, strict=True):
            generator.set_state(state)

    return put_back
