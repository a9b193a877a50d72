import dataclasses

import pytest
import torch
from made_models import CPU

from bench import testing
from bench.models.building import randomised
from bench.models.meter import measuring
from bench.models.suspect import View
from bench.models.vision import Architecture
from bench.records.nouns import Incompatible, UserError
from bench.testing import context, methods
from bench.types import Rule, Sizes
from methods.randmark import Codec, RandMark

QUICK = {
    **{"images": 12, "bits": 8, "steps": 150, "batch": 8, "lr": 3e-3, "codec_lr": 1e-2},
    **{"decoder_hidden": 64, "tau": 1.0, "transforms": 4},
}
METHOD = RandMark(**QUICK)
SIZES = Sizes(64, 32, 6, 65, 48)


@pytest.fixture(scope="module")
def made():
    return methods._protected(METHOD)  # which the checks share


def read(made, suspect, method=METHOD):
    return method.extract(made.secret, View(suspect, method.needs), context(1, "owner"))


def test_messages_arrive_through_the_released_model_and_not_through_a_stranger(made):
    own = read(made, made.model)
    assert own.rate >= 0.9
    assert own.score > 0.9
    found = read(made, randomised(Architecture("embedded", "mini"), 0))
    assert found.rate < 0.3
    assert found.score == pytest.approx(0.5, abs=0.2)
    assert found.chance is None
    assert own.rule == Rule("mean bit errors", "<=", 1.0)


def test_without_contrast_the_clean_owner_reads_far_above_chance(made):
    """What the paper has no negative for: messages are written in features that it has as well."""
    assert read(made, testing.owner()).score > 0.75
    assert made.notes["clean_bit_errors"] < 2


@pytest.mark.slow
def test_with_contrast_the_clean_owner_reads_nothing():
    changed = {"steps": 250, "codec_lr": 5e-3, "contrast": 3.0}
    method = RandMark(**{**QUICK, **changed})
    found = method.protect(testing.owner(), context(0, "owner"))
    assert read(found, found.model, method).rate == 1.0
    clean = read(found, testing.owner(), method)
    assert clean.rate <= 0.1
    assert clean.score < 0.7


def test_without_noise_the_statistic_is_the_count_of_wrong_bits(made):
    still = dataclasses.replace(METHOD, sigma=0.0, transforms=1)
    with torch.no_grad():
        features = made.model.features(made.secret["pixels"].float() / 255)
        for layer in (0, 2):
            weight, bias = (made.secret[f"decoder.{layer}.{n}"] for n in ("weight", "bias"))
            features = (features @ weight.T + bias).clamp_min(0 if layer == 0 else -torch.inf)
    wrong = ((features >= 0) != made.secret["messages"].bool()).sum(1)
    found = read(made, made.model, still)
    assert found.statistic == tuple(wrong.double().tolist())
    assert found.agreement == pytest.approx((1 - wrong / 8).tolist())
    assert made.notes["bit_errors"] == pytest.approx(float(wrong.double().mean()))


def test_more_versions_are_a_mean_of_more_readings(made):
    found = read(made, made.model, dataclasses.replace(METHOD, sigma=0.5, transforms=4))
    assert all((4 * value).is_integer() for value in found.statistic)
    assert any(not value.is_integer() for value in found.statistic)


def test_noise_is_drawn_from_the_context_alone(made):
    view = View(made.model, METHOD.needs)
    noisy = dataclasses.replace(METHOD, sigma=0.5)
    one, same, other = (
        noisy.extract(made.secret, view, context(seed, "owner")) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_a_message_moves_no_pixel_further_than_told():
    how = RandMark(bits=8, strength=0.1)
    codec = Codec(48, how, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in codec.parameters():
            weight.mul_(30)
        images = torch.rand(4, 3, 40, 56, generator=torch.Generator().manual_seed(1))
        bits = torch.tensor([[0, 1] * 4, [1, 0] * 4] * 2)
        written = codec.write(images, bits)
    assert written.shape == images.shape
    assert 0.05 < (written - images).abs().max() <= 0.1 + 1e-6
    assert (written.min(), written.max()) >= (0, 0)
    assert written.max() <= 1
    assert not torch.allclose(codec.write(images[:1], bits[:1]), codec.write(images[:1], bits[1:2]))


@pytest.mark.parametrize(
    "settings",
    [{}, {"messages": "generic", "draws": 2}, {"contrast": 1.0, "message_norm": "l1"}],
)
def test_passes_are_counted(settings):
    method = RandMark(**{**QUICK, "steps": 2, **settings})
    told = method.protect_passes(SIZES)
    with measuring(CPU) as meter:
        found = method.protect(testing.owner(), context(0, "owner"))
    assert meter.forward_passes == pytest.approx(told.forward)
    assert meter.backward_passes == pytest.approx(told.backward)
    with measuring(CPU) as meter:
        read(found, found.model, method)
    assert meter.forward_passes == pytest.approx(method.extract_passes(SIZES).forward)


def test_a_suspect_of_another_width_is_incompatible_and_plans_know(made):
    wide = randomised(Architecture("embedded", "mini-wide"), 0)
    said = "expected features of the owner's width 48, got 64"
    with pytest.raises(Incompatible, match=said):
        read(made, wide)
    assert METHOD.unreadable(testing.owner(), wide) == said


def test_settings_that_do_not_go_together_are_refused_with_the_way_out():
    with pytest.raises(UserError, match="tau: expected 0 to bits = 4, got 5"):
        RandMark(bits=4)
    ctx = context(0, "owner")
    for messages, pool in (("fixed", ctx.images), ("generic", ctx.held_out)):
        method = dataclasses.replace(METHOD, images=len(pool) + 1, messages=messages)
        told = rf"expected {len(pool) + 1} images, .* {len(pool)}; ask for fewer"
        with pytest.raises(UserError, match=told):
            method.protect(testing.owner(), ctx)


def test_a_rate_too_high_is_said_to_be():
    method = RandMark(**{**QUICK, "steps": 4, "lr": 1e30})
    with pytest.raises(FloatingPointError, match=r"diverged: .*; lower lr"):
        method.protect(testing.owner(), context(0, "owner"))
