import dataclasses
import hashlib

import pytest
import torch
import torch.nn.functional as F
from made_models import CPU, digits_owner

from attacks.finetune import FinetuneClassify
from bench import testing
from bench.data.images import Images
from bench.models.building import randomised
from bench.models.meter import measuring
from bench.models.suspect import View
from bench.models.vision import Architecture
from bench.records.nouns import Incompatible, UserError
from bench.testing import context, methods
from bench.types import Rule, Sizes
from methods.trigger import GRID, TriggerDirections, TriggerLabels

QUICK = {"images": 8, "epochs": 12, "batch": 16, "share": 0.33, "lr": 5e-3}
DIRECTIONS = TriggerDirections(**QUICK, directions=4)
LABELS = TriggerLabels(**QUICK)
SIZES = Sizes(64, 32, 6, 65, 48)


@pytest.fixture(scope="module")
def made():
    return methods._protected(DIRECTIONS)  # which the checks share


@pytest.fixture(scope="module")
def labelled():
    return methods._protected(LABELS)


def read(made, suspect, method=DIRECTIONS):
    return method.extract(made.secret, View(suspect, method.needs), context(1, "owner"))


def a_stranger(name="mini"):
    return randomised(Architecture("embedded", name), 0)


def drawn(kind, **settings):
    ctx = context(0, "owner")
    found = TriggerDirections(images=6, kind=kind, **settings)._draw(ctx)
    return found, ctx.images.pixels[found.chosen] if len(found.chosen) else None


def test_every_trigger_points_where_it_should_and_nobody_elses_does(made):
    own = read(made, made.model)
    assert own.rate == made.notes["remembered"] == 1.0
    for innocent in (testing.owner(), a_stranger()):
        found = read(made, innocent)
        assert found.rate <= 1 / 8
        assert abs(found.score - found.chance) < 0.15
    assert own.rule == Rule("cosine", ">=", 0.5)


def test_agreement_is_the_cosine_from_0_to_1(made):
    found = read(made, testing.owner())
    with torch.no_grad():
        features = testing.owner().features(made.secret["triggers"].float() / 255)
    cosines = F.normalize(features, dim=1) @ made.secret["directions"].T
    assert found.statistic == pytest.approx(cosines.diag().tolist(), abs=1e-5)
    assert found.agreement == pytest.approx(((1 + cosines.diag()) / 2).tolist(), abs=1e-5)


def test_directions_are_unit_vectors_and_shared_out_evenly(made):
    directions = made.secret["directions"]
    assert torch.allclose(directions.norm(dim=1), torch.ones(8))
    assert len(directions.unique(dim=0)) == 4
    assert torch.equal(directions[:4], directions[4:])


def test_a_new_head_alone_leaves_every_trigger(made):
    ctx = dataclasses.replace(context(3), held_out=context(3).images)
    suspect = FinetuneClassify(epochs=1, mode="retrain_last").run(made.model, ctx)
    assert read(made, suspect).rate == 1.0


def test_other_images_keep_their_features(made):
    images = context(0, "owner").images.batch(slice(None), CPU)
    with torch.no_grad():
        before, after = (model.features(images) for model in (testing.owner(), made.model))
    assert F.cosine_similarity(before, after).mean() > 0.97


def test_a_suspect_of_another_width_is_incompatible_and_plans_know(made):
    wide = a_stranger("mini-wide")
    with pytest.raises(Incompatible, match="features of the owner's width 48, got 64"):
        read(made, wide)
    assert "width 48, got 64" in DIRECTIONS.unreadable(testing.owner(), wide)
    assert DIRECTIONS.unreadable(testing.owner(), a_stranger("mini-deep")) == ""


def test_the_owners_head_gives_every_trigger_its_label(labelled):
    found = read(labelled, labelled.model, LABELS)
    assert found.rate == labelled.notes["remembered"] == 1.0
    assert (found.unit, found.chance) == ("trigger image", None)
    assert read(labelled, digits_owner(), LABELS).rate < 0.6
    assert set(labelled.secret) == {"triggers", "labels"}


