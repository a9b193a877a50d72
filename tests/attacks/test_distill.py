import dataclasses

import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from attacks.distill import DistilFeatures, DistilLogits
from bench.data import images, manifest
from bench.data.settings import DataSettings
from bench.models.building import build, randomised
from bench.models.heads import Head
from bench.models.surgery import with_head
from bench.models.vision import Architecture
from bench.models.weights import load_state
from bench.records.nouns import Incompatible, UserError
from bench.testing import CPU, context, owner, stranger
from bench.training.probe import probe_accuracy

IDLE = {"lr": 0.0, "epochs": 1, "batch": 64}
BOTH = [DistilFeatures, DistilLogits]


def headed(model=None):
    return with_head(model or owner(), Head(10), torch.Generator().manual_seed(5))


def decided():
    """A victim whose scores are worth softening, and whose head drops nothing."""
    victim = with_head(owner(), Head(10, dropout=0.0), torch.Generator().manual_seed(5))
    with torch.no_grad():
        victim.head.linear.weight.mul_(10)
    return victim


def drawn(seed):
    """The student that a context of this seed starts from."""
    rng = torch.Generator().manual_seed(seed)
    return randomised(owner().architecture, int(torch.randint(2**62, (), generator=rng)))


def asked():
    return context().images.batch(slice(None), CPU)


def few():
    """Images enough for two batches of eight."""
    return dataclasses.replace(context(), images=context().images.subset(range(16)))


@pytest.fixture(scope="module")
def digits():
    listed = manifest.read("digits", DataSettings("digits"))
    pools, size = manifest.split(listed), owner().preprocess
    chosen = pools.owner_images, pools.owner_held_out, pools.thief_images
    return [images.load(listed, indices, size) for indices in chosen]


@pytest.mark.parametrize("attack", BOTH)
def test_the_student_starts_from_fresh_weights_whatever_the_victim(attack):
    students = [attack(**IDLE).run(headed(v), context(7)) for v in (owner(), stranger())]
    expected = drawn(7).state_dict()
    for student in students:
        own = student.trunk.state_dict()
        assert all(torch.equal(own[n.removeprefix("trunk.")], v) for n, v in expected.items())
    other = attack(**IDLE).run(headed(), context(8))
    assert not torch.equal(other.trunk.vit.pos_embed, students[0].trunk.vit.pos_embed)


@pytest.mark.parametrize("attack", BOTH)
def test_no_label_is_seen(attack):
    ctx = context(3)
    blind = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, labels=None, classes=0))
    one = attack(epochs=1).run(headed(), context(3)).state_dict()
    other = attack(epochs=1).run(headed(), blind).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("attack", BOTH)
def test_every_layer_learns_and_the_student_is_handed_on_in_eval_mode(attack):
    start = attack(**IDLE).run(headed(), context(3)).state_dict()
    made = attack(epochs=1).run(headed(), context(3))
    assert [n for n, v in made.state_dict().items() if torch.equal(v, start[n])] == []
    assert not any(module.training for module in made.modules())
    assert made.notes["steps"] == 2


