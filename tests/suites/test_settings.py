"""A model that has a setting for a CPU and one for a GPU is asked the same by both."""

from pathlib import Path

import pytest

from bench.registry import METHODS
from bench.suite import reader

SUITES = Path(__file__).parents[2] / "suites"

MODELS = ["deit-tiny", "dinov2-small"]


@pytest.mark.parametrize("model", MODELS)
def test_the_settings_for_a_cpu_and_for_a_gpu_differ_in_sizes_alone(model):
    here, there = (reader.load(SUITES / f"{model}{end}.yaml") for end in ("", "-cuda"))
    assert [m.name for m in here.methods] == [m.name for m in there.methods]
    for name in ("owners", "attacks", "seeds", "innocents", "owner_images", "probe", "align"):
        assert getattr(here, name) == getattr(there, name)


@pytest.mark.parametrize("model", MODELS)
def test_every_mark_of_a_real_model_has_three_keys(model):
    made = reader.load(SUITES / f"{model}.yaml")
    assert any(METHODS.get(method.name).marks for method in made.methods)
    assert len(made.seeds) == 3
