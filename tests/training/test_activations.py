import itertools

import pytest
import torch
from made_models import CPU, images

from bench.models.building import build
from bench.models.vision import Architecture
from bench.records.nouns import Incompatible
from bench.testing import owner
from bench.training.activations import BlockActivations, activation_profile, choose_block


def block(number, height, median=0.1):
    return BlockActivations(number, (height,) * 5, median, 0, 0, 1.0)


def test_every_number_is_that_of_a_hook_on_the_block():
    model, pool, seen = owner(), images(), []
    for one in model.blocks:
        one.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().abs()))
    with torch.no_grad():
        model.forward_features(pool.batch(slice(None), CPU))
    outputs, seen = list(seen), []
    for row, out in zip(activation_profile(model, pool, CPU, batch=4), outputs, strict=True):
        ranked = out.flatten(1).sort(dim=1, descending=True).values  # (b, n d)
        assert row.top == pytest.approx(ranked[:, :5].mean(0).tolist(), rel=1e-5)
        middle = ranked.shape[1] // 2
        lower, upper = ranked[:, middle].mean(), ranked[:, middle - 1].mean()
        assert lower * 0.999 <= row.median <= upper * 1.001
        places = out.flatten(1).argmax(1).tolist()
        most = max(set(places), key=lambda p: (places.count(p), -p))
        assert (row.token, row.channel) == divmod(most, model.width)
        assert row.consistency == pytest.approx(places.count(most) / len(places))


def test_the_mean_of_five_and_the_ratio_follow_from_the_numbers():
    row = BlockActivations(0, (6.0, 5.0, 4.0, 3.0, 2.0), 0.5, 0, 0, 1.0)
    assert (row.mean_top, row.ratio) == (4.0, 12.0)
    assert block(0, 1.0, median=0.0).ratio == float("inf")


@pytest.mark.parametrize(
    ("height", "median", "massive"),
    [
        (101, 0.1, True),
        (100, 0.1, False),
        (150, 0.15, True),
        (150, 0.151, False),
        (99, 0.001, False),
    ],
)
def test_massive_needs_both_height_and_ratio(height, median, massive):
    assert block(0, height, median).massive is massive


HEIGHTS = [1.0, 2.0, 120.0, 400.0, 390.0]


@pytest.mark.parametrize(
    ("heights", "rule", "last", "chosen", "found_by", "massive", "code"),
    [
        (HEIGHTS, "first_massive", 4, 2, "first_massive", True, 3),
        (HEIGHTS, "largest_jump", 4, 3, "largest_jump", True, 3),
        (HEIGHTS, "largest_jump", 2, 2, "largest_jump", True, 3),
        (HEIGHTS, "first_massive", 1, 1, "largest_jump", False, 3),
        ([1.0, 5.0, 6.0], "first_massive", 2, 1, "largest_jump", False, 1),
        ([5.0, 4.0, 3.5], "largest_jump", 2, 2, "largest_jump", False, 2),
        ([1.0, 5.0], "largest_jump", 0, 0, "largest_jump", False, 1),
    ],
)
def test_the_rules_choose_and_say_what_the_authors_code_would(
    heights, rule, last, chosen, found_by, massive, code
):
    profile = tuple(itertools.starmap(block, enumerate(heights)))
    choice = choose_block(profile, rule, last)
    assert (choice.block, choice.rule, choice.massive) == (chosen, found_by, massive)
    assert choice.code == code


def test_a_planted_massive_activation_is_found_where_it_was_planted():
    model = owner()
    with torch.no_grad():
        model.blocks[3].mlp.fc2.bias[7] = 5000.0
    rows = activation_profile(model, images(), CPU)
    choice = choose_block(rows, "first_massive", 5)
    assert (choice.block, choice.rule, rows[3].channel) == (3, "first_massive", 7)
    assert choose_block(rows, "largest_jump", 5).block == 3


def test_a_convolutional_model_has_no_profile():
    with pytest.raises(Incompatible, match="expected a sequence of transformer blocks"):
        activation_profile(build(Architecture("timm", "test_resnet")), images(1, 160), CPU)
