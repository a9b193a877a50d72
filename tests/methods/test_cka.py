import dataclasses

import pytest
import torch

from bench.models import Architecture, View, build, clone, measuring
from bench.testing import context, owner, stranger
from bench.types import Incompatible, Sizes, UserError
from methods.cka import Cka, HiddenCka

BOTH = [Cka(), HiddenCka()]


@pytest.fixture(scope="module")
def secrets():
    return {type(m): m.protect(owner(), context(0, "owner")).secret for m in BOTH}


def read(method, secret, suspect):
    return method.extract(secret, View(suspect, method.needs), context(1, "owner"))


def rotated_output():
    """The owner with its output turned by a rotation and scaled: what a service may hand out."""
    made = clone(owner())
    turn = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0))).Q
    finish = made.trunk.finish
    made.trunk.finish = lambda tokens: 7 * finish(tokens) @ turn
    return made


@pytest.mark.parametrize("method", BOTH, ids=lambda m: type(m).__name__)
def test_the_owner_is_itself_and_a_stranger_is_less_alike(method, secrets):
    own = read(method, secrets[type(method)], owner())
    other = read(method, secrets[type(method)], stranger())
    assert own.statistic == pytest.approx((1.0,), abs=1e-6)
    assert own.rate == 1.0
    assert other.score < 0.8
    assert other.rate == 0.0


def test_output_in_another_basis_is_the_same(secrets):
    found = clone(rotated_output())
    turned = found.features(context().images.batch(slice(0, 4), torch.device("cpu")))
    plain = owner().features(context().images.batch(slice(0, 4), torch.device("cpu")))
    assert not torch.allclose(turned, plain, atol=0.1)
    assert read(Cka(), secrets[Cka], found).score == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("method", BOTH, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("name", ["mini-wide", "mini-deep"])
def test_any_width_and_depth_can_be_read(method, name, secrets):
    found = read(method, secrets[type(method)], build(Architecture("embedded", name)))
    assert 0 <= found.score < 0.8


def test_a_value_below_zero_is_no_agreement(secrets):
    found = dict(secrets[Cka])
    rng = torch.Generator().manual_seed(4)
    for _ in range(50):
        found["features"] = torch.randn(found["features"].shape, generator=rng)
        evidence = read(Cka(), found, owner())
        if evidence.statistic[0] < 0:
            break
    assert evidence.statistic[0] < 0
    assert evidence.agreement == (0.0,)


def test_held_out_images_are_asked_about_and_no_others(secrets):
    ctx = context(0, "owner")
    kept = {bytes(image.numpy().tobytes()) for image in ctx.held_out.pixels}
    asked = secrets[Cka]["images"]
    assert len(asked) == len(kept) == 32
    assert {image.numpy().tobytes() for image in asked} == kept


def test_noise_is_drawn_at_the_owners_size():
    made = Cka(images=10, source="noise").protect(owner(), context(0, "owner"))
    assert made.secret["images"].shape == (10, 3, 32, 32)
    assert made.secret["images"].float().mean() == pytest.approx(127.5, abs=2)


@pytest.mark.parametrize(
    "method", [*BOTH, HiddenCka(depth=0.2), Cka(images=8), Cka(source="noise")]
)
def test_passes_are_counted(method):
    ctx = context(0, "owner")
    sizes = Sizes(len(ctx.images), len(ctx.held_out), 6, 65, 48)
    with measuring(ctx.device) as protecting:
        made = method.protect(owner(), ctx)
    view = View(made.model, method.needs)
    with measuring(ctx.device) as extracting:
        method.extract(made.secret, view, ctx)
    assert protecting.forward_passes == pytest.approx(method.protect_passes(sizes).forward)
    assert extracting.forward_passes == pytest.approx(method.extract_passes(sizes).forward)


@pytest.mark.parametrize(("depth", "last"), [(1.0, 12), (0.5, 6), (0.7, 9), (1 / 3, 4), (0.01, 1)])
def test_a_share_of_the_blocks_is_rounded_up(depth, last):
    assert HiddenCka(depth=depth)._last(12) == last


def test_a_network_without_blocks_has_no_hidden_state(secrets):
    suspect = build(Architecture("timm", "resnet10t"))
    assert "sequence of transformer blocks" in HiddenCka().unreadable(owner(), suspect)
    assert HiddenCka().unreadable(owner(), stranger()) == ""
    with pytest.raises(Incompatible, match="sequence of transformer blocks"):
        read(HiddenCka(), secrets[HiddenCka], suspect)


def test_too_few_held_out_images_are_refused():
    ctx = context(0, "owner")
    few = dataclasses.replace(ctx, held_out=ctx.held_out.subset(range(3)))
    with pytest.raises(UserError, match="4 held-out images or more, the owner has 3"):
        Cka().protect(owner(), few)


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"^method 'cka': images: expected"):
        Cka(images=3)
