"""Files of weights as users have them: which of several is read, under which names, and whether."""

import dataclasses
import gzip
import json
import math

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from bench.models.building import build
from bench.models.libraries import LIBRARIES
from bench.models.symmetry import dimensions
from bench.models.vision import Architecture
from bench.models.weights import load_weights, release
from bench.records.nouns import UserError
from bench.runs.owners import load_owner
from bench.suite.owners import OwnerSettings

VIT = Architecture("timm", "test_vit", 64)

OWN = Architecture("timm", "test_vit", 64, "own")


def drawn(seed=0, **more):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model("test_vit", **{"img_size": 64, **more}).state_dict()


@pytest.fixture(scope="module")
def raw():
    return drawn(0)


@pytest.fixture(scope="module")
def mean():
    return drawn(1)


def kept(loaded, state):
    """Say whether a model has these weights, by timm's own names."""
    own = loaded.model.trunk.vit.state_dict()
    return all(torch.equal(value, state[name]) for name, value in own.items())


def refused(file, words, architecture=OWN, entry=None):
    with pytest.raises(UserError, match=words) as found:
        load_weights(file, architecture, entry)
    assert "\n" not in str(found.value)
    assert str(file.parent) not in str(found.value)


# Which of several sets of weights.


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema", "ema_state_dict"])
def test_of_an_average_and_what_it_averages_timms_choice_is_read_and_said(tmp_path, raw, mean, key):
    plain = "model" if key == "model_ema" else "state_dict"
    file = tmp_path / "last.pth"
    momenta = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}
    torch.save({"epoch": 9, plain: raw, key: mean, "optimizer": momenta}, file)
    loaded = load_weights(file, OWN)
    assert kept(loaded, mean)
    both = " and ".join(sorted([plain, key]))
    assert loaded.notes == (
        f"of {both} it is {key}, the average, that is read; or say `entry: {plain}`",
    )
    if key in ("state_dict_ema", "model_ema"):  # the keys that timm's own reader knows
        theirs = timm.models.load_state_dict(str(file))
        assert all(torch.equal(value, theirs[name]) for name, value in mean.items())
    asked = load_weights(file, OWN, plain)
    assert kept(asked, raw)
    assert asked.notes[0].startswith(f"of {both} it is {plain}, as asked, that is read")


def test_an_average_nested_in_its_keepers_state_is_read(tmp_path, raw, mean):
    kept_by = {"decay": 0.999, "module": {f"module.{k}": v for k, v in mean.items()}}
    torch.save({"state_dict": raw, "ema": kept_by}, tmp_path / "last.pth")
    loaded = load_weights(tmp_path / "last.pth", OWN)
    assert kept(loaded, mean)
    assert loaded.notes[-1] == "names are read after module."


def test_mmengine_keeps_the_raw_weights_where_others_keep_the_average(tmp_path, raw, mean):
    swapped = {"steps": torch.tensor(7), **{f"module.backbone.{k}": v for k, v in raw.items()}}
    averaged = {f"backbone.{k}": v for k, v in mean.items()}
    torch.save({"state_dict": averaged, "ema_state_dict": swapped}, tmp_path / "epoch.pth")
    assert kept(load_weights(tmp_path / "epoch.pth", OWN), mean)
    assert kept(load_weights(tmp_path / "epoch.pth", OWN, "ema_state_dict"), raw)


@pytest.mark.parametrize("form", ["nested", "flat", "wrapped"])
def test_of_a_student_and_its_teacher_the_teacher_is_read_and_said(tmp_path, raw, mean, form):
    both = {"student": raw, "teacher": mean}
    before = "module." if form == "wrapped" else ""
    flat = {
        f"{before}{who}.backbone.{k}": v for who, state in both.items() for k, v in state.items()
    }
    torch.save({"model": both if form == "nested" else flat}, tmp_path / "dino.pth")
    loaded = load_weights(tmp_path / "dino.pth", OWN)
    assert kept(loaded, mean)
    assert "teacher" in loaded.notes[0]
    assert "`entry: student`" in loaded.notes[0]
    assert kept(load_weights(tmp_path / "dino.pth", OWN, "student"), raw)


