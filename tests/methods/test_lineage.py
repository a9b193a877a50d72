import copy

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from timm.layers import GluMlp, SwiGLU
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from bench.data import Preprocess
from bench.models import Architecture, TimmViT, View, VisionModel, build, clone, randomised
from bench.models.symmetry import map_stream
from bench.testing import context, owner, stranger
from bench.types import Incompatible, UserError
from methods.lineage import ProcrustesResidual, WeightInvariants, WeightProfile
from methods.lineage.invariants import in_order
from methods.lineage.procrustes import residual

RESIDUAL, INVARIANTS, PROFILE = ProcrustesResidual(), WeightInvariants(), WeightProfile()

ALL = [RESIDUAL, INVARIANTS, PROFILE]

PLAIN = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3}

SHAPES = {
    "plain": {},
    "scaled, with registers": {"init_values": 0.5, "reg_tokens": 2, "no_embed_class": True},
    "without bias or class": {"qkv_bias": False, "class_token": False, "global_pool": "avg"},
    "gated, packed": {"mlp_layer": GluMlp, "act_layer": nn.SiLU},
    "gated, apart": {"mlp_layer": SwiGLU, "act_layer": nn.SiLU},
    "queries and keys normed": {"qk_norm": True},
}


def vit(seed=0, **changes):
    """An untrained transformer whose gains and biases are none of them trivial."""
    made = VisionTransformer(**{**PLAIN, **changes}, num_classes=0)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in made.named_parameters():
            value.normal_(std=0.3, generator=rng)
            if "norm" in name and name.endswith("weight"):
                value.add_(1.0)
    half = (0.5, 0.5, 0.5)
    size = Preprocess((PLAIN["img_size"],) * 2)
    return VisionModel(Architecture("timm", "vit"), TimmViT(made), size, half, half).eval()


def kept(method, model):
    return method.protect(model, context(0, "owner")).secret


def read(method, suspect, of=None):
    secret = kept(method, owner() if of is None else of)
    return method.extract(secret, View(suspect, method.needs), context(1, "owner"))


def score(method, suspect, of=None):
    return read(method, suspect, of).score


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(width, seed=0):
    """A rotation of the stream that leaves the all-ones direction alone."""
    rest = torch.linalg.qr(torch.cat([torch.ones(width, 1).double(), drawn(width, width - 1)], 1)).Q
    inner = torch.linalg.qr(drawn(width - 1, width - 1, seed=seed + 1)).Q
    return rest[:, :1] @ rest[:, :1].T + rest[:, 1:] @ inner @ rest[:, 1:].T


def twice(width):
    return torch.eye(width, dtype=torch.float64).repeat_interleave(2, 0) / 2**0.5


def permutation(width):
    order = torch.randperm(width, generator=torch.Generator().manual_seed(3))
    return torch.eye(width, dtype=torch.float64)[order]


MOVED = {
    "permuted": lambda m: map_stream(m, permutation(m.width)),
    "rotated": lambda m: map_stream(m, turn(m.width)),
    "rotated, x10, shifted": lambda m: map_stream(m, turn(m.width, 5), 10.0, 3.0),
    "twice as wide": lambda m: map_stream(m, twice(m.width)),
}


@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize("method", ALL, ids=lambda m: type(m).__name__)
def test_a_copy_in_another_basis_is_the_owners(method, moved):
    suspect = MOVED[moved](owner())
    assert score(method, suspect) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ALL, ids=lambda m: type(m).__name__)
def test_so_it_is_of_transformers_with_other_parts(method, shape):
    model = vit(**SHAPES[shape])
    assert score(method, MOVED["rotated, x10, shifted"](model), model) > 0.9999
    assert score(method, vit(1, **SHAPES[shape]), model) < (0.9 if method is PROFILE else 0.3)


@pytest.mark.parametrize("method", ALL, ids=lambda m: type(m).__name__)
def test_branches_that_write_little_are_read_as_well(method):
    model = vit(init_values=1.0)
    with torch.no_grad():
        for block in model.blocks:
            block.ls1.gamma.fill_(1e-8)
            block.ls2.gamma.fill_(1e-8)
    assert score(method, model, model) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("method", [RESIDUAL, INVARIANTS], ids=lambda m: type(m).__name__)
def test_a_stream_that_starts_from_a_norm_may_be_permuted(method):
    model = vit(pre_norm=True)
    assert score(method, MOVED["permuted"](model), model) == pytest.approx(1.0, abs=1e-5)
    assert score(method, vit(1, pre_norm=True), model) < 0.3


