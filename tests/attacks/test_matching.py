import pytest
import torch
from scipy.special import log_softmax

from attacks.matching import NEAR, answers, compare, token_distance
from bench.models import VisionModel
from bench.testing import CPU, context, owner


def features(seed, count=5):
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(seed))


def unit(features):
    found = features.double().numpy()
    return found / (found**2).sum(1, keepdims=True) ** 0.5


def nt_xent(found, wanted, temperature):
    """NT-Xent image by image: the victim's of all images, and the student's of the others."""
    ours, theirs = unit(found), unit(wanted)
    told = []
    for i, one in enumerate(ours):
        others = [ours[j] for j in range(len(ours)) if j != i]
        scores = [one @ other / temperature for other in (*theirs, *others)]
        told.append(-log_softmax(scores)[i])
    return sum(told) / len(told)


def test_mse_is_the_mean_squared_error_as_it_is():
    one, other = features(0), features(1)
    expected = float((one - other).square().mean())
    assert float(compare("mse", one, other, 1.0)) == pytest.approx(expected, rel=1e-6)


def test_cosine_is_half_the_squared_distance_of_unit_vectors_whatever_the_lengths():
    one, other = features(0), features(1)
    expected = ((unit(one) - unit(other)) ** 2).sum(1).mean() / 2
    assert float(compare("cosine", 3 * one, other, 1.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_infonce_has_the_negatives_of_both_sides(temperature):
    one, other = features(0), features(1)
    expected = nt_xent(one, other, temperature)
    assert float(compare("infonce", one, other, temperature)) == pytest.approx(expected, rel=1e-5)


def test_relational_adds_a_cosine_over_a_squared_distance():
    one, other = features(0), features(1)
    ours, theirs = unit(one), unit(other)
    cosine, apart = (ours * theirs).sum(1), ((ours - theirs) ** 2).sum(1)
    related = -torch.tensor((1 + cosine) / (apart + NEAR)).log().mean()
    expected = nt_xent(one, other, 0.07) + float(related)
    assert float(compare("relational", one, other, 0.07)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "cosine", "infonce", "relational"])
def test_what_is_alike_is_closer_and_its_slope_is_finite(kind):
    wanted = features(0)
    found = wanted.clone().requires_grad_(True)
    loss = compare(kind, found, wanted, 0.5)
    loss.backward()
    assert found.grad.isfinite().all()
    assert loss < compare(kind, features(1), wanted, 0.5)


def test_a_batch_of_one_image_has_nothing_to_be_told_from():
    assert float(compare("infonce", features(0, 1), features(1, 1), 0.5)) == 0.0


def test_prefix_tokens_weigh_as_much_as_all_patches():
    wanted = torch.ones(2, 5, 3)
    one_token, one_patch = wanted.clone(), wanted.clone()
    one_token[:, 0], one_patch[:, 1] = -1.0, -1.0
    apart = [float(token_distance(found, wanted, 1)) for found in (one_token, one_patch)]
    assert apart == pytest.approx([2 + 4, (2 + 4) / 4])
    assert float(token_distance(one_token, wanted, 0)) == pytest.approx((2 + 4) / 5)


def test_answers_are_the_victims_own_whatever_the_batch():
    found = answers(owner(), context().images, VisionModel.features, CPU)
    with torch.no_grad():
        expected = owner().features(context().images.batch(slice(None), CPU))
    assert torch.allclose(found, expected, atol=1e-5)
