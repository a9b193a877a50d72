import dataclasses
import functools

import pytest
import torch
from made_models import CPU, digits_owner

from bench import testing
from bench.data.images import Images
from bench.models.meter import measuring
from bench.models.suspect import View
from bench.models.weights import secret_digest
from bench.records.nouns import Access, UserError
from bench.testing import context
from bench.types import Sizes
from methods.akh import AnnaKarenina, mixes


@functools.cache
def answered():
    """Give all the owner's pixels and labels, and its scores in one pass of the test's own."""
    ctx = context(0, "owner")
    pixels = torch.cat([ctx.images.pixels, ctx.held_out.pixels])
    truth = torch.cat([ctx.images.labels, ctx.held_out.labels])
    owner = digits_owner()
    with torch.no_grad():
        return pixels, truth, owner.logits(pixels.float() / 255)


def relabelled(wrong):
    """Call the first `wrong` images what the owner does not; the owner is right on the others."""
    pixels, _, logits = answered()
    labels = logits.argmax(1).clone()
    labels[:wrong] = (labels[:wrong] + 1) % 10
    images = Images(pixels, labels, 10, tuple(map(str, range(len(pixels)))))
    ctx = context(0, "owner")
    rest = images.subset(range(64, len(pixels)))
    return dataclasses.replace(ctx, images=images.subset(range(64)), held_out=rest)


def rows(kept):
    """Return where each kept image stands among all of the owner's."""
    pixels, *_ = answered()
    same = (kept[:, None] == pixels[None]).flatten(2).all(2)  # (q, n)
    assert (same.sum(1) == 1).all(), "an image of the pool appears twice"
    return same.int().argmax(1)


def test_the_owners_mistakes_are_asked_about_first():
    _, truth, logits = answered()
    mistaken = logits.argmax(1) != truth
    count = int(mistaken.sum())
    assert 0 < count < 90
    method = AnnaKarenina(queries=90)
    protected = method.protect(digits_owner(), context(0, "owner"))
    kept = rows(protected.secret["pixels"])
    assert set(kept[:count].tolist()) == set(mistaken.nonzero().flatten().tolist())
    assert not mistaken[kept[count:]].any()
    assert protected.notes == {
        "images": 96,
        "wrong": count,
        "queries": 90,
        "filled": 90 - count,
    }


def test_what_is_filled_in_is_what_the_owner_is_least_sure_of():
    *_, logits = answered()
    protected = AnnaKarenina(queries=12).protect(digits_owner(), relabelled(5))
    kept = rows(protected.secret["pixels"])
    assert set(kept[:5].tolist()) == set(range(5))
    confidence = logits.double().softmax(1).amax(1)
    expected = [i for i in confidence.argsort().tolist() if i >= 5][:7]
    assert kept[5:].tolist() == expected
    assert protected.notes["filled"] == 7


def test_mistakes_alone_are_asked_about_if_so_told():
    protected = AnnaKarenina(queries=12, fill="none").protect(digits_owner(), relabelled(5))
    assert set(rows(protected.secret["pixels"]).tolist()) == set(range(5))
    assert protected.notes == {"images": 96, "wrong": 5, "queries": 5, "filled": 0}


def test_mistakes_are_mixed_and_flipped_until_there_are_enough():
    method, owner, ctx = AnnaKarenina(queries=40, fill="cutmix"), digits_owner(), relabelled(5)
    with measuring(CPU) as meter:
        protected = method.protect(owner, ctx)
    kept = protected.secret["pixels"]
    assert protected.notes == {"images": 96, "wrong": 5, "queries": 40, "filled": 35}
    assert set(rows(kept[:5]).tolist()) == set(range(5))
    before = kept[:5].roll(1, 0)
    for at in (5, 20):  # each round: mixes, left to right, upside down
        mixed = kept[at : at + 5]
        assert ((mixed == kept[:5]) | (mixed == before)).all()
        assert torch.equal(kept[at + 5 : at + 10], mixed.flip(3))
        assert torch.equal(kept[at + 10 : at + 15], mixed.flip(2))
    sizes = Sizes(64, 32, 6, 65, 48)
    assert meter.forward_passes == pytest.approx(method.protect_passes(sizes).forward)
    assert len(kept) == method.extract_passes(sizes).forward
    assert method.extract_passes(sizes).bound == "exact"


def test_of_enough_mistakes_none_is_mixed():
    protected = AnnaKarenina(queries=5, fill="cutmix").protect(digits_owner(), relabelled(8))
    assert max(rows(protected.secret["pixels"]).tolist()) < 8
    assert protected.notes["filled"] == 0


