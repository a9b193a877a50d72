import dataclasses

import pytest
import torch

from attacks.disguise import Embeddings, Patch
from bench.models import Architecture, SegmentationHead, build, with_head
from bench.models.symmetry import FAR, align, read, rewritten
from bench.records.nouns import UserError
from bench.testing import CPU, context, owner

QUICK = {"epochs": 2, "batch": 16}


def aligned(suspect):
    return align(suspect, owner(), "static", None, torch.Generator().manual_seed(0), CPU)


def likeness(one, other):
    """The mean cosine between the features of two models."""
    asked = context().images.batch(slice(None), CPU)
    with torch.no_grad():
        return float(torch.cosine_similarity(one.features(asked), other.features(asked)).mean())


def test_embeddings_alone_are_learnt_and_none_is_kept():
    made = Embeddings(**QUICK, rotated=False).run(owner(), context(3)).state_dict()
    stem = {"patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed"}
    moved = {n for n, v in owner().state_dict().items() if not torch.equal(v, made[n])}
    assert moved == {f"trunk.vit.{name}" for name in stem}


def test_they_learn_to_give_the_victims_features():
    begun = Embeddings(**QUICK | {"epochs": 1}, lr=1e-12).run(owner(), context(3))
    made = Embeddings(epochs=20, batch=16).run(owner(), context(3))
    assert likeness(owner(), made) > likeness(owner(), begun) + 0.1
    assert made.notes["steps"] == 80


def test_new_embeddings_hide_nothing_from_an_owner_who_compares_blocks():
    made = Embeddings(**QUICK).run(owner(), context(3))
    found = aligned(made)
    assert (found.stage, found.residual > FAR) == ("blocks", True)
    hidden, back, known = (
        m.state_dict()["trunk.vit.blocks.3.mlp.fc2.weight"]
        for m in (made, rewritten(made, found), owner())
    )
    assert float((hidden - known).abs().max()) > 0.1
    assert float((back - known).abs().max()) < 0.001


def test_patches_of_another_size_are_as_many_and_answer_nearly_alike():
    made = Patch(rotated=False).run(owner(), context())
    assert made.trunk.patch == (5, 5)
    assert made.preprocess.size == (40, 40)
    assert made.trunk.grid == owner().trunk.grid
    assert likeness(owner(), made) > 0.9


def test_an_owner_resamples_its_own_filters_and_finds_the_basis():
    made = Patch().run(owner(), context())
    found = aligned(made)
    assert (found.residual, found.stage) == (pytest.approx(0.11, abs=0.01), "static")
    assert likeness(owner(), rewritten(made, found)) > 0.9


def test_a_stream_that_starts_from_a_norm_is_permuted():
    clip = build(Architecture("timm", "vit_base_patch32_clip_224", 64))
    made = Patch(size=16).run(clip, context())
    assert made.trunk.patch == (16, 16)
    before, after = (read(m).entry.gain.detach().sort().values for m in (clip, made))
    assert torch.equal(before, after)


def test_what_cannot_be_cut_otherwise_is_refused():
    head = SegmentationHead(3, "linear", (5,))
    victim = with_head(owner(), head, torch.Generator())
    with pytest.raises(UserError, match="head for images"):
        Patch().run(victim, context())
    with pytest.raises(UserError, match="expected"):
        Embeddings().run(build(Architecture("timm", "test_resnet", None)), context())


def test_both_say_that_their_thief_knows_align():
    assert {Embeddings.adaptive, Patch.adaptive} == {"align"}
    assert [f.name for f in dataclasses.fields(Patch)] == ["size", "rotated"]
