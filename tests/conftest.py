"""What holds for every test: one thread, and no bfloat16 where a CPU has to emulate it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_ins import standing_in

with contextlib.suppress(ModuleNotFoundError):  # the quick tests need none
    import torch

    # Many small tensors: threads that wait for each other on a busy machine cost a factor of ten.
    torch.set_num_threads(1)

CPU_FLAGS = Path("/proc/cpuinfo")
"""Where Linux says what the CPU can do; on other systems nobody does."""

BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}
"""Instructions for bfloat16, by Linux's names: Intel's, AMD's and Intel's, Arm's."""


def has_bfloat16() -> bool:
    return CPU_FLAGS.exists() and not BFLOAT16.isdisjoint(CPU_FLAGS.read_text().split())


@pytest.fixture
def stand_ins() -> Iterator[None]:
    """Plug-ins that need no torch, under the names of those that do."""
    with standing_in():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if has_bfloat16():
        return
    wanted = " or ".join(sorted(BFLOAT16))
    skip = pytest.mark.skip(reason=f"expected a CPU with {wanted}, got one that names none")
    for item in items:
        if item.get_closest_marker("bfloat16"):
            item.add_marker(skip)
