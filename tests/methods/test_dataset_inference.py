import dataclasses

import pytest
import torch
from made_models import CPU
from scipy.stats import kstest, mannwhitneyu, multivariate_normal

from bench import testing
from bench.models import View, measuring
from bench.records.nouns import UserError
from bench.testing import context
from bench.types import Sizes
from methods.dataset_inference import DatasetInference, Mixture, compared, fit


def points(count, width=6, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=rng, dtype=torch.float64)


def test_the_likelihood_is_that_of_gaussians():
    x, means, variances = points(5), points(2, seed=1), points(2, seed=2).square() + 0.1
    mixture = Mixture(torch.tensor([0.3, 0.7], dtype=torch.float64).log(), means, variances)
    parts = [
        weight * multivariate_normal.pdf(x, mean, torch.diag(variance))
        for weight, mean, variance in zip((0.3, 0.7), means, variances, strict=True)
    ]
    assert torch.allclose(mixture.log_likelihood(x), torch.tensor(sum(parts)).log())


def test_a_mixture_finds_the_clusters_that_points_were_drawn_from():
    cluster = torch.arange(400) % 2
    x = 0.1 * points(400, 3) + torch.tensor([[2.0, 0, 0], [0, -3.0, 1]]).double()[cluster]
    mixture = fit(x, torch.tensor([0, 1]), 1e-6, 100)
    assert torch.allclose(mixture.weights.exp(), torch.tensor([0.5, 0.5]).double(), atol=1e-3)
    for mine in (0, 1):
        drawn = x[cluster == mine]
        assert torch.allclose(mixture.means[mine], drawn.mean(0), atol=1e-3)
        assert torch.allclose(mixture.variances[mine], drawn.var(0, correction=0), atol=1e-3)


def test_every_round_makes_the_points_likelier():
    x, centres = points(60), torch.arange(5)
    rounds = [float(fit(x, centres, 1e-6, n).log_likelihood(x).mean()) for n in range(6)]
    assert rounds == sorted(rounds)
    assert rounds[5] > rounds[0]


def test_one_component_is_the_mean_and_the_variances():
    x = points(30)
    mixture = fit(x, torch.tensor([7]), 0.0, 100)
    assert torch.allclose(mixture.means[0], x.mean(0))
    assert torch.allclose(mixture.variances[0], x.var(0, correction=0))


def test_the_score_is_mann_whitneys():
    one, other = points(20)[:, 0], points(30, seed=1)[:, 0]
    wanted = mannwhitneyu(one, other).statistic / 600
    assert compared(one, other).likelier == pytest.approx(wanted)


def test_of_images_alike_p_is_uniform():
    found = []
    for seed in range(120):
        x = points(120, 4, seed)
        mixture = fit(x[:60], torch.arange(3), 1e-6, 20)
        found.append(compared(mixture.log_likelihood(x[60:90]), mixture.log_likelihood(x[90:])).p)
    assert kstest(found, "uniform").pvalue > 0.01


@pytest.mark.parametrize("scores", [torch.zeros(4).double(), torch.ones(4).double()])
def test_where_all_is_alike_nothing_is_said(scores):
    assert compared(scores, scores) == (0.5, 1.0, 0.0)


class Remembering:
    """A suspect that lays its training images close together, and others where they fall."""

    def __init__(self, known, spread):
        self.known = {image.numpy().tobytes() for image in known}
        self.spread, self.rng = spread, torch.Generator().manual_seed(0)

    def features(self, images):
        drawn = torch.randn(len(images), 16, generator=self.rng)
        raw = (images * 255).round().to(torch.uint8)
        own = torch.tensor([image.numpy().tobytes() in self.known for image in raw])
        return torch.where(own[:, None], 1 + self.spread * drawn, 1 + drawn)


def test_a_model_that_remembers_is_found_and_one_that_does_not_is_not():
    method, ctx = DatasetInference(), context(0, "owner")
    made = method.protect(testing.owner(), ctx)
    overfit = method.extract(made.secret, Remembering(ctx.images.pixels, 0.5), ctx)
    assert overfit.statistic[0] < 1e-6
    assert overfit.agreement[0] > 0.9
    assert overfit.rate == 1
    innocent = method.extract(made.secret, Remembering(ctx.images.pixels, 1.0), ctx)
    assert innocent.statistic[0] > 0.05
    assert innocent.rate == 0


def test_training_images_are_taken_apart_and_held_out_ones_are_none_of_them():
    ctx = context(0, "owner")
    secret = DatasetInference(limit=12).protect(testing.owner(), ctx).secret
    assert [len(secret[name]) for name in ("fitted", "members", "others")] == [24, 12, 12]

    def named(pixels):
        return {image.numpy().tobytes() for image in pixels}

    own, held_out = named(ctx.images.pixels), named(ctx.held_out.pixels)
    assert named(secret["fitted"]) | named(secret["members"]) <= own
    assert not named(secret["fitted"]) & named(secret["members"])
    assert named(secret["others"]) <= held_out


def test_images_that_are_few_are_refused():
    ctx = context(0, "owner")
    few = dataclasses.replace(ctx, held_out=ctx.held_out.subset([0]))
    with pytest.raises(UserError, match="expected 4 images and 2 held out or more, the owner has"):
        DatasetInference().protect(testing.owner(), few)


def test_its_passes_are_those_that_it_counts():
    method, ctx = DatasetInference(limit=12), context(0, "owner")
    made = method.protect(testing.owner(), ctx)
    suspect = View(made.model, method.needs)
    with measuring(CPU) as meter:
        evidence = method.extract(made.secret, suspect, ctx)
    sizes = Sizes(len(ctx.images), len(ctx.held_out), 6, 65, 48)
    assert meter.forward_passes == method.extract_passes(sizes).forward == suspect.queries == 48
    assert (evidence.unit, evidence.chance, len(evidence.agreement)) == ("model", 0.5, 1)


def test_the_likelihood_is_taken_of_directions():
    method, ctx = DatasetInference(limit=8), context(0, "owner")
    secret = method.protect(testing.owner(), ctx).secret
    view = View(testing.owner(), method.needs)

    class Longer:
        def features(self, images):
            return 7 * view.features(images)

    here, there = (method.extract(secret, suspect, ctx) for suspect in (view, Longer()))
    assert here.agreement == there.agreement