def test_strangers_have_nothing_of_the_owners_weights():
    for suspect in (stranger(0), stranger(1)):
        evidence = read(INVARIANTS, suspect)
        assert abs(np.mean(evidence.statistic)) < 0.03
        assert evidence.rate == 0.0
        assert read(RESIDUAL, suspect).statistic[0] > 0.7


@pytest.mark.parametrize("widths", [(12, 12), (24, 12), (12, 24)])
def test_the_residual_is_what_the_best_rotation_leaves(widths):
    found, wanted = (drawn(d, 40, seed=i) for i, d in enumerate(widths))
    size = max(widths)  # rectangular: the narrower one, filled up with zeros, is rotated
    full = [np.pad(m.numpy(), ((0, size - len(m)), (0, 0))) for m in (found, wanted)]
    basis, total = orthogonal_procrustes(full[1].T, full[0].T)
    image = total / np.sum(full[1] ** 2) * basis.T @ full[1]
    left = np.linalg.norm(image - full[0]) / np.linalg.norm(full[0])
    assert residual(found, wanted) == pytest.approx(left, rel=1e-9)


def test_the_residual_of_independent_draws_hangs_on_the_number_of_columns():
    few, many = (residual(drawn(24, k), drawn(24, k, seed=1)) for k in (24, 2400))
    assert few < 0.75 < 0.97 < many
    assert residual(drawn(24, 12), torch.zeros(24, 12)) == 1.0


def columns(state):
    """What enters mini's stream, column by column: by hand."""
    filters = state["patch_embed.proj.weight"].flatten(1)
    positions, bias = state["pos_embed"][0], state["patch_embed.proj.bias"]
    first = (state["cls_token"][0] + positions[:1]).T
    every = torch.cat([filters, (positions[1:] + bias).T, first], 1).double().numpy()
    return every - every.mean(0)


def by_hand(state, block):
    """The three forms of one block of mini."""
    weights = {n: w.double().numpy() for n, w in state.items() if n.startswith(f"blocks.{block}.")}
    part = lambda name: weights[f"blocks.{block}.{name}"]  # noqa: E731
    x = columns(state).T
    query, key, value = np.split(part("attn.qkv.weight") * part("norm1.weight"), 3)
    up = part("mlp.fc1.weight") * part("norm2.weight")
    yield x @ query.T @ key @ x.T
    yield x @ (part("attn.proj.weight") @ value).T @ x.T
    yield x @ (part("mlp.fc2.weight") @ up).T @ x.T


def test_both_agree_with_what_is_worked_out_by_hand():
    ours, theirs = (m.trunk.vit.state_dict() for m in (owner(), stranger(0)))
    left = residual(torch.from_numpy(columns(theirs)), torch.from_numpy(columns(ours)))
    assert read(RESIDUAL, stranger(0)).statistic[0] == pytest.approx(left, abs=1e-5)
    rows = []
    for block in range(6):
        for found, wanted in zip(by_hand(theirs, block), by_hand(ours, block), strict=True):
            rows.append([np.corrcoef(a, b)[0, 1] for a, b in zip(found, wanted, strict=True)])
    assert read(INVARIANTS, stranger(0)).statistic == pytest.approx(np.mean(rows, 0), abs=1e-4)


@pytest.mark.parametrize("term", ["qk", "vo", "mlp"])
def test_a_term_sees_its_own_weights_alone(term):
    changed = {"qk": "attn.qkv", "vo": "attn.proj", "mlp": "mlp.fc2"}[term]
    suspect = clone(owner())
    with torch.no_grad():
        for block in suspect.blocks:
            weight = block.get_submodule(changed).weight
            weight = weight[:96] if term == "qk" else weight
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    for other in ("qk", "vo", "mlp"):
        found = score(WeightInvariants(term=other), suspect)
        assert found < 0.1 if other == term else found > 0.999


def edited(change):
    made = clone(owner())
    with torch.no_grad():
        for block in made.blocks:
            change(block, torch.Generator().manual_seed(7))
    return made


def linear(weight, bias):
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
    return made


