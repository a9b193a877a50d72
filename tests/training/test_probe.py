import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from bench.data.item import IGNORE
from bench.models.heads import Head, SegmentationHead
from bench.models.surgery import with_head
from bench.records.nouns import UserError, unpacked
from bench.testing import CPU, context, owner, stranger
from bench.training import probe


@pytest.fixture(scope="module")
def parties():
    ctx = context()
    return owner(), ctx.images, ctx.held_out


def test_pooled_features_are_those_of_the_model_whatever_the_batch(parties):
    model, images, _ = parties
    with torch.no_grad():
        expected = model.pooled(model.forward_features(images.batch(slice(None), CPU)))
    found = probe.pooled_features(model, images, CPU, batch=10)
    assert found.shape == (64, 2 * model.width)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_probe_predicts_like_scikit_learns_ridge(parties):
    model, train, test = parties
    known, asked = (probe.pooled_features(model, i, CPU).double().numpy() for i in (train, test))
    scaler = StandardScaler().fit(known)
    ridge = Ridge(alpha=probe.RIDGE).fit(scaler.transform(known), np.eye(10)[train.labels])
    expected = (ridge.predict(scaler.transform(asked)).argmax(1) == test.labels.numpy()).mean()
    assert probe.probe_accuracy(model, train, test, CPU) == pytest.approx(expected)
    assert 0.2 < expected < 1.0


def test_the_probe_is_right_on_what_it_was_fitted_on_and_at_chance_on_shuffled_labels(parties):
    model, train, _ = parties
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = dataclasses.replace(train, labels=train.labels[order])
    assert probe.probe_accuracy(model, train, train, CPU) > 0.95
    assert probe.probe_accuracy(model, shuffled, train, CPU) < 0.5


def test_a_feature_that_never_moves_does_not_upset_the_probe(parties):
    model, train, test = parties
    with torch.no_grad():
        model = owner()
        model.trunk.vit.norm.weight[:5] = 0
    assert probe.probe_accuracy(model, train, test, CPU) > 0.2


def test_head_accuracy_counts_the_heads_own_answers(parties):
    model, _, test = parties
    headed = with_head(model, Head(10), torch.Generator().manual_seed(0))
    with torch.no_grad():
        headed.head.linear.weight.zero_()
        headed.head.linear.bias[3] = 1  # it says three, whatever it sees
    threes = float((test.labels == 3).double().mean())
    assert probe.head_accuracy(headed, test, CPU, batch=7) == pytest.approx(threes)


def test_cosines_are_one_against_itself_and_below_against_a_stranger(parties):
    model, images, _ = parties
    assert probe.feature_cosines(model, model, images, CPU) == pytest.approx([1.0] * 64)
    others = probe.feature_cosines(model, stranger(), images, CPU)
    assert len(others) == 64
    assert max(others) < 0.99


def test_measuring_leaves_the_model_in_the_mode_it_was_in(parties):
    _, images, _ = parties
    for mode in (True, False):
        model = owner().train(mode)
        probe.pooled_features(model, images, CPU)
        assert model.training is mode


def test_utility_asks_the_head_where_there_is_one_and_a_probe_where_there_is_none(parties):
    model, train, test = parties
    headed, segmenter = (
        with_head(model, head, torch.Generator().manual_seed(0)) for head in (Head(10), LINEAR)
    )
    rest = ("own task", train, test, "probe task", CPU)
    cases = [
        (headed, test, "accuracy", "own task", probe.head_accuracy(headed, test, CPU)),
        (segmenter, test, "mIoU", "own task", probe.mean_iou(segmenter, test, CPU)),
        (headed, None, "probe accuracy", "probe task", None),
        (segmenter, None, "probe accuracy", "probe task", None),
        (model, test, "probe accuracy", "probe task", None),
    ]
    probed = probe.probe_accuracy(model, train, test, CPU)
    for suspect, own_test, metric, task, value in cases:
        found = probe.utility(suspect, own_test, *rest)
        assert (found.metric, found.task, found.n) == (metric, task, 32)
        assert found.value == pytest.approx(probed if value is None else value)
        if metric == "mIoU":
            assert (found.right, found.chance) == ("", 0.0)
            continue
        assert found.chance == 1 / 10
        with torch.no_grad():
            asked = test.batch(slice(None), CPU)
            said = suspect.logits(asked) if metric == "accuracy" else probe.fit_linear(
                suspect, train, CPU)(suspect.pooled(suspect.forward_features(asked)))  # fmt: skip
        assert unpacked(found.right, 32) == tuple((said.argmax(1) == test.labels).tolist())


LINEAR = SegmentationHead(10, "linear", (5,))


def test_iou_is_what_a_hand_counts():
    masks = torch.tensor([[0, 0, 1], [1, 1, IGNORE]], dtype=torch.uint8)
    said = torch.tensor([[0, 1, 1], [1, 3, 1]])
    # 0: one of two; 1: two of three and a false one; 2: neither; 3: said once, shown never
    found = probe.class_iou(said, masks, 4)
    assert found[:2].tolist() == [1 / 2, 2 / 4]
    assert found[2:].isnan().all()


def test_iou_is_scikit_learns_over_all_pixels_together():
    rng = torch.Generator().manual_seed(0)
    masks = torch.randint(7, (5, 9, 8), generator=rng).to(torch.uint8)
    said = torch.where(torch.rand(masks.shape, generator=rng) < 0.6, masks, masks // 2)
    masks[:, :2] = IGNORE
    known = masks != IGNORE
    expected = jaccard_score(masks[known], said[known], average=None)
    assert np.allclose(probe.class_iou(said, masks, 7), expected)


def test_a_model_that_says_background_everywhere_scores_its_share(parties):
    model, _, test = parties
    headed = with_head(model, LINEAR, torch.Generator().manual_seed(0))
    with torch.no_grad():
        headed.head.convolution.weight.zero_()
        headed.head.convolution.bias.copy_(torch.eye(10)[3])  # it says three, whatever it sees
    threes = (test.masks == 3).sum() / (test.masks != IGNORE).sum()
    shown = len(set(test.masks.flatten().tolist()) - {IGNORE})
    assert probe.mean_iou(headed, test, CPU, batch=7) == pytest.approx(float(threes) / shown)


def test_images_without_masks_have_no_iou(parties):
    model, _, test = parties
    headed = with_head(model, LINEAR, torch.Generator())
    with pytest.raises(UserError, match="expected images with masks"):
        probe.mean_iou(headed, dataclasses.replace(test, masks=None), CPU)


def test_masks_of_which_nothing_counts_have_no_iou(parties):
    model, _, test = parties
    nothing = dataclasses.replace(test, masks=torch.full_like(test.masks, IGNORE))
    headed = with_head(model, LINEAR, torch.Generator())
    with pytest.raises(UserError, match="with pixels that count to measure mIoU, got none"):
        probe.mean_iou(headed, nothing, CPU)


def test_images_without_labels_cannot_be_probed(parties):
    model, train, test = parties
    with pytest.raises(UserError, match="expected labelled images"):
        probe.probe_accuracy(model, dataclasses.replace(train, labels=None), test, CPU)