def test_the_distance_of_tokens_is_one_less_cosine_plus_squared_error():
    made = DistilFeatures(**IDLE).run(owner(), context(7))
    with torch.no_grad():
        ours, theirs = (m.forward_features(asked()).double().numpy() for m in (made, owner()))
    expected = 0.0
    for tokens in (slice(0, 1), slice(1, None)):
        a, b = ours[:, tokens], theirs[:, tokens]
        lengths = (a**2).sum(-1) ** 0.5 * (b**2).sum(-1) ** 0.5
        expected += 1 - ((a * b).sum(-1) / lengths).mean() + ((a - b) ** 2).mean()
    assert made.notes["final_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_distance_of_scores_is_their_divergence_at_the_temperature(temperature):
    victim = decided()
    made = DistilLogits(temperature=temperature, **IDLE).run(victim, context(7))
    with torch.no_grad():
        ours, theirs = (m.logits(asked()).double().numpy() for m in (made, victim))
    p, q = softmax(theirs / temperature, axis=1), softmax(ours / temperature, axis=1)
    expected = temperature**2 * entropy(p, q, axis=1).mean()
    assert made.notes["final_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_features_of_the_thiefs_pool_bring_back_nine_tenths_of_the_probes_accuracy(digits):
    train, test, pool = digits
    ctx = dataclasses.replace(context(), images=pool)
    made = DistilFeatures(epochs=5, batch=16, lr=2e-3).run(owner(), ctx)
    start = DistilFeatures(**IDLE).run(owner(), ctx)
    owners, students, untrained = (
        probe_accuracy(m, train, test, CPU) for m in (owner(), made, start)
    )
    assert students > 0.9 * owners > untrained  # 0.95 of it, untrained 0.84


def test_a_student_of_logits_answers_like_its_victim():
    victim = decided()
    made = DistilLogits(epochs=60, lr=3e-3, batch=16).run(victim, context())
    with torch.no_grad():
        ours, theirs = (model.logits(asked()).argmax(1) for model in (made, victim))
    majority = theirs.bincount().max() / len(theirs)
    assert (ours == theirs).double().mean() > 0.7 > majority + 0.2


@pytest.mark.parametrize("width", [24, 47])
def test_a_narrower_student_is_complete_without_the_map_it_was_taught_through(width):
    made = DistilFeatures(width=width, epochs=1).run(headed(), context())
    again = load_state(build(made.architecture), made.state_dict(), "the student")
    with torch.no_grad():
        assert made.features(asked()).shape == (64, width)
        assert torch.equal(again.features(asked()), made.features(asked()))


def test_a_narrower_student_comes_closer_to_its_victim():
    losses = [
        DistilFeatures(width=24, epochs=e).run(owner(), context()).notes["final_loss"]
        for e in (1, 12)
    ]
    assert losses[1] < 0.7 * losses[0]


def test_a_width_equal_to_the_victims_is_the_default():
    one, other = (DistilFeatures(width=w, **IDLE).run(owner(), context()) for w in (48, None))
    assert one.architecture == other.architecture
    assert torch.equal(one.features(asked()), other.features(asked()))


def test_a_wider_student_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^[^\n]*width: expected the victim's 48 or less, got 49$"):
        DistilFeatures(width=49).run(owner(), context())


def test_a_convolutional_victim_is_distilled_position_by_position():
    victim = build(Architecture("timm", "resnet10t"))
    made = DistilFeatures(epochs=1, batch=8).run(victim, few())
    with torch.no_grad():
        assert made.features(asked()[:4]).shape == victim.features(asked()[:4]).shape
    assert made.trunk.net.bn1.num_batches_tracked == 2


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_an_owners_own_classifier_makes_a_student_with_one(name):
    size = 32 if name.startswith("vit") else None
    victim = build(Architecture("timm", name, size, "own"))
    made = DistilLogits(epochs=1).run(victim, few())
    assert made.architecture == victim.architecture
    assert DistilFeatures(**IDLE).run(victim, few()).architecture.head is None


def test_a_victim_that_does_not_classify_is_refused_in_one_line():
    with pytest.raises(Incompatible, match=r"^distill\.logits: expected a victim that [^\n]*$"):
        DistilLogits().run(owner(), context())


@pytest.mark.parametrize("attack", BOTH)
def test_the_global_generator_is_left_alone(attack):
    before = torch.get_rng_state()
    attack(**IDLE).run(headed(), context())
    DistilFeatures(width=24, **IDLE).run(owner(), context())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", 0), ("batch", 0), ("lr", -1e-4), ("lr", float("nan")), ("weight_decay", -1.0),
     ("warmup", 1.0), ("warmup", -0.1)],
)  # fmt: skip
def test_settings_out_of_range_are_refused_in_one_line(attack, setting, value):
    with pytest.raises(UserError, match=rf"': {setting}: expected [^\n]*, got {value}$"):
        attack(**{setting: value})


@pytest.mark.parametrize(
    ("attack", "setting", "value"),
    [(DistilFeatures, "width", 0), (DistilLogits, "temperature", 0.0),
     (DistilLogits, "temperature", float("nan"))],
)  # fmt: skip
def test_a_width_or_temperature_of_nothing_is_refused(attack, setting, value):
    with pytest.raises(UserError, match=rf"': {setting}: expected [^\n]*, got {value}$"):
        attack(**{setting: value})


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_of_one_image_teaches_a_convolutional_student_too(batch):
    """Its last batch norm stands behind the pool, where one image has one value a channel."""
    victim = randomised(Architecture("timm", "mobilenetv4_conv_small_050", head="own"), 0)
    ctx = context()
    few = dataclasses.replace(ctx, images=ctx.images.subset(range(3)))  # 2 and 1, or one by one
    made = DistilLogits(epochs=1, batch=batch).run(victim, few)
    assert all(value.isfinite().all() for value in made.state_dict().values())
    assert not any(module.training for module in made.modules())
    assert not any(module._forward_hooks for module in made.modules())
