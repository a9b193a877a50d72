"""A trigger set that models close to the owner's agree on: nothing is trained, labels suffice.

M. Pautov, N. Bogdanov, S. Pyatkin, O. Rogov, I. Oseledets, "Probabilistically robust watermarking
of neural networks", IJCAI 2024, https://arxiv.org/abs/2401.08261, and the first author's code.

Two held-out images of different classes are mixed; a mix that the owner's model calls by neither
class is a candidate, and stays one if M proxies, the owner's model with noise on its weights, call
it the same. A suspect is judged by its accuracy on what stays.

Read differently by different people, and fixed here: every candidate has a pair and a share of its
own (Algorithm 1; the code mixes a pair in 64 shares and keeps one) and all are shown to the same M
proxies (the code draws new ones for every round). A mix is rounded to bytes before anybody labels
it, so what is stored is what was labelled. The threshold on the accuracy is left to the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from bench.data import Images, sent
from bench.models import Ideal, VisionModel, aside, clone, measuring
from bench.registry import method
from bench.training import answers, classifier, head_accuracy, in_batches, matches
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Json,
    NotNegative,
    Paper,
    Passes,
    Positive,
    Protected,
    Reading,
    Readout,
    Sizes,
    Suspect,
    UserError,
)

BATCH = 64
"""Images per pass, and pairs drawn in one round."""

ATTEMPTS = 10
"""Proxies drawn, at most, for each that must be as accurate as `accuracy_gap` asks."""

TIMED_PASSES = 5
"""Plain passes timed after the search: their median prices the fewest passes it needs."""


@method("pautov2024", version=1)
@dataclass(frozen=True)
class RobustTriggerSet:
    """Keep mixed images that the owner's model and noisy copies of it all label alike.

    * `queries`, `proxies`: n and M; the code's README has 100 and 64.
    * `sigma`, `sigma_unit`: a proxy is theta + sigma N(0, 1) on every parameter, head and norms
      included, as in the code (8e-3, for a ResNet-34). The paper asks for a distance of at most
      delta: the largest drawn is noted. For weights of another scale sigma may count deviations of
      each tensor.
    * `accuracy_gap`: the paper's tau; proxies whose accuracy on the hold-out differs from the
      owner's by more are drawn again. None lets all of them vote, as the code does by default.
    * `rounds`: when to stop looking, in rounds of 64 pairs; a set that is then smaller is used.
    * `readout`: how the bench gets the owner's labels of a suspect with another head.
    """

    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="trigger image",
        paper=Paper(2024, "Pautov et al., IJCAI", "arXiv:2401.08261"),
        labelled=True,
        departures=(
            "Each candidate has a pair and a share of its own; the code mixes a pair in 64.",
            "All candidates are shown to the same proxies; the code draws new ones each round.",
            "A mix is rounded to bytes before it is labelled.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "sigma": (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),  # around the code's, for a ResNet-34
    }

    queries: Positive = 100
    proxies: Positive = 64
    sigma: NotNegative = 8e-3
    sigma_unit: Literal["absolute", "std of the weight"] = "absolute"
    accuracy_gap: NotNegative | None = None
    rounds: Positive = 500
    readout: Reading[Readout] = "graft"

    @torch.no_grad()
    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Return the owner's model as it is; the secret is the trigger set.

        Raises:
            UserError: the owner has no labels to give, or no image passed.

        """
        model = classifier(owner, ctx.device, least=3)
        _check(owner, ctx.held_out)
        with measuring(ctx.device) as meter:
            neighbours = self._neighbours(model, ctx)
            found, tally = self._search(model, neighbours, ctx)
        triggers = found.chosen(slice(self.queries))
        secret = {"pixels": triggers.pixels.cpu(), "labels": triggers.labels.cpu()}
        notes: dict[str, Json] = {
            "trigger_images": len(triggers.labels),
            "asked_for": self.queries,
            **tally,
            "proxies": self.proxies,
            "proxies_refused": neighbours.refused,
            "proxy_distance": neighbours.distance,
        }
        ideal = meter.forward_passes * _seconds_per_image(model, ctx)
        return Protected(model.cpu(), secret, notes, ideal)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask the suspect for its labels; one query is one trigger image."""
        found = answers(suspect.labels, secret["pixels"], BATCH, ctx.device)
        return matches(found, secret["labels"], "trigger image")

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count candidates that all pass, each labelled once and shown to every proxy."""
        chosen = 0 if self.accuracy_gap is None else (1 + self.proxies) * sizes.held_out
        return Passes(self.queries * (1 + self.proxies) + chosen, bound="at least")

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the trigger images; fewer, where fewer were found."""
        return Passes(self.queries, bound="at most")

    def _neighbours(self, model: VisionModel, ctx: Context) -> Neighbours:
        """Choose the M proxies, leaving out those that lost or gained too much accuracy."""
        made = Neighbours(self, model)
        seeds = torch.randint(2**62, (ATTEMPTS * self.proxies,), generator=ctx.rng).tolist()
        if self.accuracy_gap is None:
            made.seeds = seeds[: self.proxies]
            return made
        own = head_accuracy(model, ctx.held_out, ctx.device)
        for seed in seeds:
            gap = abs(head_accuracy(made.proxy(seed), ctx.held_out, ctx.device) - own)
            if round(gap - self.accuracy_gap, 9) > 0:  # accuracies are counts: ties are meant
                made.refused += 1
                continue
            made.seeds.append(seed)
            if len(made.seeds) == self.proxies:
                return made
        raise UserError(
            f"accuracy_gap: expected {self.proxies} proxies within {self.accuracy_gap:g} of the "
            f"owner's accuracy {own:.3f}, got {len(made.seeds)} of {len(seeds)}; lower sigma"
        )

    def _search(
        self, model: VisionModel, neighbours: Neighbours, ctx: Context
    ) -> tuple[Triggers, dict[str, Json]]:
        """Draw candidates and show them to the proxies until enough stay or the rounds are over."""
        found, waiting, drawn, candidates = list[Triggers](), list[Triggers](), 0, 0
        for number in range(1, self.rounds + 1):
            mixed, fresh = _candidates(model, ctx)
            drawn, candidates = drawn + mixed, candidates + len(fresh.labels)
            waiting.append(fresh)
            missing = self.queries - _count(found)
            # A proxy takes a moment to make: it is asked about many at once.
            if _count(waiting) >= max(missing, BATCH) or number == self.rounds:
                found.append(neighbours.agreed(_joined(waiting), ctx))
                waiting = []
            if _count(found) >= self.queries:
                break
        tally = {
            "candidates": drawn,
            "accepted_by_label": candidates,
            "accepted_by_proxies": _count(found),
        }
        if not _count(found):
            raise UserError(
                f"expected trigger images, none of {drawn} mixes passed ({candidates} by their "
                f"label); lower sigma = {self.sigma:g} or give the owner more held-out images"
            )
        return _joined(found), tally


class Triggers(NamedTuple):
    """Mixed images as bytes (n, 3, h, w) and the owner's labels of them (n,)."""

    pixels: Tensor
    labels: Tensor

    def chosen(self, which: Tensor | slice) -> Triggers:
        """Return those at `which`, indices or a mask."""
        return Triggers(self.pixels[which], self.labels[which])


