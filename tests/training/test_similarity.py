import pytest
import torch

from bench.training import cka


def drawn(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(d, seed=3):
    return torch.linalg.qr(drawn(d, d, seed)).Q


def by_hand(x, y, unbiased):
    """Kornblith's formula, and Song's eq. 4 as it is printed."""
    n = len(x)

    def hsic(k, m):
        if not unbiased:
            h = torch.eye(n, dtype=k.dtype) - 1 / n
            return torch.trace(k @ h @ m @ h)
        k, m = k - k.diag().diag(), m - m.diag().diag()
        one = torch.ones(n, dtype=k.dtype)
        both = torch.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return both - 2 / (n - 2) * (one @ k @ m @ one)

    k, m = x @ x.mT, y @ y.mT
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_rotation_scale_and_shift_leave_features_alike(estimator):
    z = drawn(64, 12)
    assert cka(z, 3 * z @ orthogonal(12) + drawn(1, 12, 5), estimator) == pytest.approx(1.0)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_an_invertible_map_that_is_no_rotation_makes_them_less_alike(estimator):
    z = drawn(64, 12)
    assert cka(z, z @ torch.diag(torch.arange(1.0, 13.0).double()), estimator) < 0.95


def test_chance_makes_few_images_of_many_dimensions_alike_for_the_biased_estimator_alone():
    n, d = 64, 256
    pairs = [(drawn(n, d, 2 * i), drawn(n, d, 2 * i + 1)) for i in range(5)]
    biased = sum(cka(x, y, "biased") for x, y in pairs) / 5
    unbiased = sum(cka(x, y, "unbiased") for x, y in pairs) / 5
    assert biased == pytest.approx(d / (n + d), abs=0.02)
    assert unbiased == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_both_estimators_are_those_of_their_papers(estimator):
    x, y = drawn(20, 5), torch.cat([drawn(20, 5)[:, :2], drawn(20, 7, 1)], 1)
    assert cka(x, y, estimator) == pytest.approx(by_hand(x, y, estimator == "unbiased"), rel=1e-9)


def test_features_of_another_width_compare():
    z = drawn(64, 12)
    assert cka(z, torch.cat([z, z], 1) @ orthogonal(24)) == pytest.approx(1.0)


def test_features_that_say_nothing_are_like_no_others():
    z = drawn(16, 4)
    assert cka(z, torch.ones(16, 4)) == 0.0
    assert cka(z, torch.full((16, 4), torch.nan)) == 0.0


def test_tiny_and_huge_features_compare_as_any():
    z = drawn(32, 6)
    assert cka(1e-30 * z, 1e30 * z) == pytest.approx(1.0)


def test_four_images_are_the_fewest():
    with pytest.raises(ValueError, match="same 4 images or more, got 3, 3"):
        cka(drawn(3, 2), drawn(3, 2))
