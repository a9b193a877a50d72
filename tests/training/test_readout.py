import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from made import suite
from made_models import CPU
from sklearn.linear_model import Ridge

from bench import testing
from bench.models.building import build
from bench.models.heads import Head
from bench.models.meter import measuring
from bench.models.surgery import with_head
from bench.models.suspect import View
from bench.models.vision import Architecture, VisionModel, clone
from bench.models.weights import weights_digest
from bench.records.nouns import Access, Evidence, Incompatible, Readout, Rule, UserError
from bench.records.settings import SettingError
from bench.records.store import Store
from bench.registry import METHODS
from bench.runs import engines
from bench.runs.laboratory import Laboratory, load_owners
from bench.runs.session import answer
from bench.suite import plan, reader
from bench.suite.owners import ClassifierSettings
from bench.testing import context, stranger
from bench.training.probe import RIDGE, fit_linear, head_accuracy, pooled_features
from bench.training.readout import head_for, with_classifier
from bench.types import Context, Protected

READOUTS = ("graft", "relinear", "native")


@dataclass(frozen=True)
class Remembered:
    """Remember what the owner calls a few images."""

    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False

    count: int = 12
    readout: Readout = "graft"

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        images = ctx.held_out.pixels[: self.count]
        with torch.no_grad():
            labels = owner.logits(images / 255).argmax(1)
        return Protected(clone(owner), {"images": images, "labels": labels})

    def extract(self, secret, suspect, ctx: Context) -> Evidence:
        found = suspect.labels(secret["images"] / 255) == secret["labels"]
        same = tuple(found.double().tolist())
        return Evidence(same, same, Rule("match", ">=", 1), "image", None)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return context(party="owner").images


@pytest.fixture(scope="module")
def classified(digits):
    how = ClassifierSettings("digits")
    return with_classifier(testing.owner(), digits, how, rng(), CPU)


def tokens(model, images):
    with torch.no_grad():
        return model.forward_features(images)


# The owner's classifier.


def test_a_classifier_on_a_frozen_backbone_leaves_it_as_it_was(digits, classified):
    assert weights_digest(classified) == weights_digest(testing.owner())
    assert head_accuracy(classified, digits, CPU) > 0.9
    assert not classified.training


def test_a_classifier_may_be_trained_through_the_backbone(digits):
    how = ClassifierSettings("digits", "finetuned", epochs=2)
    made = with_classifier(testing.owner(), digits, how, rng(), CPU)
    assert weights_digest(made) != weights_digest(testing.owner())
    assert made.architecture.head == Head(10, 0.1)


def test_a_classifier_depends_on_its_own_randomness_alone(digits):
    how = ClassifierSettings("digits", epochs=1, dropout=0.5)
    with torch.random.fork_rng():
        made = []
        for seed, other in ((1, 1), (1, 2), (2, 1)):
            torch.manual_seed(other)
            found = with_classifier(testing.owner(), digits, how, rng(seed), CPU).head
            made.append(found.linear.weight)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_classifier_needs_labels(digits):
    bare = dataclasses.replace(digits, labels=None)
    with pytest.raises(UserError, match="expected labelled images, got 'x'"):
        with_classifier(testing.owner(), bare, ClassifierSettings("x"), rng(), CPU)


@pytest.mark.parametrize(("backbone", "lr"), [("frozen", 1e-2), ("finetuned", 1e-4)])
def test_the_usual_rate_depends_on_what_is_trained(backbone, lr):
    assert ClassifierSettings("digits", backbone).lr == lr
    assert ClassifierSettings("digits", backbone, lr=0.5).lr == 0.5


# The readouts, one by one.


def test_a_grafted_head_is_the_owners_on_the_suspects_backbone(digits, classified):
    suspect, images = stranger(), digits.batch(slice(0, 8), CPU)
    found = head_for("graft", suspect, classified, digits, CPU)(tokens(suspect, images))
    head, pooled = classified.head, suspect.pooled(tokens(suspect, images))
    normed = torch.nn.functional.layer_norm(
        pooled, pooled.shape[1:], head.norm.weight, head.norm.bias
    )
    expected = normed @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("readout", ["graft", "native"])
def test_the_owners_own_model_is_read_as_it_answers(readout, digits, classified):
    images = digits.batch(slice(0, 8), CPU)
    head = head_for(readout, clone(classified), classified, digits, CPU)
    with torch.no_grad():
        assert torch.equal(head(tokens(classified, images)), classified.logits(images))


