"""Merging, against ten-line references on vectors, and on `mini`."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from attacks.merge import (
    Dare,
    Slerp,
    Soup,
    TaskArithmetic,
    Ties,
    added,
    agreed,
    arc,
    averaged,
    thinned,
    trimmed,
)
from bench import training
from bench.models import Architecture, Head, build, randomised
from bench.models.meter import measuring
from bench.models.surgery import with_head
from bench.records.nouns import Incompatible, Sizes, UserError
from bench.registry import ATTACKS
from bench.testing import context, owner

SHORT = {"epochs": 1, "batch": 64}


def vectors(m=3, p=40, seed=0):
    return torch.randn(m, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stranger():
    """A model of the owner's shape that nobody trained."""
    return randomised(Architecture("embedded", "mini"), 1)


def merged(attack, victim, base, seed=0):
    return attack.run(victim, dataclasses.replace(context(seed), base=base))


def weights(model):
    return {n: v for n, v in model.trunk.state_dict().items() if v.is_floating_point()}


def test_task_vectors_are_added_to_the_base():
    base, updates = vectors(1)[0], vectors(seed=1)
    expected = [b + 0.3 * sum(u[i] for u in updates.tolist()) for i, b in enumerate(base.tolist())]
    assert torch.allclose(added(base, updates, 0.3), torch.tensor(expected, dtype=torch.float64))


def reference_ties(updates, keep):
    """Algorithm 1 of the paper, weight by weight."""
    p, kept = len(updates[0]), []
    for update in updates:
        order = sorted(range(p), key=lambda i: -abs(update[i]))[: round(keep * p)]
        kept.append([update[i] if i in order else 0.0 for i in range(p)])
    found = []
    for column in zip(*kept, strict=True):
        sign = np.sign(sum(column)) or np.sign(sum(np.sign(column)))
        agreeing = [x for x in column if x and np.sign(x) == sign]
        found.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return found


@pytest.mark.parametrize("keep", [0.1, 0.2, 0.5, 1.0])
def test_ties_are_resolved_as_by_hand(keep):
    updates = vectors()
    expected = torch.tensor(reference_ties(updates.tolist(), keep), dtype=torch.float64)
    assert torch.allclose(agreed(trimmed(updates, keep)), expected)


def test_where_signs_cancel_the_sign_of_most_is_taken():
    assert agreed(torch.tensor([[2.0], [-1.0], [-1.0]])).item() == -1.0


def test_dare_drops_its_share_and_keeps_the_mean():
    updates = torch.ones(2, 200_000)
    left = thinned(updates, 0.9, torch.Generator().manual_seed(0))
    assert left.unique().tolist() == pytest.approx([0.0, 10.0])
    bound = 4 * math.sqrt(0.9 * 0.1 / 400_000)
    assert abs(float((left == 0).float().mean()) - 0.9) < bound
    assert not torch.equal(left[0], left[1])


