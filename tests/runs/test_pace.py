"""How long a pass takes is told by one block, whatever the model weighs."""

import dataclasses

import pytest
import torch
from made import suite

from bench.models.vision import Architecture
from bench.records.store import Store
from bench.runs import owners
from bench.runs.foresight import budget, pace
from bench.suite import plan, reader

CPU = torch.device("cpu")

MINI = Architecture("embedded", "mini")


@pytest.fixture(autouse=True)
def anew():
    pace.pace_here.cache_clear()


def weights(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def turns(monkeypatch):
    """A clock by which every turn takes a second."""
    monkeypatch.setattr(pace, "timed", lambda work, device: 1.0)


def test_a_pass_takes_as_long_as_all_blocks(turns):
    model = owners.unweighted(MINI)
    images = pace.VALUES // (65 * model.width)  # 64 patches and CLS
    assert pace.pace_here(MINI, CPU) == pytest.approx(len(model.blocks) / images)


def test_a_large_model_is_timed_by_weights_of_one_block(turns, monkeypatch):
    there, fill = [], pace._filled
    monkeypatch.setattr(pace, "_filled", lambda m, device: (there.append(m), fill(m, device)))
    large = Architecture("timm", "vit_large_patch14_dinov2", image_size=70)
    assert pace.pace_here(large, CPU) > 0
    whole = owners.unweighted(large)
    (block,) = there
    assert weights(block) < weights(whole) / 20
    assert {p.device.type for p in whole.parameters()} == {"meta"}  # as others look at it


def test_a_model_without_blocks_is_timed_whole(turns):
    assert pace.pace_here(Architecture("timm", "resnet18"), CPU) == 1.0


def test_threads_are_what_they_were():
    torch.set_num_threads(2)
    assert pace.pace_here(MINI, CPU) > 0
    assert torch.get_num_threads() == 2


def test_a_plan_is_priced_before_anything_ran(tmp_path):
    (tmp_path / "suite.yaml").write_text(suite())
    made = plan.make(reader.load(tmp_path / "suite.yaml"), None)
    rows = budget.budget(made, Store(tmp_path), made.stages, pace_here=lambda model: 0.5).rows
    assert all(row.seconds is not None for row in rows)
    seconds = {row.kind: row.seconds for row in rows}
    protects = [s for s in made.stages.values() if s.kind == "protect"]
    passes = [budget._Estimates(made, Store(tmp_path), None).passes(s) for s in protects]
    assert seconds["protect"] == pytest.approx(0.5 * sum(p.work for p in passes))
    (cohort,) = (key for key, s in made.stages.items() if s.kind == "cohort")
    assert seconds["cohort"] == pytest.approx(0.5 * budget.training_work(made, cohort))
    assert dataclasses.asdict(rows[0])["seconds"] == 0.0  # an owner is loaded
