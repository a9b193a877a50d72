"""What a plan foresees of training thieves is what a meter counts, to the last image."""

import pytest

from bench.models import measuring
from bench.registry import ATTACKS
from bench.testing import CPU, _with_digits_head, context, owner
from bench.types import Sizes

ASKED = 24
"""Of the thief's 64 images: enough for a batch and a part of one."""

CASES = [
    ("distill.cont_steal", {"epochs": 2, "batch": 8, "queries": ASKED}),
    ("distill.features", {"epochs": 1, "queries": ASKED}),
    ("distill.features", {"epochs": 1, "queries": ASKED, "loss": "mse", "augment": "beside"}),
    ("distill.features", {"epochs": 1, "queries": ASKED, "loss": "cosine", "views": 5}),
    ("distill.labels", {"epochs": 2, "queries": ASKED}),
    ("distill.logits", {"epochs": 1}),
    ("distill.rda", {"epochs": 2, "queries": 5 * ASKED}),
    ("distill.stolen_encoder", {"epochs": 2, "queries": ASKED}),
    ("finetune.adversarial", {"epochs": 1, "attack_steps": 2}),
    ("finetune.classify", {"epochs": 1, "sam": 0.05, "mixup": 0.2, "noise": 0.1}),
    ("finetune.classify", {"epochs": 1, "sam": 0.05, "mode": "lora"}),
    ("finetune.rear", {"epochs": 1, "blocks": 1}),
    ("finetune.regularise", {"epochs": 1, "decay_epochs": 1}),
    ("finetune.surrogate_codec", {"rounds": 1, "epochs": 1, "codec_epochs": 1, "block": 4}),
    ("finetune.wild", {"epochs": 2, "share": 0.3}),
    ("finetune.wrk", {"epochs": 2, "perturbed": 10}),
    ("noise.shift", {}),
    ("prune.activations", {}),
    ("prune.structured", {"what": "mlp"}),
    ("prune.structured", {"what": "heads", "amount": 0.5}),
    ("removalnet", {"epochs": 1, "inner_steps": 2, "block": 3}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_passes_are_foreseen_to_the_last_image(name, settings):
    attack, ctx = ATTACKS.build(name, settings), context(3)
    victim = _with_digits_head(owner()) if name == "distill.logits" else owner()
    if getattr(attack, "uses_head", False):
        victim = _with_digits_head(owner())
    with measuring(CPU) as meter:
        attack.run(victim, ctx)
    foreseen = attack.passes(Sizes(len(ctx.images), 0, 6, 65, 48))
    assert foreseen.bound == "exact"
    assert meter.forward_passes == pytest.approx(foreseen.forward)
    assert meter.backward_passes == pytest.approx(foreseen.backward)
