import dataclasses

import pytest
import torch

from attacks.collusion import Collusion
from bench.models import Architecture, Head, build, randomised, with_head
from bench.records.nouns import Incompatible, UserError
from bench.testing import context, owner


def other(index):
    """A model of the owner's shape that nobody trained."""
    return randomised(Architecture("embedded", "mini"), index)


def averaged(count, victim, copies=other):
    return Collusion(count).run(victim, dataclasses.replace(context(), copies=copies))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_every_weight_of_the_backbone_is_the_mean_of_all_copies(count):
    made = averaged(count, owner()).trunk.state_dict()
    states = [owner().trunk.state_dict(), *(other(i).trunk.state_dict() for i in range(count - 1))]
    for name, value in made.items():
        expected = torch.stack([state[name].double() for state in states]).mean(0)
        assert torch.allclose(value.double(), expected, atol=1e-6), name


def test_copies_that_are_one_model_give_that_model_bit_for_bit():
    made = averaged(3, owner(), lambda _: owner()).state_dict()
    assert all(torch.equal(value, made[name]) for name, value in owner().state_dict().items())


def test_a_k_th_of_what_one_key_added_is_left():
    base, marked = owner(), owner()
    with torch.no_grad():
        marked.blocks[3].mlp.fc2.bias.add_(1.0)
    made = averaged(4, marked, lambda _: base)
    left = made.blocks[3].mlp.fc2.bias - base.blocks[3].mlp.fc2.bias
    assert torch.allclose(left, torch.full_like(left, 0.25), atol=1e-6)


def test_the_victims_head_stays_as_it_is():
    victim = with_head(owner(), Head(10), torch.Generator().manual_seed(0))
    made = averaged(2, victim)
    for name, value in victim.head.state_dict().items():
        assert torch.equal(made.head.state_dict()[name], value)


def test_a_thief_alone_is_told_in_one_line():
    with pytest.raises(UserError, match=r"^collusion: expected copies under other keys[^\n]*$"):
        Collusion().run(owner(), context())


def test_copies_of_another_shape_are_incompatible():
    with pytest.raises(Incompatible, match=r"^collusion: expected [^\n]*$"):
        averaged(2, build(Architecture("timm", "resnet10t")))


@pytest.mark.parametrize("count", [1, 0])
def test_one_copy_is_no_collusion(count):
    with pytest.raises(UserError, match=rf"^attack 'collusion': copies: [^\n]*, got {count}$"):
        Collusion(count)
