import statistics
import time

import pytest
import torch
import torch.nn.functional as F

from attacks.finetune import FinetuneClassify
from bench.models import Head, with_head
from bench.testing import context, owner

ROUNDS = 7


def bare_epoch(model, images, labels, batch):
    """Forward, backward and step over tensors that lie ready."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        F.cross_entropy(model.logits(x), y).backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.perf
def test_an_epoch_of_fine_tuning_costs_little_more_than_its_passes():
    ctx, victim, settings = context(), owner(), FinetuneClassify(epochs=2)
    # Twice the same 64 images in both, so that neither is all start-up.
    images = (ctx.images.pixels.float() / 255).repeat(2, 1, 1, 1)
    labels = ctx.images.labels.repeat(2)
    ratios = []
    for _ in range(ROUNDS):  # interleaved: noise strikes both alike
        model = with_head(victim, Head(10), torch.Generator().manual_seed(0))
        start = time.perf_counter()
        bare_epoch(model, images, labels, settings.batch)
        bare = time.perf_counter()
        settings.run(victim, context())
        ratios.append((time.perf_counter() - bare) / (bare - start))
    print(f"fine-tuning / bare loop: {statistics.median(ratios):.2f} ({min(ratios):.2f} at best)")
    assert statistics.median(ratios) < 1.3
