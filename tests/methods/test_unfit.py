"""What `bench check` says of too few images is what `protect` would refuse them with."""

import dataclasses

import pytest
import torch

from bench.models import Head, with_head
from bench.records.nouns import UserError
from bench.registry import METHODS
from bench.testing import context, owner
from bench.types import SaysUnfit, Sizes

SAY_SO = [name for name in METHODS.names() if issubclass(METHODS.get(name), SaysUnfit)]
MORE = {"trigger.directions": {"kind": "noise"}, "trigger.labels": {"kind": "noise"}}
"""Without them these draw their images themselves."""


@pytest.mark.parametrize("name", SAY_SO)
def test_too_few_images_are_refused_in_the_words_of_a_check(name):
    method = METHODS.build(name, MORE.get(name, {}))
    whole = context(0, "owner")
    one = dataclasses.replace(
        whole, images=whole.images.subset([0]), held_out=whole.held_out.subset([0])
    )
    said = method.unfit(Sizes(1, 1, 6, 65, 48))
    assert said
    with pytest.raises(UserError) as error:
        method.protect(with_head(owner(), Head(10), torch.Generator().manual_seed(0)), one)
    assert str(error.value) == said


def test_methods_that_choose_among_images_say_so():
    assert {"activemark", "adv_tra", "cka", "ipguard", "modeldiff", "sac", "sslguard"} <= {*SAY_SO}
