import dataclasses

import pytest
import torch

from attacks.interpolate import Interpolate
from bench.models.building import build
from bench.models.heads import Head
from bench.models.surgery import with_head
from bench.models.vision import Architecture
from bench.records.nouns import Incompatible, UserError
from bench.testing import context, owner, stranger


def mixed(share, victim, base):
    ctx = dataclasses.replace(context(), base=base)
    return Interpolate(share).run(victim, ctx)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9])
def test_every_weight_of_the_backbone_is_the_mean_weighted_by_the_share(share):
    victim, base = owner(), stranger()
    made = mixed(share, victim, base).state_dict()
    ends = victim.state_dict(), base.state_dict()
    for name, value in made.items():
        marked, public = (end[name].double() for end in ends)
        expected = share * marked + (1 - share) * public
        assert torch.allclose(value.double(), expected, atol=1e-6), name


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5, 0.7, 1.0])
def test_the_twin_is_the_base_bit_for_bit(share):
    base = owner()
    made = mixed(share, owner(), base).state_dict()
    assert all(torch.equal(value, made[name]) for name, value in base.state_dict().items())


def test_the_whole_share_is_the_released_model_itself():
    victim = owner()
    made = mixed(1.0, victim, stranger()).state_dict()
    assert all(torch.equal(value, made[name]) for name, value in victim.state_dict().items())


def test_the_base_is_left_untouched():
    base = stranger()
    mixed(0.5, owner(), base)
    assert all(torch.equal(v, base.state_dict()[n]) for n, v in stranger().state_dict().items())


def test_the_thiefs_head_stays_as_it_is():
    victim = with_head(owner(), Head(10), torch.Generator().manual_seed(0))
    made = mixed(0.5, victim, stranger())
    for name, value in victim.head.state_dict().items():
        assert torch.equal(made.head.state_dict()[name], value)


def test_running_statistics_are_mixed_and_counters_are_not():
    victim, base = (build(Architecture("timm", "resnet10t")) for _ in range(2))
    for model, mean, count in ((victim, 1.0, 7), (base, 3.0, 4)):
        model.trunk.net.bn1.running_mean.fill_(mean)
        model.trunk.net.bn1.num_batches_tracked.fill_(count)
    norm = mixed(0.5, victim, base).trunk.net.bn1
    assert (norm.running_mean == 2.0).all()
    assert norm.num_batches_tracked == 7


def test_a_thief_without_the_public_model_is_told_in_one_line():
    with pytest.raises(
        UserError, match=r"^interpolate: expected the public model, got none[^\n]*$"
    ):
        Interpolate().run(owner(), context())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_a_victim_of_another_shape_is_incompatible(name):
    with pytest.raises(Incompatible, match=r"^interpolate: expected [^\n]*$"):
        mixed(0.5, build(Architecture("timm", name)), owner())


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_shares_out_of_range_are_refused_nothing_of_the_victim_among_them(share):
    with pytest.raises(UserError, match=rf"^attack 'interpolate': share: [^\n]*, got {share}$"):
        Interpolate(share)
