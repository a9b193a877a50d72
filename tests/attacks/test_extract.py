import dataclasses

import pytest
import torch

from attacks.distill import DistilFeatures, DistilLogits
from attacks.extract import ContSteal, DistilLabels, Rda, StolenEncoder
from attacks.matching import compare
from bench.models import Architecture, Head, VisionModel
from bench.records.nouns import Incompatible, UserError
from bench.registry import ATTACKS
from bench.suite.graph import _facts
from bench.testing import CPU, _with_digits_head, context, owner

PRESETS = [StolenEncoder, ContSteal, Rda]

IDLE = {"lr": 0.0, "epochs": 1, "batch": 64}


def asked():
    return context().images.batch(slice(None), CPU)


def headed():
    return _with_digits_head(owner())


@pytest.fixture
def answered(monkeypatch):
    """Count the images that the victim answers for: it alone is asked without gradients.

    But for the blank one that a student's width is found by.
    """
    seen, forward = [], VisionModel.forward_features

    def spy(model, images):
        if not torch.is_grad_enabled() and images.any():
            seen.append(len(images))
        return forward(model, images)

    monkeypatch.setattr(VisionModel, "forward_features", spy)
    return seen


@pytest.mark.parametrize(
    ("attack", "images", "queries"),
    [
        (DistilFeatures(queries=20, epochs=1), 20, 20),
        (DistilFeatures(loss="mse", views=3, queries=20, epochs=1), 6, 18),
        (StolenEncoder(queries=20, epochs=1), 20, 20),
        (ContSteal(queries=20, epochs=1), 10, 20),
        (Rda(queries=20, epochs=1), 4, 20),
        (DistilLabels(queries=20, epochs=1), 20, 20),
        (DistilLogits(epochs=1), 64, 64),
        (Rda(epochs=1), 64, 320),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else str(value),
)
def test_no_more_answers_are_taken_than_are_asked_for(attack, images, queries, answered):
    victim = headed() if getattr(attack, "uses_head", False) else owner()
    answered.clear()
    made = attack.run(victim, context(3))
    assert sum(answered) == queries == attack.victim_queries(64)
    if hasattr(attack, "looks_at"):
        assert attack.looks_at(64) == images
    assert made.notes.get("queries", queries) == queries


@pytest.mark.parametrize("attack", [*PRESETS, DistilFeatures, DistilLabels])
def test_more_queries_than_images_pay_for_are_refused_in_one_line(attack):
    with pytest.raises(
        UserError, match=r"^distill: queries: expected \d to \d+, for the thief has 64 images, got"
    ):
        attack(queries=321, epochs=1).run(headed(), context())


def test_one_query_cannot_pay_for_five_views():
    with pytest.raises(UserError, match=r"queries: expected 5 to 320"):
        Rda(queries=4).run(owner(), context())


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        (StolenEncoder(), {"loss": "cosine", "augment": "beside", "augment_weight": 20.0}),
        (StolenEncoder(), {"views": 0, "batch": 64, "epochs": 100, "lr": 1e-3}),
        (ContSteal(), {"loss": "infonce", "augment": "student", "temperature": 0.5, "views": 2}),
        (ContSteal(), {"batch": 32, "epochs": 100, "lr": 3e-4, "weight_decay": 0.0}),
        (Rda(), {"loss": "relational", "augment": "student", "temperature": 0.07, "views": 5}),
        (Rda(), {"batch": 100, "epochs": 100, "lr": 1e-3, "schedule": "constant"}),
    ],
)
def test_a_published_attack_has_its_papers_settings(preset, said):
    plain = preset._in_words()
    assert {name: getattr(plain, name) for name in said} == said
    assert plain.warmup == 0.0


