"""One command makes the innocents that `verify --descendants` takes."""

import pytest
import torch
from commands import bench
from made_models import CPU, images

from bench import testing
from bench.models.weights import load_weights
from bench.records.nouns import UserError
from bench.runs.claims import descending
from bench.verdicts.verdict import innocents_needed

SOME = (0, 1, 14, 16, 18)
"""Recipes of every kind: none, a finetuning, a pruning, a rounding, noise."""


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(descending, "RECIPES", tuple(descending.RECIPES[i] for i in SOME))


def pools():
    labels = torch.arange(12) % 3
    return images(labels=labels, classes=3), images(seed=1, labels=labels, classes=3)


def weights(file):
    return load_weights(file, testing.owner().architecture).model.state_dict()


def test_recipes_are_as_many_as_a_verdict_takes_and_no_two_alike():
    told = [str(chain) for chain in descending.RECIPES]
    assert len(set(told)) == len(told) > innocents_needed(0.05)


def test_every_recipe_makes_another_model_and_the_first_is_the_clean_one(few, tmp_path):
    said = bench("descendants", "mini", "-o", tmp_path / "made", "--device", "cpu",
                 "--max-images", 32, "--threads", 1)  # fmt: skip
    assert said.status == 0, said.err
    files = sorted((tmp_path / "made").iterdir())
    assert [f.name for f in files][:2] == [
        "00-clean.safetensors",
        "01-finetune_classify.safetensors",
    ]
    states = [weights(file) for file in files]
    clean = testing.owner().state_dict()
    assert all(torch.equal(states[0][name], value) for name, value in clean.items())
    sizes = {sum(float(v.double().abs().sum()) for v in state.values()) for state in states}
    assert len(sizes) == len(SOME)
    assert (
        said.out.splitlines()[-1] == f"5 innocents: bench verify ... --descendants {tmp_path}/made"
    )


def test_a_folder_with_something_in_it_is_refused_and_the_same_seed_makes_the_same(few, tmp_path):
    def make(folder):
        return descending.descend(testing.owner(), pools(), folder, 3, CPU, lambda _: None)

    first = make(tmp_path / "one")
    with pytest.raises(UserError, match=r"expected an empty folder, got .*name another"):
        make(tmp_path / "one")  # its files could be another model's
    for one, other in zip(first, make(tmp_path / "two"), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_images_without_labels_are_refused_before_anything_is_made(tmp_path):
    said = bench("descendants", "mini", "--images", "photos", "-o", tmp_path / "made",
                 "--device", "cpu")  # fmt: skip
    assert (said.status, "--images: expected labelled ones" in said.err) == (2, True)
    assert not (tmp_path / "made").exists()


def test_a_recipe_that_diverges_is_no_innocent(few, tmp_path, monkeypatch):
    monkeypatch.setattr(descending, "RECIPES", ((("noise.weights", {"sigma": 1e39}),),))
    with pytest.raises(UserError, match="expected finite weights"):
        descending.descend(testing.owner(), pools(), tmp_path, 0, CPU, lambda _: None)
