import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from made_models import CPU
from torch import nn

from bench import testing
from bench.data.images import Images
from bench.models.heads import Head
from bench.models.meter import count, measuring
from bench.models.surgery import with_head
from bench.models.suspect import View
from bench.records.nouns import UserError
from bench.types import Context
from methods.pautov2024 import BATCH, Neighbours, RobustTriggerSet, Triggers

QUICK = {"queries": 12, "proxies": 4, "sigma": 1e-3}


class Colours(nn.Module):
    """Red is class 0, green class 1, and a mix with 0.3 to 0.7 of red class 2; linear, float64."""

    architecture = SimpleNamespace(name="colours", served=None)

    def __init__(self, classes=3):
        super().__init__()
        self.classes = classes
        self.linear = nn.Linear(3, 3, dtype=torch.float64)
        self.register_buffer("mean", torch.zeros(3))
        with torch.no_grad():
            rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.7, 0.7, 0.0]]
            self.linear.weight.copy_(torch.tensor(rows))
            self.linear.bias.zero_()

    def forward_features(self, images):
        count(forward=len(images))
        return images.double().mean((2, 3))

    def forward_head(self, colours):
        return self.linear(colours)

    def logits(self, images):
        return self.forward_head(self.forward_features(images))


def red_and_green(count=6, classes=3):
    labels = torch.arange(count) % 2
    pixels = torch.zeros(count, 3, 4, 4, dtype=torch.uint8)
    pixels[torch.arange(count), labels] = 255
    return Images(pixels, labels, classes, tuple(map(str, range(count))))


def colour_context(seed=0, **changes):
    held_out = dataclasses.replace(red_and_green(), **changes)
    empty = held_out.subset([])
    return Context(CPU, torch.Generator().manual_seed(seed), empty, held_out)


@pytest.fixture(scope="module")
def mini():
    """The embedded owner under a head nobody trained: a labelling like any other."""
    return with_head(testing.owner(), Head(10), torch.Generator().manual_seed(0))


def protect(model, seed=0, **settings):
    return RobustTriggerSet(**{**QUICK, **settings}).protect(model, testing.context(seed, "owner"))


def read(method, protected, model):
    return method.extract(protected.secret, View(model, method.needs), testing.context())


def test_triggers_are_the_mixes_that_belong_to_neither_class():
    made = RobustTriggerSet(queries=200, proxies=1, sigma=0.0).protect(Colours(), colour_context())
    pixels, labels = made.secret["pixels"], made.secret["labels"]
    red, green = pixels[:, 0].double().mean((1, 2)) / 255, pixels[:, 1].double().mean((1, 2)) / 255
    assert torch.allclose(red + green, torch.ones(200, dtype=torch.float64), atol=1.01 / 255)
    assert 0.295 < float(red.min()) < 0.33
    assert 0.67 < float(red.max()) < 0.705
    assert labels.tolist() == [2] * 200
    # l ~ U(0, 1) falls between 0.3 and 0.7 two times in five, give or take four deviations.
    drawn = made.notes["candidates"]
    assert abs(made.notes["accepted_by_label"] / drawn - 0.4) < 4 * (0.24 / drawn) ** 0.5
    assert made.notes["accepted_by_proxies"] == made.notes["accepted_by_label"]


@pytest.mark.parametrize("unit", ["absolute", "std of the weight"])
def test_proxies_keep_what_a_loop_over_noisy_deep_copies_keeps(unit):
    model, seeds = Colours(), [11, 12, 13, 14, 15]
    rng = torch.Generator().manual_seed(5)
    # Bytes of one colour each, whatever the class: several batches of them.
    pixels = torch.randint(256, (400, 3, 1, 1), generator=rng, dtype=torch.uint8).repeat(1, 1, 2, 2)
    labels = model.logits(pixels / 255).argmax(1)
    neighbours = Neighbours(RobustTriggerSet(sigma=0.1, sigma_unit=unit), model)
    neighbours.seeds = seeds
    with torch.no_grad():
        found = neighbours.agreed(Triggers(pixels, labels), colour_context())
    votes, distances = [], []
    for seed in seeds:
        proxy, rng = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        for weight in proxy.parameters():
            scale = 0.1 * (1 if unit == "absolute" else weight.detach().numpy().std())
            noise = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
            weight.data = weight.data + scale * noise
        votes.append([int(proxy.logits(one[None] / 255).argmax()) for one in pixels])
        pairs = zip(proxy.parameters(), model.parameters(), strict=True)
        distances.append(sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5)
    kept = (torch.tensor(votes) == labels).all(0)
    assert BATCH < int(kept.sum()) < 400
    assert torch.equal(found.pixels, pixels[kept])
    assert torch.equal(found.labels, labels[kept])
    assert neighbours.distance == pytest.approx(max(distances), rel=1e-12)