def test_two_sets_of_weights_of_which_none_is_an_average_are_asked_about(tmp_path, raw, mean):
    state = {f"left.{k}": v for k, v in raw.items()} | {f"right.{k}": v for k, v in mean.items()}
    file = tmp_path / "two.safetensors"
    save_file(state, file)
    refused(file, "expected one set of weights, got them under 'left.', 'right.'; say which with")
    assert kept(load_weights(file, OWN, "right"), mean)
    save_file({f"module.{k}": v for k, v in state.items()}, tmp_path / "wrapped.safetensors")
    assert kept(load_weights(tmp_path / "wrapped.safetensors", OWN, "left"), raw)
    refused(tmp_path / "wrapped.safetensors", "got them under 'module.left.', ", entry="module")
    refused(file, "expected weights under 'middle', got 'left', 'right'", entry="middle")


def test_an_owner_of_a_suite_says_which_entry_is_meant(tmp_path, raw, mean):
    torch.save({"state_dict": raw, "state_dict_ema": mean}, tmp_path / "last.pth")
    settings = {"library": "timm", "name": "test_vit", "weights": "last.pth", "image_size": 64}
    for entry, state in ((None, mean), ("state_dict", raw)):
        owner = OwnerSettings(**settings, entry=entry)
        model = load_owner(owner, tmp_path / "last.pth")
        assert torch.equal(model.trunk.vit.norm.weight, state["norm.weight"])
        assert torch.equal(model.trunk.vit.pos_embed, state["pos_embed"])
        assert "state_dict_ema" in model.notes["weights"][0]
        assert ("entry" in owner.spec().args) == (entry is not None)
    with pytest.raises(UserError, match="entry: expected none unless weights is a file"):
        OwnerSettings("timm", "test_vit", entry="state_dict")


# Under which names.

