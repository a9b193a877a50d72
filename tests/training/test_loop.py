import dataclasses
import math

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from bench.models.building import build
from bench.models.heads import Head
from bench.models.surgery import with_head
from bench.models.vision import Architecture
from bench.training import loop

TOTAL = 20


def rates_of(scheduler_of, steps=TOTAL):
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_of(optimiser)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


def constant(o):
    return torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)


def cosine(o, total=TOTAL):
    return torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=total)


def linear(o, total=TOTAL):
    return torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total)


def rise_then_cosine(o):
    rise = torch.optim.lr_scheduler.LinearLR(o, 1 / 5, 1.0, 4)
    both = [rise, cosine(o, TOTAL - 5)]
    return torch.optim.lr_scheduler.SequentialLR(o, both, milestones=[5])


@pytest.mark.parametrize(
    ("kind", "warmup", "reference"),
    [
        ("constant", 0, constant),
        ("cosine", 0, cosine),
        ("linear", 0, linear),
        pytest.param(
            "cosine", 5, rise_then_cosine,
            marks=pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning"),
        ),
    ],
)  # fmt: skip
def test_a_schedule_agrees_with_pytorch_at_every_step(kind, warmup, reference):
    ours = [loop.schedule(kind, step, TOTAL, warmup) for step in range(TOTAL)]
    assert ours == pytest.approx(rates_of(reference), abs=1e-9)


def test_a_schedule_stays_within_bounds_however_long_the_warm_up():
    for kind in ("constant", "cosine", "linear"):
        for warmup in range(TOTAL + 1):
            rates = [loop.schedule(kind, step, TOTAL, warmup) for step in range(TOTAL)]
            assert all(0 <= rate <= 1 for rate in rates)
            assert rates[:warmup] == [(i + 1) / warmup for i in range(warmup)]


def problem(dropout=0.0):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 8, generator=g), torch.randint(3, (50,), generator=g)
    net = nn.Sequential(nn.Dropout(dropout), nn.Linear(8, 3))
    with torch.no_grad():
        net[1].weight.normal_(generator=g)
        net[1].bias.zero_()
    return net, lambda i: nn.functional.cross_entropy(net(x[i]), y[i])


SETTINGS = loop.Training(epochs=3, batch=16, lr=0.05, schedule="cosine", warmup=0.25)


def fit(net, loss_of, seed=0, **changes):
    rng = torch.Generator().manual_seed(seed)
    how = dataclasses.replace(SETTINGS, **changes)
    return loop.fit(net.parameters(), loss_of, 50, how, rng)


def test_fitting_takes_the_steps_of_a_plain_loop():
    net, loss_of = problem()
    plain, plain_loss = problem()
    made = fit(net, loss_of, weight_decay=0.1)

    rng = torch.Generator().manual_seed(0)
    torch.randint(2**62, (), generator=rng)  # the seed of dropout is drawn first
    optimiser = torch.optim.AdamW(plain.parameters(), lr=1.0, weight_decay=0.1)
    step, total, losses = 0, 12, []
    for _ in range(3):
        order, seen = torch.randperm(50, generator=rng), []
        for at in range(0, 50, 16):
            optimiser.param_groups[0]["lr"] = 0.05 * loop.schedule("cosine", step, total, 3)
            loss = plain_loss(order[at : at + 16])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            seen.append(float(loss.detach()) * len(order[at : at + 16]))
            step += 1
        losses.append(sum(seen) / 50)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert made.steps == step == total
    assert made.losses == pytest.approx(losses, rel=1e-5)
    assert made.losses[-1] < made.losses[0]


def test_every_index_is_seen_once_an_epoch_in_an_order_of_its_own():
    net, loss_of = problem()
    seen = []
    fit(net, lambda i: (seen.append(i.tolist()), loss_of(i))[1])
    assert [len(batch) for batch in seen] == [16, 16, 16, 2] * 3
    epochs = [[i for batch in seen[at : at + 4] for i in batch] for at in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_groups_keep_their_own_peak_rate():
    net, loss_of = problem()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    groups = [{"params": [net[1].weight], "lr": 0.0}, {"params": [net[1].bias]}]
    rng = torch.Generator().manual_seed(0)
    loop.fit(groups, loss_of, 50, SETTINGS, rng)
    assert torch.equal(net[1].weight, before["1.weight"])
    assert not torch.equal(net[1].bias, before["1.bias"])


@pytest.mark.parametrize("name", ["test_vit", "vit_wee_patch16_reg1_gap_256", "test_vit3"])
def test_rates_fall_with_depth_as_timms_do(name):
    model = build(Architecture("timm", name, 64, "own"))
    ours = {id(p): g["lr"] for g in loop.by_depth(model, 0.5, 0.7) for p in g["params"]}
    # timm counts the final norm to the last block; BEiT and MAE, as we do, to the head.
    final = {id(p): 0.5 for p in model.trunk.vit.norm.parameters()}
    assert final.items() <= ours.items()
    for group in param_groups_layer_decay(model.trunk.vit, layer_decay=0.7):
        group["params"] = [p for p in group["params"] if id(p) not in final]
        for parameter in group["params"]:
            assert ours.pop(id(parameter)) == pytest.approx(0.5 * group["lr_scale"])
    assert ours == final


def test_a_head_learns_at_the_full_rate_and_what_is_frozen_not_at_all():
    model = build(Architecture("embedded", "mini"))
    model = with_head(model, Head(3), torch.Generator())
    groups = loop.by_depth(model, 1.0, 0.5)
    assert [g["lr"] for g in groups] == pytest.approx([0.5**i for i in range(8)])
    assert {id(p) for p in model.head.parameters()} < {id(p) for p in groups[0]["params"]}
    model.trunk.requires_grad_(False)
    only = loop.by_depth(model, 1.0, 0.5)
    assert [g["lr"] for g in only] == [1.0]
    assert {id(p) for p in only[0]["params"]} == {id(p) for p in model.head.parameters()}


def test_dropout_follows_the_generator_given_and_not_the_global_one():
    weights = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 5)):
        net, loss_of = problem(dropout=0.5)
        torch.manual_seed(global_seed)
        fit(net, loss_of, seed)
        weights.append(net[1].weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_global_generator_is_left_as_it_was():
    net, loss_of = problem(dropout=0.5)
    before = torch.get_rng_state()
    fit(net, loss_of)
    assert torch.equal(torch.get_rng_state(), before)


def test_divergence_is_reported_with_its_epoch():
    net, loss_of = problem()
    calls = iter(range(100))
    with pytest.raises(FloatingPointError, match=r"not finite at epoch 2; lower lr"):
        fit(net, lambda i: loss_of(i) * (math.nan if next(calls) >= 5 else 1.0))
