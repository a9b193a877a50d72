import dataclasses
import json

import numpy as np
import open_clip
import pytest
import timm
import torch
from made_models import CPU, shaken
from PIL import Image
from safetensors.torch import load, save
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.data.images import Preprocess, _fit
from bench.models.backbones import TimmViT
from bench.models.building import build
from bench.models.heads import Head, LoneBatchNorm, SegmentationHead
from bench.models.libraries.embedded import MINI
from bench.models.meter import measuring
from bench.models.surgery import segmentation_head, with_head
from bench.models.suspect import View
from bench.models.vision import Architecture, VisionModel, clone
from bench.models.weights import load_state, weights_digest
from bench.records.nouns import Access, Incompatible, UserError
from bench.testing import owner

OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def tiny_clip(tmp_path_factory):
    """Teach open_clip a few towers small enough for a test."""
    folder = tmp_path_factory.mktemp("configs")
    for name, extra in (
        ("tiny-clip", {}),
        ("tiny-clip-pooled", {"attentional_pool": True, "attn_pooler_heads": 2}),
        ("tiny-clip-average", {"pool_type": "avg", "final_ln_after_pool": True}),
    ):
        config = {**OPEN_CLIP, "vision_cfg": {**OPEN_CLIP["vision_cfg"], **extra}}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def images(count=2, height=40, width=50, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "deit_tiny_patch16_224"])
def test_the_three_parts_are_timms_own_forward_features(name):
    model = shaken(build(Architecture("timm", name, head="own")))
    x = model.normalise(images())
    library = model.trunk.vit
    tokens = model.finish(model.run_blocks(model.embed(images())))
    assert torch.allclose(tokens, library.forward_features(x), atol=1e-5)
    assert torch.equal(model.forward_features(images()), tokens)
    assert torch.allclose(model.logits(images()), library(x), atol=1e-5)
    assert torch.allclose(model(images()), library(x), atol=1e-5)
    pooled = library.forward_head(tokens, pre_logits=True)
    assert torch.allclose(model.features(images()), pooled, atol=1e-5)


def test_registers_are_prefix_tokens_and_no_patches():
    model = shaken(build(Architecture("timm", "vit_small_patch14_reg4_dinov2", 28)))
    assert model.prefix == 5
    with torch.no_grad():
        tokens = model.forward_features(images())
        ours = model.pooled(tokens)
    assert tokens.shape == (2, 5 + 4, 384)
    assert torch.equal(ours[:, :384], tokens[:, 0])
    assert torch.allclose(ours[:, 384:], tokens[:, 5:].mean(1))


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny-clip", "tiny-clip-pooled", "tiny-clip-average"])
def test_features_are_open_clips_own(name):
    model = shaken(build(Architecture("open_clip", name)))
    x = model.normalise(images())
    assert torch.allclose(model.features(images()), model.trunk.visual(x), atol=1e-5)
    tokens = model.run_blocks(model.embed(images()))
    assert tokens.shape == (2, 17, 32)
    assert torch.equal(model.finish(tokens), model.forward_features(images()))


