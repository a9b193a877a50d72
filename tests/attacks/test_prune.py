import copy
import json

import pytest
import torch
from made_models import shaken
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils import prune

from attacks.finetune import FinetuneClassify
from attacks.noise import WeightNoise
from attacks.prepare import WeightShift
from attacks.prune import L1Prune, StructuredPrune
from attacks.quantize import Quantize
from bench.models.building import build
from bench.models.heads import Head
from bench.models.libraries.embedded import MINI
from bench.models.surgery import segmentation_head, with_head
from bench.models.suspect import View
from bench.models.vision import Architecture
from bench.models.weights import load_state
from bench.records.nouns import Access, Incompatible, UserError
from bench.testing import ATTACK_CHECKS, CPU, context, owner
from methods.activemark import ActiveMark
from methods.oracle import WeightOracle


def headed(model=None):
    return with_head(model or owner(), Head(10), torch.Generator().manual_seed(0)).eval()


def own(name="test_vit", side=64):
    """A model with a classifier of its library's own, all of it drawn."""
    return shaken(build(Architecture("timm", name, side, "own")))


def linear_or_convolution(module):
    return [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def weights(model):
    return [m.weight for m in linear_or_convolution(model.trunk.vit.blocks)]


def pytorchs_own(model, amount, scope, inner=lambda made: made.trunk.vit.blocks):
    made = copy.deepcopy(model)
    layers = linear_or_convolution(inner(made))
    if scope == "global":
        pairs = [(layer, "weight") for layer in layers]
        prune.global_unstructured(pairs, prune.L1Unstructured, amount=amount)
    else:
        for layer in layers:
            prune.l1_unstructured(layer, "weight", amount)
    for layer in layers:
        prune.remove(layer, "weight")
    return made


def assert_alike_but_for_ties(made, expected, victim):
    """PyTorch's topk leaves open which of equal magnitudes go; all others must go alike."""
    made, expected = made.state_dict(), expected.state_dict()
    for name, value in victim.state_dict().items():
        apart = made[name] != expected[name]
        assert len(value[apart].abs().unique()) <= 1, name
        assert apart.sum() <= 2, name  # a tie, not a layer of equal weights


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("amount", [0.1, 0.2, 0.4, 0.9])
def test_it_zeroes_the_very_weights_pytorchs_own_pruning_does(amount, scope):
    victim = owner()
    made = L1Prune(amount, scope).run(victim, context())
    assert_alike_but_for_ties(made, pytorchs_own(victim, amount, scope), victim)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("victim", [own(), headed()], ids=["the library's head", "ours"])
def test_an_entire_model_loses_weights_in_every_layer_as_pytorchs_own_pruning_has_it(victim, scope):
    made = L1Prune(0.2, scope, "entire model").run(victim, context())
    expected = pytorchs_own(victim, 0.2, scope, lambda made: made)
    assert_alike_but_for_ties(made, expected, victim)
    zeros = sum(int((m.weight == 0).sum()) for m in linear_or_convolution(expected))
    sizes = [m.weight.numel() for m in linear_or_convolution(expected)]
    assert abs(zeros - 0.2 * sum(sizes)) <= len(sizes) / 2  # a layer's own share is rounded
    assert made.notes["sparsity"] == zeros / sum(sizes)


def test_the_embedding_of_patches_is_spared_unless_the_entire_model_is_pruned():
    def zeros(how):
        return float((how.run(victim, context()).trunk.vit.patch_embed.proj.weight == 0).sum())

    victim = own()
    with torch.no_grad():
        victim.trunk.vit.patch_embed.proj.weight.mul_(0.01)  # small beside all others, as DeiT's is
    size = victim.trunk.vit.patch_embed.proj.weight.numel()
    assert zeros(L1Prune(0.4)) == zeros(L1Prune(0.4, "layer")) == 0
    assert zeros(L1Prune(0.4, "global", "entire model")) == size
    assert zeros(L1Prune(0.4, "layer", "entire model")) == round(0.4 * size)


ON_WEIGHTS = (
    *(L1Prune(0.4, scope) for scope in ("global", "layer")),
    *(StructuredPrune(part) for part in ("mlp", "heads")),
    *(Quantize("int4"), WeightNoise(0.5), WeightShift()),
)


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        *((attack, "test_vit") for attack in ON_WEIGHTS),
        *(
            (attack, "test_convnext")
            for attack in ON_WEIGHTS
            if not isinstance(attack, StructuredPrune)
        ),
    ],
    ids=repr,
)
def test_a_librarys_own_classifier_is_left_alone_like_any_head(attack, name):
    victim = own(name, 64 if name == "test_vit" else None)
    kept = victim.trunk.get_classifier()
    assert kept.weight.shape[0] == 1000
    made = attack.run(victim, context())
    after = made.trunk.get_classifier()
    assert torch.equal(after.weight, kept.weight)
    assert torch.equal(after.bias, kept.bias)
    before = dict(victim.named_parameters())
    assert any(v.shape != before[n].shape or not v.equal(before[n])
               for n, v in made.named_parameters())  # fmt: skip


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_the_oracle_keeps_nothing_of_a_librarys_own_classifier(name):
    secret = WeightOracle().protect(own(name), context(0, "owner")).secret
    assert not [name for name in secret if "head" in name]


