"""Serving a stolen model otherwise: what is set, and what is measured on clean images before."""

import dataclasses

import pytest
import torch

from attacks.serve import BitDepth, Blur, Detect, Jpeg, LabelFlip, Noise, Round, Temperature
from bench.models import Architecture, Head, Served, Service, View, build, with_head
from bench.models.meter import measuring
from bench.models.surgery import segmentation_head
from bench.records.nouns import Access, Incompatible, Sizes, UserError
from bench.registry import ATTACKS, METHODS
from bench.testing import context, owner
from bench.testing.victims import _with_digits_head
from bench.training import in_batches

ALL = [name for name in ATTACKS.names() if name.startswith("serve.")]


def victim():
    return with_head(owner(), Head(10), torch.Generator().manual_seed(0)).eval()


def asked(model, images):
    service = Service(model)
    with torch.no_grad():
        for part in in_batches(len(images), 16, lambda p: images.batch(p, torch.device("cpu"))):
            service.ask(part, model.embedding)
    return service


@pytest.mark.parametrize("name", ALL)
def test_no_weight_is_touched_and_the_copy_is_served(name):
    made = ATTACKS.build(name, {}).run(victim(), context())
    (how,) = made.architecture.served
    assert how.kind.startswith(name.removeprefix("serve."))
    before = victim().state_dict()
    assert all(torch.equal(value, before[n]) for n, value in made.state_dict().items())


def test_maps_act_in_the_order_of_the_chain():
    once = Round(2).run(victim(), context())
    twice = Jpeg(50).run(once, context())
    assert twice.architecture.served == (Served("round", 2), Served("jpeg", 50))


@pytest.mark.parametrize("by", ["features", "pixels", "jpeg"])
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_of_clean_images_the_share_of_false_alarms_is_refused(by, share):
    ctx = context()
    made = Detect(by=by, false_alarms=share).run(owner(), ctx)
    refused = asked(made, ctx.images).refused
    assert abs(refused - share * len(ctx.images)) <= 1


def test_unsure_are_so_many_of_the_clean_images():
    ctx = context()
    (how,) = LabelFlip(share=1.0, unsure=0.25).run(victim(), ctx).architecture.served
    with torch.no_grad():
        best = victim().logits(ctx.images.batch(slice(None), ctx.device)).topk(2).values
    assert int((best[:, 0] - best[:, 1] < how.bound).sum()) == 16


@pytest.mark.parametrize("by", ["features", "pixels", "jpeg"])
def test_a_detector_behind_other_maps_refuses_its_share_of_what_they_leave(by):
    ctx, before = context(), (Blur(sd=3.0), BitDepth(bits=2))
    victim = owner()
    for attack in before:
        victim = attack.run(victim, context())
    made = Detect(by=by, false_alarms=0.25).run(victim, ctx)
    assert abs(asked(made, ctx.images).refused - 16) <= 1
    # A bound for questions that nothing has changed is another.
    (*_, how), (alone,) = (
        Detect(by=by, false_alarms=0.25).run(model, context()).architecture.served
        for model in (victim, owner())
    )
    assert how.bound != alone.bound


def test_unsure_are_so_many_as_earlier_maps_leave_them():
    ctx, cooled = context(), Temperature(temperature=4.0).run(victim(), context())
    made = LabelFlip(share=1.0, unsure=0.25).run(cooled, ctx)
    images = ctx.images.batch(slice(None), ctx.device)
    with torch.no_grad():
        plain, flipped = (
            Service(model).ask(images, model.forward_head, scores=True).argmax(1)
            for model in (cooled, made)
        )
    assert int((plain != flipped).sum()) == 16


def test_what_changes_questions_stands_before_a_detector_and_answers_may_change_behind_it():
    guarded = Detect().run(victim(), context())
    for attack in (Jpeg(), Noise()):
        with pytest.raises(Incompatible, match=r"^serve: expected a detector to see [^\n]*$"):
            attack.run(guarded, context())
    assert len(Round(1).run(guarded, context()).architecture.served) == 2
    assert len(Detect().run(Jpeg().run(victim(), context()), context()).architecture.served) == 2


@pytest.mark.parametrize("name", ["serve.jpeg", "serve.labelflip", "serve.detect"])
def test_passes_are_foreseen(name):
    attack, ctx = ATTACKS.build(name, {}), context()
    with measuring(ctx.device) as meter:
        attack.run(victim(), ctx)
    assert meter.forward_passes == attack.passes(Sizes(len(ctx.images), 0, 6, 65, 48)).forward


@pytest.fixture(scope="module")
def claims():
    """A model that classifies; walks across its boundaries, and natural images, to claim it by."""
    model = _with_digits_head(owner())
    asked_with = {"adv_tra": {"mode": "fast", "trajectories": 6, "classes": 4}, "akh": {}}
    methods = [METHODS.build(name, args) for name, args in asked_with.items()]
    return model, [(m, m.protect(model, context(0, "owner")).secret) for m in methods]


def answered(claims, by):
    model, made = claims
    views = []
    for method, secret in made:
        views.append(View(Detect(by=by).run(model, context()), method.needs))
        method.extract(secret, views[-1], context(1, "owner"))
    return [view.answered for view in views]


@pytest.mark.parametrize("by", ["pixels", "jpeg"])
def test_walks_across_a_boundary_are_refused_and_natural_images_are_not(claims, by):
    walks, natural = answered(claims, by)
    assert walks < 0.5
    assert natural > 0.75


def test_in_features_a_walk_is_no_nearer_to_itself_than_digits_are(claims):
    # Small steps in pixels are large ones in features: that is what adversarial steps are made for.
    walks, _ = answered(claims, "features")
    assert walks > 0.9


def test_masks_are_not_served():
    head = segmentation_head(owner(), "linear", 3)
    masked = with_head(owner(), head, torch.Generator().manual_seed(0))
    with pytest.raises(Incompatible, match=r"^serve: expected [^\n]*$"):
        Jpeg().run(masked, context())


@pytest.mark.parametrize("name", ["serve.labelflip", "serve.temperature"])
def test_what_is_done_to_scores_needs_a_classifier(name):
    with pytest.raises(Incompatible, match=rf"^{name}: expected a victim that class[^\n]*$"):
        ATTACKS.build(name, {}).run(owner(), context())


def test_one_clean_image_tells_of_no_neighbours_and_nothing_is_refused():
    ctx = context()
    one = dataclasses.replace(ctx, images=ctx.images.subset([0]))
    made = Detect(by="pixels", false_alarms=0.5).run(owner(), one)
    assert asked(made, ctx.images).refused == 0


def test_a_server_without_clean_images_is_told_in_one_line():
    ctx = context()
    none = dataclasses.replace(ctx, images=ctx.images.subset([]))
    with pytest.raises(UserError, match=r"^serve: expected clean images, got none[^\n]*$"):
        Detect().run(owner(), none)


def test_models_of_any_kind_are_served():
    model = build(Architecture("timm", "resnet10t"))
    made = Round(0).run(model, context())
    images = context().images.batch(slice(0, 2), torch.device("cpu"))
    view = View(made, Access.FEATURES)
    with torch.no_grad():
        assert torch.equal(view.features(images), model.features(images).round())
