import pytest
import torch

from attacks.harden import FeatureAdversarial, _apart
from bench.testing import CPU, context, owner


def asked():
    return context().images.batch(slice(0, 32), CPU)


def told():
    with torch.no_grad():
        return owner().features(asked())


@pytest.mark.parametrize("eps", [2 / 255, 0.1])
def test_the_worst_image_is_near_and_worse_than_a_random_one(eps):
    how = FeatureAdversarial(eps=eps, attack_lr=eps / 4, attack_steps=5)
    worst = how._worst(owner(), asked(), told(), torch.Generator().manual_seed(0))
    assert float((worst - asked()).abs().max()) <= eps + 1e-6
    assert worst.min() >= 0
    assert worst.max() <= 1
    with torch.no_grad():
        noise = torch.rand(asked().shape, generator=torch.Generator().manual_seed(0))
        random = (asked() + eps * (2 * noise - 1)).clamp(0, 1)
        assert _apart(owner(), worst, told()) > 2 * _apart(owner(), random, told())


def test_the_distance_is_the_mean_squared_length_between_embeddings():
    with torch.no_grad():
        assert float(_apart(owner(), asked(), told())) == 0.0
        apart = _apart(owner(), asked(), told() + 1)
    assert float(apart) == pytest.approx(told().shape[1])


def test_a_hardened_copy_gives_the_victims_features_on_its_own_worst_images():
    how = FeatureAdversarial(eps=0.1, attack_lr=0.03, attack_steps=4, epochs=4, lr=1e-3, batch=16)
    made = how.run(owner(), context(3))
    gone = [
        float(_apart(m, how._worst(m, asked(), told(), torch.Generator().manual_seed(0)), told()))
        for m in (owner(), made)
    ]
    assert gone[1] < 0.7 * gone[0]
    assert made.architecture == owner().architecture