PREFIXES = [
    *("", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "backbone."),
    *("model.", "encoder.", "student.", "teacher.", "model.backbone.", "trunk.vit."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_prefix_is_no_hindrance_to_an_owner_nor_to_a_suspect(tmp_path, raw, prefix, suffix):
    file = tmp_path / f"prefixed{suffix}"
    state = {f"{prefix}{name}": value for name, value in raw.items()}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    suspect = load_weights(file, OWN)
    settings = OwnerSettings("timm", "test_vit", weights=file.name, image_size=64)
    owner = load_owner(settings, file)
    assert kept(suspect, raw)
    assert torch.equal(owner.trunk.vit.pos_embed, raw["pos_embed"])
    left = prefix.replace("_orig_mod.", "").replace("trunk.vit.", "")  # ours needs no word
    assert (f"names are read after {left}" in suspect.notes) == bool(left)
    assert ("names are read without _orig_mod" in suspect.notes) == ("_orig_mod" in prefix)
    assert list(suspect.notes) == owner.notes.get("weights", [])


def test_names_wrapped_block_by_block_are_read(tmp_path, raw):
    net = timm.create_model("test_vit", img_size=64)
    net.load_state_dict(raw)
    net.blocks = torch.nn.ModuleList(torch.compile(block) for block in net.blocks)
    assert any("_orig_mod" in name for name in net.state_dict())
    torch.save(net.state_dict(), tmp_path / "compiled.pth")
    assert kept(load_weights(tmp_path / "compiled.pth", OWN), raw)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    own = {"width": 32, "layers": 2, "patch_size": 8, "head_width": 16, "image_size": 32}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": own, "text_cfg": text}
    path = tmp_path_factory.mktemp("clip") / "tower-alone.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return open_clip.create_model("tower-alone").eval()


@pytest.mark.parametrize("form", ["whole", "tower", "wrapped"])
def test_a_whole_clip_and_its_image_tower_alone_are_one_model(tmp_path, clip, form):
    state = clip.visual.state_dict() if form == "tower" else clip.state_dict()
    wrapped = {f"module.{k}": v for k, v in state.items()} if form == "wrapped" else state
    torch.save(wrapped, tmp_path / "clip.pth")
    loaded = load_weights(tmp_path / "clip.pth", Architecture("open_clip", "tower-alone"))
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = clip.encode_image(loaded.model.normalise(pixels))
        assert torch.allclose(loaded.model.features(pixels), expected, atol=1e-5)
    assert ("token_embedding" in loaded.ignored or "module" in loaded.ignored) == (form != "tower")


# Heads.


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_head_of_other_classes_is_named_and_the_backbone_is_had(tmp_path, prefix):
    state = drawn(2, num_classes=10)
    save_file({f"{prefix}{k}": v for k, v in state.items()}, tmp_path / "ten.safetensors")
    settings = OwnerSettings("timm", "test_vit", weights="ten.safetensors", image_size=64)
    owner = load_owner(settings, tmp_path / "ten.safetensors")
    assert (owner.architecture.head, owner.classes) == (None, 0)
    assert torch.equal(owner.trunk.vit.norm.weight, state["norm.weight"])
    assert (
        "head.weight has 10 classes where test_vit has 1000: the backbone is read without its "
        "head; `classes: 10` of an owner reads it, too" in owner.notes["weights"]
    )


@pytest.mark.parametrize("key", ["head", "classifier"])
def test_a_head_of_other_classes_comes_along_where_the_owner_says_how_many(tmp_path, key):
    file = tmp_path / "ten.safetensors"
    state = drawn(2, num_classes=10)
    save_file({k.replace("head.", f"{key}."): v for k, v in state.items()}, file)
    settings = {"library": "timm", "name": "test_vit", "weights": file.name, "image_size": 64}
    if key == "classifier":  # a head by another's names is none that timm would read
        with pytest.raises(UserError, match="classes: expected a head of 10 classes, got one of"):
            load_owner(OwnerSettings(**settings, classes=10), file)
        return
    owner = load_owner(OwnerSettings(**settings, classes=10), file)
    assert (owner.architecture.head, owner.classes) == ("own", 10)
    assert "weights" not in owner.notes
    pixels, net = torch.rand(2, 3, 64, 64), timm.create_model("test_vit", img_size=64)
    net.reset_classifier(10)
    net.load_state_dict(state)
    with torch.no_grad():
        logits = owner.logits(pixels)
        assert torch.allclose(logits, net.eval()(owner.normalise(pixels)), atol=1e-5)
    again = build(Architecture.of(json.loads(json.dumps(owner.architecture.json()))))
    assert again.state_dict().keys() == owner.state_dict().keys()
    assert again.classes == 10
    with pytest.raises(UserError, match="expected a head of 12 classes, got one of 10; say so"):
        load_owner(OwnerSettings(**settings, classes=12), file)


def test_classes_are_said_of_a_file_and_of_a_library_that_classifies():
    assert "classes" not in OwnerSettings("timm", "test_vit", weights="a.pth").spec().args
    said = OwnerSettings("timm", "test_vit", weights="a.pth", classes=10).spec().args
    assert said["classes"] == 10
    with pytest.raises(UserError, match="classes: expected none unless weights is a file"):
        OwnerSettings("timm", "test_vit", weights="random", classes=10)
    with pytest.raises(UserError, match="classes: expected none, open_clip models have no class"):
        OwnerSettings("open_clip", "ViT-B-32", weights="a.pth", classes=10)


def test_a_file_without_a_head_says_so(tmp_path, raw):
    file = tmp_path / "headless.pth"
    torch.save({k: v for k, v in raw.items() if not k.startswith("head")}, file)
    loaded = load_weights(file, OWN)
    assert loaded.model.architecture.head is None
    assert loaded.notes == (
        "test_vit has 1000 classes and the file no head: the backbone is read without one",
    )
    asked = dataclasses.replace(OWN, classes=10)
    refused(file, "classes: expected a head of 10 classes, got no head; leave", asked)


def test_what_lightning_keeps_beside_weights_is_no_hindrance(tmp_path, raw):
    kept_by = {"epoch": 3, "pytorch-lightning_version": "2.5", "callbacks": {}, "loops": {},
               "hyper_parameters": {"lr": 0.1}, "optimizer_states": [{"state": {}}]}  # fmt: skip
    prefixed = {f"model.{name}": value for name, value in raw.items()}
    torch.save({**kept_by, "state_dict": prefixed}, tmp_path / "last.ckpt")
    loaded = load_weights(tmp_path / "last.ckpt", OWN)
    assert kept(loaded, raw)
    assert loaded.notes == ("names are read after model.",)


def test_a_distilled_model_keeps_both_heads_and_is_no_plain_one(tmp_path):
    name = "deit_tiny_distilled_patch16_224"
    net = timm.create_model(name).eval()
    save_file(net.state_dict(), tmp_path / "distilled.safetensors")
    loaded = load_weights(
        tmp_path / "distilled.safetensors", Architecture("timm", name, None, "own")
    )
    pixels = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(loaded.model(pixels), net(loaded.model.normalise(pixels)), atol=1e-5)
        tokens = net.forward_features(loaded.model.normalise(pixels))
        by_hand = torch.cat([tokens[:, 0], tokens[:, 2:].mean(1)], 1)  # CLS, distillation, patches
        assert torch.allclose(
            loaded.model.pooled(loaded.model.forward_features(pixels)), by_hand, atol=1e-5
        )
    plain = Architecture("timm", "deit_tiny_patch16_224", None, "own")
    refused(tmp_path / "distilled.safetensors", "unknown 'dist_token'", plain)


def test_what_pretraining_needed_beside_the_encoder_is_left_out_and_said(tmp_path, raw):
    beside = {"mask_token": torch.zeros(1, 1, 64), "decoder_embed.weight": torch.zeros(8, 64),
              "decoder_blocks.0.norm1.weight": torch.ones(8)}  # fmt: skip
    torch.save({"model": {**raw, **beside}}, tmp_path / "mae.pth")
    loaded = load_weights(tmp_path / "mae.pth", OWN)
    assert kept(loaded, raw)
    assert {"decoder_embed", "decoder_blocks"} <= set(loaded.ignored)


# Grids of positions.


def test_positions_of_another_grid_are_resampled_as_timm_does_and_said(tmp_path):
    large = drawn(3, img_size=112)  # 7 x 7 patches
    save_file(large, tmp_path / "large.safetensors")
    loaded = load_weights(tmp_path / "large.safetensors", OWN)
    theirs = timm.create_model("test_vit", img_size=64)
    theirs.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(large, theirs))
    assert torch.equal(loaded.model.trunk.vit.pos_embed, theirs.pos_embed)
    table = large["pos_embed"]  # (1, 1 + 49, d): and by hand
    grid = table[:, 1:].mT.reshape(1, -1, 7, 7)
    small = F.interpolate(grid, (4, 4), mode="bicubic", antialias=True, align_corners=False)
    by_hand = torch.cat([table[:, :1], small.flatten(2).mT], 1)
    assert torch.allclose(loaded.model.trunk.vit.pos_embed, by_hand, atol=1e-6)
    assert loaded.notes == (
        "pos_embed of a grid of 7 x 7 is resampled to 4 x 4, as the library does; "
        "`image_size: 112` keeps it",
    )
    assert loaded.image_size == 112


@pytest.mark.parametrize("registers", [0, 4])
def test_a_dinov2_file_of_37_x_37_positions_fits_a_model_of_224_pixels(tmp_path, registers):
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    full = timm.create_model(name, pretrained=False)
    state = dict(full.state_dict())
    # As its authors publish it: a mask token, and the position of CLS in the table.
    state["mask_token"] = torch.zeros(1, state["cls_token"].shape[-1])
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        first = torch.zeros_like(state["cls_token"])
        state["pos_embed"] = torch.cat([first, state["pos_embed"]], 1)
    assert state["pos_embed"].shape[1] == 1 + 37 * 37
    torch.save(state, tmp_path / "dinov2.pth")
    whole = load_weights(tmp_path / "dinov2.pth", Architecture("timm", name)).model
    assert torch.equal(whole.trunk.vit.pos_embed, full.pos_embed)
    assert torch.equal(whole.trunk.vit.norm.weight, full.norm.weight)
    loaded = load_weights(tmp_path / "dinov2.pth", Architecture("timm", name, 224))
    assert loaded.model.trunk.grid == (16, 16)
    assert "pos_embed of a grid of 37 x 37 is resampled to 16 x 16" in loaded.notes[0]
    patches = loaded.model.trunk.vit.pos_embed[:, 0 if registers else 1 :]
    grid = state["pos_embed"][:, 1:].mT.reshape(1, -1, 37, 37)
    small = F.interpolate(grid, (16, 16), mode="bicubic", antialias=True, align_corners=False)
    assert torch.allclose(patches, small.flatten(2).mT, atol=1e-6)


def test_positions_of_a_grid_that_is_no_square_ask_for_the_images_size(tmp_path):
    wide = drawn(3, img_size=(64, 112))
    save_file(wide, tmp_path / "wide.safetensors")
    refused(tmp_path / "wide.safetensors", r"in 'pos_embed'\); its images are of another size or")


def test_open_clips_positions_are_resampled_as_open_clip_does(tmp_path, clip):
    torch.save(clip.state_dict(), tmp_path / "clip.pth")
    loaded = load_weights(tmp_path / "clip.pth", Architecture("open_clip", "tower-alone", 48))
    theirs = open_clip.create_model("tower-alone", force_image_size=48)
    state = dict(clip.state_dict())
    open_clip.model.resize_pos_embed(state, theirs)
    expected = state["visual.positional_embedding"]
    assert torch.equal(loaded.model.trunk.visual.positional_embedding, expected)
    assert "positional_embedding of a grid of 4 x 4 is resampled to 6 x 6" in loaded.notes[0]


def test_patches_of_another_size_are_another_architecture(tmp_path, raw):
    other = dict(raw)
    other["patch_embed.proj.weight"] = torch.zeros(64, 3, 14, 14)
    save_file(other, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", r"shape \(64, 3, 14, 14\) instead of \(64, 3, 16, 16\)")


# What is no weights.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_value_that_is_no_number_is_refused_by_its_tensors_name(tmp_path, raw, value, dtype):
    state = {name: tensor.to(dtype, copy=True) for name, tensor in raw.items()}
    state["blocks.1.mlp.fc1.weight"][3, 4] = value
    save_file(state, tmp_path / "broken.safetensors")
    refused(
        tmp_path / "broken.safetensors",
        r"broken\.safetensors: expected finite weights, got NaN or infinity in "
        r"'trunk\.vit\.blocks\.1\.mlp\.fc1\.weight'",
    )
    settings = OwnerSettings("timm", "test_vit", weights="broken.safetensors", image_size=64)
    with pytest.raises(UserError, match="expected finite weights"):
        load_owner(settings, tmp_path / "broken.safetensors")


def test_a_value_too_large_for_the_models_precision_is_refused(tmp_path, raw):
    state = {name: value.double() for name, value in raw.items()}
    state["norm.weight"][0] = 1e300
    torch.save(state, tmp_path / "double.pth")
    refused(tmp_path / "double.pth", r"infinity in 'trunk\.vit\.norm\.weight'")


def test_a_nan_in_a_part_that_is_not_read_hinders_nobody(tmp_path, raw):
    state = {f"backbone.{k}": v for k, v in raw.items()} | {"decoder.w": torch.tensor([math.nan])}
    torch.save(state, tmp_path / "part.pth")
    assert kept(load_weights(tmp_path / "part.pth", OWN), raw)


def test_whole_numbers_in_the_place_of_weights_are_refused(tmp_path, raw):
    state = {**raw, "norm.weight": torch.ones(64, dtype=torch.int8)}
    save_file(state, tmp_path / "int8.safetensors")
    refused(tmp_path / "int8.safetensors", r"norm\.weight in float32, got int8")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_precision_are_read_in_the_models(tmp_path, raw, dtype):
    torch.save({name: value.to(dtype) for name, value in raw.items()}, tmp_path / "some.bin")
    loaded = load_weights(tmp_path / "some.bin", OWN)
    assert kept(loaded, {name: value.to(dtype).float() for name, value in raw.items()})


def test_what_is_no_file_of_weights_says_what_it_is(tmp_path, raw):
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "expected a file of weights, got a folder; name one")
    save_file(raw, tmp_path / "folder" / "model.safetensors")
    refused(tmp_path / "folder", r"got a folder, which holds 'model\.safetensors'; name one")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha2\n")
    refused(tmp_path / "pointer.pth", "got Git LFS's pointer to it")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    refused(tmp_path / "model.safetensors.index.json", "got an index of several")
    save_file({}, tmp_path / "none.safetensors")
    refused(tmp_path / "none.safetensors", "expected a state dict, got an empty one")
    (tmp_path / "zero.safetensors").write_bytes(b"")
    refused(tmp_path / "zero.safetensors", "expected weights, got an empty file; copy it again")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "got a web page; fetch it again"),
        (b"\xef\xbb\xbf\n<html>", "got a web page"),
        (b'{"error": "Repository not found"}', "got a text .*Repository not found"),
        (b"Invalid username or password.", "got a text .'Invalid username or password"),
        ("nicht gefunden: größe".encode(), "got a text"),
        (b"\x89HDF\r\n\x1a\n", "got an HDF5 file"),
        (b"GGUF\x03\0\0\0", "got a GGUF file of quantised weights"),
        (gzip.compress(b"weights"), "got a gzip archive"),
    ],
    ids=["page", "marked page", "error", "refusal", "umlauts", "keras", "gguf", "gzip"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_another_kind_of_file_is_named_for_what_it_is(tmp_path, content, words, suffix):
    file = tmp_path / f"fetched{suffix}"
    file.write_bytes(content)
    refused(file, words)


def test_an_archive_of_other_files_is_named_by_them(tmp_path, raw):
    file = tmp_path / "jax.pth"
    with file.open("wb") as opened:
        np.savez(opened, kernel=raw["norm.weight"].numpy())
    refused(file, r"got an archive of 'kernel\.npy'; unpack it")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_program_is_not_run(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "clip.pt")
    refused(tmp_path / "clip.pt", "got a TorchScript program, which is not run")


def test_safetensors_under_another_name_are_read(tmp_path, raw):
    save_file(raw, tmp_path / "pytorch_model.bin")
    loaded = load_weights(tmp_path / "pytorch_model.bin", OWN)
    assert kept(loaded, raw)
    assert loaded.notes == ("pytorch_model.bin is read as safetensors, whatever its name says",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pytorch_checkpoint_under_the_name_of_safetensors_is_read(tmp_path, raw, zipped):
    file = tmp_path / "model.safetensors"
    torch.save(raw, file, _use_new_zipfile_serialization=zipped)
    loaded = load_weights(file, OWN)
    assert kept(loaded, raw)
    assert loaded.notes == (
        "model.safetensors is read as a PyTorch checkpoint, whatever its name says",
    )


def test_sparse_tensors_are_refused(tmp_path, raw):
    state = {**raw, "norm.weight": raw["norm.weight"].to_sparse()}
    torch.save(state, tmp_path / "sparse.pth")
    refused(tmp_path / "sparse.pth", r"expected dense tensors, got 'norm\.weight'")


def test_parts_that_repeat_within_another_architecture_are_no_sets_of_weights(tmp_path, raw):
    norms = {k: v for k, v in raw.items() if k.startswith("norm")}
    state = {f"layers.{i}.{k}": v.clone() for i in (1, 2) for k, v in norms.items()}
    save_file(state, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", r"got another architecture's \(lacks 'cls_token'")


def test_a_clip_file_by_openais_names_is_read_into_timms_tower_as_timm_does(tmp_path):
    name = "vit_xsmall_patch16_clip_224"
    tower = timm.create_model(name, num_classes=0)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"width": 256, "layers": 10, "patch_size": 16, "image_size": 224},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "xsmall.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "xsmall.json")
    state = open_clip.create_model("xsmall").state_dict()
    torch.save(state, tmp_path / "clip.pth")
    loaded = load_weights(tmp_path / "clip.pth", Architecture("timm", name))
    theirs = timm.models.vision_transformer.checkpoint_filter_fn(dict(state), tower)
    own = loaded.model.trunk.vit.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in own.items())


def test_what_differs_is_listed_in_short(tmp_path, raw):
    lacking = {k: v for k, v in raw.items() if "fc1" not in k} | {"adapter.weight": torch.ones(1)}
    save_file(lacking, tmp_path / "short.safetensors")
    count = sum("fc1" in name for name in raw)
    refused(
        tmp_path / "short.safetensors",
        rf"expected weights of test_vit, got another architecture's \(lacks "
        rf"'blocks\.0\.mlp\.fc1\.weight', .*, .* and {count - 3} more; unknown 'adapter\.weight'\)",
    )


# Tags: what a library would choose by them.


@pytest.fixture
def tags(clip, monkeypatch):
    """A model of two tags, of which one wants QuickGELU, and another model with SigLIP's alone."""
    config = open_clip.get_model_config("tower-alone")
    for name in ("two-tags", "siglip-like"):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    published = open_clip.get_pretrained_cfg
    two = {"openai": published("ViT-B-32", "openai"), "laion": published("ViT-B-32", "laion2b_e16")}
    one = {"webli": published("ViT-B-16-SigLIP", "webli")}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "two-tags", two)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "siglip-like", one)


