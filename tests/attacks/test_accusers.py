"""Accusers make up claims on innocents; what a method's secret lets them do is measured here."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from attacks.accusers.dispute import Disclosed, Overmark
from attacks.accusers.posthoc import Backdate, Forge, Search
from attacks.accusers.transfer import Transfer
from bench import testing
from bench.models import Architecture, View, clone, measuring, randomised
from bench.models.weights import secret_digest, weights_digest
from bench.records.nouns import Access, Evidence, ExactNull, Incompatible, Rule
from bench.registry import ACCUSERS, METHODS
from bench.runs import accusing
from bench.testing import victims
from bench.types import Case, Passes, Protected, Sizes

CPU = torch.device("cpu")
SIZES = Sizes(64, 32, 6, 65, 48)


def bit_errors(wrong):
    agrees = (~wrong).double().tolist()
    return Evidence(tuple(agrees), tuple(agrees), Rule("bit agrees", ">=", 1), "bit", 0.5)


@dataclass(frozen=True)
class Projection:
    """Bits of X w > 0, w the mean of a weight's rows, as in Uchida et al. 2017; solved for at once.

    Known: X_i = (2 b_i - 1) w / |w|^2 + noise orthogonal to w forges any bits after the fact.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = True
    bits: int = 16

    def protect(self, owner, ctx):
        made = clone(owner)
        secret = {
            "x": torch.randn(self.bits, made.width, generator=ctx.rng),
            "bits": torch.randint(2, (self.bits,), generator=ctx.rng).bool(),
        }
        signs = secret["bits"].float() * 2 - 1
        wanted = torch.linalg.lstsq(secret["x"], signs[:, None]).solution[:, 0]
        with torch.no_grad():
            weight = self._weight(made)
            weight += wanted - weight.mean(0)
        return Protected(made, secret)

    def extract(self, secret, suspect, ctx):
        mean = self._weight(suspect.network).mean(0)
        return bit_errors((secret["x"] @ mean > 0) != secret["bits"])

    def forged(self, suspect, ctx):
        mean = self._weight(suspect.network).mean(0).detach()
        bits = torch.randint(2, (self.bits,), generator=ctx.rng).bool()
        noise = torch.randn(self.bits, len(mean), generator=ctx.rng)
        along = mean / mean.norm()
        noise -= (noise @ along)[:, None] * along
        return {
            "x": (bits.float() * 2 - 1)[:, None] * mean / mean.norm() ** 2 + noise,
            "bits": bits,
        }

    def _weight(self, model):
        return next(w for n, w in model.named_parameters() if n.endswith("mlp.fc1.weight"))

    def protect_passes(self, sizes):
        return Passes(10, 5)

    def extract_passes(self, sizes):
        return Passes(3)


@dataclass(frozen=True)
class Coins(Projection):
    """The same with bits that are drawn apart: an exact null."""

    def extract(self, secret, suspect, ctx):
        return dataclasses.replace(super().extract(secret, suspect, ctx), null=ExactNull())

    def redrawn(self, secret, rng):
        return {**secret, "bits": torch.randint(2, (self.bits,), generator=rng).bool()}


def case(method, **given):
    own = victims._owner_for(method.needs)
    return Case(method, own, **given)


def looked(method, model, how=None):
    found = accusing.Looked(
        method, victims._owner_for(method.needs), how, victims._pools()["owner"][0], CPU
    )
    found.add("innocent", model, {})
    return found.case()


def read(method, made, model):
    return method.extract(made.secret, View(model, method.needs), testing.context(1, "owner"))


def test_a_closed_form_forgery_reads_no_error_on_its_innocent_and_some_on_others():
    """Not chance: the means of two models' weights point partly one way, and 0.71 agree."""
    method, innocent = Projection(), testing.stranger(0)
    before = weights_digest(innocent)
    made = Forge().accuse(looked(method, innocent), testing.context(0, "owner"))
    assert read(method, made, innocent).rate == 1.0
    others = [read(method, made, testing.stranger(i)).rate for i in (1, 2, 3)]
    assert max(others) < 1.0
    assert 0.2 < sum(others) / 3 < 0.8
    assert weights_digest(innocent) == before


