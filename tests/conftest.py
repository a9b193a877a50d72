"""What holds for every test: one thread, slow files first, bfloat16 only where a CPU knows it."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_ins import standing_in

with contextlib.suppress(ModuleNotFoundError):  # the quick tests need none
    import torch

    # Many small tensors: threads that wait for each other on a busy machine cost a factor of ten.
    torch.set_num_threads(1)

    @pytest.fixture(autouse=True)
    def _one_thread() -> Iterator[None]:
        """Take back the threads a test asked for: what runs after it sums in another order."""
        yield
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


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would begin with the file of most tests; the slow ones have few.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])  # whole files: what they share is made once
    if not has_bfloat16():
        skip_bfloat16(items)


def skip_bfloat16(items: list[pytest.Item]) -> None:
    wanted = " or ".join(sorted(BFLOAT16))
    skip = pytest.mark.skip(reason=f"expected a CPU with {wanted}, got one that names none")
    for item in items:
        if item.get_closest_marker("bfloat16"):
            item.add_marker(skip)


@pytest.fixture
def data_root():
    found = os.environ.get("BENCH_DATA")
    root = Path(found) if found else Path(__file__).parents[1] / "shared" / "data"
    if not (root / "weights").is_dir():
        pytest.skip(f"no weights at {root.name}; set BENCH_DATA to the folder that has them")
    return root