class Neighbours:
    """The proxies, known by their seeds and made one after the other in one copy of the model.

    One at a time is also the fastest: each sees only what all before it agreed on, and `vmap` over
    a stack of proxies costs more per image than a loop, every image of every proxy besides.
    """

    def __init__(self, settings: RobustTriggerSet, model: VisionModel) -> None:
        self.seeds: list[int] = []
        self.refused = 0
        self.distance = 0.0  # of the proxy farthest from the owner's model
        self._settings, self._model, self._copy = settings, model, clone(model)

    def proxy(self, seed: int) -> VisionModel:
        """Return the proxy of this seed; it lasts until the next one is asked for."""
        rng = torch.Generator().manual_seed(seed)  # on the CPU: any device has the same proxies
        squares = list[Tensor]()
        for moved, own in zip(self._copy.parameters(), self._model.parameters(), strict=True):
            noise = sent(torch.randn(own.shape, generator=rng, dtype=own.dtype), own.device)
            noise *= self._settings.sigma
            if self._settings.sigma_unit == "std of the weight":
                noise *= own.std(correction=0)
            moved.copy_(own + noise)
            squares.append(noise.square().sum())
        self.distance = max(self.distance, float(torch.stack(squares).sum().sqrt()))
        return self._copy

    def agreed(self, candidates: Triggers, ctx: Context) -> Triggers:
        """Return the candidates that every proxy labels as the owner's model does."""
        for seed in self.seeds:
            if not len(candidates.labels):
                break
            answers = _labels(self.proxy(seed), candidates.pixels, ctx)
            candidates = candidates.chosen(answers == candidates.labels)
        return candidates


def _check(owner: VisionModel, images: Images) -> None:
    """Refuse an owner whose classifier and images do not speak of the same classes."""
    if images.labels is None:
        raise UserError(
            "expected labelled owner images, got unlabelled ones; name a data set with classes as "
            "`owner_images`"
        )
    if images.classes != owner.classes:
        raise UserError(
            "expected images of the classes of the owner's classifier, got "
            f"{images.classes} for a classifier of {owner.classes}; name the data set it was "
            "trained on as `owner_images`"
        )


def _candidates(model: VisionModel, ctx: Context) -> tuple[int, Triggers]:
    """Mix pairs of two classes; return how many, and those the model calls by neither class."""
    images, classes = ctx.held_out, ctx.held_out.labels
    assert classes is not None, "checked before"
    one, other = torch.randint(len(images), (2, BATCH), generator=ctx.rng)
    share = torch.rand(BATCH, 1, 1, 1, generator=ctx.rng)
    apart = classes[one] != classes[other]
    one, other, share = one[apart], other[apart], share[apart].to(ctx.device)
    mixed = share * images.batch(one, ctx.device) + (1 - share) * images.batch(other, ctx.device)
    pixels = (mixed * 255).round().to(torch.uint8)  # (n, 3, h, w)
    labels = _labels(model, pixels, ctx)
    neither = (labels != classes[one].to(ctx.device)) & (labels != classes[other].to(ctx.device))
    return len(one), Triggers(pixels, labels).chosen(neither)


def _labels(model: VisionModel, pixels: Tensor, ctx: Context) -> Tensor:
    if not len(pixels):
        return torch.zeros(0, dtype=torch.long, device=ctx.device)
    return answers(model.logits, pixels, BATCH, ctx.device).argmax(1).to(ctx.device)


def _joined(parts: list[Triggers]) -> Triggers:
    return Triggers(*map(torch.cat, zip(*parts, strict=True)))


def _count(parts: list[Triggers]) -> int:
    return sum(len(part.labels) for part in parts)


def _seconds_per_image(model: VisionModel, ctx: Context) -> float:
    """Time plain passes: what the search would take if it did nothing else."""
    images = ctx.held_out.batch(slice(BATCH), ctx.device)

    def look() -> None:
        list(in_batches(len(images), BATCH, lambda part: model.logits(images[part])))

    ideal = Ideal(ctx.device, range(TIMED_PASSES))
    with aside(ctx.device):
        look()  # not timed cold
    for _ in ideal.rounds:
        ideal.time(look, len(images))
    return ideal.median
