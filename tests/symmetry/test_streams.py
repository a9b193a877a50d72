"""The stream of every family: what is exact to the last digits, and what is refused."""

import math

import pytest
import torch
from symmetric import CASES, apart, generator, haar, permuted, round_trip, transformer

from bench.models import Architecture, build
from bench.models.symmetry import bake_means, fold, map_stream, read, shift_writers
from bench.records.nouns import UserError

STARTS_FROM_A_NORM = {"clip", "open_clip"}
SEES_ITS_MEAN = {"raw", "normed"}

ONE = 1e-9
"""What is called equal in float64, in units of the largest output."""


def doubled(width):
    return torch.eye(width).double().repeat_interleave(2, 0) / math.sqrt(2)


def uneven(width):
    first = torch.rand(width, generator=generator()).double()
    return torch.stack([first.diag(), (1 - first).diag()], 2).flatten(1)


WAYS = {
    "folded": fold,
    "permuted": lambda m: map_stream(m, permuted(m.width)),
    "rotated": lambda m: map_stream(m, haar(m.width)),
    "twice": lambda m: map_stream(map_stream(m, haar(m.width), 3.0, 1.0), haar(m.width, 1), 0.5),
    "wide": lambda m: map_stream(m, doubled(m.width)),
    "wide, split": lambda m: map_stream(m, doubled(m.width), undo=uneven(m.width)),
    "scaled": lambda m: map_stream(m, torch.eye(m.width), 10.0),
    "shifted": lambda m: map_stream(m, torch.eye(m.width), shift=10.0),
    "baked": bake_means,
    "writers shifted": lambda m: shift_writers(m, 1.0, generator()),
}


def refuses(case, way):
    """Whether this freedom does not exist there."""
    rotates, widens = {"rotated", "twice"}, {"wide", "wide, split"}
    return (
        (case in STARTS_FROM_A_NORM and way in rotates)
        or (case == "open_clip" and way in widens)
        or (case in SEES_ITS_MEAN and way in {"baked", "writers shifted"})
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_the_function_stays(case, way):
    model = transformer(case)
    if refuses(case, way):
        with pytest.raises(UserError, match="expected"):
            WAYS[way](model)
        return
    made = WAYS[way](model)
    assert apart(model, made) < ONE
    assert apart(made, round_trip(made)) == 0
    assert any(
        a.shape != b.shape or (a - b).abs().max() > 1e-3
        for a, b in zip(
            made.trunk.state_dict().values(), model.trunk.state_dict().values(), strict=False
        )
    )


def test_the_stream_itself_goes_where_it_was_sent():
    model, images = transformer("mini"), torch.rand(2, 3, 32, 32).double()
    turn = haar(48)
    made = map_stream(model, turn, 2.0, 3.0)
    with torch.no_grad():
        was, now = model.run_blocks(model.embed(images)), made.run_blocks(made.embed(images))
    assert torch.allclose(now, 2 * was @ turn.mT + 3, atol=1e-9)


def test_an_inverse_map_gives_the_stream_back():
    model, images = transformer("registers"), torch.rand(1, 3, 28, 28).double()
    turn = haar(model.width)
    there = map_stream(model, turn, 4.0, 1.0)
    back = map_stream(map_stream(there, torch.eye(model.width), shift=-1.0), turn.mT, 0.25)
    with torch.no_grad():
        was, now = model.run_blocks(model.embed(images)), back.run_blocks(back.embed(images))
    assert torch.allclose(now, was, atol=1e-9)


def test_a_widened_stream_can_be_made_narrow_again():
    model = transformer("deit")
    wide = map_stream(model, doubled(model.width), undo=uneven(model.width))
    assert wide.width == 2 * model.width
    assert wide.num_features == model.num_features
    narrow = map_stream(wide, doubled(model.width).mT)
    assert narrow.width == model.width
    assert apart(model, narrow) < ONE


def test_any_orthogonal_map_is_no_symmetry_of_a_layer_norm():
    wrong = torch.linalg.qr(torch.randn(48, 48, generator=generator()).double())[0]
    with pytest.raises(UserError, match="R 1 a multiple of 1"):
        map_stream(transformer("mini"), wrong)


@pytest.mark.parametrize(
    ("r", "scale", "words"),
    [
        (torch.eye(47), 1.0, r"\(d', 48\)"),
        (torch.eye(48), 0.0, "above 0"),
        (2 * torch.eye(48), 1.0, r"R\^T R = 1"),
    ],
)
def test_what_is_no_map_is_refused(r, scale, words):
    with pytest.raises(UserError, match=words):
        map_stream(transformer("mini"), r, scale)


def test_an_undo_that_does_not_undo_is_refused():
    with pytest.raises(UserError, match="undo"):
        map_stream(transformer("mini"), torch.eye(48), undo=2 * torch.eye(48))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("eva02_tiny_patch14_224", "Eva"),
        ("resnet18", "ResNet"),
        ("vit_base_patch16_xp_224", "ParallelScalingBlock"),
        ("aimv2_large_patch14_224", "does not end in a linear map"),
    ],
)
def test_who_has_no_such_stream_is_told(name, words):
    with torch.device("meta"):
        model = build(Architecture("timm", name))
    with pytest.raises(UserError, match=words):
        read(model)


def test_folded_norms_have_nothing_left_to_say():
    body = read(fold(transformer("registers")))
    for branch in body.branches:
        assert torch.equal(branch.norm.gain, torch.ones_like(branch.norm.gain))
        assert torch.equal(branch.scale, torch.ones_like(branch.scale))
        assert not branch.norm.bias.any()


def test_a_baked_model_writes_no_mean():
    body = read(bake_means(transformer("deit")))
    for branch in body.branches:
        assert branch.writer.weight.mean(0).abs().max() < 1e-12
    assert body.tokens[0].mean(-1).abs().max() < 1e-12


def test_a_model_as_its_library_makes_it_says_nothing_of_shapes():
    plain = Architecture("embedded", "mini")
    assert plain.json().keys() == {"library", "name", "image_size", "head", "tag"}
    made = map_stream(transformer("mini"), doubled(48), 2.0)
    assert made.architecture.json()["readout"] == 48
    assert made.architecture.json()["eps"] == pytest.approx(4e-6)
    assert Architecture.of(made.architecture.json()) == made.architecture
