import functools

import pytest
import torch
from made_models import CPU, digits_owner

from bench.models import View, clone, measuring
from bench.records.nouns import UserError
from bench.registry import ATTACKS
from bench.testing import context
from bench.types import Sizes
from methods.sensitive import SensitiveSamples, _last_linear, cover

SHORT = {"queries": 8, "candidates": 16, "iterations": 30}

SIZES = Sizes(64, 32, 6, 65, 48)


@functools.cache
def protected(**settings):
    method = SensitiveSamples(**SHORT | settings)
    with measuring(CPU) as meter:
        made = method.protect(digits_owner(), context(0, "owner"))
    return method, made, meter


def read(method, secret, model):
    return method.extract(secret, View(model, method.needs), context(1, "owner"))


def shaken(share, seed):
    """Add noise to the owner's backbone, in deviations of each weight."""
    model, rng = clone(digits_owner()), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.trunk.parameters():
            noise = torch.randn(weight.shape, generator=rng)
            weight.add_(noise * weight.std(correction=0) * share)
    return model


@pytest.mark.parametrize("layer", ["head", "block"])
@pytest.mark.parametrize("score", ["log-probabilities", "logit", "probability"])
def test_sensitivity_is_the_mean_square_of_the_gradient_of_every_weight(layer, score):
    method = SensitiveSamples(layer=layer, score=score, outputs=4)
    model = clone(digits_owner()).requires_grad_(False)
    images = context(0, "owner").images.batch(slice(0, 3), CPU).requires_grad_(True)
    linear = _last_linear(model, layer, images[:1].detach())
    found = method._sensitivity(model, linear, images).of.detach()
    linear.weight.requires_grad_(True)
    for number, image in enumerate(images):
        logits = model.logits(image[None])[0]
        if score == "log-probabilities":
            s = logits.log_softmax(0)[:4].sum()
        else:
            s = (logits if score == "logit" else logits.softmax(0)).max()
        (wanted,) = torch.autograd.grad(s, linear.weight)
        assert float(found[number]) == pytest.approx(float(wanted.square().mean()), rel=1e-3)


def test_the_layers_are_the_heads_and_the_last_blocks():
    model, image = digits_owner(), context().images.batch(slice(0, 1), CPU)
    assert _last_linear(model, "head", image) is model.head.linear
    assert _last_linear(model, "block", image) is model.blocks[-1].mlp.fc2


def test_samples_become_more_sensitive_and_stay_near_their_images():
    method, made, _ = protected()
    assert made.notes["sensitivity_gain"] > 2
    pixels, images = made.secret["pixels"].double(), context(0, "owner").images.pixels.double()
    off = (pixels[:, None] - images).square().mean((2, 3, 4)).sqrt()  # (q, n)
    assert (off.amin(1) <= method.radius + 0.5).all()  # half a grey level of rounding
    assert (off.amin(1) > 0).all()


def test_the_neurons_that_samples_cover_decide_which_are_kept():
    active = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]) > 0
    sensitivity = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert cover(active, sensitivity, 2, 0.0).tolist() == [1, 3]
    assert cover(active, sensitivity, 9, 0.0).tolist() == [1, 3, 0, 2]  # then by sensitivity
    assert cover(active, sensitivity, 2, 1.5).tolist() == [0, 3]
    assert cover(active, sensitivity, 2, 9.0).tolist() == []


def test_the_very_model_reads_unchanged():
    method, made, _ = protected()
    evidence = read(method, made.secret, made.model)
    assert evidence.rate == 1
    assert (evidence.unit, evidence.chance) == ("sample", None)


@pytest.mark.parametrize("attack", ["reparam.rotate", "reparam.permute", "structure.neurons"])
def test_a_change_that_changes_no_answer_is_none(attack):
    """As its own head answers: the owner's head knows one basis alone."""
    method, made, _ = protected()
    changed = ATTACKS.build(attack, {}).run(made.model, context(3))
    assert read(method, made.secret, changed).rate == 1


def test_sensitive_samples_tell_a_change_that_images_do_not():
    method, made, _ = protected()
    images = context(0, "owner").images.pixels
    with torch.no_grad():
        plain = {"pixels": images, "labels": digits_owner().logits(images / 255).argmax(1)}
    turned, still = (
        [read(method, secret, shaken(0.01, seed)).rate for seed in range(4)]
        for secret in (made.secret, plain)
    )
    assert sum(turned) / 4 < sum(still) / 4 - 0.05


def test_samples_that_are_not_sensitive_enough_are_refused():
    method = SensitiveSamples(queries=2, candidates=2, iterations=1, least=1e9)
    with pytest.raises(UserError, match=r"least: expected samples more sensitive than 1e\+09"):
        method.protect(digits_owner(), context(0, "owner"))


def test_an_owner_without_classes_is_refused():
    from bench import testing

    with pytest.raises(UserError, match="expected an owner that tells 2 classes apart or more"):
        SensitiveSamples().protect(testing.owner(), context(0, "owner"))


@pytest.mark.parametrize("settings", [{}, {"layer": "block", "iterations": 2, "candidates": 5}])
def test_its_passes_are_those_that_it_counts(settings):
    method, made, meter = protected(**settings)
    counted = method.protect_passes(SIZES)
    assert (meter.forward_passes, meter.backward_passes) == (counted.forward, counted.backward)
    assert counted.bound == "exact"
    suspect = View(made.model, method.needs)
    method.extract(made.secret, suspect, context(1, "owner"))
    assert suspect.queries == method.extract_passes(SIZES).forward == len(made.secret["pixels"])


def test_how_many_move_together_changes_no_sample_but_for_rounding():
    settings = {"queries": 4, "candidates": 4, "iterations": 3}
    whole, parts = (
        SensitiveSamples(**settings, batch=batch).protect(digits_owner(), context(0, "owner"))
        for batch in (4, 3)
    )
    off = whole.secret["pixels"].int() - parts.secret["pixels"].int()
    assert off.abs().max() <= 1