class Calls(TorchDispatchMode):
    """Note the name of every operation."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_under_autocast_open_clips_weights_are_not_copied_for_every_token():
    model = shaken(build(Architecture("open_clip", "tiny-clip"))).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), Calls() as calls:
        found = model.forward_features(images())
    assert "aten::addmm" in calls.names
    assert "aten::bmm" not in calls.names  # of so many copies of the weights
    for module in model.modules():
        module._forward_pre_hooks.clear()
    with torch.autocast("cpu", torch.bfloat16), Calls() as calls:
        plain = model.forward_features(images())
    assert "aten::bmm" in calls.names  # PyTorch still needs to be helped
    assert torch.allclose(found.float(), plain.float(), atol=0.05)


@torch.no_grad()
def test_features_are_those_of_open_clips_timm_tower():
    tower = open_clip.timm_model.TimmModel("test_vit", embed_dim=24, image_size=160)
    trunk = TimmViT(tower.trunk, tower.head)
    described = Architecture("open_clip", "test")
    model = shaken(VisionModel(described, trunk, Preprocess((160, 160)), (0.5,) * 3, (0.5,) * 3))
    model.eval()
    tower.eval()
    assert torch.allclose(model.features(images()), tower(model.normalise(images())), atol=1e-5)


def test_preprocessing_is_the_librarys_own():
    model = build(Architecture("timm", "vit_base_patch16_clip_224.openai"))
    assert model.mean.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert model.std.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_STD)
    assert model.preprocess == Preprocess((224, 224), 0.9, "bicubic")


def test_images_of_another_size_are_brought_to_the_models_own():
    model = owner()
    small = images(height=32, width=32)
    assert torch.equal(model.normalise(small), (small - 0.5) / 0.5)
    assert model.normalise(images(height=60, width=90)).shape == (2, 3, 32, 32)
    edges = (images(height=8, width=8) > 0.5).float()
    assert model.normalise(edges).abs().max() <= 1  # bicubic overshoots: it is cut back to [0, 1]
    flat = torch.full((1, 3, 77, 41), 0.25)
    assert torch.allclose(model.normalise(flat), torch.tensor(-0.5), atol=1e-5)


def test_another_image_size_changes_the_model_not_its_vocabulary():
    model = build(Architecture("timm", "test_vit", 64))
    assert model.preprocess.size == (64, 64)
    assert model.embed(images()).shape == (2, 17, 64)


def test_a_convolutional_model_is_incompatible_with_block_surgery_in_one_line():
    model = build(Architecture("timm", "test_resnet"))
    for ask in (lambda: model.blocks, lambda: model.embed(images()), lambda: model.run_blocks(0)):
        with pytest.raises(
            Incompatible, match="expected a sequence of transformer blocks"
        ) as found:
            ask()
        assert "\n" not in str(found.value)
        assert "test_resnet" in str(found.value)
    with torch.no_grad():
        assert model.features(images()).shape == (2, 96)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        (Architecture("embedded", "maxi"), "expected an embedded model of mini, .*, got 'maxi'"),
        (Architecture("timm", "test_resnet", 64), "timm model test_resnet: .*img_size"),
        (Architecture("open_clip", "RN50"), "expected a vision transformer, got open_clip RN50"),
    ],
)
def test_what_cannot_be_built_is_the_users_mistake(architecture, words):
    with pytest.raises(UserError, match=words) as found:
        build(architecture)
    assert "\n" not in str(found.value)


def test_a_model_without_a_head_has_no_logits():
    with pytest.raises(Incompatible, match="mini has no classification head"):
        owner().logits(images())


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    build(Architecture("timm", "test_vit"))
    assert torch.equal(before, torch.get_rng_state())


def test_building_an_open_clip_tower_says_nothing(caplog):
    build(Architecture("open_clip", "tiny-clip"))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("start", "stop", "share"),
    [(0, None, 1), (0, 3, 0.5), (2, 3, 1 / 6), (4, None, 1 / 3), (0, 0, 0)],
)
def test_passes_are_counted_in_images_through_the_whole_depth(start, stop, share):
    model = owner()
    tokens = model.embed(images(4)).detach()
    with measuring(CPU) as meter:
        model.run_blocks(tokens.requires_grad_(), start, stop).sum().backward()
    assert meter.forward_passes == pytest.approx(4 * share)
    assert meter.backward_passes == pytest.approx(4 * share)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_whole_pass_counts_every_image_once(name):
    model = build(Architecture("timm", name))
    with measuring(CPU) as meter:
        model.features(images(3)).sum().backward()
        with torch.no_grad():
            model.features(images(2))
    assert (meter.forward_passes, meter.backward_passes, meter.images) == (5, 3, 5)


def test_only_the_blocks_that_carry_a_gradient_count_backward():
    model = owner()
    with measuring(CPU) as meter:
        with torch.no_grad():
            tokens = model.run_blocks(model.embed(images(4)), 0, 4)
        model.finish(model.run_blocks(tokens, 4)).sum().backward()
    assert meter.forward_passes == pytest.approx(4)
    assert meter.backward_passes == pytest.approx(4 / 3)


def test_a_clone_is_apart_from_its_original():
    model = owner().requires_grad_(False).train()
    model.notes["sparsity"] = 0.4
    made = clone(model)
    with torch.no_grad():
        made.trunk.vit.norm.bias.add_(1)
    assert not torch.equal(made.trunk.vit.norm.bias, model.trunk.vit.norm.bias)
    assert (made.training, made.notes) == (False, {})
    assert all(p.requires_grad for p in made.parameters())
    assert model.training


def test_a_new_head_is_drawn_from_its_generator_alone():
    def made(seed):
        return with_head(owner(), Head(5), torch.Generator().manual_seed(seed)).head.state_dict()

    once, again, other = made(1), made(1), made(2)
    assert all(torch.equal(once[k], again[k]) for k in once)
    assert not torch.equal(once["linear.weight"], other["linear.weight"])


@pytest.mark.parametrize("kind", ["linear", "dpt"])
def test_a_new_segmentation_head_is_drawn_from_its_generator_alone(kind):
    def made(seed, global_seed):
        torch.manual_seed(global_seed)
        before, model = torch.get_rng_state(), owner()
        head = segmentation_head(model, kind, 5)
        drawn = with_head(model, head, torch.Generator().manual_seed(seed)).head.state_dict()
        assert torch.equal(before, torch.get_rng_state())
        return drawn

    once, again, other = made(1, 1), made(1, 2), made(2, 1)
    assert all(torch.equal(once[k], again[k]) for k in once)
    assert any(not torch.equal(once[k], other[k]) for k in once)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (6, (1, 2, 4, 5))]
)
def test_a_dpt_taps_four_evenly_spaced_blocks_to_the_last(depth, blocks, monkeypatch):
    model = owner()
    monkeypatch.setattr(VisionModel, "blocks", range(depth))
    assert segmentation_head(model, "dpt", 3).blocks == blocks
    assert segmentation_head(model, "linear", 3).blocks == (depth - 1,)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "dpt"])
@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("timm", "deit_tiny_patch16_224", 96, "own"),
        Architecture("timm", "vit_small_patch14_reg4_dinov2", 56),
    ],
)
def test_segmentation_reads_the_patch_tokens_timm_hands_out(architecture, kind):
    model = shaken(build(architecture))
    head = segmentation_head(model, kind, 7)
    made = with_head(model, head, torch.Generator().manual_seed(0)).eval()
    asked = images(2, *model.preprocess.size)
    found = made.trunk.vit.forward_intermediates(
        model.normalise(asked),
        indices=list(head.blocks),
        norm=True,
        return_prefix_tokens=True,
        intermediates_only=True,
    )
    scores = made.head([maps for maps, _ in found], [first for _, first in found])
    expected = torch.nn.functional.interpolate(scores, asked.shape[-2:], mode="bilinear")
    assert torch.allclose(made.segment(asked), expected, atol=1e-4)
    assert torch.equal(made(asked), made.segment(asked))


@torch.no_grad()
def test_a_token_of_open_clips_is_segmented_where_it_stands():
    model = build(Architecture("open_clip", "tiny-clip"))
    made = with_head(model, segmentation_head(model, "linear", 3), torch.Generator())
    tokens = made.head.norm(made.forward_features(images(2, 32, 32)))[:, 1:]
    scores = tokens @ made.head.convolution.weight[..., 0, 0].T + made.head.convolution.bias
    grid = scores.mT.reshape(2, 3, 4, 4)
    expected = torch.nn.functional.interpolate(grid, scale_factor=8, mode="bilinear")
    assert torch.allclose(made.segment(images(2, 32, 32)), expected, atol=1e-5)


def test_what_cannot_be_halved_and_doubled_gets_no_decoder_in_one_line():
    odd = build(Architecture("timm", "vit_small_patch14_reg4_dinov2", 42))
    convolutional = build(Architecture("timm", "test_resnet"))
    four = SegmentationHead(3, "dpt", (2, 5, 8, 11))
    for model, head, words in [
        (odd, four, "multiples of 2 for a DPT decoder, got 3 x 3"),
        (convolutional, SegmentationHead(3, "linear", (0,)), "expected a sequence of transformer"),
    ]:
        with pytest.raises(Incompatible, match=words) as found:
            with_head(model, head, torch.Generator())
        assert "\n" not in str(found.value)


def test_a_segmentation_model_offers_no_labels_and_a_classifier_no_segmentation():
    model = owner()
    segmenter = with_head(model, segmentation_head(model, "linear", 3), torch.Generator())
    view = View(segmenter, Access.ALL)
    for ask in (view.labels, view.logits):
        with pytest.raises(Incompatible, match="mini has no classification head"):
            ask(images())
    assert torch.equal(view.features(images()), View(model, Access.ALL).features(images()))
    with pytest.raises(Incompatible, match="mini has no segmentation head"):
        with_head(model, Head(3), torch.Generator()).segment(images())


def test_segmenting_counts_one_pass():
    model = owner()
    made = with_head(model, segmentation_head(model, "dpt", 3), torch.Generator())
    with measuring(CPU) as meter:
        made.segment(images(4)).sum().backward()
    assert (meter.images, meter.forward_passes, meter.backward_passes) == pytest.approx((4, 4, 4))


def test_a_new_head_takes_the_place_of_the_librarys_own():
    model = build(Architecture("timm", "test_vit", head="own"))
    made = with_head(model, Head(7), torch.Generator())
    assert made.logits(images()).shape == (2, 7)
    assert model.logits(images()).shape == (2, 1000)
    rebuilt = build(made.architecture)
    assert rebuilt.state_dict().keys() == made.state_dict().keys()


def test_the_digest_is_of_the_backbone_whatever_head_sits_on_it():
    model = owner()
    assert weights_digest(with_head(model, Head(10), torch.Generator())) == weights_digest(model)
    assert weights_digest(clone(model)) == weights_digest(model)


def test_the_digest_sees_one_changed_weight():
    model, seen = owner(), {weights_digest(owner())}
    for name in ("blocks.0.attn.qkv.weight", "norm.bias", "pos_embed"):
        changed = clone(model)
        with torch.no_grad():
            changed.trunk.vit.get_parameter(name).view(-1)[-1].add_(1e-6)
        seen.add(weights_digest(changed))
    assert len(seen) == 4


def test_a_model_with_counters_among_its_weights_has_a_digest():
    model = build(Architecture("timm", "test_resnet"))
    before = weights_digest(model)
    model.trunk.net.bn1.num_batches_tracked += 1
    assert weights_digest(model) != before


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("embedded", "mini"),
        Architecture("embedded", "mini", head=Head(10, 0.2)),
        Architecture("timm", "test_vit", 64, "own"),
        Architecture("timm", "test_resnet", None, Head(3)),
        Architecture("open_clip", "tiny-clip"),
        Architecture("embedded", "mini", head=SegmentationHead(5, "linear", (5,))),
        Architecture("timm", "test_vit", 64, SegmentationHead(5, "dpt", (1, 2, 4, 5))),
        Architecture("open_clip", "tiny-clip", head=SegmentationHead(5, "dpt", (0, 0, 1, 1))),
    ],
)
def test_a_model_is_rebuilt_from_json_and_safetensors(architecture):
    model = shaken(build(architecture))
    described = Architecture.of(json.loads(json.dumps(architecture.json())))
    assert described == architecture
    rebuilt = load_state(build(described), load(save(model.state_dict())), "stored")
    with torch.no_grad():
        assert torch.equal(rebuilt(images()), model(images()))
    assert weights_digest(rebuilt) == weights_digest(model)


def test_other_weights_are_refused_with_the_first_difference():
    model, state = owner(), dict(owner().state_dict())
    lacking = {k: v for k, v in state.items() if "norm.bias" not in k}
    with pytest.raises(UserError, match=r"lacks 'trunk\.vit\.norm\.bias'; 1 missing, 0 unknown"):
        load_state(model, lacking, "a.pth")
    with pytest.raises(UserError, match=r"has an unknown 'extra'; 0 missing, 1 unknown"):
        load_state(model, {**state, "extra": torch.ones(1)}, "a.pth")
    with pytest.raises(UserError, match=r"expected trunk\.vit\.norm\.bias of shape \(48,\)"):
        load_state(model, {**state, "trunk.vit.norm.bias": torch.ones(3)}, "a.pth")


@pytest.mark.parametrize(
    "declared", [Access.LABELS, Access.LOGITS, Access.FEATURES, Access.WEIGHTS]
)
def test_a_view_shows_what_was_declared_and_nothing_else(declared):
    view = View(with_head(owner(), Head(10), torch.Generator()), declared)
    asked = {
        Access.LABELS: lambda: view.labels(images()),
        Access.LOGITS: lambda: view.logits(images()),
        Access.FEATURES: lambda: view.features(images()),
        Access.WEIGHTS: lambda: view.network,
    }
    for access, ask in asked.items():
        if access is declared:
            ask()
            continue
        with pytest.raises(PermissionError, match=f"got a request for {access.text}"):
            ask()
    assert view.queries == (0 if declared is Access.WEIGHTS else 2)  # a refusal is no query


def test_a_view_answers_as_the_model_does_and_cannot_be_trained():
    model = with_head(owner(), Head(10), torch.Generator())
    view = View(model.train(), Access.ALL)
    with torch.no_grad():
        expected = clone(model).logits(images())
    assert torch.equal(view.logits(images()), expected)
    assert torch.equal(view.labels(images()), expected.argmax(1))
    assert not any(p.requires_grad for p in view.network.parameters())
    assert not view.logits(images()).requires_grad
    assert view.network is not model
    assert all(p.requires_grad for p in model.parameters())


def test_the_embedded_shape_is_timms_vision_transformer():
    library = timm.models.vision_transformer.VisionTransformer(**MINI)
    ours = build(Architecture("embedded", "mini"))
    assert {f"trunk.vit.{k}" for k in library.state_dict()} == ours.state_dict().keys()
    assert dataclasses.asdict(ours.preprocess)["size"] == (32, 32)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_convnext", "test_vit_relpos", "test_mambaout"]
)
def test_any_other_backbone_answers_as_timm_does(name):
    model = shaken(build(Architecture("timm", name, head="own")))
    library, x = model.trunk.net, model.normalise(images())
    assert torch.allclose(model.logits(images()), library(x), atol=1e-4)
    pooled = library.forward_head(library.forward_features(x), pre_logits=True)
    assert torch.allclose(model.features(images()), pooled, atol=1e-5)
    assert with_head(model, Head(3), torch.Generator()).logits(images()).shape == (2, 3)


def test_open_clips_tag_settles_preprocessing_and_activation_without_the_weights():
    plain = build(Architecture("open_clip", "ViT-B-32"))
    tagged = build(Architecture("open_clip", "ViT-B-32", tag="openai"))
    kinds = [type(m.blocks[0].mlp.gelu).__name__ for m in (plain, tagged)]
    assert kinds == ["GELU", "QuickGELU"]
    published = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    assert tagged.mean.flatten().tolist() == pytest.approx(published["mean"])
    assert tagged.preprocess.mode == "center"
    again = Architecture.of(json.loads(json.dumps(tagged.architecture.json())))
    assert again == tagged.architecture


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("deit_tiny_patch16_224.fb_in1k", 224),  # 0.9, centre
        ("deit_tiny_patch16_224.fb_in1k", 96),
        ("vit_base_patch32_clip_448.laion2b_ft_in12k_in1k", None),  # squash
        ("deepseek_vit_412m.deepseek_v4_flash_vision_exp", None),  # border
        ("volo_d4_448.sail_in1k", None),  # 1.15: something is put beside the image
    ],
)
@pytest.mark.parametrize("shape", [(480, 640), (700, 333)])
def test_pixels_are_resized_and_cut_to_the_integers_of_timm(name, side, shape):
    with torch.device("meta"):
        how = build(Architecture("timm", name, side)).preprocess
        config = timm.data.resolve_model_data_config(timm.create_model(name))
    if side is not None:
        config["input_size"] = (3, side, side)
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    known = timm.data.create_transform(**config, normalize=False)(Image.fromarray(noise))
    assert np.array_equal(_fit(Image.fromarray(noise), how), known.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("library", "name", "side", "patch", "near"),
    [
        ("timm", "vit_small_patch14_dinov2.lvd142m", 125, 14, "112 or 126"),
        ("timm", "deit_tiny_patch16_224", 239, 16, "224 or 240"),
        ("timm", "deit_tiny_patch16_224", 9, 16, "16"),
        ("timm", "beit_base_patch16_224", 230, 16, "224 or 240"),
        ("timm", "mixer_s32_224", 230, 32, "224 or 256"),
        ("open_clip", "ViT-B-32", 255, 32, "224 or 256"),
        ("open_clip", "ViT-B-16-SigLIP", 230, 16, "224 or 240"),
    ],
)
def test_a_size_of_which_the_last_pixels_are_never_read_is_refused(
    library, name, side, patch, near
):
    message = (
        rf"of its patches of {patch} pixels, got {side}, of which {side % patch} would .* {near}$"
    )
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build(Architecture(library, name, side))


@pytest.mark.parametrize(
    ("library", "name"),
    [("timm", "vit_so400m_patch14_siglip_384"), ("open_clip", "ViT-SO400M-14-SigLIP-384")],
)
@pytest.mark.parametrize("side", [None, 384])
def test_the_size_of_published_weights_is_theirs_to_choose(library, name, side):
    with torch.device("meta"):
        assert build(Architecture(library, name, side)).preprocess.size == (384, 384)


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "xcit_nano_12_p8_224"])
def test_a_size_that_timm_cannot_make_is_refused_in_one_line(name):
    with torch.device("meta"), pytest.raises(UserError, match=f"timm model {name}: .") as raised:
        build(Architecture("timm", name, 230))
    assert "\n" not in str(raised.value)


def test_a_batch_norm_takes_what_it_knows_only_where_there_is_no_spread():
    ours, pytorchs = LoneBatchNorm(4), nn.BatchNorm2d(4)
    for norm in (ours, pytorchs):
        norm.running_mean.copy_(torch.arange(4.0))
        norm.running_var.fill_(4.0)
    x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x), pytorchs(x))
    assert torch.equal(ours.running_mean, pytorchs.running_mean)
    alone, known = x[:1, :, :1, :1], ours.running_mean.clone()
    assert torch.equal(ours(alone), pytorchs.eval()(alone))
    assert torch.equal(ours.running_mean, known)


def test_only_a_classifier_in_use_has_classes_of_its_own():
    name = "test_vit"
    assert build(Architecture("timm", name, head="own")).classes == 1000
    assert build(Architecture("timm", name)).classes == 0
    assert owner().classes == 0
    assert with_head(owner(), Head(7), torch.Generator()).classes == 7
    scenes = SegmentationHead(7, "linear", (5,))
    assert with_head(owner(), scenes, torch.Generator()).classes == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    ("library", "name", "size"),
    [("embedded", "mini", None), ("timm", "test_vit", None), ("open_clip", "ViT-B-32", 32)],
)
def test_every_vit_of_ours_attends_through_a_fused_operation(library, name, size, training, frozen):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        fused = 0

        def __torch_dispatch__(self, called, types, args=(), kwargs=None):
            # The second is PyTorch's fast path of nn.MultiheadAttention, for inference alone; on a
            # GPU it calls scaled_dot_product_attention itself.
            names = ("scaled_dot_product", "_native_multi_head_attention")
            self.fused += any(name in str(called) for name in names)
            assert "softmax" not in str(called)
            return called(*args, **(kwargs or {}))

    model = build(Architecture(library, name, size)).train(training).requires_grad_(not frozen)
    with Counter() as counter:
        model.features(torch.rand(1, 3, *model.preprocess.size))
    assert counter.fused == len(model.blocks)
