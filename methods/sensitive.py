"""Sensitive samples: images whose labels turn as soon as a classifier's weights are touched.

Z. He, T. Zhang, R. B. Lee, "Sensitive-sample fingerprinting of deep neural networks", CVPR 2019,
https://doi.org/10.1109/CVPR.2019.00486.

It answers another question than the rest: whether a deployed model was changed, not whose it is.
All labels as recorded say "unchanged"; a stolen copy that was finetuned, pruned or quantised reads
like a stranger, as it should. So it is the control that shows what a detector of changes is worth
as proof of ownership.

With W the last layer's weights and s a score of the outputs, an image v moves uphill on the mean of
(d s / d W)^2, within a ball about a natural image (eq. 4 to 6). Of many such images those are kept
that together activate the most neurons (Maximum Active Neuron Cover). Numbers are those of the
first author's code, which the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import answers, classifier, in_batches, matches
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
    PositiveFloat,
    Protected,
    Reading,
    Readout,
    Sizes,
    Suspect,
    UserError,
)

GREYS = 255.0
"""Grey levels of a pixel: settings count in them, images are in [0, 1]."""

UNCHANGED = "the very model, unchanged: copies that were trained on read like strangers"
"""What a high score names, as tables say it."""


@method("sensitive", version=1)
@dataclass(frozen=True)
class SensitiveSamples:
    """Tell whether a classifier was changed, by labels that turn with the least change.

    * `queries`, `candidates`: how many samples are kept, of how many that are made, each from an
      image of the owner's. Fewer are made where there are not as many images.
    * `iterations`, `lr`: Adam's; `lr` is in grey levels of 255.
    * `radius`: how far a sample may be from its image, root mean square, in grey levels.
    * `score`: s. The code sums log-probabilities of the first `outputs` classes; an earlier version
      takes the largest logit. Where the sum goes over all classes, its gradient is largest for sure
      predictions, which do not turn. "probability" is that of the predicted class, ours: its
      gradient vanishes for these. On mini, noise of 0.001 of a weight's deviation turned 12 % of
      such samples, and none of either other kind.
    * `outputs`: how many classes the sum goes over, or all where there are fewer.
    * `layer`: whose weights W are: the classifier's ("head"), or the last linear map of the last
      block ("block").
    * `smoothness`: the weight of the sample's total variation, per pixel.
    * `least`: the sensitivity below which no sample is kept. The code has 5e-4 for its networks; it
      scales with the logits, and by default none is dropped.
    * `batch`: images that are moved, and read, together.
    * `readout`: whose head answers. The paper asks the deployed model as it is, which is "native".
      "graft" takes a mere change of basis for a change.
    """

    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="sample",
        paper=Paper(2019, "He, Zhang, Lee, CVPR", "doi:10.1109/CVPR.2019.00486"),
        answers="unchanged?",
        departures=(
            "`readout`: the owner's head is grafted by default; the paper asks the model's own.",
            "`score`: the predicted class's probability, where the code sums log-probabilities.",
            "Neurons of the cover are the inputs of W, where the code takes a layer called fc7.",
            "Samples are rounded to bytes before they are labelled.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "radius": (2.5, 5.0, 10.0, 20.0),
        "lr": (0.1, 0.3, 1.0, 3.0),
        "score": ("log-probabilities", "logit", "probability"),
        "layer": ("head", "block"),
    }

    queries: Positive = 10
    candidates: Positive = 100
    iterations: Positive = 1000
    lr: PositiveFloat = 1.0
    radius: PositiveFloat = 10.0
    score: Literal["log-probabilities", "logit", "probability"] = "probability"
    outputs: Positive = 40
    layer: Literal["head", "block"] = "head"
    smoothness: NotNegative = 0.0
    least: NotNegative = 0.0
    batch: Reading[Positive] = 100
    readout: Reading[Readout] = "graft"

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Make the samples; the notes say how sensitive they became, in units of their start.

        Raises:
            UserError: the owner has no labels to give, or no sample is sensitive enough.

        """
        model = classifier(owner, ctx.device)
        chosen = torch.randperm(len(ctx.images), generator=ctx.rng)[: self.candidates]
        start = ctx.images.batch(chosen, torch.device("cpu"))
        layer = _last_linear(model, self.layer, start[:1].to(ctx.device))
        moved = torch.cat(
            list(
                in_batches(
                    len(start),
                    self.batch,
                    lambda part: self._moved(model, layer, start[part].to(ctx.device)),
                )
            )
        )
        pixels = (moved * GREYS).round().to(torch.uint8)  # (n, 3, h, w)
        before, _ = self._weighed(model, layer, start, ctx)
        after, active = self._weighed(model, layer, pixels, ctx)
        kept = cover(active, after, self.queries, self.least)
        if not len(kept):
            raise UserError(
                f"least: expected samples more sensitive than {self.least:g}, the best is "
                f"{float(after.max()):.3g}; lower it"
            )
        asked = pixels[kept]
        labels = answers(model.logits, asked, self.batch, ctx.device).argmax(1)
        gain = after[kept].mean() / before[kept].mean().clamp_min(1e-30)
        notes: dict[str, Json] = {
            "queries": len(kept),
            "candidates": len(start),
            "sensitivity_gain": float(gain),
            "neurons_covered": float(active[kept].any(0).float().mean()),
            "names": UNCHANGED,
        }
        return Protected(clone(owner).cpu(), {"pixels": asked, "labels": labels}, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the label of every sample; one query is one sample.

        The paper's rule is that all must match: a rate below 1 says "changed".
        """
        found = answers(suspect.labels, secret["pixels"], self.batch, ctx.device)
        return matches(found, secret["labels"], "sample")

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count every iteration there and back, two weighings of all, and the labels."""
        made = min(self.candidates, sizes.images)
        back = 1 if self.layer == "head" else 2  # to W's output first, and then to the pixels
        weighed = made * (0 if self.layer == "head" else 2)
        asked, seen = min(self.queries, made), made * self.iterations
        forward = 1 + seen + 2 * made + asked
        bound: Literal["exact", "at most"] = "at most" if self.least else "exact"
        return Passes(forward, back * seen + weighed, frozen=True, bound=bound)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the samples."""
        bound: Literal["exact", "at most"] = "at most" if self.least else "exact"
        return Passes(min(self.queries, self.candidates, sizes.images), bound=bound)

    def _moved(self, model: VisionModel, layer: nn.Linear, start: Tensor) -> Tensor:
        """Move images (b, 3, h, w) in [0, 1] uphill; return them on the CPU."""
        x = start.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([x], lr=self.lr / GREYS)  # element by element: any batch
        for _ in range(self.iterations):
            sensitivity = self._sensitivity(model, layer, x).of
            loss = self.smoothness * _variation(x) - sensitivity  # (b,)
            (x.grad,) = torch.autograd.grad(loss.sum(), x)
            optimiser.step()
            with torch.no_grad():
                x.copy_(_projected(x, start, self.radius / GREYS))
        return x.detach().cpu()

    def _weighed(
        self, model: VisionModel, layer: nn.Linear, images: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor]:
        """Return the sensitivity of images, (n,), and which inputs of W they activate, (n, d)."""

        def weigh(x: Tensor) -> Tensor:
            with torch.enable_grad():
                found = self._sensitivity(model, layer, x.detach().requires_grad_(True))
            return torch.cat([found.of[:, None], found.entered.mean(1)], 1).detach()

        found = answers(weigh, images, self.batch, ctx.device)
        return found[:, 0], found[:, 1:] > 0

    def _sensitivity(self, model: VisionModel, layer: nn.Linear, x: Tensor) -> Sensitivity:
        """Return the mean of (d s / d W)^2 of every image (b, 3, h, w), with its graph.

        For a linear map the gradient is sum_t delta_t h_t^T over its tokens t, with h what enters
        and delta the gradient of what leaves. Its square norm is that of two Gram matrices.
        """
        with _watched(layer) as seen:
            logits = model.logits(x)  # (b, k)
        entered, left = seen[-1]
        (delta,) = torch.autograd.grad(self._score(logits).sum(), left, create_graph=True)
        entered, delta = (t.reshape(len(x), -1, t.shape[-1]) for t in (entered, delta))  # (b, t, d)
        products = (entered @ entered.mT) * (delta @ delta.mT)  # (b, t, t)
        return Sensitivity(products.sum((1, 2)) / layer.weight.numel(), entered)

    def _score(self, logits: Tensor) -> Tensor:
        """Map class scores (b, k) to s, (b,)."""
        if self.score == "log-probabilities":
            return logits.log_softmax(1)[:, : self.outputs].sum(1)
        return (logits if self.score == "logit" else logits.softmax(1)).amax(1)


class Sensitivity(NamedTuple):
    """How sensitive images are, (b,), and what enters the layer in question, (b, t, d)."""

    of: Tensor
    entered: Tensor


def cover(active: Tensor, sensitivity: Tensor, count: int, least: float) -> Tensor:
    """Choose samples that together activate the most neurons, one after the other.

    `active` (n, d) says which sample activates which; of equal gains the more sensitive is taken.
    Those no more sensitive than `least` are left out, if it is above 0. Returns their numbers.
    """
    order = sensitivity.argsort(descending=True, stable=True)
    left = order[sensitivity[order] > least] if least else order
    covered = torch.zeros(active.shape[1], dtype=torch.bool)
    chosen = list[Tensor]()
    while len(left) and len(chosen) < count:
        gains = (active[left] & ~covered).sum(1)
        best = left[gains.argmax()]  # the first of equals
        chosen.append(best)
        covered |= active[best]
        left = left[left != best]
    return torch.stack(chosen) if chosen else left


def _projected(x: Tensor, start: Tensor, radius: float) -> Tensor:
    """Bring images (b, 3, h, w) back into the ball about their start, then into [0, 1]."""
    off = x - start
    size = off.square().mean((1, 2, 3), keepdim=True).sqrt()
    return (start + off * (radius / size.clamp_min(radius))).clamp(0, 1)


def _variation(x: Tensor) -> Tensor:
    """Return the total variation of images (b, 3, h, w) per pixel, (b,)."""
    down, across = x.diff(dim=2).abs().mean((1, 2, 3)), x.diff(dim=3).abs().mean((1, 2, 3))
    return down + across


def _last_linear(model: VisionModel, where: Literal["head", "block"], image: Tensor) -> nn.Linear:
    """Return the last linear map an image (1, 3, h, w) goes through, in all or in the last block.

    Raises:
        UserError: there is none.

    """
    inside: nn.Module = model if where == "head" else model.blocks[-1]
    called = list[nn.Linear]()
    linear = [module for module in inside.modules() if isinstance(module, nn.Linear)]
    hooks = [m.register_forward_pre_hook(lambda m, _: called.append(m)) for m in linear]
    try:
        with torch.no_grad():
            model.logits(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise UserError(
            f"layer: expected a linear map in the {where} of {model.architecture.name}, got none; "
            "give the owner a `classifier:` in the suite"
        )
    return called[-1]


@contextmanager
def _watched(layer: nn.Linear) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Write down what enters and leaves a layer while this lasts."""
    seen = list[tuple[Tensor, Tensor]]()
    hook = layer.register_forward_hook(lambda _, given, left: seen.append((given[0], left)))
    try:
        yield seen
    finally:
        hook.remove()
