import pytest
import torch
from torch import nn

from attacks.noise import WeightNoise
from bench.models.heads import Head
from bench.models.surgery import with_head
from bench.records.nouns import UserError
from bench.testing import context, owner, stranger


def layers(model):
    found = model.trunk.vit.blocks.named_modules()
    return {f"trunk.vit.blocks.{n}.weight" for n, m in found if isinstance(m, nn.Linear)}


def in_deviations(victim, sigma=0.05):
    """What was added to every weight tensor, in units of its own deviation."""
    made = WeightNoise(sigma).run(victim, context(3)).state_dict()
    before = victim.state_dict()
    return {n: (made[n] - before[n]) / before[n].std(correction=0) for n in layers(victim)}


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
def test_the_noise_is_gaussian_in_units_of_each_tensors_own_deviation(sigma):
    for name, added in in_deviations(owner(), sigma).items():
        assert float(added.std()) == pytest.approx(sigma, rel=0.06), name
        assert abs(float(added.mean())) < 5 * sigma / added.numel() ** 0.5, name
        assert float((added.abs() < sigma).float().mean()) == pytest.approx(0.683, abs=0.03), name


def test_a_twin_gets_the_same_noise_in_its_own_units():
    ours, twins = in_deviations(owner()), in_deviations(stranger())
    assert all(torch.allclose(ours[name], twins[name], atol=1e-5) for name in ours)


def test_no_tensor_gets_anothers_noise():
    added = in_deviations(owner())
    heads = [values.flatten()[:100] for values in added.values()]
    correlations = torch.corrcoef(torch.stack(heads)).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 0.5


def test_norms_biases_embeddings_and_the_head_are_left_alone():
    victim = with_head(owner(), Head(10), torch.Generator().manual_seed(0))
    before, after = victim.state_dict(), WeightNoise().run(victim, context()).state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == layers(victim)


def test_noise_of_no_size_changes_nothing():
    victim = owner()
    after = WeightNoise(0.0).run(victim, context()).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in victim.state_dict().items())


@pytest.mark.parametrize("sigma", [-0.1, float("nan")])
def test_sizes_out_of_range_are_refused(sigma):
    with pytest.raises(
        UserError, match=rf"^attack 'noise\.weights': sigma: expected [^\n]*, got {sigma}$"
    ):
        WeightNoise(sigma)