def test_with_a_commitment_the_closed_form_is_no_secret_of_any_seed():
    """X follows from a seed by `protect`, whatever model is shown; the forged one does not."""
    method, innocent = Projection(), testing.stranger(0)
    made = Forge().accuse(looked(method, innocent), testing.context(0, "owner"))
    replayed = [method.protect(m, testing.context(0, "owner")) for m in (innocent, testing.owner())]
    assert secret_digest(made.secret) not in {secret_digest(one.secret) for one in replayed}
    honest = replayed[1]
    assert read(method, honest, innocent).rate < 1.0
    assert read(method, honest, honest.model).rate == 1.0
    assert Forge.stopped_by == "replay"


def test_who_offers_no_forgery_has_none():
    assert Forge().unsuited(Projection()) == ""
    assert Forge().unsuited(METHODS.build("akh", {})) == "no way to fit its secret is written down"


def test_one_draw_is_an_honest_key_and_more_draws_agree_no_less():
    method, innocent = Projection(), testing.stranger(0)
    given = looked(method, innocent)
    one = Search(1).accuse(given, testing.context(0, "owner"))
    honest = method.protect(testing.owner(), testing.context(0, "owner"))
    assert secret_digest(one.secret) == secret_digest(honest.secret)
    assert one.notes["keys_tried"] == 1
    many = Search(12).accuse(given, testing.context(0, "owner"))
    assert many.notes["first_score"] == one.notes["best_score"]
    assert many.notes["best_score"] > one.notes["best_score"]
    assert read(method, many, innocent).score == many.notes["best_score"]


def test_searching_redraws_bits_alone_where_they_are_apart():
    method, given = Coins(), looked(Coins(), testing.stranger(0))
    first = method.protect(testing.owner(), testing.context(0, "owner"))
    made = Search(64).accuse(given, testing.context(0, "owner"))
    assert torch.equal(made.secret["x"], first.secret["x"])
    # Of 64 draws of 16 coins the best has p below 0.05 unless fortune sleeps: 0.95^64 < 0.04.
    assert made.notes["best_score"] >= 12 / 16


def test_several_trainings_are_made_where_that_is_wished():
    assert Search(2).unsuited(Projection()).startswith("every key takes a training")
    assert {Search(1).unsuited(Projection()), Search(2, True).unsuited(Projection())} == {""}
    assert Search(100).unsuited(Coins()) == Search(100).unsuited(AKH) == ""


def test_what_a_search_costs_is_every_key_but_training_only_where_it_must():
    assert Search(4).passes(Projection(), SIZES) == Passes(4 * 13, 4 * 5)
    assert Search(4).passes(Coins(), SIZES) == Passes(10 + 4 * 3, 5)
    assert Forge().passes(Projection(), SIZES) == Passes(10, 5, bound="at most")
    assert Disclosed().passes(Projection(), SIZES) == Passes()


def passes(accuser, given, ctx):
    with measuring(CPU) as meter:
        accuser.accuse(given, ctx)
    return meter.forward_passes, meter.backward_passes


def test_passes_are_counted_as_they_are_made():
    ctx = testing.context(0, "owner")
    sizes = Sizes(len(ctx.images), len(ctx.held_out), 6, 65, 48)
    innocent = looked(AKH, testing.stranger(0), "graft")
    counted = accusing.Looked(AKH, innocent.own, "graft", victims._pools()["owner"][0], CPU)
    counted.add("surrogate", testing.stranger(1), {})
    example = Transfer(surrogates=1, iterations=3)
    for accuser, given in (
        (Search(2), innocent),
        (Backdate(), innocent),
        (example, counted.case()),
    ):
        expected = accuser.passes(AKH, sizes)
        found = passes(accuser, given, testing.context(0, "owner"))
        assert found == pytest.approx((expected.forward, expected.backward)), accuser


AKH = METHODS.build("akh", {"queries": 24, "readout": "graft"})


def test_a_backdated_fingerprint_is_the_innocents_own():
    innocent, another = testing.stranger(0), testing.stranger(1)
    given = looked(AKH, innocent, "graft")
    made = Backdate().accuse(given, testing.context(0, "owner"))
    ctx = testing.context(1, "owner")
    assert AKH.extract(made.secret, given.suspect, ctx).rate == 1.0
    assert AKH.extract(made.secret, looked(AKH, another, "graft").suspect, ctx).rate < 1.0
    assert Backdate().unsuited(AKH) == ""
    assert Backdate().unsuited(Projection()).startswith("a mark has to be put in")


