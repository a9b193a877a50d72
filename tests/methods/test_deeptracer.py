import dataclasses
import functools

import pytest
import torch
from made_models import CPU, digits_owner

from bench import testing
from bench.models import View, measuring
from bench.records.nouns import UserError
from bench.testing import context
from bench.types import Sizes
from methods.deeptracer import SOURCES, DeepTracer, _centroids, _collages, collage, source_classes

SHORT = {"queries": 12, "epochs": 10, "surrogate_epochs": 1}


@functools.cache
def protected(**settings):
    method, owner = DeepTracer(**SHORT | settings), digits_owner()
    with measuring(CPU) as meter:
        made = method.protect(owner, context(0, "owner"))
    return method, made, meter


def read(model, **settings):
    method, made, _ = protected(**settings)
    return method.extract(made.secret, View(model, method.needs), context(1, "owner"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_mark_reads_on_its_own_model_and_not_on_the_unmarked_one():
    _, made, _ = protected()
    own = read(made.model)
    assert own.rate == 1
    assert read(digits_owner()).rate == 0
    assert (own.unit, own.chance) == ("collage", None)


def test_only_the_last_blocks_are_trained():
    method, made, _ = protected()
    before, after = digits_owner().state_dict(), made.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    blocks = {int(name.partition("blocks.")[2].partition(".")[0]) for name in moved}
    assert blocks == set(range(6 - method.blocks, 6))


def test_a_collage_shows_four_images_at_half_their_sides():
    shown = torch.tensor([0, 80, 160, 255], dtype=torch.uint8)[None, :, None, None, None]
    made = collage(shown.expand(1, 4, 3, 8, 6).contiguous())
    assert made.shape == (1, 3, 8, 6)
    corners = [made[0, :, rows, columns] for rows in (slice(4), slice(4, 8))
               for columns in (slice(3), slice(3, 6))]  # fmt: skip
    for part, value in zip(corners, (0, 80, 160, 255), strict=True):
        assert (part == value).all()
    assert collage(shown.expand(1, 4, 3, 7, 5).contiguous()).shape == (1, 3, 7, 5)


def test_every_collage_has_an_image_of_each_source_class():
    pixels = (20 * torch.arange(10, dtype=torch.uint8))[:, None, None, None].expand(10, 3, 4, 4)
    labels = torch.arange(10) // 2
    made = _collages(pixels.contiguous(), labels, torch.tensor([4, 0, 2, 1]), 30, seeded())
    found = [made[:, 0, row, column] // 40 for row in (0, 3) for column in (0, 3)]
    assert [part.unique().tolist() for part in found] == [[4], [0], [2], [1]]
    assert len(made.flatten(1).unique(dim=0)) > 8  # of 16 there are


def test_source_classes_lie_in_different_clusters():
    corners = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    centroids = torch.cat([corners, corners + 0.1, corners - 0.1])
    for seed in range(5):
        chosen = source_classes(centroids, seeded(seed))
        assert sorted((chosen % 4).tolist()) == [0, 1, 2, 3]
        assert chosen.tolist() == (chosen % 4).tolist()  # those in the middle of their clusters


def test_source_classes_are_four_even_where_centroids_are_alike():
    assert len(set(source_classes(torch.zeros(5, 3), seeded()).tolist())) == SOURCES


def test_centroids_are_means_of_the_classes_that_are_there():
    features = torch.randn(6, 3, generator=seeded())
    labels = torch.tensor([1, 4, 1, 4, 4, 7])
    there, centroids = _centroids(features, labels)
    assert there.tolist() == [1, 4, 7]
    for number, label in enumerate(there):
        assert torch.allclose(centroids[number], features[labels == label].mean(0))


def test_the_coupling_draws_to_the_own_centroid_and_keeps_from_others():
    there, centroids = torch.tensor([2, 5]), torch.tensor([[0.0, 0], [4, 0]])
    of = DeepTracer(intra=1.0, inter=0.0)._loss(there, centroids)
    near = DeepTracer(intra=0.0, inter=1.0)._loss(there, centroids)
    features, classes = torch.tensor([[1.0, 0], [4, 2]]), torch.tensor([2, 5])
    assert float(of(features, classes)) == pytest.approx((1 + 4) / 2)
    margin = 4.0  # the one distance between centroids
    wanted = ((margin - 3) ** 2 + 0) / 2  # the second is farther than the margin from the first
    assert float(near(features, classes)) == pytest.approx(wanted)


def test_keys_are_called_by_a_class_the_unmarked_model_finds_least_likely():
    _, made, _ = protected()
    keys, target = made.secret["pixels"], int(made.secret["labels"][0])
    assert (made.secret["labels"] == target).all()
    with torch.no_grad():
        before = digits_owner().logits(keys / 255).softmax(1).mean(0)
    # Four classes are shown in a collage, and none of them is the fifth that is called.
    assert target in before.argsort()[:5].tolist()


@pytest.mark.parametrize(
    "settings", [{}, {"surrogate": "none", "blocks": 9, "epochs": 1, "share": 0.5, "queries": 8}]
)
def test_its_passes_are_those_that_it_counts(settings):
    method, made, meter = protected(**settings)
    counted = method.protect_passes(Sizes(64, 32, 6, 65, 48))
    assert meter.forward_passes == pytest.approx(counted.forward)
    assert meter.backward_passes == pytest.approx(counted.backward)
    suspect = View(made.model, method.needs)
    method.extract(made.secret, suspect, context(1, "owner"))
    assert suspect.queries == method.extract_passes(Sizes(64, 32, 6, 65, 48)).forward


def test_images_without_labels_or_of_too_few_classes_are_refused():
    ctx = context(0, "owner")
    bare = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, labels=None))
    with pytest.raises(UserError, match="expected images labelled with the owner's 10 classes"):
        DeepTracer().protect(digits_owner(), bare)
    few = ctx.images.subset((ctx.images.labels < 4).nonzero().flatten().tolist())
    with pytest.raises(UserError, match="expected images of 5 classes or more, got 4"):
        DeepTracer().protect(digits_owner(), dataclasses.replace(ctx, images=few))
    with pytest.raises(UserError, match="expected an owner that tells 5 classes apart or more"):
        DeepTracer().protect(testing.owner(), ctx)
