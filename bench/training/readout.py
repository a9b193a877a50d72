"""Train the owner's classifier, and get its labels of suspects that have another head or none.

Source: A. Chistyakova, M. Pautov, "ActiveMark: on watermarking of visual foundation models via
massive activations", arXiv:2510.04966, section 5.1 (the head). How the paper gets labels of its
finetuned suspects, whose heads know other classes, it does not say: hence three readouts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data.images import Images, sent
from bench.models.heads import ClassifierHead, Head
from bench.models.surgery import with_head
from bench.models.vision import VisionModel, clone
from bench.records.nouns import Incompatible, Readout, UserError
from bench.suite.owners import ClassifierSettings
from bench.training import loop
from bench.training.probe import fit_linear, pooled_features


def with_classifier(
    model: VisionModel,
    images: Images,
    how: ClassifierSettings,
    rng: torch.Generator,
    device: torch.device,
) -> VisionModel:
    """Copy a model and give the copy a classifier trained on `images`."""
    labels = images.labels
    if labels is None:
        raise UserError(f"classifier: data: expected labelled images, got '{how.data}'")
    made = with_head(model, Head(images.classes, how.dropout), rng).to(device)
    head = made.head
    assert isinstance(head, ClassifierHead)
    frozen = how.backbone == "frozen"
    known = pooled_features(made, images, device) if frozen else None

    def loss_of(chosen: Tensor) -> Tensor:
        if known is None:
            logits = made.logits(images.batch(chosen, device))
        else:
            logits = head(known[sent(chosen, device)])
        return F.cross_entropy(logits, sent(labels[chosen], device))

    head.train()  # dropout sits in the head alone; a backbone's batch norms keep their statistics
    assert how.lr is not None
    settings = loop.Training(
        how.epochs, how.batch, how.lr, how.schedule, weight_decay=how.weight_decay
    )
    parameters = head.parameters() if frozen else made.parameters()
    fit = loop.fit(parameters, loss_of, len(images), settings, rng)
    made.notes = {"final_loss": fit.losses[-1], "steps": fit.steps}
    return made.eval()


def head_for(
    readout: Readout, suspect: VisionModel, owner: VisionModel, images: Images, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return what maps the suspect's final tokens (b, n, d) to scores of the owner's k classes.

    `images` are the owner's, labelled; a head fitted anew costs a pass of each.

    Raises:
        Incompatible: the suspect cannot be read this way.

    """
    if owner.classes == 0:
        raise Incompatible(f"expected an owner that classifies, got {owner.architecture.name}")
    if readout == "relinear":
        return _relinear(suspect, owner, images, device)
    return _graft(suspect, owner) if readout == "graft" else _native(suspect, owner)


def _native(suspect: VisionModel, owner: VisionModel) -> Callable[[Tensor], Tensor]:
    if suspect.classes != owner.classes:
        found = f"one for {suspect.classes}" if suspect.classes else "none"
        raise Incompatible(f"expected a head for the owner's {owner.classes} classes, got {found}")
    return suspect.forward_head


def _graft(suspect: VisionModel, owner: VisionModel) -> Callable[[Tensor], Tensor]:
    ours, theirs = owner.num_features, suspect.num_features
    if theirs != ours:
        raise Incompatible(f"the owner's head fits width {ours}, got {theirs}")
    whole = clone(owner).to(suspect.mean.device).requires_grad_(False)
    head = whole.head
    if isinstance(head, ClassifierHead):
        return lambda tokens: cast(Tensor, head(suspect.pooled(tokens)))
    if type(suspect.trunk) is not type(owner.trunk):  # the library pools in its own way
        kinds = type(owner.trunk).__name__, type(suspect.trunk).__name__
        raise Incompatible("the owner's head fits a {}, got a {}".format(*kinds))
    return whole.forward_head


def _relinear(
    suspect: VisionModel, owner: VisionModel, images: Images, device: torch.device
) -> Callable[[Tensor], Tensor]:
    if images.classes != owner.classes or images.labels is None:
        found = f"of {images.classes}" if images.labels is not None else "without labels"
        raise Incompatible(
            f"expected the owner's images of {owner.classes} classes to fit a head, got {found}"
        )

    @functools.cache
    def scores() -> Callable[[Tensor], Tensor]:
        return fit_linear(suspect, images, device)

    # Fitted at the first question: its passes are part of the reading and of what that costs.
    return lambda tokens: scores()(suspect.pooled(tokens)).float()
