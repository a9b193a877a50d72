"""What moves inside a branch: exact where it exists, and refused where it does not."""

import pytest
import torch
from made_models import shaken
from symmetric import CASES, apart, generator, round_trip, transformer
from timm.models.vision_transformer import VisionTransformer

from bench.data import Preprocess
from bench.models import Architecture, TimmViT, VisionModel, symmetry
from bench.models.libraries.embedded import MINI
from bench.models.symmetry import read
from bench.records.nouns import UserError

ONE = 1e-9

WAYS = {
    "neurons": lambda m: symmetry.permute_neurons(m, generator()),
    "heads": lambda m: symmetry.permute_heads(m, generator()),
    "queries": lambda m: symmetry.mix_queries(m, generator()),
    "values": lambda m: symmetry.mix_values(m, generator()),
    "biases": lambda m: symmetry.move_biases(m, 0.5, generator()),
    "gates": lambda m: symmetry.scale_gates(m, 0.5, generator()),
    "zero": lambda m: symmetry.add_neurons(m, 0.3, "zero", generator()),
    "clique": lambda m: symmetry.add_neurons(m, 0.3, "clique", generator()),
    "split": lambda m: symmetry.add_neurons(m, 1.5, "split", generator()),
    "zero heads": lambda m: symmetry.add_heads(m, 1, "zero", generator()),
    "cancelling heads": lambda m: symmetry.add_heads(m, 4, "cancelling", generator()),
    "first block": lambda m: symmetry.add_blocks(m, 2, 0),
    "last block": lambda m: symmetry.add_blocks(m, 1, len(m.blocks)),
    "wide": lambda m: symmetry.widen(m, 3, generator()),
}

SOME = [case for case in CASES if case not in ("distilled", "deit3", "siglip", "raw", "normed")]
"""The others differ outside of their branches alone."""

ONLY = {"gates": {"gated"}}
NOT = {
    "biases": {"no bias"},
    "zero heads": {"open_clip"},
    "cancelling heads": {"open_clip"},
    "wide": {"open_clip"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", SOME)
def test_the_function_stays(case, way):
    model = transformer(case)
    if case not in ONLY.get(way, CASES) or case in NOT.get(way, ()):
        with pytest.raises(UserError, match="expected"):
            WAYS[way](model)
        return
    made = WAYS[way](model)
    assert apart(model, made) < ONE
    assert apart(made, round_trip(made)) == 0


BEHIND_VALUES = ("heads", "values", "biases", "zero heads", "cancelling heads")


@pytest.mark.parametrize("way", [*BEHIND_VALUES, "neurons", "zero", "clique", "split"])
def test_norms_within_branches_leave_no_freedom(way):
    with pytest.raises(UserError, match="norm"):
        WAYS[way](transformer("normed"))


def test_queries_that_are_normed_only_change_places():
    vit = VisionTransformer(**MINI, qk_norm=True)
    half, size = (0.5, 0.5, 0.5), Preprocess((32, 32))
    model = VisionModel(Architecture("embedded", "mini"), TimmViT(vit), size, half, half)
    model = shaken(model).double().eval()
    for way in ("queries", "biases", "values", "heads"):
        made = WAYS[way](model)
        assert apart(model, made) < ONE, way
    first = read(symmetry.mix_queries(model, generator())).blocks[0][0].qkv.weight[:16]
    assert torch.equal(
        *(w.sort(0).values for w in (first, read(model).blocks[0][0].qkv.weight[:16]))
    )


def test_queries_and_keys_are_mixed_within_their_heads():
    model = transformer("deit")
    made = symmetry.mix_queries(model, generator())
    for old, new in zip(read(model).blocks, read(made).blocks, strict=True):
        before, after = old[0].qkv.weight.view(3, -1, 192), new[0].qkv.weight.view(3, -1, 192)
        assert torch.equal(before[2], after[2])
        assert not torch.allclose(before[:2], after[:2])
        for head in range(3):
            rows = slice(64 * head, 64 * head + 64)
            scores = [part[0, rows].mT @ part[1, rows] for part in (before, after)]
            assert torch.allclose(*scores, atol=1e-10)


def test_maps_within_heads_are_well_conditioned():
    made = symmetry.mix_values(transformer("deit"), generator())
    old, new = (read(m).blocks[0][0].qkv.weight[384:448] for m in (transformer("deit"), made))
    mixed = new @ torch.linalg.pinv(old)  # (64, 64): the rows are independent
    assert torch.linalg.cond(mixed) <= symmetry.inner.CONDITION + 1e-6


def test_mixing_channels_across_heads_is_no_symmetry():
    model = transformer("deit")
    made = symmetry.permute_heads(model, generator())  # a copy
    order = torch.randperm(192, generator=generator())
    with torch.no_grad():
        for (old, _), (new, _) in zip(read(model).blocks, read(made).blocks, strict=True):
            for a, b in ((old.qkv.weight, new.qkv.weight), (old.qkv.bias, new.qkv.bias)):
                b.copy_(a.unflatten(0, (3, 192))[:, order].flatten(0, 1))
            new.writer.weight.copy_(old.writer.weight[:, order])
    assert apart(model, made) > 1e-3


def test_scaling_neurons_of_a_gelu_is_no_symmetry():
    model = transformer("deit")
    made = symmetry.permute_neurons(model, generator())
    with torch.no_grad():
        for (_, old), (_, new) in zip(read(model).blocks, read(made).blocks, strict=True):
            new.readers[0].weight.copy_(2 * old.readers[0].weight)
            new.readers[0].bias.copy_(2 * old.readers[0].bias)
            new.writer.weight.copy_(old.writer.weight / 2)
    assert apart(model, made) > 1e-3


def test_cliques_write_nothing_and_split_neurons_write_what_one_did():
    model = transformer("deit")
    old = read(model).blocks[0][1]
    for kind in ("clique", "split", "zero"):
        new = read(symmetry.add_neurons(model, 0.5, kind, generator())).blocks[0][1]
        assert new.hidden == round(1.5 * old.hidden)
        assert (
            torch.allclose(
                (new.writer.weight @ torch.relu(new.readers[0].bias)),
                (old.writer.weight @ torch.relu(old.readers[0].bias)),
                atol=1e-9,
            )
            or kind != "split"
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: symmetry.add_heads(m, 3, "cancelling", generator()), "even count"),
        (lambda m: symmetry.add_neurons(m, 1e-9, "zero", generator()), "take more"),
        (lambda m: symmetry.add_blocks(m, 1, 9), "place from 0"),
    ],
)
def test_what_cannot_be_added_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        change(transformer("deit"))