def reference_slerp(a, b, t):
    omega = math.acos(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_an_arc_is_followed_as_by_hand(share):
    a, b = vectors(2)
    expected = reference_slerp(a.numpy(), b.numpy(), share)
    assert np.allclose(arc(a, b, share).numpy(), expected)


def test_an_arc_between_vectors_of_one_length_keeps_the_length():
    a, b = (v / v.norm() for v in vectors(2))
    assert float(arc(a, b, 0.3).norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("other", [1.0, 2.0, -1.0, 0.0])
def test_between_parallel_vectors_the_line_is_straight(other):
    a = vectors(1)[0]
    assert torch.allclose(arc(a, other * a, 0.25), (0.75 + 0.25 * other) * a)


def test_a_soup_of_equals_is_their_equal_bit_for_bit():
    value = vectors(1)[0]
    assert torch.equal(averaged(value, value.clone(), value.clone()), value)


@pytest.mark.parametrize(
    "attack",
    [
        Ties(others=2, keep=1.0, finetune_lr=0.0, **SHORT),
        Soup(others=1, finetune_lr=0.0, **SHORT),
        Slerp(finetune_lr=0.0, **SHORT),
        TaskArithmetic(others=1, alpha=0.5, finetune_lr=0.0, **SHORT),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_with_finetunes_that_learnt_nothing_only_the_victims_update_is_left(attack):
    victim, base = owner(), stranger()
    made = weights(merged(attack, victim, base))
    for name, start in weights(base).items():
        stop = weights(victim)[name]
        if isinstance(attack, Slerp):
            expected = arc(start.flatten(), stop.flatten(), 0.5).view_as(start)
        elif isinstance(attack, Ties):  # the one update with a sign is the mean of those that agree
            expected = stop
        else:
            expected = (start + stop) / 2
        assert torch.allclose(made[name], expected, atol=1e-6), name


def test_a_twin_is_merged_with_the_very_same_finetunes():
    base = owner()
    attack = Soup(others=1, finetune_lr=1e-3, **SHORT)
    copy, twin = (weights(merged(attack, one, base)) for one in (stranger(), base))
    for name, marked in weights(stranger()).items():
        clean = weights(base)[name]
        theirs = 2 * twin[name].double() - clean
        assert torch.allclose(2 * copy[name].double() - marked, theirs, atol=1e-5), name


def test_the_thiefs_finetunes_differ_from_each_other_and_from_the_base():
    base = owner()
    one, two = (
        weights(merged(Soup(others=n, finetune_lr=1e-3, **SHORT), base, base)) for n in (1, 2)
    )
    first = {name: 2 * one[name] - value for name, value in weights(base).items()}
    second = {n: 3 * two[n] - first[n] - value for n, value in weights(base).items()}
    for other in (first, weights(base)):
        assert max(float((second[n] - other[n]).abs().max()) for n in other) > 1e-4


def test_a_greedy_soup_leaves_out_what_makes_it_worse():
    # Finetunes of noise, at a rate that destroys them, are worth nothing to the victim.
    worthless = merged(Soup(others=1, rule="greedy", finetune_lr=1.0, **SHORT), owner(), stranger())
    assert worthless.notes["finetunes_taken"] == 0
    assert all(torch.equal(v, weights(owner())[n]) for n, v in weights(worthless).items())
    kin = merged(Soup(others=1, rule="greedy", finetune_lr=0.0, **SHORT), owner(), owner())
    assert kin.notes["finetunes_taken"] == 1


def test_a_greedy_soup_is_judged_on_sources_that_no_finetune_has_seen(monkeypatch):
    ctx = context()
    shared = tuple(f"photograph {i // 4}" for i in range(len(ctx.images)))  # of each four images
    images = dataclasses.replace(ctx.images, sources=shared)
    seen, judge = [], training.probe_accuracy

    def spy(model, learnt, held, device):
        seen.append((set(learnt.sources), set(held.sources)))
        return judge(model, learnt, held, device)

    monkeypatch.setattr(training, "probe_accuracy", spy)
    ctx = dataclasses.replace(ctx, images=images, base=owner())
    Soup(others=1, rule="greedy", **SHORT).run(owner(), ctx)
    assert seen
    for learnt, held in seen:
        assert not learnt & held
        assert (len(learnt), len(held)) == (12, 4)


def test_too_few_sources_for_a_greedy_soup_are_told_in_one_line():
    ctx = context()
    few = dataclasses.replace(ctx, images=ctx.images.subset([0, 1]), base=owner())
    with pytest.raises(UserError, match=r"^merge\.soup: expected images of 4 sources [^\n]*$"):
        Soup(rule="greedy", **SHORT).run(owner(), few)


@pytest.mark.parametrize(
    ("name", "args"),
    [("arithmetic", {}), ("soup", {"rule": "greedy", "others": 1}), ("slerp", {})],
)
def test_passes_are_foreseen_to_the_last(name, args):
    attack, ctx = ATTACKS.build(f"merge.{name}", {**SHORT, **args}), context()
    with measuring(ctx.device) as meter:
        merged(attack, owner(), owner())
    wanted = attack.passes(Sizes(len(ctx.images), 0, 6, 65, 48))
    assert (meter.forward_passes, meter.backward_passes) == (wanted.forward, wanted.backward)


def test_the_victims_head_stays_as_it_is():
    victim = with_head(owner(), Head(10), torch.Generator().manual_seed(0))
    made = merged(Slerp(**SHORT), victim, stranger())
    assert made.architecture == victim.architecture
    for name, value in victim.head.state_dict().items():
        assert torch.equal(made.head.state_dict()[name], value)


def test_a_thief_without_the_public_model_is_told_in_one_line():
    with pytest.raises(UserError, match=r"^merge: expected the public model, got none[^\n]*$"):
        Dare().run(owner(), context())


def test_a_thief_without_labels_is_told_in_one_line():
    ctx = context()
    ctx = dataclasses.replace(
        ctx, images=dataclasses.replace(ctx.images, labels=None), base=owner()
    )
    with pytest.raises(UserError, match=r"^merge: expected labelled images [^\n]*$"):
        Dare().run(owner(), ctx)


def test_a_victim_of_another_shape_is_incompatible():
    with pytest.raises(Incompatible, match=r"^merge: expected [^\n]*$"):
        merged(Soup(**SHORT), build(Architecture("timm", "vit_tiny_patch16_224")), owner())
