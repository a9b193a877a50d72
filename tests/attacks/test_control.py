import dataclasses

import pytest
import torch

from attacks.control import Identity, Stranger
from bench.models.building import build
from bench.models.vision import Architecture
from bench.models.weights import weights_digest
from bench.records.nouns import UserError
from bench.testing import context, owner, stranger


def test_identity_hands_on_an_equal_copy():
    victim = owner()
    made = Identity().run(victim, context())
    assert made is not victim
    assert weights_digest(made) == weights_digest(victim)


def test_a_stranger_is_the_one_asked_for():
    for index in (0, 2):
        made = Stranger(index).run(owner(), context())
        assert weights_digest(made) == weights_digest(stranger(index))
    assert weights_digest(stranger(0)) != weights_digest(stranger(2))


def test_a_stranger_may_be_of_another_shape_and_is_never_taken_for_one_it_is_not():
    deep = build(Architecture("embedded", "mini-deep"))
    ctx = dataclasses.replace(context(), stranger=lambda _: deep)
    assert len(Stranger(shape="mini-deep").run(owner(), ctx).blocks) == 8
    with pytest.raises(AssertionError, match="the bench trains what `shape` names"):
        Stranger(shape="mini-wide").run(owner(), ctx)


def test_the_stranger_that_was_trained_is_not_handed_out_itself():
    trained = stranger(1)
    ctx = dataclasses.replace(context(), stranger=lambda _: trained)
    with torch.no_grad():
        Stranger(1).run(owner(), ctx).trunk.vit.cls_token.zero_()
    assert weights_digest(trained) == weights_digest(stranger(1))


def test_an_owner_without_strangers_is_told_so():
    with pytest.raises(UserError, match="expected independently trained models"):
        Stranger().run(owner(), dataclasses.replace(context(), stranger=None))


def test_a_negative_index_is_refused():
    with pytest.raises(UserError, match=r"index: expected a number [^\n]* equal to 0, got -1$"):
        Stranger(-1)
