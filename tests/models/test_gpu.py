"""What records say of a GPU and of its memory, with stand-ins where it would be."""

import torch
from made import suite

from bench.models.vision import VisionModel
from bench.records.store import Store
from bench.runs import engines
from bench.runs.laboratory import Laboratory
from bench.runs.machine import environment, pin_threads
from bench.runs.session import answer
from bench.suite.plan import make
from bench.suite.reader import load

SUITE = suite(
    name="tight",
    methods=["{name: activemark, images: 8, steps: 2, batch: 4}"],
    attacks=["{name: control.identity}"],
    data="{photos: {crops: 4}, digits: {max_images: 16}}",
    innocents="{strangers: 0}",
)


def test_a_stage_that_went_on_in_smaller_batches_says_so(monkeypatch, tmp_path):
    (tmp_path / "tight.yaml").write_text(SUITE)
    plan = make(load(tmp_path / "tight.yaml"), None)
    whole = VisionModel.run_blocks

    def run_blocks(model, tokens, *between):
        if len(tokens) > 3:
            raise torch.OutOfMemoryError
        return whole(model, tokens, *between)

    monkeypatch.setattr(VisionModel, "run_blocks", run_blocks)
    laboratory = Laboratory(plan, Store(tmp_path / "store"), None, torch.device("cpu"))
    found = [*answer(laboratory, plan.questions, engines.serial, tmp_path / "records.jsonl")]
    assert {record.status for record in found} == {"ok"}
    for record in found:
        assert record.notes["protect"]["micro_batch"] == 2
        assert record.notes["extract"]["micro_batch"] == 2
        assert "micro_batch" not in record.notes["attack"]  # identity asks the model nothing


def test_records_of_a_gpu_say_which_and_how_exact_float32_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    environment.cache_clear()
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    found = [environment(torch.device("cuda"))["float32"]]
    environment.cache_clear()
    pin_threads(torch.get_num_threads())
    found.append(environment(torch.device("cuda"))["float32"])
    assert found == ["TF32", "float32"]
    said = environment(torch.device("cuda"))
    assert (said["device"], said["cudnn"]) == ("NVIDIA H200", "91002")
    assert said["deterministic"] == "not asked for"
    environment.cache_clear()
    assert "cudnn" not in environment(torch.device("cpu"))
