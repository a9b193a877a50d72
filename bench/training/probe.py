"""Measure how well a model does on a task: with its own head, or by a probe on frozen features."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data.images import Images
from bench.data.item import IGNORE
from bench.models.heads import SegmentationHead
from bench.models.serving import Service
from bench.models.vision import VisionModel
from bench.records.nouns import UserError, Utility, packed
from bench.training.microbatch import in_batches

RIDGE = 10.0
"""Penalty of the linear probe, on standardised features and summed squared errors."""


def pooled_features(
    model: VisionModel, images: Images, device: torch.device, batch: int = 256
) -> Tensor:
    """Return [CLS; mean patch] of every image, (n, 2 d), as the model is served."""
    service = Service(model)
    return _over(images, device, batch, model, lambda x: service.ask_tokens(x, model.pooled))


def feature_cosines(
    a: VisionModel, b: VisionModel, images: Images, device: torch.device, batch: int = 256
) -> tuple[float, ...]:
    """Return one cosine per image between the two models' own output embeddings."""
    ours = _over(images, device, batch, a, a.features)
    theirs = _over(images, device, batch, b, b.features)
    return tuple(F.cosine_similarity(ours, theirs, dim=1).tolist())


def head_accuracy(
    model: VisionModel, test: Images, device: torch.device, batch: int = 256
) -> float:
    """Return the share of `test` that the model's own head gets right."""
    return share(head_right(model, test, device, batch))


def head_right(model: VisionModel, test: Images, device: torch.device, batch: int = 256) -> Tensor:
    """Say which images of `test` the model's own head gets right, (n,)."""
    service = Service(model)

    def ask(images: Tensor) -> Tensor:
        return service.ask(images, model.forward_head, scores=True)

    logits = _over(test, device, batch, model, ask)  # (n, k)
    return _right(logits, _labels(test))


def mean_iou(model: VisionModel, test: Images, device: torch.device, batch: int = 64) -> float:
    """Return the mean IoU of the model's segmentation, over the classes that `test` shows."""
    if test.masks is None:
        raise UserError("expected images with masks to measure mIoU, got none")

    def ask(images: Tensor) -> Tensor:
        return model.segment(images).argmax(1).to(torch.uint8).cpu()  # (b, h, w)

    predicted = _over(test, device, batch, model, ask)
    found = class_iou(predicted, test.masks, test.classes)
    if found.isnan().all():
        raise UserError("expected masks with pixels that count to measure mIoU, got none")
    return float(found.nanmean())


def class_iou(predicted: Tensor, masks: Tensor, classes: int) -> Tensor:
    """Return each class's intersection over union (k,), over all pixels that count together.

    A class that no mask shows is NaN, whether predicted or not: every suspect is judged on the same
    classes.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    table = multiclass_confusion_matrix(
        predicted.long(), masks.long(), classes, ignore_index=IGNORE
    ).double()
    shown, said, both = table.sum(1), table.sum(0), table.diag()
    return torch.where(shown > 0, both / (shown + said - both), torch.nan)


def probe_accuracy(
    model: VisionModel, train: Images, test: Images, device: torch.device, batch: int = 256
) -> float:
    """Return the share of `test` that a linear readout fitted on `train` gets right."""
    return share(probe_right(model, train, test, device, batch))


def probe_right(
    model: VisionModel, train: Images, test: Images, device: torch.device, batch: int = 256
) -> Tensor:
    """Say which images of `test` a linear readout fitted on `train` gets right, (n,)."""
    scores = fit_linear(model, train, device, batch)
    return _right(scores(pooled_features(model, test, device, batch)), _labels(test))


def fit_linear(
    model: VisionModel, train: Images, device: torch.device, batch: int = 256
) -> Callable[[Tensor], Tensor]:
    """Return what maps [CLS; mean patch] (b, 2 d) of this model to class scores (b, k).

    It is a ridge regression to one-hot labels, in closed form: nothing is drawn, nothing is tuned.
    """
    known = pooled_features(model, train, device, batch).double()  # (n, 2 d)
    mean, std = known.mean(0), known.std(0, correction=0).clamp_min(1e-6)  # a dead feature stays 0
    targets = F.one_hot(_labels(train), train.classes).double().to(device)  # (n, k)
    x, y = (known - mean) / std, targets - targets.mean(0)
    penalty = RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=device)
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ y)  # (2 d, k)
    return lambda asked: (asked.double() - mean) / std @ weights + targets.mean(0)


def utility(
    model: VisionModel,
    own_test: Images | None,
    own_task: str,
    probe_train: Images,
    probe_test: Images,
    probe_task: str,
    device: torch.device,
) -> Utility:
    """Measure a suspect on the task its head was trained for, or by a probe if it has none."""
    if own_test is not None and isinstance(model.architecture.head, SegmentationHead):
        return Utility("mIoU", mean_iou(model, own_test, device), own_task, len(own_test))
    if own_test is not None and model.architecture.head is not None:
        right, classes = head_right(model, own_test, device), own_test.classes
        return _accuracy("accuracy", right, own_task, classes)
    right = probe_right(model, probe_train, probe_test, device)
    return _accuracy("probe accuracy", right, probe_task, probe_train.classes)


def _accuracy(metric: str, right: Tensor, task: str, classes: int) -> Utility:
    return Utility(metric, share(right), task, len(right), packed(right.tolist()), 1 / classes)


def share(right: Tensor) -> float:
    """Return the share of images (n,) that were got right."""
    return float(right.double().mean())


def _over(
    images: Images,
    device: torch.device,
    batch: int,
    model: VisionModel,
    ask: Callable[[Tensor], Tensor],
) -> Tensor:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        parts = in_batches(len(images), batch, lambda part: ask(images.batch(part, device)))
        answers = list(parts)
    model.train(was_training)
    return torch.cat(answers)


def _labels(images: Images) -> Tensor:
    if images.labels is None:
        raise UserError(
            "expected labelled images to measure accuracy, got none; name a labelled "
            "data set as `probe`"
        )
    return images.labels


def _right(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.argmax(1).cpu() == labels
