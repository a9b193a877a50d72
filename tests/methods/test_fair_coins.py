import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from methods import commitment

SEED = bytes(range(32))


def test_coins_are_the_bits_of_shake_of_each_seed():
    found = commitment.coins([SEED, b"another"], 13)
    for row, seed in zip(found, (SEED, b"another"), strict=True):
        number = int.from_bytes(hashlib.shake_256(seed).digest(2), "big")
        assert row.tolist() == [int(bit) for bit in f"{number:016b}"[:13]]


def test_numbers_are_words_of_shake_brought_between_0_and_1():
    said = hashlib.shake_256(SEED).digest(8 * 5)
    words = [int.from_bytes(said[i : i + 8], "little") for i in range(0, 40, 8)]
    found = commitment.uniform(SEED, 5)
    assert found.tolist() == [(2 * (word >> 12) + 1) / 2**53 for word in words]
    assert torch.equal(commitment.uniform(SEED, 9)[:5], found)


@pytest.mark.parametrize("byte", [0, 255])
def test_no_number_is_0_or_1_and_none_of_the_normal_ones_infinite(byte, monkeypatch):
    class Extreme:
        def __init__(self, seed):
            pass

        def digest(self, size):
            return bytes([byte] * size)

    monkeypatch.setattr(hashlib, "shake_256", Extreme)
    assert 0 < float(commitment.uniform(SEED, 1)) < 1
    assert bool(commitment.normal(SEED, 2, 2).isfinite().all())


def test_numbers_are_uniform_and_normal_ones_are_normal():
    uniform, normal = commitment.uniform(SEED, 20000), commitment.normal(SEED, 100, 200)
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(normal.flatten(), stats.norm.ppf(uniform.numpy()), atol=1e-12)


@pytest.mark.parametrize("place", range(32))
def test_every_byte_of_a_seed_decides_what_is_drawn(place):
    other = bytearray(SEED)
    other[place] ^= 1
    assert not bool((commitment.uniform(bytes(other), 64) == commitment.uniform(SEED, 64)).any())
    assert (commitment.coins([SEED], 64) != commitment.coins([bytes(other)], 64)).any()
