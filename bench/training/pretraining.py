"""Train the embedded owner and its strangers from scratch, many at once.

`mini` and the strangers come from one recipe and differ in seed and data: `mini` sees what its
owner may train on, each stranger its own random half of what either party may train on. Strangers
of other shapes differ from `mini` in depth or width as well. The task is to tell which digit, or
which photograph, an image shows; the classifier is thrown away afterwards.
`python -m bench.training.pretraining` rebuilds the weights the package carries.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from bench.data import embedded
from bench.data.embedded import PHOTOGRAPHS
from bench.data.images import Images, load
from bench.data.manifest import Manifest, split
from bench.models.building import build
from bench.models.libraries import EMBEDDED
from bench.models.libraries.embedded import MINI
from bench.models.vision import Architecture, VisionModel
from bench.models.weights import load_state, weights_digest
from bench.records.files import write_atomically
from bench.records.nouns import Shape, digest
from bench.suite.innocents import RECIPE, Recipe, manifests, numbers, recipe_digest
from bench.training.probe import probe_accuracy

ARCHITECTURE = Architecture(EMBEDDED, "mini")

STACK = 5
"""Members trained in one stack: 160 images a step; larger stacks fall out of the cache."""

TOLERANCE = 1e-3
"""Largest difference between two trainings of one weight that counts as the same training."""

State = dict[str, Tensor]


class Member(NamedTuple):
    """One model to train: its seed, and the rows of the bank it may see."""

    seed: int | str
    digits: Tensor
    photos: Tensor


class Draws(NamedTuple):
    """All that chance decides in training: (steps, b, ...) per member, stacked to (k, steps, b)."""

    rows: Tensor  # (..., b) of the bank
    zoom: Tensor  # (..., b, 2), negative mirrors
    shift: Tensor  # (..., b, 2) in half image sides
    tint: Tensor  # (..., b, 3)
    kept: Tensor  # (..., b, patches kept)


class Pretraining(nn.Module):
    """A backbone that sees some of the patches, and the classifier it is trained with."""

    def __init__(self, classes: int, shape: Shape = "mini") -> None:
        super().__init__()
        self.model = build(Architecture(EMBEDDED, shape))
        self.classifier = nn.Linear(2 * self.model.num_features, classes)
        for block in self.model.blocks:
            block.attn.fused_attn = False  # type: ignore[union-attr]  # SDPA has no vmap rule

    def forward(self, images: Tensor, kept: Tensor) -> Tensor:
        """Map images (b, 3, h, w) and the patches to keep (b, m) to logits (b, k)."""
        tokens = self.model.embed(images)  # (b, 65, d)
        patches = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        tokens = self.model.run_blocks(torch.cat([tokens[:, :1], patches], dim=1))
        pooled = self.model.pooled(self.model.finish(tokens))
        logits: Tensor = self.classifier(_standardised(pooled))
        return logits


def pretrain(
    recipe: Recipe, members: Sequence[Member], bank: Images, shape: Shape = "mini"
) -> list[State]:
    """Train one model per member, all in step, and return their states (a `VisionModel`'s)."""
    with torch.random.fork_rng(devices=[]):  # timm initialises from the global state, in vain
        networks = [_initialised(Pretraining(bank.classes, shape), recipe, m.seed) for m in members]
    parameters, _ = stack_module_state(networks)
    template = networks[0].requires_grad_(False)

    def loss(weights: State, images: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(template, weights, (images, kept)), labels)

    labels = bank.labels
    assert labels is not None
    step = vmap(grad_and_value(loss))
    draws = Draws(*map(torch.stack, zip(*(_draw(recipe, m) for m in members), strict=True)))
    # A bias on the keys has gradient zero: at the usual eps of 1e-8 rounding noise would move it.
    optimiser = torch.optim.AdamW(
        parameters.values(), eps=1e-5, weight_decay=recipe.weight_decay, fused=True
    )
    for t in range(recipe.steps):
        now = Draws(*(drawn[:, t] for drawn in draws))
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * schedule(t / recipe.steps, recipe.warm_up)
        gradients, _ = step(parameters, _augmented(bank, now), labels[now.rows], now.kept)
        for name, gradient in gradients.items():
            parameters[name].grad = gradient
        optimiser.step()
    return [_backbone(parameters, i) for i in range(len(members))]


def schedule(progress: float, warm_up: float) -> float:
    """Return the share of the learning rate at `progress` in [0, 1): linear rise, cosine fall."""
    if progress < warm_up:
        return 0.05 + 0.95 * progress / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warm_up) / (1 - warm_up))


