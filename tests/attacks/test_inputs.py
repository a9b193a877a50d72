import pytest
import torch

from attacks.inputs import erased, mixing, noisy, view


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=64, side=32):
    return torch.rand(count, 3, side, side, generator=rng(1))


@pytest.mark.parametrize("change", [lambda x, g: noisy(x, 0.2, g), erased, view])
def test_images_stay_images_and_equal_draws_give_equal_ones(change):
    made = change(images(), rng())
    assert made.shape == images().shape
    assert made.min() >= 0
    assert made.max() <= 1
    assert torch.equal(made, change(images(), rng()))
    assert not torch.equal(made, change(images(), rng(1)))
    assert not torch.equal(made, images())


def test_noise_has_the_deviation_it_is_given():
    grey = torch.full((8, 3, 32, 32), 0.5)
    assert float((noisy(grey, 0.05, rng()) - grey).std()) == pytest.approx(0.05, rel=0.03)


def test_a_rectangle_of_a_share_of_the_image_is_erased_and_all_else_stays():
    before = images(256)
    gone = (erased(before, rng(), 0.1, 0.3) != before).all(1)  # (b, h, w)
    share = gone.double().mean((1, 2))
    assert share.min() > 0.1 - 0.06  # of pixels whose centres lie inside
    assert share.max() < 0.3 + 0.06
    for one in gone:
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert rows * columns == one.sum()  # a rectangle


def test_a_mixture_gives_every_image_one_partner():
    shares = []
    for seed in range(200):
        share, partners = mixing(9, 0.2, rng(seed))
        assert sorted(partners.tolist()) == list(range(9))
        shares.append(share)
    # Beta(0.2, 0.2) has its mean in the middle and most of its mass at the ends.
    found = torch.tensor(shares)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.1)
    assert float(found.var()) == pytest.approx(1 / (4 * 1.4), abs=0.03)


def test_a_view_shows_a_part_of_the_image_and_half_of_them_the_other_way_round():
    """A ramp from left to right: a crop has a part of its range, and a flip turns its slope."""
    ramp = torch.linspace(0.3, 0.7, 32).expand(400, 3, 32, 32)
    seen = view(ramp, rng()).mean((1, 2))  # (b, w)
    falling = (seen[:, -1] < seen[:, 0]).double().mean()
    assert float(falling) == pytest.approx(0.5, abs=0.08)
    colour = torch.tensor([0.8, 0.5, 0.2]).view(1, 3, 1, 1).expand(400, 3, 8, 8)
    spread = view(colour, rng()).std(1).mean((1, 2))
    assert float((spread < 1e-6).double().mean()) == pytest.approx(0.2, abs=0.06)  # without colour


def test_a_view_of_the_whole_image_alone_still_jitters():
    seen = view(images(), rng(), least=1.0)
    assert not torch.allclose(seen, images(), atol=0.05)
