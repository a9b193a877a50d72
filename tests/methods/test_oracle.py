import dataclasses

import pytest
import torch
from torch import nn

from bench.models.building import build, randomised
from bench.models.suspect import View
from bench.models.vision import Architecture, clone
from bench.records.nouns import Incompatible, UserError
from bench.testing import context, owner, stranger
from methods.oracle import WeightOracle

FILTER = "vit.blocks.3.mlp.fc1.weight"


@pytest.fixture(scope="module")
def released():
    return owner()


def read(suspect, method=None):
    method = method or WeightOracle()
    protected = method.protect(owner(), context(0, "owner"))
    return method.extract(protected.secret, View(suspect, method.needs), context(1, "owner"))


def edited(change):
    """The owner with `change` made to every matrix of its backbone."""
    made = clone(owner())
    with torch.no_grad():
        for weight in made.trunk.parameters():
            if weight.ndim > 1:
                weight.copy_(change(weight))
    return made


def rotated(weight):
    """A tensor of the same norm at 60 degrees to `weight`: its cosine is 1/2."""
    rng = torch.Generator().manual_seed(weight.numel())
    other = torch.randn(weight.shape, generator=rng)
    other -= (other * weight).sum() / weight.square().sum() * weight
    return weight / 2 + 3**0.5 / 2 * other * weight.norm() / other.norm()


@pytest.mark.parametrize(
    ("change", "cosine", "agreement", "rate"),
    [
        (lambda w: w, 1.0, 1.0, 1.0),
        (lambda w: 3 * w, 1.0, 1.0, 1.0),
        (rotated, 0.5, 0.5, 0.0),
        (lambda w: -w, -1.0, 0.0, 0.0),
        (torch.zeros_like, 0.0, 0.0, 0.0),
    ],
)
def test_cosines_of_known_angles_are_found(change, cosine, agreement, rate):
    evidence = read(edited(change), WeightOracle(entries=10**6))
    assert evidence.statistic == pytest.approx([cosine] * len(evidence.statistic), abs=1e-5)
    assert evidence.score == pytest.approx(agreement, abs=1e-5)
    assert evidence.rate == rate


def test_a_sample_estimates_the_cosine():
    evidence = read(edited(rotated), WeightOracle(entries=1000))
    assert evidence.score == pytest.approx(0.5, abs=0.02)


def test_strangers_are_at_right_angles():
    found = [read(stranger(i)).statistic for i in range(2)]
    for cosines in found:
        assert max(map(abs, cosines)) < 0.15
    assert found[0] != found[1]


def test_norms_biases_and_vectors_do_not_count(released):
    suspect = clone(released)
    with torch.no_grad():
        for name, weight in suspect.trunk.named_parameters():
            if weight.ndim < 2 or name == "vit.cls_token":
                weight.normal_(generator=torch.Generator().manual_seed(0))
    assert read(suspect) == read(released)


def test_the_secret_holds_no_more_than_its_share_of_each_matrix(released):
    made = WeightOracle(entries=100).protect(released, context(0, "owner"))
    state = released.trunk.state_dict()
    values = {n.removesuffix(".value"): v for n, v in made.secret.items() if n.endswith(".value")}
    assert len(values) == made.notes["matrices"] == 26  # 4 a block, patches, positions
    assert {len(v) for v in values.values()} == {100}
    for name, value in values.items():
        index = made.secret[f"{name}.index"].long()
        assert len(index.unique()) == 100
        assert torch.equal(state[name].flatten()[index], value)


def test_the_sample_is_drawn_from_the_owners_randomness(released):
    method = WeightOracle(entries=50)
    secrets = [method.protect(released, context(s, "owner")).secret for s in (0, 0, 1)]
    index = f"{FILTER}.index"
    assert torch.equal(secrets[0][index], secrets[1][index])
    assert not torch.equal(secrets[0][index], secrets[2][index])


def test_the_threshold_decides_what_counts_as_the_owners():
    assert read(edited(rotated), WeightOracle(0.45, 10**6)).rate == 1.0
    assert read(edited(rotated), WeightOracle(0.55, 10**6)).rate == 0.0


def test_positions_of_another_grid_are_passed_over(released):
    suspect = clone(released)
    suspect.trunk.vit.pos_embed = nn.Parameter(torch.zeros(1, 66, 48))
    evidence = read(suspect)
    assert evidence.notes == {"compared": 25, "of": 26}  # 4 a block of 6, and the patches
    assert evidence.statistic == pytest.approx([1.0] * 25)


def test_blocks_that_are_left_are_compared(released):
    suspect = clone(released)
    suspect.trunk.vit.blocks = suspect.trunk.vit.blocks[:-1]
    evidence = read(suspect)
    assert evidence.notes == {"compared": 22, "of": 26}
    assert evidence.score == pytest.approx(1.0)


def test_matrices_that_are_cut_are_passed_over_wherever_they_are(released):
    suspect = clone(released)
    mlp = suspect.trunk.vit.blocks[1].mlp
    mlp.fc1.weight = nn.Parameter(mlp.fc1.weight[:40].detach())
    mlp.fc2.weight = nn.Parameter(mlp.fc2.weight[:, :40].detach())
    evidence = read(suspect)
    assert evidence.notes == {"compared": 24, "of": 26}
    assert evidence.score == pytest.approx(1.0)  # no other block's stands in for them


def test_a_model_of_another_width_is_incompatible():
    with pytest.raises(Incompatible, match=r"in a shape of the owner's 26, got none among the"):
        read(build(Architecture("embedded", "mini-wide")))


CLIP = {"in_proj_weight": "attn.qkv", "out_proj.weight": "attn.proj",
        "c_fc.weight": "mlp.fc1", "c_proj.weight": "mlp.fc2"}  # fmt: skip


def test_a_copy_in_another_librarys_names_is_known_by_its_shapes():
    # Twelve blocks: 10 and 11 come before 2 in the order of letters.
    theirs = randomised(Architecture("open_clip", "ViT-B-32"), 0)
    ours = randomised(Architecture("timm", "vit_base_patch32_clip_224"), 1)
    with torch.no_grad():
        for name, weight in theirs.trunk.visual.transformer.resblocks.named_parameters():
            block, _, rest = name.partition(".")
            part = next((known for known in CLIP if rest.endswith(known)), None)
            if part:
                copied = ours.trunk.vit.get_parameter(f"blocks.{block}.{CLIP[part]}.weight")
                copied.copy_(weight)
    method = WeightOracle(entries=64)
    secret = method.protect(ours, context(0, "owner")).secret
    evidence = method.extract(secret, View(theirs, method.needs), context(1, "owner"))
    alike = [cosine > 0.999 for cosine in evidence.statistic]
    assert evidence.notes["of"] == 12 * 4 + 2  # patches and positions, which were not copied
    assert alike.count(True) == 12 * 4


@pytest.mark.parametrize(("setting", "value"), [("threshold", 1.5), ("entries", 0)])
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(UserError, match=f"^method 'oracle.weights': {setting}: expected"):
        dataclasses.replace(WeightOracle(), **{setting: value})
