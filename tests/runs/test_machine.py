"""What a machine says of itself: the processor's name and the instructions it rounds by."""

from types import SimpleNamespace

import pytest
import torch

from bench.records import settings
from bench.records.nouns import Spec
from bench.runs import machine, session

INTEL = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse2 avx fma avx2 avx512f avx512bw avx512_bf16 amx_bf16 hypervisor

processor\t: 1
model name\t: another
"""

ARM = """processor\t: 0
Features\t: fp asimd evtstrm aes i8mm bf16
CPU part\t: 0xd4f
"""


@pytest.fixture
def says(tmp_path, monkeypatch):
    def says(text):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")

    return says


def test_a_processor_is_named_as_it_names_itself(says):
    says(INTEL)
    assert machine.cpu_model() == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    used = torch.backends.cpu.get_cpu_capability().lower()
    known = "avx avx2 fma avx512f avx512bw avx512_bf16 amx_bf16"
    assert machine.instructions() == f"{used} of {known}"


def test_where_it_has_no_name_or_no_file_the_kind_is_what_is_known(says, tmp_path, monkeypatch):
    says(ARM)
    assert machine.cpu_model() != ""
    assert machine.instructions().endswith(" of asimd bf16 i8mm")
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "nowhere")
    assert machine.cpu_model() != ""
    assert machine.instructions() == torch.backends.cpu.get_cpu_capability().lower()


def test_both_are_part_of_what_evidence_depends_on():
    machine.environment.cache_clear()
    found = machine.environment(torch.device("cpu"))
    assert found["cpu"] == machine.cpu_model()
    assert found["instructions"] == machine.instructions()


@pytest.mark.parametrize(
    ("flags", "device", "precision", "told"),
    [
        ("avx2 fma", "cpu", "bfloat16", True),
        ("avx2 fma", "cpu", "float32", False),
        ("avx2 fma", "cuda", "bfloat16", False),
        ("avx512f amx_bf16", "cpu", "bfloat16", False),
    ],
    ids=["slow", "not asked for", "a GPU", "fast"],
)
def test_what_bfloat16_costs_without_instructions_is_said_once(
    monkeypatch, tmp_path, flags, device, precision, told
):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(settings, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "bfloat16_factor", lambda: 12.34)
    said, asked = [], Spec("tune", {"precision": precision})
    suite = SimpleNamespace(methods=[asked], attacks=[(asked, asked)])
    run = SimpleNamespace(plan=SimpleNamespace(suite=suite), engine="processes", note=said.append)
    session._tell_of_bfloat16(run, torch.device(device))
    assert len(said) == told
    assert all("a layer takes 12 times as long as in float32" in line for line in said)


def test_what_bfloat16_costs_is_measured():
    assert 0 < machine.bfloat16_factor() < 1e4