def test_an_innocent_of_another_shape_is_accused_where_the_head_fits_it():
    deeper = randomised(Architecture("embedded", "mini-deep"), 0)
    given, ctx = looked(AKH, deeper, "graft"), testing.context(0, "owner")
    images = ctx.images.batch(slice(16), CPU)
    with torch.no_grad():
        said = given.innocent.logits(images).argmax(1)
    assert torch.equal(said, given.suspect.labels(images))  # he asks what the judge will hear
    made = Backdate().accuse(given, ctx)
    assert AKH.extract(made.secret, given.suspect, ctx).rate == 1.0
    assert deeper.head is None


def test_of_another_width_one_line_says_what_the_head_fits():
    wide = randomised(Architecture("embedded", "mini-wide"), 0)
    with pytest.raises(Incompatible, match=r"^the owner's head fits width 48, got 64$"):
        looked(AKH, wide, "graft")
    method = METHODS.build("uchida.free", {"bits": 8})
    made = Forge().accuse(looked(method, wide), testing.context(0, "owner"))
    assert read(method, made, wide).rate == 1.0  # a projection of the innocent's own width


def test_no_model_has_a_head_that_a_judge_fits_anew():
    with pytest.raises(Incompatible, match="fitted anew"):
        Backdate().accuse(looked(AKH, testing.stranger(0), "relinear"), testing.context(0, "owner"))


def linear(seed):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(10, 3 * 32 * 32, generator=rng) / 55
    return lambda images: images.flatten(1) @ weight.T


def test_examples_raise_their_targets_on_every_model_and_stay_near():
    ctx, ensemble = testing.context(0, "owner"), [linear(0), linear(1)]
    start = ctx.images.batch(slice(16), CPU)
    target = torch.arange(16) % 10
    attack = Transfer(epsilon=0.1, iterations=12, step=0.02, batch=8)
    found = attack.optimised(ensemble, start, target, ctx)
    assert (found - start).abs().max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    for ask in ensemble:
        before, after = (ask(x).gather(1, target[:, None]).mean() for x in (start, found))
        assert after > before + 0.1


def test_examples_repeat_whatever_the_batches():
    start, target = testing.context().images.batch(slice(6), CPU), torch.arange(6)
    made = [
        Transfer(iterations=4, batch=b).optimised([linear(0)], start, target, testing.context())
        for b in (2, 6)
    ]
    assert torch.allclose(*made)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("akh", {"queries": 6}),
        ("ipguard", {"points": 6}),
        ("adv_tra", {"trajectories": 2, "classes": 3}),
    ],
)
def test_examples_are_a_secret_that_the_method_reads(name, args):
    """A suspect that says what is expected agrees on all; one that says something else, on none."""
    method = METHODS.build(name, args)
    images, labels = torch.rand(method.asked(), 3, 32, 32), torch.arange(method.asked()) % 10
    secret = method.of_queries(images, labels)

    class Parrot:
        def __init__(self, shift):
            self.shift = shift

        def labels(self, asked):
            near = (asked[:, None] - images[None]).abs().flatten(2).amax(2).argmin(1)
            return (labels[near] + self.shift) % 10

    says = [method.extract(secret, Parrot(shift), testing.context()).score for shift in (0, 1)]
    assert says == [1.0, 0.0]
    assert Transfer().unsuited(method) == ""
    assert (
        Transfer(surrogates=1, iterations=5).passes(method, SIZES).backward == method.asked() * 10
    )


def test_a_false_claim_agrees_with_its_own_models():
    own, surrogate = victims._owner_for(Access.LABELS), testing.stranger(0)
    found = accusing.Looked(AKH, own, "relinear", victims._pools()["owner"][0], CPU)
    found.add("surrogate", surrogate, {})
    made = Transfer(surrogates=1, epsilon=0.3, iterations=10, step=0.05).accuse(
        found.case(), testing.context(0, "owner")
    )
    assert made.notes["own_agreement"] > 0.8
    assert len(made.notes["surrogates_agreement"]) == 1
    assert len(made.secret["labels"]) == AKH.asked()
    assert Transfer().unsuited(Projection()) == "its secret is no list of images and labels"


