"""Make innocents of one owner: what honest users turn its clean model into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from bench.data.images import Images
from bench.models.vision import VisionModel, clone
from bench.models.weights import refuse_infinite, release
from bench.records.nouns import Json, UserError, digest
from bench.registry import ATTACKS
from bench.types import Context

TUNE, PRUNE, NOISE, ROUND = "finetune.classify", "prune.l1", "noise.weights", "quantize"

RATES = (3e-5, 1e-4, 3e-4, 1e-3)
"""Learning rates of an honest user: below them nothing moves, above them a model is lost."""

RECIPES: tuple[tuple[tuple[str, Mapping[str, Json]], ...], ...] = (
    (),  # the clean model itself
    *(((TUNE, {"epochs": 2, "lr": lr, "schedule": "constant"}),) for lr in RATES),
    *(((TUNE, {"epochs": 2, "lr": lr, "schedule": "cosine"}),) for lr in RATES),
    ((TUNE, {"epochs": 2, "lr": 3e-4, "layer_decay": 0.75}),),
    ((TUNE, {"epochs": 2, "lr": 1e-3, "mode": "lora"}),),
    ((TUNE, {"epochs": 2, "lr": 3e-4, "mixup": 0.2}),),
    ((TUNE, {"epochs": 2, "lr": 3e-4, "noise": 0.1}),),
    ((PRUNE, {"amount": 0.4}), (TUNE, {"epochs": 2, "lr": 3e-4})),
    ((PRUNE, {"amount": 0.2}),),
    ((PRUNE, {"amount": 0.4}),),
    ((ROUND, {"format": "int8"}),),
    ((ROUND, {"format": "int4"}),),
    ((NOISE, {"sigma": 0.05}),),
    ((NOISE, {"sigma": 0.1}),),
)
"""One model each, no two alike: as many as a verdict at 0.05 takes, and the clean one."""


def descend(
    owner: VisionModel,
    pools: tuple[Images, Images],
    folder: Path,
    seed: int,
    device: torch.device,
    watch: Callable[[Path], object],
) -> tuple[Path, ...]:
    """Write what every recipe makes of the clean model, without heads; `watch` is told each file.

    Raises:
        UserError: images to finetune on have no labels, the folder holds something already, for it
            could be another model's, or a recipe's model is not finite.

    """
    if pools[0].labels is None:
        raise UserError(
            "--images: expected labelled ones, as honest users finetune on; name a folder with one "
            "folder a class, or digits"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if there := next(folder.iterdir(), None):
        raise UserError(f"expected an empty folder, got {there} in it; name another")
    made = list[Path]()
    for number, chain in enumerate(RECIPES):
        name = "-".join(step.replace(".", "_") for step, _ in chain) or "clean"
        path, model = folder / f"{number:02}-{name}.safetensors", clone(owner)
        for place, (step, settings) in enumerate(chain):
            drawn = int(digest("descendant", seed, number, place), 16) >> 1
            rng = torch.Generator().manual_seed(drawn)
            attack = ATTACKS.build(step, settings)
            model = attack.run(model.to(device), Context(device, rng, *pools)).cpu()
        refuse_infinite(model, path.name)
        release(model, path)
        made.append(path)
        watch(path)
    return tuple(made)
