import dataclasses

import pytest
import torch
from torch import nn

from bench.models.suspect import View
from bench.models.vision import clone
from bench.records.nouns import Incompatible, UserError
from bench.testing import context, owner, stranger
from methods.oracle import WeightOracle

FILTER = "vit.blocks.3.mlp.fc1.weight"


@pytest.fixture(scope="module")
def released():
    return owner()


def read(suspect, method=None):
    method = method or WeightOracle()
    protected = method.protect(owner(), context(0, "owner"))
    return method.extract(protected.secret, View(suspect, method.needs), context(1, "owner"))


def edited(change):
    """The owner with `change` made to every matrix of its backbone."""
    made = clone(owner())
    with torch.no_grad():
        for weight in made.trunk.parameters():
            if weight.ndim > 1:
                weight.copy_(change(weight))
    return made


def rotated(weight):
    """A tensor of the same norm at 60 degrees to `weight`: its cosine is 1/2."""
    rng = torch.Generator().manual_seed(weight.numel())
    other = torch.randn(weight.shape, generator=rng)
    other -= (other * weight).sum() / weight.square().sum() * weight
    return weight / 2 + 3**0.5 / 2 * other * weight.norm() / other.norm()


@pytest.mark.parametrize(
    ("change", "cosine", "agreement", "rate"),
    [
        (lambda w: w, 1.0, 1.0, 1.0),
        (lambda w: 3 * w, 1.0, 1.0, 1.0),
        (rotated, 0.5, 0.5, 0.0),
        (lambda w: -w, -1.0, 0.0, 0.0),
        (torch.zeros_like, 0.0, 0.0, 0.0),
    ],
)
def test_cosines_of_known_angles_are_found(change, cosine, agreement, rate):
    evidence = read(edited(change), WeightOracle(entries=10**6))
    assert evidence.statistic == pytest.approx([cosine] * len(evidence.statistic), abs=1e-5)
    assert evidence.score == pytest.approx(agreement, abs=1e-5)
    assert evidence.rate == rate


def test_a_sample_estimates_the_cosine():
    evidence = read(edited(rotated), WeightOracle(entries=1000))
    assert evidence.score == pytest.approx(0.5, abs=0.02)


def test_strangers_are_at_right_angles():
    found = [read(stranger(i)).statistic for i in range(2)]
    for cosines in found:
        assert max(map(abs, cosines)) < 0.15
    assert found[0] != found[1]


def test_norms_biases_and_vectors_do_not_count(released):
    suspect = clone(released)
    with torch.no_grad():
        for name, weight in suspect.trunk.named_parameters():
            if weight.ndim < 2 or name == "vit.cls_token":
                weight.normal_(generator=torch.Generator().manual_seed(0))
    assert read(suspect) == read(released)


def test_the_secret_holds_no_more_than_its_share_of_each_matrix(released):
    made = WeightOracle(entries=100).protect(released, context(0, "owner"))
    state = released.trunk.state_dict()
    values = {n.removesuffix(".value"): v for n, v in made.secret.items() if n.endswith(".value")}
    assert len(values) == made.notes["matrices"] == 26  # 4 a block, patches, positions
    assert {len(v) for v in values.values()} == {100}
    for name, value in values.items():
        index = made.secret[f"{name}.index"].long()
        assert len(index.unique()) == 100
        assert torch.equal(state[name].flatten()[index], value)


def test_the_sample_is_drawn_from_the_owners_randomness(released):
    method = WeightOracle(entries=50)
    secrets = [method.protect(released, context(s, "owner")).secret for s in (0, 0, 1)]
    index = f"{FILTER}.index"
    assert torch.equal(secrets[0][index], secrets[1][index])
    assert not torch.equal(secrets[0][index], secrets[2][index])


def test_the_threshold_decides_what_counts_as_the_owners():
    assert read(edited(rotated), WeightOracle(0.45, 10**6)).rate == 1.0
    assert read(edited(rotated), WeightOracle(0.55, 10**6)).rate == 0.0


def test_another_shape_is_incompatible(released):
    suspect = clone(released)
    suspect.trunk.vit.pos_embed = nn.Parameter(torch.zeros(1, 66, 48))
    with pytest.raises(Incompatible, match=r"vit\.pos_embed \(1, 65, 48\), got \(1, 66, 48\)"):
        read(suspect)


def test_a_missing_block_is_incompatible(released):
    suspect = clone(released)
    suspect.trunk.vit.blocks = suspect.trunk.vit.blocks[:-1]
    with pytest.raises(Incompatible, match=r"blocks\.5\.\S+ \(.*\), got none"):
        read(suspect)


@pytest.mark.parametrize(("setting", "value"), [("threshold", 1.5), ("entries", 0)])
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(UserError, match=f"^method 'oracle.weights': {setting}: expected"):
        dataclasses.replace(WeightOracle(), **{setting: value})