def test_a_librarys_own_classifier_can_be_grafted(digits):
    own, suspect = (
        build(Architecture("timm", "test_vit", head=head)).requires_grad_(False)
        for head in ("own", None)
    )
    found = head_for("graft", suspect, own, digits, CPU)(tokens(suspect, torch.rand(2, 3, 8, 8)))
    assert found.shape == (2, 1000)
    suspect.trunk.load_state_dict(own.trunk.state_dict(), strict=False)
    images = torch.rand(2, 3, 160, 160, generator=rng())
    head = head_for("graft", suspect, own, digits, CPU)
    assert torch.equal(head(tokens(suspect, images)), own.logits(images))


def test_a_head_fitted_anew_is_ridge_regression_on_the_suspects_features(digits, classified):
    suspect, images = stranger(), digits.batch(slice(0, 16), CPU)
    found = head_for("relinear", suspect, classified, digits, CPU)(tokens(suspect, images))
    known = pooled_features(suspect, digits, CPU).double()
    mean, std = known.mean(0), known.std(0, correction=0)
    plain = Ridge(RIDGE).fit((known - mean) / std, torch.eye(10)[digits.labels])
    asked = pooled_features(suspect, digits.subset(range(16)), CPU).double()
    expected = torch.as_tensor(plain.predict((asked - mean) / std)).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, fit_linear(suspect, digits, CPU)(asked).float())


def test_fitting_a_head_is_paid_for_by_the_reading_and_once(digits, classified):
    suspect = stranger()
    view = View(suspect, Access.LABELS, head_for("relinear", suspect, classified, digits, CPU))
    with measuring(CPU) as meter:
        for _ in range(2):
            view.labels(digits.batch(slice(0, 5), CPU))
    assert meter.images == len(digits) + 10
    assert meter.forward_passes == pytest.approx(len(digits) + 10)
    assert view.queries == 10


def wide():
    return build(Architecture("timm", "vit_wee_patch16_reg1_gap_256", 64))


@pytest.mark.parametrize(
    ("readout", "suspect", "message"),
    [
        ("native", stranger, "expected a head for the owner's 10 classes, got none"),
        (
            "native",
            lambda: with_head(testing.owner(), Head(7), rng()),
            "expected a head for the owner's 10 classes, got one for 7",
        ),
        ("graft", wide, "the owner's head fits width 48, got 256"),
    ],
)
def test_a_suspect_that_cannot_be_read_is_incompatible(
    readout, suspect, message, digits, classified
):
    with pytest.raises(Incompatible, match=message):
        head_for(readout, suspect(), classified, digits, CPU)


def test_a_suspect_of_another_width_can_be_read_with_a_head_fitted_anew(digits, classified):
    model = wide()
    head = head_for("relinear", model, classified, digits, CPU)
    view = View(model, Access.LABELS, head)
    assert view.labels(digits.batch(slice(0, 4), CPU)).shape == (4,)


def test_a_head_is_fitted_on_images_of_the_owners_classes_only(digits, classified):
    for images in (
        dataclasses.replace(digits, labels=None),
        dataclasses.replace(digits, classes=9),
    ):
        with pytest.raises(Incompatible, match="images of 10 classes to fit a head, got"):
            head_for("relinear", stranger(), classified, images, CPU)


def test_an_owner_without_a_classifier_is_read_in_no_way(digits):
    for readout in READOUTS:
        with pytest.raises(Incompatible, match="expected an owner that classifies, got mini"):
            head_for(readout, testing.owner(), testing.owner(), digits, CPU)


# A whole suite.

