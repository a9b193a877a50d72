"""Say what this machine has: cores, memory, devices, versions."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from bench.records.nouns import UserError, how_many

CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux says what a processor is."""

VECTORS = (
    *("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "bf16", "i8mm", "sve", "sve2"),
)
"""Instructions by which processors round differently, by Linux's names."""


def pin_threads(threads: int) -> None:
    """Let this process's stages use so many threads, and no less than float32 unless they ask.

    Equal counts of threads sum alike. PyTorch lets convolutions, and so a model's first layer, run
    in TF32.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False


def bfloat16_factor() -> float:
    """Measure how many times as long a layer takes in bfloat16 as in float32, on this CPU.

    It is a layer of a small transformer, on 4 images of 64 tokens; the best of a few turns.
    """
    tokens, weight = torch.randn(256, 192), torch.randn(768, 192)
    seconds = dict[bool, float]()
    with torch.inference_mode():
        for halved in (False, True) * TURNS:
            with torch.autocast("cpu", torch.bfloat16, enabled=halved):
                begun = time.perf_counter()
                torch.nn.functional.linear(tokens, weight)
                taken = time.perf_counter() - begun
            seconds[halved] = min(taken, seconds.get(halved, taken))
    return seconds[True] / seconds[False]


TURNS = 9
"""Turns of each precision: the first of each makes room and kernels."""


def usable_cores() -> int:
    """Count the processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory_mb() -> float:
    """Return the memory that can be had without swapping; infinity where the system cannot say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return float("inf")
    lines = (line.split() for line in meminfo.read_text().splitlines())
    return next((float(line[1]) / 1024 for line in lines if line[0] == "MemAvailable:"), 1e9)


def device_name(device: torch.device) -> str:
    """Name the device as tables print it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {how_many(torch.get_num_threads(), 'thread')} a stage"


@functools.cache
def environment(device: torch.device) -> Mapping[str, str]:
    """Say what evidence depends on beside its recipe: device, threads and library versions."""
    from importlib.metadata import version

    there = {} if device.type != "cuda" else _cuda()
    return {
        **there,
        "bench": version("vfm-ownership-bench"),
        "torch": torch.__version__,
        "timm": version("timm"),
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "instructions": instructions(),
    }


def cpu_model() -> str:
    """Name the processor as it names itself, as far as the system says."""
    found = _cpu_says("model name")
    return found or platform.processor() or platform.machine()


def instructions() -> str:
    """Say which vector instructions PyTorch's own loops use here, and which the processor knows."""
    known = {*_cpu_says("flags").split(), *_cpu_says("Features").split()}
    there = " ".join(name for name in VECTORS if name in known)
    used = torch.backends.cpu.get_cpu_capability().lower()
    return f"{used} of {there}" if there else used


def _cpu_says(what: str) -> str:
    """Return what Linux says of the first processor under a name; nothing on other systems."""
    if not CPU_INFO.exists():
        return ""
    lines = (line.partition(":") for line in CPU_INFO.read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == what), "")


def _cuda() -> dict[str, str]:
    """Say which libraries a GPU's passes go through, and how exact they are asked to be."""
    exact = not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    return {
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "float32": "float32" if exact else "TF32",
        "deterministic": "yes" if torch.are_deterministic_algorithms_enabled() else "not asked for",
    }


def find_device(name: str) -> torch.device:
    """Return the device that `--device` names, if it can be used."""
    import torch

    torch.backends.cudnn.allow_tf32 = False  # a model's first layer is float32, like the others
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        usable = device.type in ("cpu", "cuda")
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        raise UserError(f"--device: expected auto, cpu or a usable GPU, got '{name}'")
    return device
