"""What a machine says of itself: the processor's name and the instructions it rounds by."""

import pytest
import torch

from bench.runs import machine

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