def embedded_bank(recipe: Recipe = RECIPE) -> Images:
    """Decode every digit, then every crop, at the size `mini` takes, with labels 0..25."""
    listed = manifests(recipe)
    size = build(ARCHITECTURE).preprocess
    digits, photos = (load(m, range(len(m.items)), size) for m in listed)
    assert digits.labels is not None
    label = {source: digits.classes + i for i, source in enumerate(sorted(PHOTOGRAPHS))}
    labels = torch.cat([digits.labels, torch.tensor([label[s] for s in photos.sources])])
    pixels = torch.cat([digits.pixels, photos.pixels])
    return Images(pixels, labels, digits.classes + len(label), digits.sources + photos.sources)


def owner(recipe: Recipe = RECIPE) -> Member:
    """Return `mini` itself: seed 0, trained on the owner's images."""
    digits, photos = manifests(recipe)
    rows = [torch.tensor(split(m).owner_images) for m in (digits, photos)]
    return Member(0, rows[0], len(digits.items) + rows[1])


def stranger(index: int, recipe: Recipe = RECIPE, shape: Shape = "mini") -> Member:
    """Return the member whose data are a random half of what either party may train on."""
    digits, photos = manifests(recipe)
    # Strangers of two shapes are no more alike than two of one: each has seed and data of its own.
    who = index if shape == "mini" else f"{shape} {index}"
    rng = _generator("stranger's data", who)
    rows = [torch.tensor(_random_half(m, rng)) for m in (digits, photos)]
    seed = 1 + index if shape == "mini" else who
    return Member(seed, rows[0], len(digits.items) + rows[1])


def cohort(index: int, size: int, recipe: Recipe = RECIPE, shape: Shape = "mini") -> list[State]:
    """Train strangers index * size up to (index + 1) * size - 1 of one shape."""
    bank = embedded_bank(recipe)
    members = [stranger(i, recipe, shape) for i in range(index * size, (index + 1) * size)]
    stacks = [members[i : i + STACK] for i in range(0, size, STACK)]
    return [state for stack in stacks for state in pretrain(recipe, stack, bank, shape)]


