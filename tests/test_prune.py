import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from attacks.prune import L1Prune, sparsity
from bench.models import Head, with_head
from bench.testing import context, owner


def pytorchs_own(model, amount, scope):
    made = copy.deepcopy(model)
    layers = [m for m in made.trunk.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if scope == "global":
        pairs = [(layer, "weight") for layer in layers]
        prune.global_unstructured(pairs, prune.L1Unstructured, amount=amount)
    else:
        for layer in layers:
            prune.l1_unstructured(layer, "weight", amount)
    for layer in layers:
        prune.remove(layer, "weight")
    return made


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("amount", [0.1, 0.2, 0.4, 0.9])
def test_it_zeroes_the_very_weights_pytorchs_own_pruning_does(amount, scope):
    victim = owner()
    made = L1Prune(amount, scope).run(victim, context())
    expected = pytorchs_own(victim, amount, scope).state_dict()
    for name, value in made.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_pruning_nothing_changes_nothing():
    victim = owner()
    made = L1Prune(0.0).run(victim, context())
    assert all(torch.equal(v, victim.state_dict()[n]) for n, v in made.state_dict().items())


def test_the_sparsity_reached_is_counted_and_noted():
    assert sparsity(owner()) < 1e-4
    made = L1Prune(0.2).run(owner(), context())
    weights = [m.weight for m in made.trunk.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    counted = sum(float((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert sparsity(made) == made.notes["sparsity"] == pytest.approx(counted)
    assert counted == pytest.approx(0.2, abs=1e-5)


def test_a_layers_own_ranking_prunes_every_layer_alike():
    made = L1Prune(0.4, "layer").run(owner(), context())
    for name, module in made.trunk.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            share = float((module.weight == 0).float().mean())
            assert share == pytest.approx(0.4, abs=1 / module.weight.numel()), name


def test_norms_biases_embeddings_and_the_thiefs_head_are_left_alone():
    victim = with_head(owner(), Head(10), torch.Generator().manual_seed(0))
    made = L1Prune(0.9).run(victim, context())
    before, after = victim.state_dict(), made.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n.startswith("trunk.") and n.endswith(
        ("proj.weight", "qkv.weight", "fc1.weight", "fc2.weight"))}  # fmt: skip


def test_pruned_weights_are_zeros_without_a_sign():
    made = L1Prune(0.5).run(owner(), context())
    for value in made.trunk.state_dict().values():
        assert not torch.signbit(value[value == 0]).any()


def test_a_pruned_model_can_be_trained_on():
    made = L1Prune(0.2).run(owner(), context())
    assert all(p.requires_grad and p.is_leaf for p in made.parameters())


@pytest.mark.parametrize("amount", [1.0, 1.5, -0.1, float("nan")])
def test_amounts_out_of_range_are_refused(amount):
    with pytest.raises(ValueError, match=r"amount: expected a share in \[0, 1\), got"):
        L1Prune(amount)