def of_open_clip(name, tag, file):
    return load_owner(OwnerSettings("open_clip", name, weights=file.name, pretrained=tag), file)


@pytest.mark.parametrize("tag", [None, "openai", "laion"])
def test_a_tag_beside_a_file_chooses_the_activation_open_clip_would(tmp_path, clip, tags, tag):
    torch.save(clip.state_dict(), tmp_path / "clip.pth")
    model = of_open_clip("two-tags", tag, tmp_path / "clip.pth")
    theirs = open_clip.create_model("two-tags", force_quick_gelu=tag == "openai").eval()
    theirs.load_state_dict(clip.state_dict())
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.encode_image(model.normalise(pixels))
        assert torch.allclose(model.features(pixels), expected, atol=1e-5)
        other = clip.encode_image(model.normalise(pixels))  # GELU
        assert torch.allclose(expected, other, atol=1e-5) == (tag != "openai")
    said = [note for note in model.notes["weights"] if "no tag" in note]
    assert len(said) == (tag is None)
    assert all("open_clip's own quick_gelu is assumed for two-tags" in note for note in said)


@pytest.mark.parametrize("tag", [None, "webli"])
def test_siglips_files_are_prepared_as_siglip_is(tmp_path, clip, tags, tag):
    torch.save(clip.state_dict(), tmp_path / "clip.pth")
    model = of_open_clip("siglip-like", tag, tmp_path / "clip.pth")
    assert model.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert model.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert model.preprocess.mode == "squash"
    said = "no tag: images are prepared as for all published weights of siglip-like"
    assert (said in model.notes["weights"]) == (tag is None)


