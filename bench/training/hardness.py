"""Say how alike a suspect and the owner's model are, whatever any method reads: how hard a case.

Source: A. Godinot, E. Le Merrer, C. Penzo, F. Taïani, G. Trédan, "Queries, Representation &
Detection: The Next 100 Model Fingerprinting Schemes" (QuRD), arXiv:2412.13021, which slices its
pairs of models by the distance of their labels and of their accuracies. Departure: the features of
an encoder are compared, too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.data.images import Images
from bench.models.heads import Head, SegmentationHead
from bench.models.vision import VisionModel
from bench.records.nouns import Incompatible, Json
from bench.training.microbatch import in_batches
from bench.training.readout import head_for
from bench.training.similarity import cka

MOST = 1000
"""Images compared: CKA takes the products of all pairs of them."""

LEAST = 4
"""Images without which CKA is not defined."""


def likeness(
    suspect: VisionModel,
    owner: VisionModel,
    images: tuple[Images, Images],
    device: torch.device,
    batch: int = 64,
) -> dict[str, Json]:
    """Return the share of images with the owner's label, and the unbiased CKA of features.

    `images` are the same ones, as the suspect and as the owner take them. Features are [CLS; mean
    patch]. A thief's head answers in the thief's classes, so the owner's is put in its place. What
    cannot be asked is None.
    """
    theirs, ours = (
        _asked(model, _labels_of(model, owner, pool, device), pool, device, batch)
        for model, pool in zip((suspect, owner), images, strict=True)
    )
    count = len(ours[0])
    told: dict[str, Json] = {
        "images": count,
        "cka": cka(theirs[0], ours[0]) if count >= LEAST else None,
        "label_agreement": None,
    }
    if theirs[1] is not None and ours[1] is not None:
        told["label_agreement"] = float((theirs[1] == ours[1]).double().mean())
    return told


def _labels_of(
    model: VisionModel, owner: VisionModel, images: Images, device: torch.device
) -> Callable[[Tensor], Tensor] | None:
    """Return what maps a model's final tokens (b, n, d) to the owner's classes (b, k), if any."""
    thiefs = isinstance(model.architecture.head, Head | SegmentationHead)
    alike = model.classes == owner.classes and not thiefs
    try:
        return head_for("native" if alike else "graft", model, owner, images, device)
    except Incompatible:
        return None


def _asked(
    model: VisionModel,
    head: Callable[[Tensor], Tensor] | None,
    images: Images,
    device: torch.device,
    batch: int,
) -> tuple[Tensor, Tensor | None]:
    """Return features (n, 2 d) and, with a head, labels (n,), from one pass of every image."""

    def ask(part: slice) -> tuple[Tensor, Tensor | None]:
        tokens = model.forward_features(images.batch(part, device))  # (b, n, d)
        labels = None if head is None else head(tokens).argmax(1)
        return model.pooled(tokens), labels

    model.eval()
    with torch.no_grad():
        features, labels = zip(*in_batches(min(len(images), MOST), batch, ask), strict=True)
    return torch.cat(features), None if head is None else torch.cat(labels)