def test_a_thief_marks_the_stolen_copy_and_is_found_there_beside_the_owner():
    """Two random rows of 16 in 48 dimensions are nearly orthogonal, so the first key stays."""
    method = Projection(8)
    victim = method.protect(testing.owner(), testing.context(0, "owner"))
    before = weights_digest(victim.model)
    made = Overmark().accuse(case(method, victim=victim), testing.context(5, "thief"))
    assert weights_digest(victim.model) == before
    assert read(method, made, made.model).rate == 1.0
    assert read(method, made, victim.model).rate < 1.0
    assert weights_digest(made.model) != before


def test_a_disclosed_key_is_the_owners():
    method = Projection()
    victim = method.protect(testing.owner(), testing.context(0, "owner"))
    made = Disclosed().accuse(case(method, victim=victim), testing.context(5, "thief"))
    assert secret_digest(made.secret) == secret_digest(victim.secret)
    assert weights_digest(made.model) == weights_digest(victim.model)
    assert (Overmark.stopped_by, Disclosed.stopped_by) == ("date", "name")


@pytest.mark.slow
def test_a_codec_on_a_frozen_innocent_is_read_there_and_not_on_another():
    args = {
        **{"variant": "paper", "images": 16, "steps": 200, "batch": 16, "lr": 1e-3},
        **{"codec_lr": 3e-3, "message_norm": "bce", "encoder_output": "linear", "weight": 100.0},
    }
    method, innocent = METHODS.build("activemark", args), testing.stranger(0)
    before = weights_digest(innocent)
    made = Forge().accuse(looked(method, innocent), testing.context(0, "owner"))
    on_innocent = read(method, made, innocent)
    on_another = read(method, made, testing.stranger(1))
    assert on_innocent.score > 0.9
    assert on_another.score < 0.7
    assert weights_digest(innocent) == before


@pytest.mark.slow
def test_a_thiefs_codec_is_found_in_the_owners_copy_too_and_in_no_strangers():
    """So the owner of an ActiveMark cannot show a model that bears his mark alone."""
    args = {
        **{"variant": "paper", "images": 16, "steps": 200, "batch": 16, "lr": 1e-3},
        **{"codec_lr": 3e-3, "message_norm": "bce", "encoder_output": "linear", "weight": 100.0},
    }
    method = METHODS.build("activemark", args)
    victim = method.protect(testing.owner(), testing.context(0, "owner"))
    made = Overmark().accuse(case(method, victim=victim), testing.context(5, "thief"))
    assert read(method, made, made.model).rate == 1.0
    assert read(method, victim, made.model).rate > 0.8  # the owner's key outlives it
    assert read(method, made, victim.model).rate > 0.8  # and so would the thief's claim
    assert read(method, made, testing.stranger(0)).rate < 0.3


@pytest.mark.parametrize("name", ACCUSERS.names())
def test_an_accuser_repeats_and_leaves_what_it_looks_at_as_it_was(name):
    args = {"transfer": {"surrogates": 0, "iterations": 2}}
    accuser = ACCUSERS.build(name, args.get(name, {}))
    label = name in ("transfer", "post_hoc.backdate")
    method, how = (AKH, "graft") if label else (Projection(), None)
    innocent = testing.stranger(0)
    given = looked(method, innocent, how)
    if accuser.accuses == "owner":
        victim = method.protect(testing.owner(), testing.context(0, "owner"))
        given = dataclasses.replace(given, victim=victim)
    models = [m for m in (given.own, given.innocent, innocent) if m is not None]
    before = [weights_digest(m) for m in models]
    made = [accusing.made(accuser, given, testing.context(3, "owner")) for _ in range(2)]
    assert made[0].payload == made[1].payload
    assert [weights_digest(m) for m in models] == before
    assert made[0].payload["notes"]["stopped_by"] in accusing_checks()
    assert any(key.startswith("secret.") for key in made[0].tensors)
    kept = any(key.startswith("model.") for key in made[0].tensors)
    assert kept == (accuser.accuses == "owner")


def accusing_checks():
    from bench.reports.price.accusers import REFUSED

    return set(REFUSED)