def test_timms_tag_is_part_of_the_name_and_what_is_assumed_without_one_is_said(tmp_path):
    name = "vit_tiny_patch16_224"
    save_file(timm.create_model(name).state_dict(), tmp_path / "tiny.safetensors")
    plain = load_weights(tmp_path / "tiny.safetensors", Architecture("timm", name, None, "own"))
    default = timm.get_pretrained_cfg(name)
    assert plain.model.mean.flatten().tolist() == pytest.approx(default.mean)
    assert plain.notes == ()  # all tags of this one are prepared alike
    name = "vit_base_patch16_224"
    said = LIBRARIES.get("timm").assumed(Architecture("timm", name))
    assert said.startswith(
        f"no tag: mean, std, crop_pct of {name}.{timm.get_pretrained_cfg(name).tag}"
    )
    assert LIBRARIES.get("timm").assumed(Architecture("timm", f"{name}.dino")) == ""
    dino = build(Architecture("timm", f"{name}.dino"))
    assert dino.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_a_tag_that_the_library_has_not_is_refused(tmp_path, clip, tags):
    torch.save(clip.state_dict(), tmp_path / "clip.pth")
    with pytest.raises(UserError, match="open_clip has no weights 'opnai' of two-tags; did you"):
        of_open_clip("two-tags", "opnai", tmp_path / "clip.pth")
    with pytest.raises(UserError, match="pretrained: expected none, timm has no tags of weights"):
        OwnerSettings("timm", "test_vit", weights="a.pth", pretrained="openai")


