from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from attacks.prepare import FinePruning, WeightShift, _kill
from bench.models import Architecture, build
from bench.records.nouns import UserError
from bench.testing import CPU, context, owner


def asked():
    return context().images.batch(slice(None), CPU)


def activity(model, block):
    """Return each neuron's mean magnitude, from the block's own layers by hand."""
    layers = model.blocks[block]
    with torch.no_grad():
        tokens = model.run_blocks(model.embed(asked()), 0, block)
        tokens = tokens + layers.attn(layers.norm1(tokens))
        hidden = F.gelu(layers.mlp.fc1(layers.norm2(tokens)))
    return hidden.abs().mean((0, 1))


@pytest.mark.parametrize(("amount", "gone"), [(0.25, 12), (0.95, 46)])
def test_the_neurons_that_sleep_are_zeroed_in_the_last_third_of_the_blocks(amount, gone):
    victim = owner()
    made = FinePruning(amount=amount).run(victim, context())
    assert made.notes == {"neurons": gone, "first_block": 4}
    for block in range(6):
        dead = ~made.blocks[block].mlp.fc2.weight.any(0)
        expected = set(activity(victim, block).argsort()[:gone].tolist()) if block >= 4 else set()
        assert set(dead.nonzero().flatten().tolist()) == expected
        reader = made.blocks[block].mlp.fc1
        assert not reader.weight[dead].any()
        assert not reader.bias[dead].any()


def test_a_gated_mlp_loses_both_halves_of_a_neuron():
    """Two packed maps of eight rows each, and what they are multiplied into."""
    reader, writer = torch.nn.Linear(4, 16), torch.nn.Linear(8, 4)
    gated = SimpleNamespace(readers=(reader,), writer=writer, hidden=8)
    with torch.no_grad():
        _kill(gated, torch.tensor([1, 6]))
    assert (~reader.weight.any(1)).nonzero().flatten().tolist() == [1, 6, 9, 14]
    assert (reader.bias == 0).nonzero().flatten().tolist() == [1, 6, 9, 14]
    assert (~writer.weight.any(0)).nonzero().flatten().tolist() == [1, 6]


def test_a_model_in_which_no_neuron_can_be_told_is_refused():
    with pytest.raises(UserError, match="expected"):
        FinePruning().run(build(Architecture("timm", "test_resnet")), context())


def test_no_hook_is_left_behind():
    made = FinePruning().run(owner(), context())
    assert not any(m._forward_pre_hooks for m in made.modules())


def test_the_mean_filter_is_taken_away_as_often_as_it_says():
    victim = owner()
    for factor in (0.5, 1.0, 1.2):
        made = WeightShift(factor=factor).run(victim, context())
        for before, after in zip(victim.layers(), made.layers(), strict=True):
            left = (1 - factor) * before.weight.mean(0)
            assert torch.allclose(after.weight.mean(0), left, atol=1e-6)
            apart = before.weight - before.weight[:1], after.weight - after.weight[:1]
            assert torch.allclose(*apart, atol=1e-6)  # all filters move alike


def test_noise_is_as_large_as_it_says():
    made = WeightShift(factor=0.0, sigma=1.0).run(owner(), context())
    for before, after in zip(owner().layers(), made.layers(), strict=True):
        noise = after.weight - before.weight
        noise, weight = noise.detach(), before.weight.detach()
        assert float(noise.std()) == pytest.approx(float(weight.std()), rel=0.05)