@pytest.mark.parametrize("kind", ["mse", "cosine", "infonce", "relational"])
def test_the_loss_of_embeddings_is_as_it_is_written(kind):
    how = DistilFeatures(loss=kind, temperature=0.2, **IDLE)
    made = how.run(owner(), context(7))
    # The one batch is a shuffle of all images, and no loss depends on their order.
    with torch.no_grad():
        ours, theirs = (m.features(asked()) for m in (made, owner()))
        if kind == "relational":
            theirs = torch.nn.functional.normalize(theirs, dim=1)
        expected = float(compare(kind, ours, theirs, 0.2))
    assert made.notes["final_loss"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_student_comes_closer_to_its_victim(preset):
    losses = [
        preset(epochs=e, batch=16, queries=160 if preset is Rda else 64, lr=1e-3)
        .run(owner(), context(3))
        .notes["final_loss"]
        for e in (1, 6)
    ]
    assert losses[1] < losses[0] - 0.05


def test_a_student_of_another_architecture_is_taught_by_its_embedding():
    made = DistilFeatures(loss="mse", student="mini-wide", queries=16, epochs=1).run(
        owner(), context(3)
    )
    assert made.architecture == Architecture("embedded", "mini-wide")
    with torch.no_grad():
        assert made.features(asked()[:2]).shape == (2, 64)
    convolutional = DistilLabels(student="timm:test_resnet", queries=8, epochs=1)
    student = convolutional.run(headed(), context(3))
    assert student.architecture == Architecture("timm", "test_resnet", head=Head(10, 0.0))
    with torch.no_grad():
        assert student.logits(asked()[:2]).shape == (2, 10)


def test_a_student_of_as_many_tokens_may_learn_them():
    made = DistilFeatures(student="mini-deep", queries=16, epochs=1).run(owner(), context(3))
    assert len(made.blocks) == 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"student": "timm:test_resnet"}, r"^distill\.features: student: expected 65 tokens"),
        ({"student": "timm:no_such_net"}, r"^distill: student: expected a model of timm's, got"),
        ({"student": "mini-tall"}, "expected an embedded model of mini"),
        ({"student": "tinm:resnet18"}, r"no library named 'tinm'; did you mean 'timm'"),
        ({"augment": "student"}, r"^distill\.features: loss: expected mse, cosine"),
        ({"views": 2}, r"^distill\.features: loss: expected mse, cosine"),
    ],
)
def test_what_cannot_be_taught_is_refused_in_one_line(settings, said):
    with pytest.raises(UserError, match=said) as caught:
        DistilFeatures(epochs=1, **settings).run(owner(), context())
    assert "\n" not in str(caught.value)


def test_hard_labels_teach_a_student_to_answer_like_its_victim():
    victim = headed()
    made = DistilLabels(epochs=40, lr=3e-3, batch=16).run(victim, context())
    with torch.no_grad():
        ours, theirs = (model.logits(asked()).argmax(1) for model in (made, victim))
    majority = theirs.bincount().max() / len(theirs)
    assert (ours == theirs).double().mean() > 0.7 > majority + 0.2


def test_a_victim_that_does_not_classify_has_no_labels_to_give():
    with pytest.raises(Incompatible, match=r"^distill\.labels: expected a victim that [^\n]*$"):
        DistilLabels().run(owner(), context())


@pytest.mark.parametrize(
    ("name", "settings", "images", "queries"),
    [
        ("distill.rda", {"queries": 500}, 100, 500),
        ("distill.rda", {"queries": 50_000}, 2000, 10_000),  # refused once it runs
        ("distill.labels", {}, 2000, 2000),
        ("distill.features", {}, 2000, 2000),
        ("finetune.wild", {"share": 0.1}, 200, None),
        ("finetune.wrk", {}, 100, None),
        ("finetune.rear", {}, 2000, None),
    ],
)
def test_a_report_is_told_how_many_images_and_answers_a_thief_took(name, settings, images, queries):
    facts = _facts(ATTACKS.spec(name, settings), "digits", 2000)
    assert (facts.images, facts.queries) == (images, queries)