def test_files_of_weights_end_as_training_scripts_have_them_end():
    for ending in (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar"):
        assert OwnerSettings("timm", "test_vit", weights=f"last{ending}").from_file
    for other in ("last.tar", "last.onnx", "last"):
        with pytest.raises(UserError, match="expected hub, random or a file ending in"):
            OwnerSettings("timm", "test_vit", weights=other)


# A suspect of another size.


def other_size(tmp_path, **sizes):
    """A file of `test_vit` with its own head, of other dimensions."""
    own = dimensions(build(WITH_HEAD))
    made = build(dataclasses.replace(WITH_HEAD, dimensions=dataclasses.replace(own, **sizes)))
    release(made, tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors"


WITH_HEAD = Architecture("timm", "test_vit", head="own")


@pytest.mark.parametrize("sizes", [{"mlp": 200}, {"depth": 8}, {"depth": 2}, {"heads": 3}])
def test_a_suspect_of_another_size_keeps_its_head(sizes, tmp_path):
    file = other_size(tmp_path, **sizes)
    found = load_weights(file, WITH_HEAD, any_size=True)
    assert (found.model.classes, dict(found.ignored)) == (1000, {})
    ((name, size),) = sizes.items()
    assert getattr(dimensions(found.model), name) == size
    (note,) = found.notes
    assert note.startswith(
        f"read as a test_vit of another size, heads as wide as its own: {name} {size} instead of "
    )
    with pytest.raises(UserError, match="expected"):
        load_weights(file, WITH_HEAD)


@pytest.mark.parametrize("shape", [(192, 64, 1, 1), (192 * 64,), (2, 6144), (1, 12288)])
def test_what_is_no_matrix_of_heads_is_no_suspect_of_another_size(shape, tmp_path):
    state = load_file(other_size(tmp_path))
    name = "blocks.0.attn.qkv.weight"
    state[name] = state[name].reshape(shape)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="got another architecture's"):
        load_weights(tmp_path / "odd.safetensors", WITH_HEAD, any_size=True)