def test_a_librarys_own_classifier_has_no_say_in_which_channels_go():
    victim = own()
    quiet = copy.deepcopy(victim)
    with torch.no_grad():
        quiet.trunk.get_classifier().weight.mul_(1e-3)
    cut, other = (StructuredPrune("width", 0.25).run(m, context()) for m in (victim, quiet))
    patches = "trunk.vit.patch_embed.proj.weight"
    assert torch.equal(cut.state_dict()[patches], other.state_dict()[patches])
    before = victim.trunk.vit.patch_embed.proj.weight.flatten(1)
    after = cut.state_dict()[patches].flatten(1)
    kept = (before[None] == after[:, None]).all(2).nonzero()[:, 1]  # which channels stayed
    assert len(kept) == 48
    reads = cut.trunk.get_classifier().weight
    assert torch.equal(reads, victim.trunk.get_classifier().weight[:, kept])


def test_a_distilled_models_two_classifiers_read_the_channels_that_stay():
    victim = own("deit_tiny_distilled_patch16_224", 32)
    cut = StructuredPrune("width", 0.25).run(victim, context())
    before = victim.trunk.vit.patch_embed.proj.weight.flatten(1)
    after = cut.trunk.vit.patch_embed.proj.weight.flatten(1)
    kept = (before[None] == after[:, None]).all(2).nonzero()[:, 1]  # which channels stayed
    assert len(kept) == 144
    for name in ("head", "head_dist"):
        reads, whole = (getattr(model.trunk.vit, name).weight for model in (cut, victim))
        assert torch.equal(reads, whole[:, kept])


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_of_equal_magnitudes_the_first_go_and_no_more_than_asked_for(scope):
    victim = owner()
    for weight in weights(victim):
        weight.data.copy_(torch.tensor([0.5, -0.25, 0.25, -0.5]).repeat(weight.numel() // 4)
                          .view_as(weight))  # fmt: skip
    made = L1Prune(0.3, scope).run(victim, context())
    layers = [[w] for w in weights(made)] if scope == "layer" else [weights(made)]
    for ranked in layers:
        flat = torch.cat([weight.flatten() for weight in ranked])
        gone = (flat == 0).nonzero().flatten()
        candidates = torch.arange(len(flat))[torch.arange(len(flat)) % 4 % 3 != 0]  # the smaller
        assert torch.equal(gone, candidates[: round(0.3 * len(flat))])


def test_pruning_nothing_changes_nothing():
    victim = owner()
    made = L1Prune(0.0).run(victim, context())
    assert all(torch.equal(v, victim.state_dict()[n]) for n, v in made.state_dict().items())


def test_the_sparsity_reached_is_counted_and_noted():
    assert L1Prune(0.0).run(owner(), context()).notes["sparsity"] < 1e-4
    made = L1Prune(0.2).run(owner(), context())
    found = weights(made)
    counted = sum(float((w == 0).sum()) for w in found) / sum(w.numel() for w in found)
    assert made.notes["sparsity"] == pytest.approx(counted)
    assert counted == pytest.approx(0.2, abs=1e-5)


def test_a_layers_own_ranking_prunes_every_layer_alike():
    made = L1Prune(0.4, "layer").run(owner(), context())
    for weight in weights(made):
        share = float((weight == 0).float().mean())
        assert share == pytest.approx(0.4, abs=1 / weight.numel())


def test_norms_biases_embeddings_and_the_thiefs_head_are_left_alone():
    victim = with_head(owner(), Head(10), torch.Generator().manual_seed(0))
    made = L1Prune(0.9).run(victim, context())
    before, after = victim.state_dict(), made.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n.startswith("trunk.vit.blocks.") and n.endswith(
        ("proj.weight", "qkv.weight", "fc1.weight", "fc2.weight"))}  # fmt: skip