def _random_half(listed: Manifest, rng: torch.Generator) -> list[int]:
    # Half of the sources, not of the items: a photograph is known or unknown as a whole.
    pools = split(listed)
    train = sorted(pools.owner_images + pools.thief_images)
    sources = list(dict.fromkeys(listed.items[i].source for i in train))
    order = torch.randperm(len(sources), generator=rng).tolist()
    chosen = {sources[i] for i in order[: len(sources) // 2]}
    return [i for i in train if listed.items[i].source in chosen]


def _generator(*key: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(int(digest("pretrain", *key), 16) >> 1)


def _standardised(pooled: Tensor) -> Tensor:
    """Give each feature mean 0 and variance 1 over the batch, digits and photographs apart.

    Averaged patches of two images differ by little. Left at that scale, a classifier is slow to
    see the difference, and training spoils what even random weights tell apart.
    """
    halves = pooled.view(2, -1, pooled.shape[-1])  # (2, b / 2, 2 d)
    spread = (halves.var(1, keepdim=True, correction=0) + 1e-4).sqrt()
    return ((halves - halves.mean(1, keepdim=True)) / spread).view(pooled.shape)  # (b, 2 d)


def _initialised(network: Pretraining, recipe: Recipe, seed: int | str) -> Pretraining:
    # timm starts at std 0.02, the scale of wide models; at width 48 that costs hundreds of steps.
    rng = _generator("weights", seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("pos_embed", "cls_token")):
                parameter.normal_(std=0.3, generator=rng)
            elif parameter.ndim > 1:
                quiet = name.endswith(("attn.proj.weight", "fc2.weight", "classifier.weight"))
                gain = recipe.residual_gain if quiet else 1.0
                parameter.normal_(std=gain / math.sqrt(parameter[0].numel()), generator=rng)
            elif name.endswith("bias"):
                parameter.zero_()
    return network


def _draw(recipe: Recipe, member: Member) -> Draws:
    """Draw a member's whole training, digits in the first half of every batch."""
    rng = _generator("training", member.seed)
    shape, half = (recipe.steps, recipe.batch), recipe.batch // 2
    is_digit = (torch.arange(recipe.batch) < half)[:, None]

    def uniform(low: float, high: float, width: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, width, generator=rng)

    def choose(rows: Tensor, count: int) -> Tensor:
        return rows[torch.randint(len(rows), (recipe.steps, count), generator=rng)]

    rows = [choose(member.digits, half), choose(member.photos, recipe.batch - half)]
    mirror = uniform(-1, 1, 1).sign() * torch.tensor([1.0, 0.0]) + torch.tensor([0.0, 1.0])
    return Draws(
        rows=torch.cat(rows, dim=1),
        zoom=torch.where(is_digit, uniform(1, 1.3, 2), mirror),
        shift=torch.where(is_digit, uniform(-0.15, 0.15, 2), 0.0),
        tint=torch.where(is_digit, uniform(0.5, 1, 3), 1.0),
        kept=uniform(0, 1, 64).argsort(-1)[..., : recipe.patches_kept].contiguous(),
    )


def _augmented(bank: Images, draws: Draws) -> Tensor:
    """Return the images of one step, moved and tinted: (k, b, 3, h, w) in [0, 1]."""
    rows = draws.rows.flatten()  # (k b)
    moves = torch.cat([torch.diag_embed(draws.zoom), draws.shift[..., None]], dim=-1)
    grid = F.affine_grid(moves.flatten(0, 1), [len(rows), *bank.pixels.shape[1:]], False)
    moved = F.grid_sample(bank.batch(rows, torch.device("cpu")), grid, align_corners=False)
    return moved.view(*draws.rows.shape, *moved.shape[1:]) * draws.tint[..., None, None]


def _backbone(parameters: Mapping[str, Tensor], i: int) -> State:
    return {
        name.removeprefix("model."): stacked[i].detach().clone()
        for name, stacked in parameters.items()
        if name.startswith("model.")
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild `mini`, or with --check retrain it and compare; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.training.pretraining", description=main.__doc__
    )
    parser.add_argument("--check", action="store_true", help="compare and write nothing")
    check = parser.parse_args(arguments).check
    torch.set_num_threads(1)  # sums split over threads differ in the last bit
    bank = embedded_bank()
    (state,) = pretrain(RECIPE, [owner()], bank)
    if check:
        return _compare(state)
    model = load_state(build(ARCHITECTURE), state, "mini")
    card = {
        "model": MINI,
        "recipe": numbers(RECIPE),
        "recipe_digest": recipe_digest(),
        "weights_digest": weights_digest(model),
        "data": {m.name: m.digest for m in manifests()},
        "probe_accuracy": digits_probe(model, bank),
    }
    write_atomically(embedded.WEIGHTS / "mini.safetensors", save(state))
    write_atomically(embedded.WEIGHTS / "mini.json", (json.dumps(card, indent=2) + "\n").encode())
    print(f"mini: probe accuracy {card['probe_accuracy']:.3f} on held-out digits")
    return 0


def _compare(state: State) -> int:
    kept = load_file(embedded.WEIGHTS / "mini.safetensors")
    largest = max(float((state[name] - kept[name]).abs().max()) for name in kept)
    print(f"mini: largest difference {largest:.2g}, tolerance {TOLERANCE}")
    return int(largest > TOLERANCE)


def digits_probe(model: VisionModel, bank: Images) -> float:
    """Fit the probe on the train digits of both parties and ask it about all held-out ones."""
    pools = split(manifests()[0])
    train = bank.subset(pools.owner_images + pools.thief_images)
    test = bank.subset(pools.owner_held_out + pools.thief_held_out)
    return probe_accuracy(model, train, test, torch.device("cpu"))


if __name__ == "__main__":
    sys.exit(main())