def test_boxes_of_mixes_have_any_size():
    black_and_white = torch.tensor([0, 1]).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    found = mixes(black_and_white, 900, torch.Generator().manual_seed(0))
    shares = found.view(-1, 3, 2, 3, 16, 16)[:, 0, 0].double().mean((1, 2, 3))  # (150,)
    assert shares.min() < 0.1
    assert shares.max() > 0.6  # less than the whole, for the edge cuts boxes off


@pytest.mark.parametrize("fill", ["none", "least confident", "cutmix"])
def test_of_many_mistakes_some_are_drawn_by_the_seed(fill):
    method, ctx = AnnaKarenina(queries=6, fill=fill), relabelled(60)
    drawn = []
    for seed in (0, 0, 1):
        seeded = dataclasses.replace(ctx, rng=torch.Generator().manual_seed(seed))
        protected = method.protect(digits_owner(), seeded)
        assert protected.notes["filled"] == 0
        drawn.append(rows(protected.secret["pixels"]).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(map(max, drawn)) < 60


def test_the_wrong_labels_are_the_secret_and_the_owner_repeats_them():
    _, truth, logits = answered()
    method = AnnaKarenina(queries=90, batch=7)
    protected = method.protect(digits_owner(), context(0, "owner"))
    kept = rows(protected.secret["pixels"])
    assert torch.equal(protected.secret["labels"], logits.argmax(1)[kept])
    wrong = protected.notes["wrong"]
    assert (protected.secret["labels"][:wrong] != truth[kept[:wrong]]).all()
    suspect = View(protected.model, method.needs)
    evidence = method.extract(protected.secret, suspect, context(9, "owner"))
    assert evidence.rate == 1.0
    assert suspect.queries == 90
    assert (evidence.unit, evidence.chance) == ("image", None)


def test_a_stranger_agrees_as_often_as_its_labels_do():
    method = AnnaKarenina(queries=90)
    protected = method.protect(digits_owner(), context(0, "owner"))
    stranger = testing._strangers_for(Access.LABELS)[0]
    evidence = method.extract(protected.secret, View(stranger, method.needs), context())
    with torch.no_grad():
        said = stranger.logits(protected.secret["pixels"].float() / 255).argmax(1)
    assert evidence.rate == float((said == protected.secret["labels"]).double().mean()) < 1


@pytest.mark.parametrize("batch", [1, 13, 200])
def test_the_batch_changes_nothing(batch):
    kept = [
        AnnaKarenina(queries=40, batch=b).protect(digits_owner(), context(0, "owner"))
        for b in (64, batch)
    ]
    assert kept[0].notes == kept[1].notes
    assert all(torch.equal(kept[0].secret[n], kept[1].secret[n]) for n in ("pixels", "labels"))


def test_every_image_is_looked_at_once_and_every_query_once_more():
    owner = digits_owner()
    with measuring(CPU) as meter:
        protected = AnnaKarenina(queries=40).protect(owner, context(0, "owner"))
    assert meter.forward_passes == pytest.approx(96 + 40)
    assert meter.backward_passes == 0
    assert protected.ideal_seconds > 0


def test_no_mistake_at_all_is_never_silent():
    filled = AnnaKarenina(queries=12).protect(digits_owner(), relabelled(0)).notes
    assert (filled["wrong"], filled["filled"]) == (0, 12)
    for fill in ("none", "cutmix"):
        with pytest.raises(
            UserError, match=r'got none among 96; .* or set `fill` to "least confident"'
        ):
            AnnaKarenina(fill=fill).protect(digits_owner(), relabelled(0))


def unlabelled(ctx):
    return dataclasses.replace(ctx, held_out=dataclasses.replace(ctx.held_out, labels=None))


def of_other_classes(ctx):
    return dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, classes=7))


@pytest.mark.parametrize(
    ("owner", "change", "message"),
    [
        (digits_owner, unlabelled, "got unlabelled ones; name a data set with classes"),
        (digits_owner, of_other_classes, "the owner's 10 classes, got 7; name such a data set"),
        (testing.owner, lambda ctx: ctx, "mini with none; give the owner a `classifier:`"),
    ],
)
def test_what_cannot_be_wrong_is_refused_with_the_way_out(owner, change, message):
    with pytest.raises(UserError, match=message) as refused:
        AnnaKarenina().protect(owner(), change(context(0, "owner")))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("setting", ["queries", "batch"])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UserError, match=f"{setting}: expected a number greater than 0, got 0"):
        AnnaKarenina(**{setting: 0})


def test_two_seeds_that_ask_about_one_set_of_images_have_one_secret():
    few, many = (
        [
            secret_digest(
                AnnaKarenina(queries=queries).protect(digits_owner(), context(seed, "owner")).secret
            )
            for seed in (0, 1)
        ]
        for queries in (5, 90)  # fewer than the owner gets wrong, and all of those and more
    )
    assert few[0] != few[1]
    assert many[0] == many[1]
