"""Models and images that tests give to what computes on tensors."""

import functools

import torch

from bench import testing
from bench.data.images import Images
from bench.models.building import randomised
from bench.models.vision import Architecture
from bench.records.nouns import Access

CPU = torch.device("cpu")


def shaken(model):
    """Draw every weight, so that no zero of the first weights hides what is read or cut."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=rng) * 0.05)
    return model


def images(count=12, side=32, seed=0, labels=None, classes=0):
    """Noise, each image a source of its own."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, side, side), generator=rng, dtype=torch.uint8)
    return Images(pixels, labels, classes, tuple(map(str, range(count))))


@functools.cache
def digits_owner():
    """Mini with a classifier of digits, on which it is right."""
    return testing._owner_for(Access.LABELS)


@functools.cache
def small_vit(side=32, seed=0):
    """A random ViT of another library, whose classes are its own."""
    return randomised(Architecture("timm", "test_vit", side, "own"), seed)
