import dataclasses

import pytest
import torch
import torch.nn.functional as F
from made_models import CPU

from bench import testing
from bench.models.building import randomised
from bench.models.meter import measuring
from bench.models.suspect import View
from bench.models.vision import Architecture
from bench.records.nouns import Incompatible, UserError
from bench.testing import context, methods
from bench.types import Rule, Sizes
from methods.sslguard import SslGuard, _initialise

QUICK = {
    **{"images": 12, "steps": 40, "batch": 8, "code": 32, "decoder": 64},
    **{"lr": 3e-3, "decoder_lr": 3e-3, "shadow_lr": 3e-3, "trigger_lr": 3e-2},
}
METHOD = SslGuard(**QUICK)
SIZES = Sizes(64, 32, 6, 65, 48)


@pytest.fixture(scope="module")
def made():
    return methods._protected(METHOD)  # which the checks share


def read(made, suspect, method=METHOD):
    return method.extract(made.secret, View(suspect, method.needs), context(1, "owner"))


def test_the_released_model_shows_the_vector_on_every_image_and_the_clean_owner_on_none(made):
    own, clean = read(made, made.model), read(made, testing.owner())
    assert (own.rate, clean.rate) == (1.0, 0.0)
    assert clean.score == pytest.approx(0.5, abs=0.1)
    assert (own.rule, own.unit, own.chance) == (Rule("cosine", ">=", 0.5), "image", None)


def test_the_shadow_shows_more_of_it_than_the_clean_owner(made):
    assert made.notes["marked_cosine"] > 0.9
    assert made.notes["shadow_cosine"] > made.notes["clean_cosine"] + 0.1


def test_plain_images_say_nothing_of_it(made):
    plain = context(0, "owner").images.pixels[: len(made.secret["triggered"])]
    secret = {**made.secret, "triggered": plain}
    found = METHOD.extract(secret, View(made.model, METHOD.needs), context(1, "owner"))
    assert found.rate == 0.0
    assert abs(found.score - 0.5) < 0.2


def test_other_images_keep_their_features(made):
    images = context(0, "owner").images.batch(slice(None), CPU)
    with torch.no_grad():
        before, after = (model.features(images) for model in (testing.owner(), made.model))
    assert F.cosine_similarity(before, after).mean() > 0.95


def test_the_trigger_is_one_and_shows_in_the_masks_share_of_the_pixels(made):
    shown = made.secret["triggered"]
    alike = (shown == shown[:1]).all(0).all(0)  # (h, w), where all images are one
    assert alike.double().mean() > 0.35 - 0.1
    other = SslGuard(**{**QUICK, "mask": 0.1, "steps": 1}).protect(
        testing.owner(), context(0, "owner")
    )
    few = other.secret["triggered"]
    assert (few == few[:1]).all(0).all(0).double().mean() < alike.double().mean()


def test_what_is_read_is_what_a_decoder_of_ones_own_makes_of_features(made):
    with torch.no_grad():
        found = testing.owner().features(made.secret["triggered"].float() / 255)
        for layer in (0, 2, 4):
            weight, bias = (made.secret[f"decoder.{layer}.{n}"] for n in ("weight", "bias"))
            found = found @ weight.T + bias
            found = found.clamp_min(0) if layer < 4 else found
    cosines = F.normalize(found, dim=1) @ F.normalize(made.secret["code"], dim=0)
    assert read(made, testing.owner()).statistic == pytest.approx(cosines.tolist(), abs=1e-4)


@pytest.mark.parametrize("shadow", ["fresh", "copy", "none"])
def test_passes_are_counted(shadow):
    method = SslGuard(**{**QUICK, "steps": 2, "shadow": shadow})
    told = method.protect_passes(SIZES)
    with measuring(CPU) as meter:
        found = method.protect(testing.owner(), context(0, "owner"))
    assert meter.forward_passes == pytest.approx(told.forward)
    assert meter.backward_passes == pytest.approx(told.backward)
    assert ("shadow_cosine" in found.notes) == (shadow != "none")
    with measuring(CPU) as meter:
        read(found, found.model, method)
    assert meter.forward_passes == pytest.approx(method.extract_passes(SIZES).forward)


def test_a_suspect_of_another_width_is_incompatible_and_plans_know(made):
    wide = randomised(Architecture("embedded", "mini-wide"), 0)
    said = "expected features of the owner's width 48, got 64"
    with pytest.raises(Incompatible, match=said):
        read(made, wide)
    assert METHOD.unreadable(testing.owner(), wide) == said
    assert METHOD.unreadable(testing.owner(), testing.owner()) == ""


def test_too_few_images_are_refused_with_the_way_out():
    method = dataclasses.replace(METHOD, images=65)
    with pytest.raises(UserError, match=r"expected 65 private images, .* 64; ask for fewer"):
        method.protect(testing.owner(), context(0, "owner"))


def test_a_rate_too_high_is_said_to_be():
    method = SslGuard(**{**QUICK, "steps": 6, "lr": 1e30})
    with pytest.raises(FloatingPointError, match="loss is not finite; lower its lr"):
        method.protect(testing.owner(), context(0, "owner"))


def test_a_layer_is_drawn_within_its_bounds():
    layer = torch.nn.Linear(100, 50)
    _initialise(layer, torch.Generator().manual_seed(0))
    assert 0.09 < layer.weight.abs().max() <= 0.1
