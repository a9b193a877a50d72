"""Every registered plug-in against every check, every check against a plug-in that breaks it."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F

from bench import testing
from bench.models.heads import Head
from bench.models.surgery import with_head
from bench.models.vision import clone
from bench.records.explained import explained
from bench.records.nouns import Access, Evidence, Rule
from bench.registry import ACCUSERS, ATTACKS, METHODS
from bench.testing import ATTACK_CHECKS, METHOD_CHECKS, check_attack, check_method
from bench.types import ExactNull, Facts, Positive, PositiveFloat, Protected, Reading

COMMITTED = {"images": 16, "bits": 8, "steps": 60, "batch": 16, "lr": 5e-3, "decoys": 64}

TRIGGERS = {"images": 8, "epochs": 12, "batch": 16, "share": 0.33, "lr": 5e-3}

QUICK = {
    "committed_bits": {**COMMITTED, "public": 192},
    "committed_bits.hidden": {**COMMITTED, "public": 192},
    "disguise.embeddings": {"epochs": 2},
    "distill.cont_steal": {"epochs": 1, "queries": 32},
    "distill.features": {"epochs": 2},
    "distill.labels": {"epochs": 1, "queries": 16},
    "distill.logits": {"epochs": 2},
    "distill.rda": {"epochs": 1, "queries": 80},
    "distill.stolen_encoder": {"epochs": 1, "queries": 16},
    "finetune.adversarial": {"epochs": 1, "attack_steps": 1},
    "finetune.classify": {"epochs": 2},
    "finetune.rear": {"epochs": 1},
    "finetune.regularise": {"epochs": 1, "decay_epochs": 1},
    "finetune.segment": {"epochs": 2},
    "finetune.surrogate_codec": {"rounds": 1, "epochs": 1, "codec_epochs": 1},
    "finetune.wild": {"epochs": 1},
    "finetune.wrk": {"epochs": 1, "perturbed": 16},
    "removalnet": {"epochs": 1, "inner_steps": 1},
    "overwrite": {
        "method": {"name": "activemark", "images": 8, "steps": 4, "batch": 4, "lr": 1e-3}
        | {"encoder_hidden": 16, "decoder_hidden": 16},
    },
    "merge.arithmetic": {"epochs": 1, "others": 1},
    "merge.dare": {"epochs": 1, "others": 1},
    "merge.slerp": {"epochs": 1},
    "merge.soup": {"epochs": 1, "others": 1},
    "merge.ties": {"epochs": 1, "others": 1},
    "adv_tra": {"mode": "fast", "trajectories": 8, "classes": 4},
    "activemark": {
        "variant": "paper",
        "images": 16,
        "steps": 200,
        "lr": 1e-3,
        "codec_lr": 3e-3,
        "weight": 100.0,
        "message_norm": "bce",
        "encoder_output": "linear",
    },
    "akh": {"queries": 40},
    "deepjudge.jsd": {"iterations": 4, "radius": 0.06},
    "deepjudge.robd": {"iterations": 4, "radius": 0.06},
    "fitprint": {"bits": 24, "steps": 12, "copies": 1},
    "fitprint.features": {"bits": 24, "steps": 12, "copies": 1},
    "deeptracer": {"queries": 12, "epochs": 10, "surrogate_epochs": 1},
    "holmes": {"epochs": 8},
    "ipguard": {"points": 16, "iterations": 100, "lr": 1e-2, "k": 1.0},
    "ipguard.qurd": {"points": 16, "iterations": 100},
    "modeldiff": {"pairs": 16, "steps": 8},
    "modeldiff.features": {"pairs": 16, "steps": 8},
    "move": {"share": 0.4, "epochs": 4},
    "move.logits": {"share": 0.4, "epochs": 10},
    "pautov2024": {"queries": 20, "proxies": 8},
    "randmark": {
        **{"images": 12, "bits": 8, "steps": 150, "batch": 8, "lr": 3e-3, "codec_lr": 1e-2},
        **{"decoder_hidden": 64, "tau": 1.0, "transforms": 4},
    },
    "sslguard": {
        **{"images": 12, "steps": 40, "batch": 8, "code": 32, "decoder": 64},
        **{"lr": 3e-3, "decoder_lr": 3e-3, "shadow_lr": 3e-3, "trigger_lr": 3e-2},
    },
    "sslwm": {"images": 32},
    "trigger.directions": {**TRIGGERS, "directions": 4},
    "trigger.labels": TRIGGERS,
    "sensitive": {"queries": 8, "candidates": 12, "iterations": 12},
    "deepsigns": {"images": 32, "clusters": 4, "bits": 8, "steps": 100, "batch": 4},
    "neuralmark": {"bits": 24, "rounds": 2, "steps": 100, "batch": 4},
    "uchida": {"embedding": "closed form"},
    "uchida.free": {"steps": 100, "batch": 4, "lr": 3e-3},
}
"""Settings that keep the promises cheap to check; the others run at their defaults."""


ANOTHER_QUESTION = {
    ("dataset.inference", testing.method_recognises_its_own_model),
}
"""What mini cannot answer yes to: it does not remember the images it was trained on."""


def name_of(check):
    return check.__name__


def test_the_built_in_plug_ins_are_found():
    built_in = {"control.identity", "control.stranger", "finetune.classify", "prune.l1"}
    assert built_in <= set(ATTACKS.names())
    assert "activemark" in METHODS.names()


@pytest.mark.parametrize(
    ("registry", "name"),
    [(kind, name) for kind in (METHODS, ATTACKS, ACCUSERS) for name in kind.names()],
)
def test_every_setting_of_ours_is_explained(registry, name):
    assert [each.text for each in explained(registry.get(name)) if not each.note] == []


@pytest.mark.parametrize("check", ATTACK_CHECKS, ids=name_of)
@pytest.mark.parametrize("name", ATTACKS.names())
def test_attack(name, check):
    check(ATTACKS.build(name, QUICK.get(name, {})))


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=name_of)
@pytest.mark.parametrize("name", METHODS.names())
def test_method(name, check):
    method = METHODS.build(name, QUICK.get(name, {}))
    if (name, check) in ANOTHER_QUESTION:
        with pytest.raises(AssertionError):
            check(method)
        return
    try:
        check(method)
    except AssertionError:
        # Once in some thousand trainings a convolution added in another order. What draws on chance
        # does so twice, and what breaks a promise breaks it again.
        testing.methods._protect_once.cache_clear()
        check(method)


@dataclass(frozen=True)
class Nudge:
    """A sound attack, too plain to register: the others below break one promise each."""

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False

    def run(self, victim, ctx):
        return nudged(clone(victim))


def nudged(model, by=0.1):
    with torch.no_grad():
        model.blocks[0].attn.proj.bias.add_(by)
    return model


class InPlace(Nudge):
    def run(self, victim, ctx):
        return clone(nudged(victim))


class FromGlobalRandomness(Nudge):
    random = True

    def run(self, victim, ctx):
        return nudged(clone(victim), torch.rand(()))


class SecretlyRandom(Nudge):
    def run(self, victim, ctx):
        return nudged(clone(victim), torch.rand((), generator=ctx.rng))


class Diverging(Nudge):
    def run(self, victim, ctx):
        return nudged(clone(victim), torch.nan)


class Undescribed(Nudge):
    def run(self, victim, ctx):
        made = nudged(clone(victim))
        made.mean = made.mean + 0.1  # in no state dict
        return made


class Idle(Nudge):
    def run(self, victim, ctx):
        return clone(victim)


class LeakyControl(Nudge):
    derived = False

    def run(self, victim, ctx):
        return nudged(ctx.stranger(0), victim.trunk.vit.cls_token.mean())


class Aliased(Nudge):
    def run(self, victim, ctx):
        made = clone(victim)
        made.trunk = victim.trunk
        return made


class Remembering(Nudge):
    victims: ClassVar[list] = []

    def run(self, victim, ctx):
        self.victims.append(clone(victim))
        return nudged(clone(self.victims[-2] if len(self.victims) > 1 else victim))


class ChoosyTwin(Nudge):
    def run(self, victim, ctx):
        hardest = victim.trunk.vit.pos_embed[0, :64].norm(dim=1).argsort()
        return nudged(clone(victim), ctx.images.batch(hardest[:8], ctx.device).mean())


@dataclass(frozen=True)
class TwinWithItsOwnHead(Nudge):
    lr: float = 0.1

    def run(self, victim, ctx):
        rng = torch.Generator().manual_seed(int(victim.trunk.vit.cls_token.abs().sum() * 1e6))
        return with_head(victim, Head(10), rng)


class Inexact(Nudge):
    exact: ClassVar[bool] = True

    def run(self, victim, ctx):
        channels = torch.arange(48)  # equal for all it would be no change
        return nudged(clone(victim), 1e-6 * channels)


class StaleHead(Nudge):
    """A backbone left as it is, and a head that gives its classes in another order."""

    exact: ClassVar[bool] = True

    def run(self, victim, ctx):
        made = clone(victim)
        for value in made.head.parameters() if made.head is not None else ():
            value.data = value.data.roll(1, 0)
        return made


class Boastful(Nudge):
    """Says that it learns from labels, and looks at none."""

    labelled: ClassVar[bool] = True


class SecretLearner(Nudge):
    """Learns from labels, and does not say so."""

    def run(self, victim, ctx):
        return nudged(clone(victim), float(ctx.images.labels.float().mean()))


@dataclass(frozen=True)
class Restless(Nudge):
    lr: float = 0.1


BROKEN_ATTACKS = [
    (testing.attack_leaves_its_input_untouched, InPlace),
    (testing.attack_repeats_under_equal_randomness, FromGlobalRandomness),
    (testing.attack_repeats_under_equal_randomness, SecretlyRandom),
    (testing.attack_returns_finite_weights, Diverging),
    (testing.attack_survives_a_round_trip, Undescribed),
    (testing.attack_changes_weights_or_function, Idle),
    (testing.attack_as_control_ignores_the_victims_weights, LeakyControl),
    (testing.attack_returns_a_distinct_object, Aliased),
    (testing.attack_does_not_depend_on_order, Remembering),
    (testing.attack_twins_see_equal_batches_and_heads, ChoosyTwin),
    (testing.attack_twins_see_equal_batches_and_heads, TwinWithItsOwnHead),
    (testing.attack_twins_see_equal_batches_and_heads, Restless),
    (testing.attack_keeps_the_function_if_it_says_so, Inexact),
    (testing.attack_keeps_the_function_if_it_says_so, StaleHead),
    (testing.attack_needs_the_labels_it_says, Boastful),
]


@dataclass(frozen=True)
class BiasMark:
    """A sound mark: the signs of one bias spell the key."""

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = True

    def protect(self, owner, ctx):
        key = torch.randint(2, (48,), generator=ctx.rng) * 2.0 - 1
        return Protected(nudged(clone(owner), key), {"key": key})

    def extract(self, secret, suspect, ctx):
        bias = suspect.network.blocks[0].attn.proj.bias
        return evidence((bias.sign() == secret["key"]).double())


@dataclass(frozen=True)
class FeaturePrint:
    """A sound fingerprint: the features of a few images."""

    needs: ClassVar[Access] = Access.FEATURES
    marks: ClassVar[bool] = False

    def protect(self, owner, ctx):
        queries = ctx.images.batch(slice(0, 8), ctx.device)
        with torch.no_grad():
            return Protected(
                clone(owner), {"queries": queries, "features": owner.features(queries)}
            )

    def extract(self, secret, suspect, ctx):
        found = suspect.features(secret["queries"])
        return evidence((F.cosine_similarity(found, secret["features"]).clamp(-1, 1) + 1) / 2)


@dataclass(frozen=True)
class LabelPrint:
    """A sound fingerprint that sees labels only: the owner and its strangers come with heads."""

    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False

    def protect(self, owner, ctx):
        queries = ctx.held_out.batch(slice(None), ctx.device)
        with torch.no_grad():
            labels = owner.logits(queries).argmax(1)
        return Protected(clone(owner), {"queries": queries, "labels": labels})

    def extract(self, secret, suspect, ctx):
        return evidence((suspect.labels(secret["queries"]) == secret["labels"]).double())


def evidence(agreement):
    found = tuple(agreement.tolist())
    return Evidence(found, found, Rule("agreement", ">=", 0.99), "query", 0.5)


class MarkInPlace(BiasMark):
    def protect(self, owner, ctx):
        made = super().protect(owner, ctx)
        owner.load_state_dict(made.model.state_dict())
        return made


class MarkFromGlobalRandomness(BiasMark):
    def protect(self, owner, ctx):
        rng = torch.Generator().manual_seed(int(torch.randint(1000, ())))
        return super().protect(owner, dataclasses.replace(ctx, rng=rng))


class ReadingAtRandom(BiasMark):
    def extract(self, secret, suspect, ctx):
        return evidence(torch.rand(8).double())


class SpoilingItsSecret(BiasMark):
    def extract(self, secret, suspect, ctx):
        secret["key"].neg_()
        return super().extract(secret, suspect, ctx)


class InfiniteSecret(BiasMark):
    def protect(self, owner, ctx):
        made = super().protect(owner, ctx)
        return Protected(made.model, {**made.secret, "scale": torch.tensor(torch.inf)})


class SecretInWords(BiasMark):
    def protect(self, owner, ctx):
        made = super().protect(owner, ctx)
        return Protected(made.model, {**made.secret, "owner": "me"})


class StampOutsideTheWeights(BiasMark):
    def protect(self, owner, ctx):
        made = super().protect(owner, ctx)
        made.model.stamp = True
        return made

    def extract(self, secret, suspect, ctx):
        return evidence(torch.full((4,), float(hasattr(suspect.network, "stamp"))))


@dataclass(frozen=True)
class MarkMadeForOneReading(BiasMark):
    threshold: Reading[PositiveFloat] = 1.0

    def protect(self, owner, ctx):
        made = super().protect(owner, ctx)
        return Protected(made.model, {"key": made.secret["key"] * self.threshold})


@dataclass(frozen=True)
class MarkSizedForOneReading(BiasMark):
    count: Reading[Positive] = 48

    def protect(self, owner, ctx):
        made = super().protect(owner, ctx)
        return Protected(made.model, {"key": made.secret["key"][: self.count]})


@dataclass(frozen=True)
class MarkedForOneReading(BiasMark):
    way: Reading[Literal["plain", "other"]] = "plain"

    def protect(self, owner, ctx):
        made = super().protect(owner, ctx)
        return made if self.way == "plain" else Protected(nudged(clone(made.model)), made.secret)


class MarkThatMarksNothing(BiasMark):
    def protect(self, owner, ctx):
        return Protected(clone(owner), super().protect(owner, ctx).secret)


class FingerprintThatMarks(FeaturePrint):
    def protect(self, owner, ctx):
        return super().protect(nudged(clone(owner)), ctx)


class Blind(FeaturePrint):
    def extract(self, secret, suspect, ctx):
        return evidence(torch.zeros(4))


class Gullible(FeaturePrint):
    def extract(self, secret, suspect, ctx):
        return evidence(torch.ones(4))


class Prying(FeaturePrint):
    def extract(self, secret, suspect, ctx):
        return evidence(torch.ones(4) * len(suspect.network.blocks) / 6)


class RememberingMethod(FeaturePrint):
    suspects: ClassVar[list] = []

    def extract(self, secret, suspect, ctx):
        self.suspects.append(super().extract(secret, suspect, ctx))
        return self.suspects[-2:][0]  # the one before


class TunedForOneReading(MarkedForOneReading):
    tunable: ClassVar = {"way": ("plain", "other")}


class NullWithoutBits(FeaturePrint):
    def extract(self, secret, suspect, ctx):
        return dataclasses.replace(evidence(torch.ones(4)), null=ExactNull())


class Miscounting(FeaturePrint):
    facts: ClassVar = Facts(unit="model")  # and its evidence has queries


@dataclass(frozen=True)
class ForgedMark(BiasMark):
    """A sound forgery: the signs that are there are the key."""

    def forged(self, suspect, ctx):
        key = suspect.network.blocks[0].attn.proj.bias.sign()
        return {"key": torch.where(key == 0, torch.ones_like(key), key)}


class ForgeryOfARememberedSecret(ForgedMark):
    kept: ClassVar[list] = []

    def protect(self, owner, ctx):
        made = super().protect(owner, ctx)
        self.kept[:] = [made.secret]
        return made

    def forged(self, suspect, ctx):
        return self.kept[0] if self.kept else super().forged(suspect, ctx)


class ForgeryOfTheCleanOwner(ForgedMark):
    def forged(self, suspect, ctx):
        moved = suspect.network.blocks[0].attn.proj.bias - ctx.base.blocks[0].attn.proj.bias
        return {"key": moved.detach().sign()}


class ForgeryOfAReleasedCopy(ForgedMark):
    def forged(self, suspect, ctx):
        return {"key": ctx.copies(0).blocks[0].attn.proj.bias.detach().sign()}


class ForgeryOfGlobalRandomness(ForgedMark):
    def forged(self, suspect, ctx):
        return {"key": torch.randint(2, (48,)) * 2.0 - 1}


class ForgeryBehindAnswers(FeaturePrint):
    def forged(self, suspect, ctx):
        queries = ctx.images.batch(slice(0, 8), ctx.device)
        with torch.no_grad():
            return {"queries": queries, "features": suspect._model.features(queries)}


class ForgeryBeyondItsAccess(FeaturePrint):
    def forged(self, suspect, ctx):
        return {"bias": suspect.network.blocks[0].attn.proj.bias}


class ForgeryThatWrites(ForgedMark):
    def forged(self, suspect, ctx):
        nudged(suspect.network)
        return super().forged(suspect, ctx)


BROKEN_METHODS = [
    (testing.method_forges_of_what_it_sees, ForgeryOfARememberedSecret),
    (testing.method_forges_of_what_it_sees, ForgeryOfTheCleanOwner),
    (testing.method_forges_of_what_it_sees, ForgeryOfAReleasedCopy),
    (testing.method_forges_of_what_it_sees, ForgeryOfGlobalRandomness),
    (testing.method_forges_of_what_it_sees, ForgeryBehindAnswers),
    (testing.method_forges_of_what_it_sees, ForgeryBeyondItsAccess),
    (testing.method_forges_of_what_it_sees, ForgeryThatWrites),
    (testing.method_tunes_within_its_settings, TunedForOneReading),
    (testing.method_leaves_its_input_untouched, MarkInPlace),
    (testing.method_leaves_its_input_untouched, SpoilingItsSecret),
    (testing.method_repeats_under_equal_randomness, MarkFromGlobalRandomness),
    (testing.method_repeats_under_equal_randomness, ReadingAtRandom),
    (testing.method_returns_finite_values, InfiniteSecret),
    (testing.method_keeps_tensors_only_as_secret, SecretInWords),
    (testing.method_survives_a_round_trip, StampOutsideTheWeights),
    (testing.method_changes_weights_if_it_marks, MarkThatMarksNothing),
    (testing.method_changes_weights_if_it_marks, FingerprintThatMarks),
    (testing.method_protects_alike_whatever_it_reads_with, MarkMadeForOneReading),
    (testing.method_protects_alike_whatever_it_reads_with, MarkSizedForOneReading),
    (testing.method_protects_alike_whatever_it_reads_with, MarkedForOneReading),
    (testing.method_recognises_its_own_model, Blind),
    (testing.method_separates_it_from_trained_strangers, Gullible),
    (testing.method_keeps_to_its_access, Prying),
    (testing.method_does_not_depend_on_order, RememberingMethod),
    (testing.method_with_an_exact_null_has_fair_bits, NullWithoutBits),
    (testing.method_counts_what_it_states, Miscounting),
]


@pytest.mark.parametrize(("check", "broken"), BROKEN_ATTACKS + BROKEN_METHODS, ids=name_of)
def test_a_check_fails_a_plug_in_that_breaks_it(check, broken):
    with pytest.raises(AssertionError):
        check(broken())


def test_every_check_has_a_plug_in_that_breaks_it():
    assert {check for check, _ in BROKEN_ATTACKS} == set(ATTACK_CHECKS)
    assert {check for check, _ in BROKEN_METHODS} == set(METHOD_CHECKS)


def test_a_sound_attack_passes_and_a_broken_one_does_not():
    check_attack(Nudge())
    with pytest.raises(AssertionError, match="equal to the victim"):
        check_attack(Idle())


@pytest.mark.parametrize("sound", [BiasMark, FeaturePrint, LabelPrint, ForgedMark])
def test_a_sound_method_passes(sound):
    check_method(sound())


def test_a_broken_method_does_not_pass():
    with pytest.raises(AssertionError, match=r"score 1\.000 on its own model, up to 1\.000"):
        check_method(Gullible())


def test_an_attack_that_does_not_say_labelled_is_shown_no_label():
    with pytest.raises(AttributeError, match="'NoneType'"):
        check_attack(SecretLearner())


def test_checking_leaves_the_global_generators_alone():
    before = torch.get_rng_state()
    with pytest.raises(AssertionError, match="global randomness"):
        testing.attack_repeats_under_equal_randomness(FromGlobalRandomness())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_contract_says_what_it_checks_and_where_it_broke():
    said, before = [], torch.get_num_threads()
    with pytest.raises(AssertionError) as caught:
        check_attack(InPlace(), said.append)
    assert said[0] == (
        "[1/11] attack_returns_a_distinct_object: Return a `VisionModel` that shares no memory "
        "with the victim."
    )
    assert said[-1] in caught.value.__notes__[0]
    assert torch.get_num_threads() == before