def test_pruned_weights_are_zeros_without_a_sign():
    made = L1Prune(0.5).run(owner(), context())
    for value in made.trunk.state_dict().values():
        assert not torch.signbit(value[value == 0]).any()


def test_a_pruned_model_can_be_trained_on():
    made = L1Prune(0.2).run(owner(), context())
    assert all(p.requires_grad and p.is_leaf for p in made.parameters())


@pytest.mark.parametrize("amount", [1.0, 1.5, -0.1, float("nan")])
def test_amounts_out_of_range_are_refused(amount):
    with pytest.raises(
        UserError, match=rf"^attack 'prune\.l1': amount: expected [^\n]*, got {amount}$"
    ):
        L1Prune(amount)


PARTS = ("mlp", "heads", "width")


def victims():
    return {
        "mini": owner(),
        "mini with a head": shaken(headed()),
        "its own classifier": own(),
        "layer scale, average": shaken(build(Architecture("timm", "test_vit2", 64))),
        "attention pooling": shaken(build(Architecture("timm", "test_vit3", 64))),
        "registers": shaken(build(Architecture("timm", "vit_wee_patch16_reg1_gap_256", 64))),
    }


def answers(model):
    with torch.no_grad():
        return model(context().images.batch(slice(0, 8), CPU))


def stored_and_loaded(model):
    described = Architecture.of(json.loads(json.dumps(model.architecture.json())))
    assert described == model.architecture
    return load_state(build(described), model.state_dict(), "the stored weights")


def weakest(worth, count):
    return worth.argsort()[:count].sort().values


def squares(weight, dim):
    return weight.detach().square().sum(dim)


@pytest.mark.parametrize("name", victims())
@pytest.mark.parametrize("amount", [0.25, 0.5])
def test_cutting_neurons_equals_zeroing_the_weakest_in_the_dense_model(name, amount):
    dense = victims()[name]
    made = StructuredPrune("mlp", amount).run(dense, context())
    units = dense.blocks[0].mlp.fc1.out_features
    for block in dense.blocks:
        worth = squares(block.mlp.fc1.weight, 1) + squares(block.mlp.fc2.weight, 0)
        with torch.no_grad():
            block.mlp.fc2.weight[:, weakest(worth, round(amount * units))] = 0
    assert torch.allclose(answers(made), answers(dense), atol=1e-5)
    assert made.blocks[-1].mlp.fc1.weight.shape[0] == units - round(amount * units)
    assert made.width == dense.width


@pytest.mark.parametrize("name", victims())
def test_cutting_heads_equals_zeroing_the_weakest_in_the_dense_model(name):
    dense = victims()[name]
    made = StructuredPrune("heads", 0.4).run(dense, context())
    heads, size = dense.blocks[0].attn.num_heads, dense.blocks[0].attn.head_dim
    for block in dense.blocks:
        inward = squares(block.attn.qkv.weight, 1).view(3, heads, size).sum((0, 2))
        outward = squares(block.attn.proj.weight, 0).view(heads, size).sum(1)
        lost = weakest(inward + outward, round(0.4 * heads))
        with torch.no_grad():
            block.attn.proj.weight.view(-1, heads, size)[:, lost] = 0
    assert torch.allclose(answers(made), answers(dense), atol=1e-5)
    left = heads - round(0.4 * heads)
    assert made.notes == {"units": heads, "left": left}
    assert {block.attn.num_heads for block in made.blocks} == {left}
    assert made.width == dense.width


def test_cutting_the_width_takes_the_weakest_channels_out_of_every_layer():
    victim = owner()
    made = StructuredPrune("width", 0.25).run(victim, context())
    old, new = victim.trunk.vit.state_dict(), made.trunk.vit.state_dict()
    axes = {"qkv": 1, "fc1": 1, "fc2": 0}  # where the residual stream enters or leaves
    worth = torch.zeros(48)
    for name, value in old.items():
        layer = name.split(".")[-2] if "." in name else name
        axis = 0 if "attn.proj" in name else axes.get(layer, value.ndim - 1)
        if name.endswith(".weight"):
            axis = 0 if layer.startswith("norm") or "patch_embed" in name else axis
            others = [d for d in range(value.ndim) if d != axis]
            worth += squares(value, others) if others else value.square()
    kept = worth.argsort()[12:].sort().values
    assert torch.equal(new["patch_embed.proj.weight"], old["patch_embed.proj.weight"][kept])
    assert torch.equal(new["pos_embed"], old["pos_embed"][..., kept])
    assert torch.equal(new["blocks.3.attn.qkv.weight"], old["blocks.3.attn.qkv.weight"][:, kept])
    assert torch.equal(new["blocks.5.mlp.fc2.bias"], old["blocks.5.mlp.fc2.bias"][kept])
    assert made.width == made.features(torch.zeros(1, 3, 32, 32)).shape[1] == 36


