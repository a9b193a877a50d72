"""Vision models of Hugging Face transformers: made at random on disk, and read as theirs."""

import json
import pathlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from bench.data.images import Preprocess
from bench.models import surgery
from bench.models.building import build
from bench.models.heads import Head
from bench.models.libraries import transformers as library
from bench.models.symmetry import anatomy
from bench.models.vision import Architecture, clone
from bench.models.weights import load_weights, release
from bench.records.nouns import UserError
from bench.runs.owners import architecture_of, load_owner
from bench.suite.owners import OwnerSettings, owner_from

transformers = pytest.importorskip(
    "transformers", reason="the extra [hf] is not installed: transformers is not there"
)

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48, "image_size": 32, "patch_size": 8}  # fmt: skip

KINDS = {
    "dinov2": "Dinov2Model",
    "vit": "ViTModel",
    "clip": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
}

PREPARES = {
    "do_resize": True, "size": {"shortest_edge": 36}, "do_center_crop": True, "resample": 3,
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.48, 0.45, 0.4], "image_std": [0.27, 0.26, 0.28],
}  # fmt: skip


def drawn(kind, **more):
    """A model of the library's, every weight drawn: no zero and no one hides what is read."""
    made = getattr(transformers, KINDS[kind])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = made(made.config_class(**SHAPE, **more)).eval()
        with torch.no_grad():
            for weight in net.parameters():
                weight.add_(torch.randn_like(weight) * 0.05)
    return net


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """A model of each kind, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp("saved") / f"my-{request.param}"
    net = drawn(request.param)
    net.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPARES))
    return net, folder


def owner_of(folder, **more):
    owner = OwnerSettings("transformers", str(folder), **more)
    return load_owner(owner, pathlib.Path(owner.weights))


def answers(net, pixels):
    with torch.no_grad():
        return net(pixels)


def test_a_folder_is_read_and_answers_as_the_library_does(saved):
    net, folder = saved
    model, pixels = owner_of(folder), torch.rand(3, 3, 32, 32)
    assert model.preprocess == Preprocess((32, 32), 32 / 36, "bicubic", "center")
    assert model.preprocess.resized(40, 60) == (36, 54)
    assert model.mean.flatten().tolist() == pytest.approx(PREPARES["image_mean"])
    theirs = answers(net, model.normalise(pixels))
    with torch.no_grad():
        tokens = model.forward_features(pixels)
        assert torch.allclose(model.features(pixels), theirs.pooler_output, atol=1e-5)
    last = theirs.last_hidden_state
    if hasattr(net, "pre_layrnorm"):  # CLIP's library leaves tokens as its last block has them
        last = net.post_layernorm(last)
    assert torch.allclose(tokens, last, atol=1e-5)
    assert tokens.shape == (3, model.prefix + 16, 32)
    assert model.prefix == model.trunk.has_class_token == (not hasattr(net, "use_head"))
    assert len(model.blocks) == 3


def test_an_artefact_needs_no_folder_any_more(saved, tmp_path):
    model = owner_of(saved[1])
    release(model, tmp_path / "released.safetensors")
    stored = Architecture.of(json.loads(json.dumps(model.architecture.json())))
    moved = Architecture("transformers", "/no/such/folder", config=stored.config)
    again = load_weights(tmp_path / "released.safetensors", moved).model
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.features(pixels), model.features(pixels))
    line = library.in_python(model.architecture)
    theirs = eval(line, {"transformers": transformers})
    theirs.load_state_dict(load_file(tmp_path / "released.safetensors"))


def test_positions_of_another_grid_are_resampled_as_the_library_does_and_said(saved):
    net, folder = saved
    model, pixels = owner_of(folder, image_size=48), torch.rand(2, 3, 48, 48)
    # What DINOv2 does unasked, the others do where they are told to.
    more = {} if isinstance(net, transformers.Dinov2Model) else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        theirs = net(model.normalise(pixels), **more).pooler_output
        assert torch.allclose(model.features(pixels), theirs, atol=1e-5)
    (note,) = [n for n in model.notes["weights"] if "resampled" in n]
    assert "of a grid of 4 x 4 is resampled to 6 x 6, as the library does" in note
    assert note.endswith("`image_size: 32` keeps it")


def test_what_attacks_and_probes_do_to_a_model_they_do_or_refuse(saved):
    model = owner_of(saved[1])
    pixels, rng = torch.rand(2, 3, 32, 32), torch.Generator().manual_seed(0)
    classified = surgery.with_head(model, Head(5), rng).eval()
    classified.logits(pixels).sum().backward()
    assert all(w.grad is not None for n, w in classified.named_parameters() if "blocks" in n)
    segmented = surgery.with_head(model, surgery.segmentation_head(model, "dpt", 3), rng)
    assert segmented.segment(pixels).shape == (2, 3, 32, 32)
    assert len(model.layers()) == 3 * 6  # queries, keys, values, output, and two of the MLP
    again = build(Architecture.of(classified.architecture.json()))
    again.load_state_dict(classified.state_dict())
    assert torch.equal(again.logits(pixels), classified.logits(pixels))
    with pytest.raises(UserError, match="plain vision transformer of timm's, for no other can be"):
        surgery.narrow(clone(model), "mlp", 24)
    with pytest.raises(UserError, match=r"of timm's or open_clip's, .* got a \w+Model in"):
        anatomy.read(model)


def test_a_folder_is_one_model_wherever_it_lies(saved, tmp_path):
    folder = saved[1]
    moved = tmp_path / folder.name
    moved.symlink_to(folder)
    there, here = (owner_from({"transformers": str(path)}) for path in (folder, moved))
    assert there.spec() == here.spec()
    assert there.spec().name == folder.name
    assert there.from_file
    other = tmp_path / "other" / folder.name
    other.mkdir(parents=True)
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2}))
    said = owner_from({"transformers": str(other)}).spec()
    assert said.args["config"] != there.spec().args["config"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_a_whole_clip_the_image_tower_is_read(tmp_path, kind):
    name = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": 64, "max_position_embeddings": 8}  # fmt: skip
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        whole = getattr(transformers, f"{name}Model")(config).eval()
    whole.save_pretrained(tmp_path)
    model, pixels = owner_of(tmp_path), torch.rand(2, 3, 32, 32)
    theirs = answers(whole.vision_model, model.normalise(pixels)).pooler_output
    assert torch.allclose(model.features(pixels), theirs, atol=1e-5)
    (left,) = [n for n in model.notes["weights"] if n.startswith("left out")]
    assert "text_model" in left
    assert "no preprocessor_config.json: images are brought to" in " ".join(model.notes["weights"])


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_of_a_classifier_the_backbone_is_read_and_its_head_left_out(tmp_path, kind):
    config = getattr(transformers, f"{kind}Config")(**SHAPE, num_labels=7)
    whole = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    whole.save_pretrained(tmp_path)
    model, pixels = owner_of(tmp_path), torch.rand(2, 3, 32, 32)
    inner = whole.vit if kind == "ViT" else whole.dinov2
    with torch.no_grad():  # no pooler: CLS is what is left
        theirs = inner(model.normalise(pixels)).last_hidden_state[:, 0]
        assert torch.allclose(model.features(pixels), theirs, atol=1e-5)
    assert any("classifier" in note for note in model.notes["weights"])


def test_weights_in_half_precision_are_read_in_single(tmp_path):
    net = drawn("dinov2").half()
    net.save_pretrained(tmp_path)
    model = owner_of(tmp_path)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    pixels = torch.rand(2, 3, 32, 32)
    theirs = answers(net.float(), model.normalise(pixels)).pooler_output
    assert torch.allclose(model.features(pixels), theirs, atol=1e-5)


def test_gated_mlps_answer_as_the_library_does(tmp_path):
    net = drawn("dinov2", use_swiglu_ffn=True)
    net.save_pretrained(tmp_path)
    model, pixels = owner_of(tmp_path), torch.rand(2, 3, 32, 32)
    theirs = answers(net, model.normalise(pixels)).pooler_output
    assert torch.allclose(model.features(pixels), theirs, atol=1e-5)


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path):
    def refused(words, make=lambda: owner_of(tmp_path)):
        with pytest.raises(UserError, match=words) as found:
            make()
        assert "\n" not in str(found.value)

    refused("expected model.safetensors beside config.json, found none")
    net = drawn("vit")
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    refused("expected a model_type of clip, .*, got 'bert'")
    (tmp_path / "config.json").write_text("{")
    refused("config.json: expected settings in JSON, got a damaged file .Expecting property")
    (tmp_path / "config.json").unlink()
    refused("expected a config.json, found none")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 1}))
    refused("resample: expected 2 .bilinear. or 3 .bicubic., got 1")
    (tmp_path / "preprocessor_config.json").unlink()
    refused("expected a multiple of its patches", lambda: owner_of(tmp_path, image_size=36))
    state = load_file(tmp_path / "model.safetensors")
    short = {name: value for name, value in state.items() if ".1." not in name}
    save_file(short, tmp_path / "model.safetensors", {"format": "pt"})
    refused("got another architecture's")


def test_shapes_are_known_without_weights(saved):
    from bench.runs.owners import unweighted

    owner = OwnerSettings("transformers", str(saved[1]))
    model = unweighted(architecture_of(owner))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert F.relu(model.features(torch.empty(1, 3, 32, 32, device="meta"))).shape == (1, 32)


def test_a_plan_names_an_owner_by_its_folder_and_no_path(saved, tmp_path):
    from bench.suite import plan
    from bench.suite.reader import load

    (tmp_path / "suite.yaml").write_text(
        f"name: mine\nowners: [{{transformers: {saved[1]}}}]\nmethods: [{{name: cka}}]\n"
        "attacks: [{name: control.identity}]\ndata: {photos: {crops: 4}, digits: {}}\n"
        "owner_images: photos\nprobe: digits\ninnocents: {strangers: 0}\n"
    )
    made = plan.make(load(tmp_path / "suite.yaml"), None)
    assert {question.cell.owner.name for question in made.questions} == {saved[1].name}


SETTINGS = {
    "no kind": ({"model_type": None}, "expected a model_type of .*, got None"),
    "a list of kinds": ({"model_type": ["vit"]}, r"expected a model_type of .*, got \['vit'\]"),
    "a width of nothing": ({"hidden_size": None}, "settings of a ViTModel, .*hidden_size"),
    "a side in words": ({"image_size": "big"}, "settings of a ViTModel, .*image_size"),
    "two sides": ({"image_size": [32, 64]}, "settings of a ViTModel"),
    "patches of no pixel": ({"patch_size": 0}, "settings of a ViTModel, .*by zero"),
    "an activation nobody knows": ({"hidden_act": "gulu"}, "settings of a ViTModel, .*gulu"),
    "no block": ({"num_hidden_layers": -1}, "settings of a ViTModel, .*it has no block"),
    "a block too few": ({"num_hidden_layers": 2}, "got another architecture's weights .unknown"),
    "a block too many": ({"num_hidden_layers": 4}, "got another architecture's"),
    "a number that is none": ({"layer_norm_eps": float("nan")}, "a damaged file .NaN is no number"),
}


@pytest.mark.parametrize(("change", "words"), SETTINGS.values(), ids=SETTINGS)
def test_settings_of_which_no_model_can_be_made_are_refused(change, words, tmp_path):
    drawn("vit").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=words) as said:
        owner_of(tmp_path / "model")
    assert "\n" not in str(said.value)


TEXTS = {
    "nothing": (b"", "got an empty file; copy it again"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS's pointer to it"),
    "no text": (b"\xff\xfe\0", "expected settings in JSON, got what is no text"),
    "half of it": (b'{"a": ', "a damaged file .*copy it again"),
    "a list": (b"[]", "expected a mapping"),
}


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(("content", "words"), TEXTS.values(), ids=TEXTS)
def test_what_lies_in_the_place_of_settings_is_named(content, words, name, tmp_path):
    drawn("vit").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as said:
        owner_of(tmp_path / "model")
    assert "\n" not in str(said.value)


PREPARED = {
    "one mean": ({"image_mean": [0.5]}, r"image_mean: expected three numbers, got \[0\.5\]"),
    "a mean in words": ({"image_mean": "grey"}, "image_mean: expected three numbers, got 'grey'"),
    "no deviation": ({"image_std": [0, 0, 0]}, "image_std: expected three numbers above 0"),
    "a side in words": ({"size": "big"}, "size: expected the side of a square in pixels"),
    "a side below nought": ({"size": -3}, "size: expected the side of a square in pixels, got -3"),
    "no square": (
        {"do_center_crop": True, "crop_size": {"height": 32, "width": 16}},
        "crop_size: expected the side of a square in pixels, got '32 x 16'",
    ),
}


@pytest.mark.parametrize(("said", "words"), PREPARED.values(), ids=PREPARED)
def test_images_that_cannot_be_prepared_so_are_refused(said, words, tmp_path):
    drawn("vit").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=words):
        owner_of(tmp_path / "model")


@pytest.mark.parametrize("name", ["nobody/nothing", "a b/c d"])
def test_a_name_that_no_hub_knows_is_refused_at_once(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"transformers {name}: expected a folder"):
        architecture_of(OwnerSettings("transformers", name))