def test_noise_of_sigma_lies_sigma_times_the_root_of_the_weights_away(mini):
    size = sum(p.numel() for p in mini.parameters())
    assert protect(mini).notes["proxy_distance"] == pytest.approx(1e-3 * size**0.5, rel=0.02)


def test_the_owner_reads_every_trigger_as_stored(mini):
    method = RobustTriggerSet(**QUICK)
    protected = protect(mini)
    view = View(protected.model, method.needs)
    evidence = method.extract(protected.secret, view, testing.context())
    assert evidence.rate == evidence.score == 1.0
    assert view.queries == len(evidence.agreement) == protected.notes["trigger_images"] == 12
    assert (evidence.unit, evidence.rule.text) == ("trigger image", "match >= 1")
    assert evidence.chance is None
    assert protected.secret["pixels"].dtype == torch.uint8


def test_the_rate_is_the_accuracy_on_the_trigger_set(mini):
    method, protected = RobustTriggerSet(**QUICK), protect(mini)
    other = with_head(testing.owner(), Head(10), torch.Generator().manual_seed(9))
    with torch.no_grad():
        predicted = other.logits(protected.secret["pixels"].float() / 255).argmax(1)
    right = int((predicted == protected.secret["labels"]).sum())
    assert right < 12
    assert read(method, protected, other).rate == right / 12


def test_equal_seeds_give_equal_sets_and_other_seeds_others(mini):
    first, again, other = (protect(mini, seed).secret["pixels"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_pass_is_counted_and_the_timing_of_the_ideal_is_not(mini):
    with measuring(CPU) as meter:
        made = protect(mini, proxies=1)
    notes = made.notes
    assert meter.forward_passes == notes["candidates"] + notes["accepted_by_label"]
    assert made.ideal_seconds > 0


def test_a_candidate_is_shown_to_no_proxy_after_the_first_that_disagrees():
    model = Colours()
    pixels = torch.full((10, 3, 2, 2), 255, dtype=torch.uint8)
    labels = torch.tensor([2, 0, 1, 0, 1, 0, 1, 0, 1, 0])  # white is class 2
    neighbours = Neighbours(RobustTriggerSet(sigma=0.0), model)
    neighbours.seeds = [1, 2, 3, 4]
    with measuring(CPU) as meter, torch.no_grad():
        found = neighbours.agreed(Triggers(pixels, labels), colour_context())
    assert found.labels.tolist() == [2]
    assert meter.forward_passes == 10 + 3


def test_proxies_of_another_accuracy_are_drawn_again():
    method = RobustTriggerSet(queries=5, proxies=6, sigma=0.5, accuracy_gap=0.0)
    model, ctx = Colours(), colour_context()
    with torch.no_grad():
        neighbours = method._neighbours(model, ctx)
        images = ctx.held_out.batch(slice(None), CPU)
        for seed in neighbours.seeds:  # the owner tells red from green without error
            answers = neighbours.proxy(seed).logits(images).argmax(1)
            assert torch.equal(answers, ctx.held_out.labels)
    assert len(neighbours.seeds) == 6
    assert neighbours.refused > 0


def test_a_set_that_stays_too_small_is_used_and_says_so():
    made = RobustTriggerSet(proxies=1, sigma=0.0, rounds=2).protect(Colours(), colour_context())
    assert 0 < made.notes["trigger_images"] < made.notes["asked_for"] == 100
    assert len(made.secret["labels"]) == made.notes["trigger_images"]


def featureless():
    return Colours(classes=0)


def two_classes():
    return Colours(classes=2)


@pytest.mark.parametrize(
    ("model", "changes", "settings", "message"),
    [
        (featureless, {}, {}, "got colours with none; give the owner a `classifier:`"),
        (Colours, {"labels": None}, {}, "expected labelled owner images.*`owner_images`"),
        (Colours, {"classes": 4}, {}, "got 4 for a classifier of 3"),
        (two_classes, {"classes": 2}, {}, "tells 3 classes apart or more, got colours with 2"),
        (Colours, {"labels": torch.zeros(6, dtype=torch.long)}, {}, "none of 0 mixes passed"),
        (Colours, {}, {"sigma": 50.0}, r"none of \d+ mixes passed \(\d+ by.*lower sigma = 50"),
        (
            Colours,
            {},
            {"sigma": 500.0, "accuracy_gap": 0.0, "proxies": 64},
            r"within 0 of the owner's accuracy 1\.000, got \d+ of 640; lower sigma",
        ),
    ],
)
def test_what_the_owner_can_put_right_is_said_in_one_line(model, changes, settings, message):
    method = RobustTriggerSet(**{"rounds": 3, **settings})
    with pytest.raises(UserError, match=message) as caught:
        method.protect(model(), colour_context(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("queries", 0), ("proxies", 0), ("rounds", 0), ("sigma", -1.0), ("accuracy_gap", -0.1),
     ("sigma", float("nan"))],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(UserError, match=f"^method 'pautov2024': {setting}: expected"):
        RobustTriggerSet(**{setting: value})