def inner_bases(block, rng):
    """Queries and keys, values and outputs of each head in bases of its own; heads in turn."""
    attn, (fc1, fc2) = block.attn, (block.mlp.fc1, block.mlp.fc2)
    rows = torch.cat([attn.qkv.weight, attn.qkv.bias[:, None]], 1).view(3, 3, 16, 49)
    out = attn.proj.weight.view(48, 3, 16)
    for head in range(3):
        a, b = (torch.eye(16) + 0.2 * torch.randn(16, 16, generator=rng) for _ in range(2))
        query, key, value = rows[:, head].clone()
        rows[0, head], rows[1, head] = a @ query, torch.linalg.inv(a).T @ key
        rows[2, head] = b @ value
        out[:, head] = out[:, head].clone() @ torch.linalg.inv(b)
    rows = rows.roll(1, 1).reshape(-1, 49)
    attn.qkv = linear(rows[:, :48], rows[:, 48])
    out.copy_(out.roll(1, 1).clone())
    order = torch.randperm(48, generator=rng)
    block.mlp.fc1 = linear(fc1.weight[order], fc1.bias[order])
    fc2.weight.copy_(fc2.weight[:, order].clone())


def more_neurons(block, rng):
    """One that nothing listens to, two that cancel each other, and all others in two parts."""
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    rows, columns = torch.randn(2, 48, generator=rng), torch.randn(48, 1, generator=rng)
    share = torch.rand(48, generator=rng)
    up = torch.cat([fc1.weight, fc1.weight, rows, rows[1:]])
    down = [fc2.weight * share, fc2.weight * (1 - share), 0 * columns, columns, -columns]
    bias = torch.cat([fc1.bias, fc1.bias, torch.zeros(3)])
    block.mlp.fc1, block.mlp.fc2 = linear(up, bias), linear(torch.cat(down, 1), fc2.bias)


def more_heads(block, rng):
    """A head in two parts, two that cancel each other, one that writes nothing."""
    attn = block.attn
    rows, out = attn.qkv.weight.view(3, 3, 16, 48), attn.proj.weight.view(48, 3, 16)
    fresh = 5 * torch.randn(3, 2, 16, 48, generator=rng)
    wrote = torch.randn(48, 1, 16, generator=rng)
    heads = torch.cat([rows, rows[:, :1], fresh[:, :1], fresh[:, :1], fresh[:, 1:]], 1)
    outs = [0.3 * out[:, :1], out[:, 1:], 0.7 * out[:, :1], wrote, -wrote, 0 * wrote]
    attn.num_heads, attn.attn_dim = 7, 7 * 16
    bias = attn.qkv.bias.view(3, 3, 16)
    bias = torch.cat([bias, bias[:, :1], torch.zeros(3, 3, 16)], 1)
    attn.qkv = linear(heads.reshape(-1, 48), bias.flatten())
    attn.proj = linear(torch.cat(outs, 1).flatten(1), attn.proj.bias)


@pytest.mark.parametrize("change", [inner_bases, more_neurons, more_heads])
@pytest.mark.parametrize("term", ["qk", "vo", "mlp"])
def test_what_leaves_the_function_alone_leaves_the_invariants_alone(change, term):
    suspect = edited(change)
    images = context().images.batch(slice(0, 4), torch.device("cpu"))
    here, there = suspect.features(images), owner().features(images)
    torch.testing.assert_close(here, there, atol=1e-3, rtol=0)
    assert score(WeightInvariants(term=term), suspect) > 0.9999


def with_block(at, size):
    made = clone(owner())
    extra = copy.deepcopy(made.blocks[0])
    with torch.no_grad():
        for module in extra.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(generator=torch.Generator().manual_seed(9))
        for writer in (extra.attn.proj, extra.mlp.fc2):
            writer.weight.mul_(size)
            writer.bias.zero_()
    blocks = list(made.trunk.vit.blocks)
    made.trunk.vit.blocks = nn.Sequential(*blocks[:at], extra, *blocks[at:])
    return made


@pytest.mark.parametrize("at", [0, 3, 6])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-2])
def test_blocks_that_do_nothing_or_little_are_passed_over(at, size):
    evidence = read(INVARIANTS, with_block(at, size))
    assert evidence.score == pytest.approx(1.0, abs=1e-5)
    assert (evidence.notes["compared"], evidence.notes["of"]) == (6, 6)


def test_blocks_that_are_left_are_compared():
    suspect = clone(owner())
    suspect.trunk.vit.blocks = nn.Sequential(*(suspect.trunk.vit.blocks[i] for i in (0, 2, 5)))
    evidence = read(INVARIANTS, suspect)
    assert evidence.score == pytest.approx(1.0, abs=1e-5)
    assert (evidence.notes["compared"], evidence.notes["of"]) == (3, 6)


