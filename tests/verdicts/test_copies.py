import math
import random

import pytest

from bench.verdicts.copies import NEAR, ROUNDED, cosine, one_model


def vector(seed, size=64):
    rng = random.Random(seed)
    return [rng.gauss(0, 1) for _ in range(size)]


def turned(one, angle, seed=1):
    """Turn a vector by an angle towards another that is orthogonal to it."""
    other = vector(seed, len(one))
    along = sum(a * b for a, b in zip(one, other, strict=True)) / sum(a * a for a in one)
    across = [b - along * a for a, b in zip(one, other, strict=True)]
    scale = math.hypot(*one) / math.hypot(*across)
    return [
        math.cos(angle) * a + math.sin(angle) * scale * b for a, b in zip(one, across, strict=True)
    ]


@pytest.mark.parametrize("wanted", [1.0, 0.9999999, 0.9995, 0.999, 0.9, 0.0, -0.5])
def test_the_cosine_is_that_of_the_angle(wanted):
    one = vector(0)
    assert cosine(one, turned(one, math.acos(wanted))) == pytest.approx(wanted, abs=1e-9)
    tripled = [3 * number for number in one]
    assert cosine(one, tripled) == pytest.approx(1)


def test_nothing_is_like_nothing_alone():
    assert cosine([0.0, 0.0], [0.0, 0.0]) == 1
    assert cosine([0.0, 0.0], [1.0, 0.0]) == 0


def test_four_models_in_four_formats_are_four_whatever_the_order():
    models = [vector(i) for i in range(4)]
    rounded = [turned(m, math.acos(1 - 1e-6), seed) for seed in range(9, 13) for m in models]
    order = random.Random(0).sample(range(16), 16)
    names = one_model([rounded[i] for i in order], ROUNDED)
    together = {}
    for name, i in zip(names, order, strict=True):
        together.setdefault(name, set()).add(i % 4)
    assert sorted(map(sorted, together.values())) == [[0], [1], [2], [3]]


def test_a_chain_of_near_models_is_one_model_named_by_its_first():
    one, step = vector(0), math.acos(0.9995)
    chain = [turned(one, i * step) for i in (0, 2, 1)]  # the ends are further apart than NEAR
    assert cosine(chain[0], chain[1]) < NEAR < cosine(chain[0], chain[2])
    assert one_model(chain, NEAR) == [0, 0, 0]
    assert one_model(chain[:2], NEAR) == [0, 1]
    assert one_model([], NEAR) == []
