"""Copies of one model among innocents count once, in whatever file and precision they come."""

import dataclasses

import pytest
import torch
from commands import bench
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import bench as program
from bench.models.building import build, randomised
from bench.models.heads import Head
from bench.models.surgery import with_head
from bench.models.vision import Architecture, clone
from bench.models.weights import load_weights, sketch, weights_digest
from bench.records.nouns import how_many
from bench.runs.claims.key import read
from bench.runs.claims.reading import architecture
from bench.verdicts.copies import NEAR, ROUNDED, cosine
from bench.verdicts.innocents import WHOLE, innocents, trained_strangers, with_digests

TIMM = Architecture("timm", "test_vit")


def weights(model):
    """All matrices of a backbone as one vector, in double precision."""
    state = model.trunk.state_dict()
    return torch.cat([v.flatten().double() for _, v in sorted(state.items()) if v.ndim > 1])


def shifted(model, share, seed=0):
    """A copy whose weights are moved at random by a share of their own size."""
    made, rng = clone(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in made.parameters():
            value += share * value.std(correction=0) * torch.randn(value.shape, generator=rng)
    return made


@pytest.mark.parametrize("share", [0.0005, 0.003, 0.02, 0.045, 0.2])
def test_a_sketch_tells_how_near_two_models_are_to_a_fifth(share):
    one = randomised(TIMM, 0)
    other = shifted(one, share)
    exact = 1 - float(torch.cosine_similarity(weights(one), weights(other), dim=0))
    found = 1 - cosine(sketch(one), sketch(other))
    assert found == pytest.approx(exact, rel=0.6)  # three standard deviations of a fifth


def test_sketches_of_different_trainings_are_far_apart_and_those_of_one_model_equal():
    one, other = (randomised(TIMM, seed) for seed in (0, 1))
    assert cosine(sketch(one), sketch(other)) < 0.5
    again = build(TIMM)
    again.load_state_dict(one.state_dict())
    assert sketch(again) == sketch(one)
    assert len(sketch(one)) == 64


def test_a_sketch_is_of_the_backbone_whatever_head_sits_on_it():
    one = randomised(Architecture("timm", "test_vit", None, "own"), 0)
    bare = build(TIMM)
    bare.load_state_dict({k: v for k, v in one.state_dict().items() if k in bare.state_dict()})
    headed = with_head(one, Head(3), torch.Generator())
    assert sketch(one) == sketch(bare) == sketch(headed)


def test_norms_are_no_part_of_a_sketch():
    one = randomised(TIMM, 0)
    other = clone(one)
    for module in other.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.constant_(module.weight, 100)
    assert sketch(one) == sketch(other)


@pytest.mark.parametrize(("dtype", "same"), [(torch.float16, True), (torch.bfloat16, True),
                                             (torch.float8_e4m3fn, False)])  # fmt: skip
def test_rounding_to_sixteen_bits_is_within_the_bound_for_descendants(dtype, same):
    one, other = randomised(TIMM, 0), randomised(TIMM, 0)
    other.load_state_dict({k: v.to(dtype).float() for k, v in one.state_dict().items()})
    assert (cosine(sketch(one), sketch(other)) > ROUNDED) == same
    assert cosine(sketch(one), sketch(other)) > NEAR


# A claim.


@pytest.fixture(scope="module")
def claimed(tmp_path_factory):
    """A key of a fingerprint, a suspect, and four strangers in four formats each."""
    home = tmp_path_factory.mktemp("claimed")
    (home / "images").mkdir()
    for i in range(4):
        pixels = torch.randint(256, (40, 40, 3), generator=torch.Generator().manual_seed(i))
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(home / "images" / f"{i}.png")
    said = bench("protect", "timm:test_vit", "--weights", "random", "--method", "oracle.weights",
                 "--images", home / "images", "--device", "cpu", "-o", home / "out")  # fmt: skip
    assert said.status == 0, said.err
    owner = randomised(Architecture("timm", "test_vit", None, "own"), 0)
    save_file(owner.trunk.vit.state_dict(), home / "owner.safetensors")
    save_file(shifted(owner, 1e-4).trunk.vit.state_dict(), home / "suspect.safetensors")
    (home / "strangers").mkdir()
    for i in range(1, 5):
        state = randomised(TIMM, i).trunk.vit.state_dict()
        save_file(state, home / f"strangers/{i}.safetensors")
        torch.save({"state_dict": state}, home / f"strangers/{i}.bin")
        for name, dtype in (("half", torch.float16), ("brain", torch.bfloat16)):
            rounded = {k: v.to(dtype) for k, v in state.items()}
            save_file(rounded, home / f"strangers/{i}-{name}.safetensors")
    return home


def verify(home, *more):
    return bench("verify", home / "suspect.safetensors", "--key", home / "out/key.safetensors",
                 "--device", "cpu", *more)  # fmt: skip


def test_four_models_in_four_formats_are_four_innocents_and_stay_undecided(claimed):
    given = ("--strangers", claimed / "strangers")
    said = verify(claimed, *given, "--alpha", "0.09")
    assert said.status == 3, said  # undecided
    assert "0.2: 0.2 among 4 strangers" in said.out
    assert said.out.count("are one model among the strangers, and count once") == 4
    assert "1-brain.safetensors and 1-half.safetensors and 1.bin and 1.safetensors" in said.out
    found = program.verify(claimed / "suspect.safetensors", claimed / "out/key.safetensors",
                           strangers=claimed / "strangers", alpha=0.2, device="cpu")  # fmt: skip
    (finding,) = found.findings
    assert (finding.p_value, finding.outcome) == (0.2, "owned")
    assert finding.verdict.rank("strangers").n == 4


def test_a_suspects_tag_stands_beside_its_file():
    owner = Architecture("open_clip", "ViT-B-32")
    found = architecture(owner, "suspect.pth", None, "openai", None)
    assert found == dataclasses.replace(owner, tag="openai")


def test_a_suspects_tag_is_refused_where_its_library_has_none(claimed):
    said = verify(claimed, "--pretrained", "openai")
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "pretrained: expected none, timm has no tags of weights" in said.err


def test_a_nearly_equal_stranger_counts_once_and_a_slightly_nearer_one_twice(claimed, tmp_path):
    one = randomised(TIMM, 1)
    save_file(one.trunk.vit.state_dict(), tmp_path / "one.safetensors")
    for share, count in ((0.02, 1), (0.1, 2)):  # cosines of 0.9998 and 0.995
        other = shifted(one, share)
        exact = float(torch.cosine_similarity(weights(one), weights(other), dim=0))
        assert (exact > NEAR) == (count == 1)
        save_file(other.trunk.vit.state_dict(), tmp_path / "other.safetensors")
        said = verify(claimed, "--strangers", tmp_path)
        assert f"among {how_many(count, 'stranger')}" in said.out


def test_the_owners_model_in_another_precision_is_no_stranger(claimed, tmp_path):
    owner = load_file(claimed / "owner.safetensors")
    rounded = {name: value.bfloat16() for name, value in owner.items()}
    save_file(rounded, tmp_path / "theirs.safetensors")
    said = verify(claimed, "--strangers", tmp_path)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "theirs.safetensors: expected a stranger, got " in said.err


def test_a_stranger_that_is_nearly_the_suspect_and_the_owner_is_said(claimed, tmp_path):
    owner = randomised(Architecture("timm", "test_vit", None, "own"), 0)
    save_file(shifted(owner, 0.02, 5).trunk.vit.state_dict(), tmp_path / "near.safetensors")
    said = verify(claimed, "--strangers", tmp_path)
    assert said.status == 3, said
    assert "near.safetensors, among the strangers, is nearly or wholly the suspect" in said.out
    assert "near.safetensors, among the strangers, is nearly the owner's model" in said.out


def test_an_old_key_without_sketches_opens_with_its_commitment(claimed, tmp_path):
    import dataclasses

    from bench.runs.claims import key as keys

    made = read(claimed / "out/key.safetensors")
    assert len(made.clean_sketch) == 64
    old = dataclasses.replace(made, clean_sketch=None, released_sketch=None)
    assert "clean_sketch" not in old.facts()
    keys.write(tmp_path / "old.safetensors", old)
    again = read(tmp_path / "old.safetensors")
    assert (again.commitment, again.clean_sketch) == (old.commitment, None)
    said = bench("verify", claimed / "suspect.safetensors", "--key", tmp_path / "old.safetensors",
                 "--device", "cpu", "--strangers", claimed / "strangers")  # fmt: skip
    assert "among 4 strangers" in said.out


# A suite.

SUITE = """
name: copies
owners: [{timm: test_vit, weights: owner.safetensors, image_size: 64}]
methods: [{name: oracle.weights}]
attacks: [{name: control.identity}]
data: {digits: {max_images: 8}}
owner_images: digits
probe: digits
innocents:
  strangers: 0
  twin_seeds: 0
  models:
"""


def test_a_suites_listed_models_count_once_where_their_weights_are_nearly_equal(tmp_path):
    at_64 = Architecture("timm", "test_vit", 64)
    for name, seed in (("owner", 0), ("a", 1), ("b", 2)):
        save_file(randomised(at_64, seed).trunk.vit.state_dict(), tmp_path / f"{name}.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    torch.save({k: v.half() for k, v in state.items()}, tmp_path / "a-half.pth")
    near = shifted(randomised(at_64, 1), 0.02).trunk.vit.state_dict()
    save_file(near, tmp_path / "a-near.safetensors")
    files = ("a.safetensors", "b.safetensors", "a-half.pth", "a-near.safetensors")
    listed = [f"    - {{timm: test_vit, weights: {name}, image_size: 64}}\n" for name in files]
    (tmp_path / "copies.yaml").write_text(SUITE + "".join(listed))
    said: list[str] = []
    found = program.run(tmp_path / "copies.yaml", tmp_path / "results", tmp_path, device="cpu",
                        note=said.append)  # fmt: skip
    assert found.failed == ()
    records = list(found.records.values())
    strangers = [record for record in records if record.cell.other_model is not None]
    assert len({record.suspect_digest for record in strangers}) == len(files)  # read one by one
    assert len(set(trained_strangers(records).values())) == 2
    (null,) = innocents(with_digests(records)).values()
    assert [*null.strangers[WHOLE]] == ["timm test"]  # which are one family besides
    a = next(r for r in strangers if "copies" in r.notes).notes["copies"]["one_model"]
    assert a == weights_digest(load_weights(tmp_path / "a.safetensors", at_64).model)
    one = "test_vit (a.safetensors) and test_vit (a-half.pth) and test_vit (a-near.safetensors)"
    assert f"{one} are one model, or nearly: as innocents they count once" in said
