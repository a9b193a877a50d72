import pytest
import torch
from torch import nn

from attacks.quantize import Quantize
from bench.models.heads import Head
from bench.models.surgery import with_head
from bench.testing import context, owner

FORMATS = [(f, per) for f in ("int8", "int4", "fp8") for per in ("channel", "tensor")]
LEVELS = {"int8": 127, "int4": 7}


def weights(model):
    return [m.weight for m in model.trunk.vit.blocks.modules() if isinstance(m, nn.Linear)]


def rounded(format, per, victim=None):
    victim = victim or owner()
    made = Quantize(format, per).run(victim, context())
    pairs = zip(weights(victim), weights(made), strict=True)
    return [(before.detach(), after.detach()) for before, after in pairs]


def steps(weight, per, largest):
    found = weight.abs().flatten(1).amax(1) if per == "channel" else weight.abs().max().expand(1)
    return (found / largest).view(-1, *[1] * (weight.ndim - 1))


@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize(("format", "largest"), LEVELS.items())
def test_integers_are_off_by_half_a_step_at_most_and_on_a_symmetric_grid(format, largest, per):
    for before, after in rounded(format, per):
        step = steps(before, per, largest)
        assert ((after - before).abs() <= step * (0.5 + 1e-4)).all()
        on_grid = after / step
        assert torch.allclose(on_grid, on_grid.round(), atol=1e-3)
        assert on_grid.abs().max() == pytest.approx(largest)


@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize(("format", "largest"), LEVELS.items())
def test_integers_are_those_of_pytorchs_own_quantiser(format, largest, per):
    for before, after in rounded(format, per):
        step = steps(before, per, largest).flatten()
        if per == "channel":
            zeros = torch.zeros(len(step), dtype=torch.int32)
            expected = torch.fake_quantize_per_channel_affine(
                before, step, zeros, 0, -largest, largest
            )
        else:
            expected = torch.fake_quantize_per_tensor_affine(
                before, float(step), 0, -largest, largest
            )
        assert torch.allclose(after, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_floats_are_the_nearest_of_all_that_eight_bits_can_name(per):
    named = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    grid = named[named.isfinite()].unique()
    assert grid.max() == 448
    for before, after in rounded("fp8", per):
        step = steps(before, per, 448)
        distance = ((before / step)[..., None] - grid).abs().amin(-1)
        assert torch.allclose((after / step - before / step).abs(), distance, atol=1e-3)


@pytest.mark.parametrize(("format", "per"), FORMATS)
def test_what_is_on_the_grid_stays_there(format, per):
    once = Quantize(format, per).run(owner(), context())
    for before, after in rounded(format, per, once):
        assert torch.allclose(before, after, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("format", "per"), FORMATS)
def test_weights_that_are_all_zero_stay_zero(format, per):
    victim = owner()
    with torch.no_grad():
        victim.blocks[0].mlp.fc1.weight.zero_()
        victim.blocks[1].mlp.fc1.weight[3].zero_()
    made = Quantize(format, per).run(victim, context())
    assert (made.blocks[0].mlp.fc1.weight == 0).all()
    assert (made.blocks[1].mlp.fc1.weight[3] == 0).all()


def test_fewer_bits_and_coarser_scales_are_further_off():
    found = [Quantize(*setting).run(owner(), context()).notes for setting in FORMATS]
    off = dict(zip(FORMATS, (note["relative_error"] for note in found), strict=True))
    assert 0 < off["int8", "channel"] < off["int8", "tensor"] < off["int4", "channel"]
    assert off["int4", "channel"] < off["int4", "tensor"] < 0.5
    assert off["int8", "channel"] < off["fp8", "channel"] < off["int4", "channel"]


def test_the_error_noted_is_the_weights_distance_over_their_length():
    victim = owner()
    made = Quantize("int4").run(victim, context())
    before, after = (torch.cat([w.detach().flatten() for w in weights(m)]) for m in (victim, made))
    expected = float((after - before).norm() / before.norm())
    assert made.notes["relative_error"] == pytest.approx(expected, rel=1e-4)


def test_norms_biases_embeddings_and_the_head_keep_their_bits():
    victim = with_head(owner(), Head(10), torch.Generator().manual_seed(0))
    made = Quantize("int4").run(victim, context())
    layers = {
        f"trunk.vit.blocks.{name}.weight"
        for name, module in victim.trunk.vit.blocks.named_modules()
        if isinstance(module, nn.Linear)
    }
    before, after = victim.state_dict(), made.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == layers
    assert all(p.requires_grad and p.is_leaf for p in made.parameters())
