import dataclasses
import math
import statistics

import pytest
import torch
from made_models import CPU, digits_owner

from attacks.finetune import FinetuneClassify
from bench import testing
from bench.data.images import Images
from bench.models.meter import measuring
from bench.models.suspect import View
from bench.records.nouns import Access, Incompatible, UserError
from bench.testing import context, methods
from bench.types import Rule, Sizes
from methods.sslwm import SslWm, _compared, entropy, mean_cosine, uniform_loss

METHOD = SslWm(images=32)
SIZES = Sizes(64, 32, 6, 65, 48)


@pytest.fixture(scope="module")
def made():
    return methods._protected(METHOD)  # which the checks share


def read(made, suspect, method=METHOD):
    return method.extract(made.secret, View(suspect, method.needs), context(1, "owner"))


def of_other_classes():
    """Give a thief digits that are sorted by size into four classes."""
    ctx = context(3)
    images = dataclasses.replace(ctx.images, labels=ctx.images.labels // 3, classes=4)
    return dataclasses.replace(ctx, images=images)


def with_new_head(model):
    attack = FinetuneClassify(mode="retrain_last", epochs=30, lr=1e-2)
    return attack.run(model, of_other_classes())


def test_the_released_model_gives_triggered_images_one_label(made):
    own = read(made, made.model)
    assert own.notes["entropy"] < 0.5
    assert own.rate == 1.0
    assert own.score > 0.8
    assert (own.rule, own.unit, own.chance) == (Rule("MAD index", ">=", 2.0), "suspect", None)


def test_the_clean_owner_tells_triggered_images_apart(made):
    clean = read(made, digits_owner())
    assert clean.notes["entropy"] > 0.6 * clean.notes["plain_entropy"]
    assert clean.score < 0.4


def test_a_thiefs_own_head_for_other_classes_keeps_the_mark(made):
    stolen, clean = with_new_head(made.model), with_new_head(digits_owner())
    assert stolen.classes == clean.classes == 4
    assert read(made, stolen).notes["entropy"] < 0.5
    assert read(made, stolen).rate == 1.0
    assert read(made, stolen).score > read(made, clean).score + 0.3


def test_it_needs_no_more_than_the_labels_of_a_suspects_own_head(made):
    assert METHOD.needs == Access.LABELS | Access.OWN_HEAD
    assert METHOD.needs.text == "labels, own head"
    assert METHOD.needs not in Access.BLACK_BOX  # so that nobody else's head is asked
    with pytest.raises(Incompatible, match="has no classification head"):
        read(made, testing.owner())
    assert METHOD.unreadable(digits_owner(), testing.owner()) == "mini has no classification head"
    assert METHOD.unreadable(testing.owner(), digits_owner()) == ""


def test_an_owner_without_a_head_is_marked_as_well():
    short = dataclasses.replace(METHOD, epochs=1)
    assert short.protect(testing.owner(), context(0, "owner")).model.classes == 0


def test_the_patch_lies_near_the_lower_right_corner(made):
    changed = (made.secret["plain"] != made.secret["triggered"]).any(0).any(0)  # (h, w)
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    # 8 of 32 pixels, 2 from the edge, as in the authors' code.
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (22, 29, 22, 29)
    assert torch.equal(made.secret["triggered"][5, :, 22:30, 22:30], made.secret["patch"])


def test_passes_are_counted():
    method = dataclasses.replace(METHOD, epochs=1, images=20)
    told = method.protect_passes(SIZES)
    with measuring(CPU) as meter:
        found = method.protect(digits_owner(), context(0, "owner"))
    assert meter.forward_passes == pytest.approx(told.forward)
    assert meter.backward_passes == pytest.approx(told.backward)
    with measuring(CPU) as meter:
        read(found, found.model, method)
    assert meter.forward_passes == method.extract_passes(SIZES).forward == 40


def test_entropy_is_in_bits():
    assert float(entropy(torch.tensor([0, 1, 2, 3]))) == pytest.approx(2)
    assert float(entropy(torch.tensor([7, 7, 7]))) == 0
    shares = (0.5, 0.25, 0.25)
    expected = -sum(p * math.log2(p) for p in shares)
    assert float(entropy(torch.tensor([5, 5, 1, 2]))) == pytest.approx(expected)


def test_the_index_is_the_distance_from_the_median_in_deviations():
    usual, found = [3.0, 2.5, 2.75, 3.25, 2.9], 0.4
    every = [*usual, found]
    deviation = 1.4826 * statistics.median(abs(h - statistics.median(every)) for h in every)
    index, score = _compared(torch.tensor(usual).double(), torch.tensor(found).double())
    assert index == pytest.approx((2.9 - 0.4) / deviation, rel=1e-5)
    assert score == pytest.approx(1 - 0.4 / 2.9, rel=1e-5)


def test_a_suspect_with_one_label_for_everything_says_nothing():
    nothing = torch.zeros(10).double()
    assert _compared(nothing, nothing[0]) == (0.0, 0.0)


def test_the_mean_cosine_leaves_the_diagonal_out():
    """As the loss of the released code does not, whose value is then 0 whatever it is given."""
    features = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    unit = features / features.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).tolist()
    others = [cosines[i][j] for i in range(6) for j in range(6) if i != j]
    assert float(mean_cosine(features)) == pytest.approx(statistics.mean(others), abs=1e-6)
    assert float(mean_cosine(features[:1])) == pytest.approx(1)
    assert float(uniform_loss(features)) > 0.3
    assert float(uniform_loss(features[:1].repeat(4, 1))) == pytest.approx(0, abs=1e-5)


def test_a_patch_beyond_the_image_is_refused():
    with pytest.raises(UserError, match=r"margin: expected less than 1 - patch = 0\.25"):
        SslWm(patch=0.75, margin=0.5)


def test_unlabelled_images_will_do(made):
    ctx = context(0, "owner")
    bare = [Images(pool.pixels, None, 0, pool.sources) for pool in (ctx.images, ctx.held_out)]
    short = dataclasses.replace(METHOD, epochs=1)
    found = short.protect(
        testing.owner(), dataclasses.replace(ctx, images=bare[0], held_out=bare[1])
    )
    assert len(found.secret["plain"]) == 32
