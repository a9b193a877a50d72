"""Exact transforms as attacks: their settings, and chains with other attacks."""

import dataclasses
import functools

import pytest
import torch
from made_models import shaken

from attacks.finetune import FinetuneClassify
from attacks.prune import L1Prune, StructuredPrune
from attacks.quantize import Quantize
from attacks.reparam import Internal, Permute, Rotate, Scale, Shift
from attacks.structure import DummyHeads, DummyNeurons, IdentityBlocks, Widen
from bench import testing
from bench.models import Architecture, build, segmentation_head, with_head
from bench.records.nouns import UserError
from bench.registry import ATTACKS
from bench.testing import context, owner, stranger

CPU = torch.device("cpu")

EXACT = [
    *(Permute(), Rotate(), Scale(), Shift(), Shift(0.0, 1.0), Internal(), Widen()),
    *(IdentityBlocks(2), DummyNeurons(), DummyHeads()),
]


def answers(model, kind=torch.float32):
    with torch.no_grad():
        return model(context().images.batch(slice(0, 8), CPU).to(kind))


@functools.cache
def with_dpt():
    """Mini with a head that reads four of its blocks."""
    model = owner()
    head = segmentation_head(model, "dpt", 10)
    return shaken(with_head(model, head, context().rng)).double().eval()


@pytest.mark.parametrize("attack", EXACT, ids=repr)
def test_a_head_for_masks_sees_what_it_knew(attack):
    victim = with_dpt()
    made = attack.run(victim, context())
    before = answers(victim, torch.float64)
    assert (answers(made, torch.float64) - before).abs().max() < 1e-9 * before.abs().max()


@pytest.mark.parametrize("attack", EXACT, ids=repr)
@pytest.mark.parametrize(
    "other",
    [
        *(L1Prune(0.2), Quantize(), FinetuneClassify(epochs=1), StructuredPrune("heads", 0.5)),
        *(StructuredPrune("width", 0.3), StructuredPrune("mlp", 0.3)),
    ],
    ids=lambda attack: (
        attack.what if isinstance(attack, StructuredPrune) else type(attack).__name__
    ),
)
def test_any_attack_can_come_before_and_after(attack, other):
    after = other.run(attack.run(owner(), context()), context())
    before = attack.run(other.run(owner(), context()), context())
    for made in (after, before):
        assert torch.equal(testing.comparing._outputs(made), answers_of_the_stored(made))


def answers_of_the_stored(made):
    return testing.comparing._outputs(testing.comparing._round_trip(made))


def test_shares_and_angles_are_strengths():
    images = context().images.batch(slice(0, 8), CPU)

    def moved(attack):
        victim = owner()
        made = attack.run(victim, context())
        with torch.no_grad():
            was, now = (m.run_blocks(m.embed(images), 0, 3) for m in (victim, made))
        return float((was - now).norm() / was.norm())

    for kind, values in ((Permute, (0.1, 0.5, 1.0)), (Rotate, (0.05, 0.2, 1.0))):
        found = [moved(kind(value)) for value in values]
        assert found == sorted(found)
        assert found[0] > 0


@pytest.mark.parametrize("attack", [a for a in EXACT if a.random], ids=repr)
def test_twins_are_changed_by_the_same_draws(attack):
    """What is drawn is a matter of the seed and the shape, not of the victim's weights."""
    rngs = [context(5).rng, context(5).rng]
    for victim, rng in zip((owner(), stranger(1)), rngs, strict=True):
        attack.run(victim, dataclasses.replace(context(), rng=rng))
    assert torch.equal(rngs[0].get_state(), rngs[1].get_state())


def test_what_a_model_lacks_is_noted_or_refused():
    assert Internal().run(owner(), context()).notes == {"absent": ["gates"]}
    with pytest.raises(UserError, match="gated"):
        Internal("gates").run(owner(), context())
    with torch.device("meta"):
        eva = build(Architecture("timm", "eva02_tiny_patch14_224"))
    for attack in EXACT:
        with pytest.raises(UserError, match="pre-norm"):
            attack.run(eva, context())


def test_no_shift_is_refused():
    with pytest.raises(UserError, match="above 0"):
        Shift(0.0, 0.0).run(owner(), context())


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("structure.widen", {"times": 1}),
        ("reparam.permute", {"share": 0.0}),
        ("reparam.scale", {"factor": 0.0}),
        ("structure.identity", {"at": 1.5}),
    ],
)
def test_settings_that_change_nothing_are_refused(name, args):
    with pytest.raises(UserError):
        ATTACKS.build(name, args)