class HeadsOf16(Attention):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs, attn_head_dim=16)


@pytest.mark.parametrize("part", PARTS)
def test_what_is_left_is_timms_own_transformer_of_that_size(part):
    victim = owner()
    made = StructuredPrune(part, 0.5).run(victim, context())
    size = made.architecture.dimensions
    shape = {"embed_dim": size.width, "num_heads": size.heads, "attn_layer": HeadsOf16}
    shape["mlp_ratio"] = (size.mlp + 0.5) / size.width  # timm rounds down
    library = VisionTransformer(**{**MINI, **shape}).eval()
    library.load_state_dict(made.trunk.vit.state_dict())
    asked = context().images.batch(slice(0, 8), CPU)
    with torch.no_grad():
        ours, theirs = made.features(asked), library(made.normalise(asked))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["mini", "mini with a head", "its own classifier", "registers"])
@pytest.mark.parametrize("part", PARTS)
def test_a_cut_model_is_rebuilt_from_json_and_its_weights(part, name):
    made = StructuredPrune(part, 0.3).run(victims()[name], context())
    assert torch.equal(answers(stored_and_loaded(made)), answers(made))


@pytest.mark.parametrize("part", PARTS)
def test_a_cut_model_is_cut_again_and_trained_on(part):
    made = owner()
    for step in (
        StructuredPrune("mlp", 0.3),
        StructuredPrune(part, 0.4),
        FinetuneClassify(epochs=1),
        StructuredPrune("heads", 0.3),
    ):
        made = step.run(made, context())
    assert made.logits(context().images.batch(slice(0, 4), CPU)).shape == (4, 10)
    assert torch.equal(answers(stored_and_loaded(made)), answers(made))
    masks = with_head(made, segmentation_head(made, "linear", 5), torch.Generator())
    assert torch.equal(answers(stored_and_loaded(masks)), answers(masks))


@pytest.mark.parametrize("check", ATTACK_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("part", ["heads", "width"])
def test_every_part_keeps_an_attacks_promises(part, check):
    check(StructuredPrune(part))


def test_a_mark_in_the_residual_stream_reads_a_cut_block_but_no_other_width():
    quick = {"images": 8, "steps": 3, "batch": 4, "block": 2}
    method = ActiveMark(**quick, encoder_hidden=32, decoder_hidden=16)
    made = method.protect(owner(), context(0, "owner"))

    def read(part):
        suspect = StructuredPrune(part).run(made.model, context())
        return method.extract(made.secret, View(suspect, Access.WEIGHTS), context(1, "owner"))

    assert len(read("mlp").agreement) == len(read("heads").agreement) > 0
    with pytest.raises(Incompatible, match="expected the owner's width 48, got 38"):
        read("width")


@pytest.mark.parametrize(("amount", "left"), [(0.01, 2), (0.4, 2), (0.5, 1), (0.99, 1)])
def test_at_least_one_unit_goes_and_one_stays(amount, left):
    assert StructuredPrune("heads", amount).run(owner(), context()).notes["left"] == left


def test_the_last_head_is_not_cut():
    alone = StructuredPrune("heads", 0.99).run(owner(), context())
    with pytest.raises(UserError, match=r"^prune\.structured: expected 2 or more heads.*got 1$"):
        StructuredPrune("heads").run(alone, context())


@pytest.mark.parametrize("amount", [0.0, 1.0, 1.5, -0.1, float("nan")])
def test_cutting_nothing_or_everything_is_refused(amount):
    with pytest.raises(
        UserError, match=rf"^attack 'prune\.structured': amount: expected [^\n]*{amount}$"
    ):
        StructuredPrune(amount=amount)


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        (
            "test_resnet",
            "mlp",
            "expected a plain vision transformer of timm's, .* got test_resnet; choose",
        ),
        ("test_vit3", "width", "without attention pooling .* got test_vit3; cut 'mlp' or 'heads'"),
        ("test_vit4", "width", "with layer norms, .* got test_vit4; cut 'mlp' or 'heads'"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(name, part, words):
    with pytest.raises(UserError, match=words) as found:
        StructuredPrune(part).run(build(Architecture("timm", name)), context())
    assert "\n" not in str(found.value)