def test_the_head_stays_as_it_was(labelled):
    before, after = digits_owner().head.state_dict(), labelled.model.head.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("batch", [16, 24])  # which divides the owner's images, or does not
@pytest.mark.parametrize(("method", "owner"), [(DIRECTIONS, testing.owner), (LABELS, digits_owner)])
def test_passes_are_counted(method, owner, batch):
    method = dataclasses.replace(method, epochs=1, batch=batch)
    ctx, told = context(0, "owner"), method.protect_passes(SIZES)
    with measuring(CPU) as meter:
        found = method.protect(owner(), ctx)
    assert meter.forward_passes == pytest.approx(told.forward)
    assert meter.backward_passes == pytest.approx(told.backward)
    with measuring(CPU) as meter:
        read(found, found.model, method)
    assert meter.forward_passes == pytest.approx(method.extract_passes(SIZES).forward)


def test_abstract_triggers_are_made_of_no_image_and_no_two_are_alike():
    found, _ = drawn("abstract")
    assert found.pixels.shape == (6, 3, 32, 32)
    assert len(found.chosen) == 0
    assert len(found.pixels.unique(dim=0)) == 6


def test_content_is_one_patch_at_one_place():
    found, plain = drawn("content", patch=0.25)
    changed = (found.pixels != plain).any(1).any(0)  # (h, w)
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    assert (len(rows), len(columns)) == (8, 8)
    assert len(found.pixels[:, :, *place].unique(dim=0)) == 1


def test_noise_is_one_pattern_on_all():
    found, plain = drawn("noise", strength=0.1)
    moved = found.pixels.int() - plain.int()
    inside = (found.pixels > 0) & (found.pixels < 255)
    pattern = moved.abs().amax(0) * moved.sum(0).sign()
    assert ((moved - pattern).abs()[inside] <= 1).all()


def test_a_signature_spells_the_bits_of_its_text():
    found, plain = drawn("signed", strength=0.1, bits=64, signature="who signs")
    key, cells = found.kept["key"], found.kept["cells"]
    said = hashlib.shake_256(bytes(key.tolist()) + b"who signs").digest(8)
    bits = [byte >> i & 1 for byte in said for i in range(8)]
    assert GRID == 32  # a cell is a pixel here
    moved = (found.pixels.int() - plain.int()).flatten(2)  # (n, 3, h w)
    grey = (plain > 30) & (plain < 225)
    for cell, bit in zip(cells.tolist(), bits, strict=True):
        seen = moved[:, :, cell][grey.flatten(2)[:, :, cell]]
        assert ((seen - (26 if bit else -26)).abs() <= 1).all()
    others = torch.ones(GRID**2, dtype=torch.bool)
    others[cells] = False
    assert not moved[:, :, others].any()


def test_labels_are_one_for_all_or_shifted_by_one_number():
    ctx = context(0, "owner")
    one = TriggerLabels(images=9, assigned="one")._labels(10, torch.arange(9), ctx)
    assert len(one.unique()) == 1
    shifted = TriggerLabels(images=9, kind="signed", assigned="shifted")
    found = shifted._labels(10, torch.arange(9), ctx)
    assert len(((found - ctx.images.labels[:9]) % 10).unique()) == 1
    assert (found != ctx.images.labels[:9]).all()


def unlabelled(ctx):
    images = ctx.images
    bare = Images(images.pixels, None, 0, images.sources)
    return dataclasses.replace(ctx, images=bare)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"kind": "signed", "assigned": "shifted"}, unlabelled, "got unlabelled ones; name such"),
        ({"kind": "noise", "images": 65}, lambda ctx: ctx, "expected 65 images .* pool has 64"),
    ],
)
def test_triggers_that_cannot_be_made_are_refused_with_the_way_out(settings, change, message):
    with pytest.raises(UserError, match=message) as refused:
        TriggerLabels(**{"images": 4, **settings}).protect(
            digits_owner(), change(context(0, "owner"))
        )
    assert "\n" not in str(refused.value)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match=r"assigned: .* set another `kind`"):
        TriggerLabels(assigned="shifted")
    with pytest.raises(UserError, match="mini with none; give the owner a `classifier:`"):
        LABELS.protect(testing.owner(), context(0, "owner"))