SUITE = suite(
    owners=["{embedded: mini, classifier: {data: digits}}"],
    methods=[
        *(f"{{name: remembered, readout: {way}}}" for way in READOUTS),
        "{name: activemark, steps: 2, batch: 4, images: 4}",
    ],
    attacks=[
        "{name: control.identity}",
        "{name: prune.l1, amount: 0.4}",
        "{name: finetune.classify, data: digits, epochs: 1}",
        "{name: distill.logits, epochs: 1}",
    ],
    data="{digits: {max_images: 120}, photos: {max_images: 24}}",
    innocents="{strangers: 2, twin_seeds: 1, attacked_strangers: 1, pretraining_steps: 1}",
)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """The plan, and every record by readout, what the suspect is and what was done to it."""
    folder = tmp_path_factory.mktemp("readout")
    (folder / "suite.yaml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS._plugins, "remembered", (Remembered, 1))
        made = plan.make(reader.load(folder / "suite.yaml"), None)
        laboratory = Laboratory(made, Store(folder / "store"), None, CPU)
        load_owners(laboratory)
        records = list(answer(laboratory, made.questions, engines.serial, folder / "records.jsonl"))
    found = {}
    for record in records:
        cell = record.cell
        way, steps = cell.method.args.get("readout", "mark"), [s.name for s in cell.attack]
        if steps == ["control.stranger"] and cell.attack[0].args["index"] == 1:
            continue
        found[way, cell.lineage, steps[-1]] = record
    return made, found


def test_every_readout_recognises_the_owner_itself(answered):
    found = answered[1]
    for way in ("graft", "native"):
        assert found[way, "released", "control.identity"].evidence.rate == 1.0
    assert found["relinear", "released", "control.identity"].evidence.rate > 0.5


def test_what_a_readout_cannot_read_is_said_and_never_fails(answered):
    found = answered[1]
    told = {where: (r.status, r.reason) for where, r in found.items() if r.status != "ok"}
    other_classes = (
        "skipped",
        "native needs labels, the suspect offers features, weights",
    )
    no_head = ("incompatible", "expected a head for the owner's 10 classes, got none")
    assert told["native", "released", "finetune.classify"] == other_classes
    assert told["native", "stranger", "finetune.classify"] == other_classes
    assert told["native", "stranger", "control.stranger"] == no_head
    assert told["native", "stranger", "prune.l1"] == no_head
    # A stranger has no classifier that could be distilled.
    headless = {where for where, (_, reason) in told.items() if "distill.logits" in reason}
    assert {where[1:] for where in headless} == {("stranger", "distill.logits")}
    assert len(told) == 4 + len(headless)
    assert {status for status, _ in told.values()} == {"skipped", "incompatible"}


def test_grafted_and_refitted_heads_read_finetuned_suspects_and_strangers(answered):
    found = answered[1]
    for way in ("graft", "relinear"):
        for who in ("released", "stranger"):
            assert found[way, who, "finetune.classify"].evidence is not None
        own, other = (
            found[way, who, name].evidence.score
            for who, name in (("released", "control.identity"), ("stranger", "control.stranger"))
        )
        assert own > other


def test_a_record_says_with_which_head_labels_were_obtained(answered):
    access = {way: record.access for (way, *_), record in answered[1].items()}
    assert access == {
        "graft": "labels (owner's head grafted)",
        "relinear": "labels (linear head fitted anew)",
        "native": "labels (suspect's own head)",
        "mark": "weights",
    }


def test_a_suspect_with_the_owners_head_is_tested_on_the_owners_task(answered):
    found = answered[1]
    task = "digits, owner's held-out images"
    for where in (("released", "control.identity"), ("owner", "prune.l1")):
        utility = found["mark", *where].utility
        assert (utility.metric, utility.task) == ("accuracy", task)
    assert found["graft", "released", "control.identity"].utility.value > 0.6
    tuned = found["graft", "released", "finetune.classify"].utility
    assert tuned.task == "digits, thief's test images"
    assert found["graft", "stranger", "control.stranger"].utility.metric == "probe accuracy"


def test_a_mark_on_an_owner_with_a_classifier_can_be_distilled(answered):
    record = answered[1]["mark", "released", "distill.logits"]
    assert record.status == "ok"
    assert record.utility.task == "digits, owner's held-out images"


def test_a_fingerprint_is_made_once_whatever_reads_it_later(answered):
    made, _ = answered
    protects = [s for s in made.stages.values() if s.kind == "protect"]
    names = [s.recipe["method"]["name"] for s in protects]
    assert names == ["remembered", "activemark"]
    drawn = [made.manifest(s.recipe["data"]).name for s in protects]
    assert drawn == ["digits", "photos"]
    ways = [s.recipe.get("readout") for s in made.stages.values() if s.kind == "extract"]
    assert set(ways) == {*READOUTS, None}


def test_costs_of_a_refitted_head_hold_its_passes(answered):
    found = answered[1]
    passes = {
        way: found[way, "released", "control.identity"].costs["extract"].forward_passes
        for way in ("graft", "relinear")
    }
    assert passes["graft"] == pytest.approx(12)
    assert passes["relinear"] == pytest.approx(12 + 120)


def test_a_model_with_a_head_of_its_own_gets_no_second_one(tmp_path):
    owner = "{timm: test_vit, weights: random, classifier: {data: digits}}"
    text = SUITE.replace("{embedded: mini, classifier: {data: digits}}", owner)
    text = "\n".join(line for line in text.splitlines() if "remembered" not in line)
    (tmp_path / "suite.yaml").write_text(text)
    made = plan.make(reader.load(tmp_path / "suite.yaml"), None)
    laboratory = Laboratory(made, Store(tmp_path / "store"), None, CPU)
    for _ in range(2):  # the second time its weights are in the store already
        with pytest.raises(SettingError, match="classifier: expected none, the model has its own"):
            load_owners(laboratory)
