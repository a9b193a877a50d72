import dataclasses
import statistics
import time

import pytest
import torch
import torch.nn.functional as F

from attacks.finetune import FinetuneClassify
from bench.data.images import Images
from bench.models.heads import Head
from bench.models.libraries import build
from bench.models.surgery import with_head
from bench.models.vision import Architecture
from bench.testing import context


def bare_epoch(model, images, labels, batch, half=False):
    """Forward, backward and step over tensors that lie ready."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model.logits(x), y)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.perf
def test_an_epoch_of_deit_tiny_costs_its_passes():
    victim = build(Architecture("timm", "deit_tiny_patch16_224", None, "own"))
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (64, 3, 224, 224), dtype=torch.uint8, generator=rng)
    labels = torch.randint(10, (64,), generator=rng)
    images = Images(pixels, labels, 10, tuple(map(str, range(64))))
    settings, ratios = FinetuneClassify(epochs=1, batch=16, precision="bfloat16"), []
    ctx = dataclasses.replace(context(), images=images)
    for _ in range(4):  # the first round warms up
        model = with_head(victim, Head(10), torch.Generator().manual_seed(0))
        ready = pixels.float() / 255
        start = time.process_time()
        bare_epoch(model, ready, labels, settings.batch, half=True)
        bare = time.process_time()
        settings.run(victim, ctx)
        ratios.append((time.process_time() - bare) / (bare - start))
    print(f"fine-tuning DeiT-Tiny / bare loop: {statistics.median(ratios[1:]):.2f}")
    assert statistics.median(ratios[1:]) < 1.1
