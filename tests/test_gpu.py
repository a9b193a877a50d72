"""What records say of a GPU and of its memory, with stand-ins where it would be."""

import torch

from bench import engines, runner
from bench.models import VisionModel
from bench.plan import make
from bench.store import Store
from bench.suite import load

SUITE = """
name: tight
owners: [{embedded: mini}]
methods: [{name: activemark, images: 8, steps: 2, batch: 4}]
attacks: [{name: control.identity}]
data: {photos: {loader: photos, crops: 4}, digits: {loader: digits, max_images: 16}}
owner_images: photos
probe: digits
innocents: {strangers: 0}
"""


def test_a_stage_that_went_on_in_smaller_batches_says_so(monkeypatch, tmp_path):
    (tmp_path / "tight.yaml").write_text(SUITE)
    plan = make(load(tmp_path / "tight.yaml"), None)
    whole = VisionModel.run_blocks

    def run_blocks(model, tokens, *between):
        if len(tokens) > 3:
            raise torch.OutOfMemoryError
        return whole(model, tokens, *between)

    monkeypatch.setattr(VisionModel, "run_blocks", run_blocks)
    laboratory = runner.Laboratory(plan, Store(tmp_path / "store"), None, torch.device("cpu"))
    found = [*runner.run(laboratory, plan.questions, engines.serial, tmp_path / "records.jsonl")]
    assert {record.status for record in found} == {"ok"}
    for record in found:
        assert record.notes["protect"]["micro_batch"] == 2
        assert record.notes["extract"]["micro_batch"] == 2
        assert "micro_batch" not in record.notes["attack"]  # identity asks the model nothing


def test_records_of_a_gpu_say_which_and_how_exact_float32_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    runner.environment.cache_clear()
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    found = [runner.environment(torch.device("cuda"))["float32"]]
    runner.environment.cache_clear()
    runner.pin_threads(torch.get_num_threads())
    found.append(runner.environment(torch.device("cuda"))["float32"])
    assert found == ["TF32", "float32"]
    said = runner.environment(torch.device("cuda"))
    assert (said["device"], said["cudnn"]) == ("NVIDIA H200", "91002")
    assert said["deterministic"] == "not asked for"
    runner.environment.cache_clear()
    assert "cudnn" not in runner.environment(torch.device("cpu"))
