import pytest
import torch
from made_models import digits_owner, shaken

from bench.models import clone, with_head
from bench.models.heads import Head
from bench.testing import CPU, context, owner, stranger
from bench.training.hardness import MOST, likeness


@pytest.fixture(scope="module")
def held_out():
    return context(party="owner").held_out


def alike(suspect, model, images):
    return likeness(suspect, model, (images, images), CPU)


def test_a_model_is_like_itself_and_a_stranger_is_not(held_out):
    model = digits_owner()
    itself = alike(clone(model), model, held_out)
    assert itself["images"] == min(len(held_out), MOST)
    assert (itself["cka"], itself["label_agreement"]) == (pytest.approx(1.0), 1.0)
    other = alike(stranger(0), model, held_out)
    assert other["cka"] < 0.95
    assert other["label_agreement"] < 1.0


def test_labels_are_those_of_the_owners_head_where_a_thief_has_put_his_own(held_out):
    model = digits_owner()
    tuned = with_head(clone(model), Head(10), torch.Generator().manual_seed(0))
    assert isinstance(tuned.architecture.head, Head)
    assert alike(tuned, model, held_out)["label_agreement"] == 1.0


def test_an_owner_without_classes_leaves_labels_open(held_out):
    assert alike(shaken(owner()), owner(), held_out)["label_agreement"] is None


def test_too_few_images_leave_features_open(held_out):
    few = held_out.subset([0, 1, 2])
    assert alike(owner(), owner(), few)["cka"] is None