def test_blocks_are_set_side_by_side_in_order():
    likeness = torch.tensor([[0.0, 0.9, 0.0], [0.1, 0.0, 0.8]])
    assert in_order(likeness) == [(0, 1), (1, 2)]
    assert in_order(likeness.T) == [(1, 0), (2, 1)]
    assert in_order(torch.tensor([[0.0, 1.0], [1.0, 0.0]])) == [(0, 0), (1, 1)]


def test_another_patch_or_grid_is_resampled():
    ours = randomised(Architecture("timm", "test_vit", image_size=96), 0)
    finer = randomised(Architecture("timm", "test_vit", image_size=192), 1)
    table = torch.linspace(0, 1, 64)[:, None, None] * torch.linspace(0, 1, 6)[:, None]
    table = table + torch.linspace(1, 0, 64)[:, None, None] * torch.linspace(0, 1, 6)
    fine = nn.functional.interpolate(table[None], 12, mode="bicubic", align_corners=False)[0]
    with torch.no_grad():
        theirs = finer.trunk.vit.load_state_dict
        state = ours.trunk.vit.state_dict()
        ours.trunk.vit.pos_embed[0, 1:] = table.flatten(1).T
        places = torch.cat([state["pos_embed"][:, :1], fine.flatten(1).T[None]], 1)
        theirs({**state, "pos_embed": places})
    assert read(RESIDUAL, finer, ours).statistic[0] < 0.2
    assert score(INVARIANTS, finer, ours) > 0.9


def test_pixels_that_are_scaled_otherwise_are_told():
    """The same function of images in [0, 1], behind another mean and deviation."""
    suspect = clone(owner())
    mean, std = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)
    suspect.scaling = mean, std
    with torch.no_grad():
        patches = suspect.trunk.vit.patch_embed.proj
        spread = torch.tensor(std)[:, None, None] / 0.5
        shift = (torch.tensor(mean) - 0.5) / 0.5
        patches.bias.add_(patches.weight.sum((2, 3)) @ shift)
        patches.weight.mul_(spread)
    assert read(RESIDUAL, suspect).statistic[0] < 1e-3
    assert score(INVARIANTS, suspect) == pytest.approx(1.0, abs=1e-4)


def test_prefix_tokens_that_are_gone_are_passed_over():
    ours, theirs = (vit(reg_tokens=n, no_embed_class=True) for n in (4, 2))
    theirs.trunk.vit.load_state_dict(
        {**ours.trunk.vit.state_dict(), "reg_token": ours.trunk.vit.reg_token[:, :2]}
    )
    for method in (RESIDUAL, INVARIANTS):
        assert score(method, theirs, ours) == pytest.approx(1.0, abs=1e-5)
    assert read(RESIDUAL, theirs, ours).notes == {"compared": 67, "of": 69}


def test_a_network_without_a_stream_is_incompatible():
    suspect = build(Architecture("timm", "resnet10t"))
    for method in ALL:
        assert method.unreadable(owner(), suspect).startswith("expected a pre-norm vision")
        assert method.unreadable(owner(), stranger()) == ""
        with pytest.raises(Incompatible, match="expected a pre-norm vision transformer"):
            read(method, suspect)


def test_a_term_that_is_not_defined_is_no_reading():
    normed = vit(qk_norm=True)
    method = WeightInvariants(term="qk")
    assert "term 'qk'" in method.unreadable(owner(), normed)
    with pytest.raises(Incompatible, match="weights that the term 'qk' is defined for"):
        read(method, normed)
    assert read(INVARIANTS, normed, normed).notes["terms"] == ["vo", "mlp"]


def test_a_profile_needs_the_owners_depth_and_enough_of_it():
    deep = build(Architecture("embedded", "mini-deep"))
    assert PROFILE.unreadable(owner(), deep) == "expected 6 blocks, got 8"
    with pytest.raises(Incompatible, match="expected 6 blocks, got 8"):
        read(PROFILE, deep)
    with pytest.raises(UserError, match="an owner of 4 blocks or more, got 2"):
        kept(PROFILE, vit(depth=2))


def test_a_matrix_that_grew_at_one_depth_moves_the_profile():
    suspect = clone(owner())
    with torch.no_grad():
        suspect.blocks[2].attn.qkv.weight[:48] *= 3  # queries
    assert score(PROFILE, suspect) < score(PROFILE, owner()) - 0.05


def test_rows_are_drawn_from_the_owners_randomness():
    method = WeightInvariants(rows=32)
    rows = [method.protect(owner(), context(s, "owner")).secret["rows"] for s in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    evidence = read(method, owner())
    assert len(evidence.agreement) == 32
