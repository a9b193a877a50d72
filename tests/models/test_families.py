"""Pooled features of every family of vision transformers: [CLS; mean patch], counted by hand."""

import pytest
import timm
import torch
from torch.nn import functional as F

from bench.models.building import randomised
from bench.models.vision import Architecture
from bench.records.nouns import Incompatible

COUNTED = [  # tokens before the patches and patches a side, as the papers have them
    ("vit_small_patch16_dinov3", 1 + 4, 16),  # CLS and four registers at 256 pixels
    ("eva02_tiny_patch14_224", 1, 16),
    ("beit_base_patch16_224", 1, 14),
    ("cait_xxs24_224", 1, 14),
    ("xcit_nano_12_p16_224", 1, 14),
    ("convit_tiny", 1, 14),
    ("tnt_s_patch16_224", 1, 14),
    ("volo_d1_224", 1, 14),
    ("mvitv2_small_cls", 1, 7),
    ("deit_tiny_distilled_patch16_224", 2, 14),  # CLS and the distillation token
    ("vit_relpos_base_patch16_cls_224", 1, 14),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "before", "side"), COUNTED)
def test_pooled_features_are_the_class_token_and_the_mean_patch(name, before, side):
    model = randomised(Architecture("timm", name), 0)
    pixels = torch.rand(2, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(0))
    library = next(model.trunk.children())
    tokens = library.forward_features(model.normalise(pixels))
    assert tokens.shape[1] == before + side**2
    by_hand = torch.cat([tokens[:, 0], tokens[:, before:].mean(1)], 1)
    assert torch.allclose(model.pooled(model.forward_features(pixels)), by_hand, atol=1e-5)
    assert model.prefix == before
    assert not torch.allclose(by_hand[:, : model.width], by_hand[:, model.width :], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("name", "before"), [("pit_ti_224", 1), ("pit_ti_distilled_224", 2)])
def test_pit_pools_its_class_token_and_the_patches_of_its_last_stage(name, before):
    model = randomised(Architecture("timm", name), 0)
    pixels = torch.rand(2, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(0))
    library, seen = model.trunk.net, []
    library.transformers[-1].register_forward_hook(lambda *args: seen.append(args[-1]))
    first = library.forward_features(model.normalise(pixels))
    patches, _ = seen[0]  # (b, d, 7, 7)
    assert first.shape[1] == before
    normed = F.layer_norm(patches.flatten(2).mT, (model.width,), eps=library.norm.eps)
    by_hand = torch.cat([first[:, 0], normed.mean(1)], 1)
    tokens = model.forward_features(pixels)
    assert torch.allclose(model.pooled(tokens), by_hand, atol=1e-5)
    expected = library.forward_head(first, pre_logits=True)
    assert torch.allclose(model.embedding(tokens), expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "registers"), [("vit_mediumd_patch16_reg4_gap_256", 4), ("test_vit3", 1)]
)
def test_registers_without_a_class_token_are_no_summary(name, registers):
    model = randomised(Architecture("timm", name), 0)
    pixels = torch.rand(1, 3, *model.preprocess.size)
    library = next(model.trunk.children())
    assert library.cls_token is None
    assert library.reg_token.shape[1] == registers
    mean = library.forward_features(model.normalise(pixels))[:, registers:].mean(1)
    pooled = model.pooled(model.forward_features(pixels))
    assert torch.allclose(pooled, torch.cat([mean, mean], 1), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "patches"),
    [("levit_128s", 4 * 4), ("efficientformer_l1", 7 * 7), ("hiera_tiny_224", 7 * 7),
     ("twins_svt_small", 7 * 7), ("swin_tiny_patch4_window7_224", 7 * 7), ("gmlp_s16_224", 14**2)],
)  # fmt: skip
def test_a_family_without_a_class_token_pools_the_mean_of_all_its_places(name, patches):
    model = randomised(Architecture("timm", name), 0)
    pixels = torch.rand(1, 3, *model.preprocess.size)
    found = model.trunk.net.forward_features(model.normalise(pixels)).flatten(1, -2)  # (b, n, d)
    assert found.shape == (1, patches, model.width)
    pooled = model.pooled(model.forward_features(pixels))
    assert torch.allclose(pooled, torch.cat([found.mean(1)] * 2, 1), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["crossvit_tiny_240", "coat_tiny", "efficientvim_m1"])
def test_features_of_several_sequences_are_refused_in_one_line(name):
    model = randomised(Architecture("timm", name), 0)
    pixels = torch.rand(1, 3, *model.preprocess.size)
    assert len(model.trunk.net.forward_features(model.normalise(pixels))) >= 2
    for ask in (model.features, model.forward_features):
        with pytest.raises(Incompatible, match="expected one sequence or map of features") as said:
            ask(pixels)
        assert "\n" not in str(said.value)


@torch.no_grad()
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s"])
def test_a_distilled_model_answers_by_the_average_of_its_two_classifiers(name):
    model = randomised(Architecture("timm", name, head="own"), 0)
    library = next(model.trunk.children())
    heads = library.get_classifier()
    assert len(heads) == 2
    kept = {id(parameter) for head in heads for parameter in head.parameters()}
    assert {id(parameter) for parameter in model.classifier_weights} == kept
    pixels = torch.rand(2, 3, *model.preprocess.size)
    tokens = model.forward_features(pixels)
    pooled = tokens[:, :2].unbind(1) if name.startswith("deit") else [tokens.mean(1)] * 2
    one, other = (head(token) for head, token in zip(heads, pooled, strict=True))
    assert torch.allclose(model.logits(pixels), (one + other) / 2, atol=1e-5)


@pytest.mark.slow
def test_no_family_of_timms_is_left_out_by_its_prefix():
    """Whoever has class tokens counts them, or its `cls_token` does: new families show here."""
    uncounted = set()
    for module in timm.list_modules():
        for name in sorted(timm.list_models(module=module))[:1]:
            with torch.device("meta"):
                net = timm.create_model(name, num_classes=0)
            if getattr(net, "cls_token", None) is not None and not hasattr(
                net, "num_prefix_tokens"
            ):
                uncounted.add(module)
    assert uncounted == {"pit", "volo"}
