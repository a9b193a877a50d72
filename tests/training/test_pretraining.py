import dataclasses
import json
import subprocess
import sys
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from bench.data import embedded
from bench.data.images import Images
from bench.data.manifest import split
from bench.data.settings import DataSettings
from bench.models.building import build
from bench.models.libraries.embedded import MINI, SHAPES
from bench.models.vision import Architecture
from bench.models.weights import load_state, weights_digest
from bench.records.nouns import Shape
from bench.suite.innocents import RECIPE, Recipe, manifests, recipe_digest
from bench.training import pretraining
from bench.training.probe import probe_accuracy

BRIEF = Recipe(steps=3, batch=8, patches_kept=8)


@pytest.fixture(scope="module")
def bank():
    return pretraining.embedded_bank()


def largest_difference(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def trained(state):
    return load_state(build(pretraining.ARCHITECTURE), state, "trained")


def sources(bank, rows):
    return {bank.sources[i] for i in rows.tolist()}


def test_a_member_does_not_depend_on_its_company(bank):
    members = [pretraining.stranger(i) for i in range(3)]
    together = pretraining.pretrain(BRIEF, members, bank)
    alone = pretraining.pretrain(BRIEF, members[1:2], bank)
    assert largest_difference(together[1], alone[0]) < 1e-4
    assert largest_difference(together[0], together[1]) > 0.1


def test_the_same_seed_trains_the_same_bytes_whatever_the_global_state(bank):
    with torch.random.fork_rng(devices=[]):
        first = pretraining.pretrain(BRIEF, [pretraining.owner()], bank)[0]
        torch.rand(5)
        before = torch.random.get_rng_state()
        again = pretraining.pretrain(BRIEF, [pretraining.owner()], bank)[0]
        assert torch.equal(torch.random.get_rng_state(), before)
    assert largest_difference(first, again) == 0


def test_a_stack_trains_as_ordinary_autograd_would(bank):
    member = pretraining.stranger(0)
    network = pretraining._initialised(pretraining.Pretraining(bank.classes), BRIEF, member.seed)
    optimiser = torch.optim.AdamW(network.parameters(), eps=1e-5, weight_decay=BRIEF.weight_decay)
    draws = pretraining._draw(BRIEF, member)
    for t in range(BRIEF.steps):
        now = pretraining.Draws(*(drawn[t : t + 1] for drawn in draws))
        rate = BRIEF.learning_rate * pretraining.schedule(t / BRIEF.steps, BRIEF.warm_up)
        optimiser.param_groups[0]["lr"] = rate
        logits = network(pretraining._augmented(bank, now)[0], now.kept[0])
        optimiser.zero_grad()
        F.cross_entropy(logits, bank.labels[now.rows[0]]).backward()
        optimiser.step()
    (stacked,) = pretraining.pretrain(BRIEF, [member], bank)
    assert largest_difference(stacked, network.model.state_dict()) < 1e-4


def test_nobody_trains_on_held_out_sources(bank):
    digits, photos = manifests()
    pools = [split(m) for m in (digits, photos)]
    held = [p.owner_held_out + p.thief_held_out for p in pools]
    forbidden = {m.items[i].source for m, h in zip((digits, photos), held, strict=True) for i in h}
    for member in [pretraining.owner(), *map(pretraining.stranger, range(5))]:
        assert not forbidden & sources(bank, torch.cat([member.digits, member.photos]))


def test_mini_trains_on_its_owners_images_alone(bank):
    member = pretraining.owner()
    digits, photos = manifests()
    assert sources(bank, member.photos) == {
        photos.items[i].source for i in split(photos).owner_images
    }
    assert set(member.digits.tolist()) == set(split(digits).owner_images)


def test_strangers_know_half_of_the_photographs_whole_and_each_its_own(bank):
    strangers = [pretraining.stranger(i) for i in range(6)]
    known = [sources(bank, member.photos) for member in strangers]
    assert {len(k) for k in known} == {6}
    assert {len(member.photos) for member in strangers} == {6 * RECIPE.photos.crops}
    assert len(set(map(frozenset, known))) == 6
    assert len({member.seed for member in [pretraining.owner(), *strangers]}) == 7


def test_the_bank_shows_digits_first_then_one_class_a_photograph(bank):
    assert bank.labels[:10].tolist() == list(range(10))
    assert bank.classes == 26
    pairs = set(zip(bank.sources[1797:], bank.labels[1797:].tolist(), strict=True))
    assert sorted(label for _, label in pairs) == list(range(10, 26))


def test_cohorts_continue_where_the_last_ended(monkeypatch):
    trained_seeds = []

    def record(recipe, members, bank, shape):
        trained_seeds.append([m.seed for m in members])
        return [{}] * len(members)

    monkeypatch.setattr(pretraining, "pretrain", record)
    assert len(pretraining.cohort(1, 12)) == 12
    assert trained_seeds == [[13, 14, 15, 16, 17], [18, 19, 20, 21, 22], [23, 24]]


def test_every_shape_trains_alike_and_shares_neither_seed_nor_data_with_another(bank):
    members = {shape: pretraining.stranger(0, shape=shape) for shape in get_args(Shape)}
    assert list(members) == list(SHAPES)
    assert len({member.seed for member in members.values()}) == 3
    assert len({frozenset(sources(bank, m.photos)) for m in members.values()}) == 3
    widths = {}
    for shape, member in members.items():
        (state,) = pretraining.pretrain(BRIEF, [member], bank, shape)
        model = load_state(build(Architecture("embedded", shape)), state, "")
        widths[shape] = (len(model.blocks), model.width)
    assert widths == {"mini": (6, 48), "mini-deep": (8, 48), "mini-wide": (6, 64)}


def test_untouched_draws_give_the_images_and_negative_zoom_mirrors_them(bank):
    rows = torch.tensor([[0, 1800]])
    zoom = torch.tensor([[[1.0, 1.0], [-1.0, 1.0]]])
    still = pretraining.Draws(rows, zoom, torch.zeros(1, 2, 2), torch.ones(1, 2, 3), torch.empty(0))
    images = pretraining._augmented(bank, still)[0]
    assert torch.allclose(images[0], bank.pixels[0] / 255, atol=1e-4)
    assert torch.allclose(images[1], bank.pixels[1800].flip(-1) / 255, atol=1e-4)


def test_digits_are_moved_and_tinted_but_photographs_only_mirrored():
    draws = pretraining._draw(Recipe(steps=50, batch=6), pretraining.stranger(0))
    photos = draws.zoom[:, 3:]
    assert set(photos[..., 0].flatten().tolist()) == {-1.0, 1.0}
    assert (photos[..., 1] == 1).all()
    assert (draws.tint[:, 3:] == 1).all()
    assert draws.zoom[:, :3].min() >= 1
    assert draws.tint[:, :3].std() > 0.1
    assert (draws.rows[:, :3] < 1797).all()
    assert (draws.rows[:, 3:] >= 1797).all()


def test_kept_patches_are_distinct():
    kept = pretraining._draw(Recipe(steps=20, patches_kept=16), pretraining.stranger(0)).kept
    assert all(len(set(row)) == 16 for row in kept.flatten(0, 1).tolist())
    assert kept.max() == 63


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 0.05), (0.1, 0.525), (0.2, 1.0), (0.6, 0.5), (1.0, 0.0)]
)
def test_the_schedule_rises_then_falls(progress, share):
    assert pretraining.schedule(progress, 0.2) == pytest.approx(share)


CHANGES = [
    {"steps": 5},
    {"learning_rate": 1e-4},
    {"residual_gain": 0.9},
    {"digits": DataSettings("digits", owner_share=0.4)},
    {"photos": DataSettings("photos", crops=3)},
]


@pytest.mark.parametrize("change", CHANGES, ids=[next(iter(c)) for c in CHANGES])
def test_another_recipe_has_another_digest(change):
    assert recipe_digest(dataclasses.replace(RECIPE, **change)) != recipe_digest()


def test_naming_the_recipe_needs_no_torch():
    code = "import sys; from bench.suite.innocents import *; recipe_digest(); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def card():
    return json.loads((embedded.WEIGHTS / "mini.json").read_text())


@pytest.fixture(scope="module")
def mini():
    return trained(load_file(embedded.WEIGHTS / "mini.safetensors"))


def test_the_carried_weights_are_those_of_the_present_recipe(card, mini):
    assert card["recipe_digest"] == recipe_digest()
    assert card["model"] == MINI
    assert card["weights_digest"] == weights_digest(mini)
    assert (embedded.WEIGHTS / "mini.safetensors").stat().st_size < 600_000


def test_the_carried_weights_probe_as_their_card_says(card, mini, bank):
    measured = pretraining.digits_probe(mini, bank)
    assert measured == pytest.approx(card["probe_accuracy"], abs=0.01)
    assert measured > 0.9


def moved(bank, rows):
    """Return the digits at `rows` moved and tinted as in training."""
    rows = torch.tensor(rows)
    one_batch = Recipe(steps=1, batch=2 * len(rows))
    draws = pretraining._draw(one_batch, pretraining.Member(9, rows, rows))
    chosen = pretraining.Draws(rows[None], *(drawn[:, : len(rows)] for drawn in draws[1:]))
    pixels = pretraining._augmented(bank, chosen)[0].mul(255).round().to(torch.uint8)
    return Images(pixels, bank.labels[rows], bank.classes, ())


def test_mini_recognises_moved_digits_where_random_weights_do_not(mini, bank):
    """Still digits would not do: a probe on random weights gets 93 % of them right."""
    untrained = pretraining._initialised(pretraining.Pretraining(bank.classes), RECIPE, 0).model
    pools = split(manifests()[0])
    known = bank.subset(pools.owner_images + pools.thief_images)
    asked = moved(bank, pools.owner_held_out + pools.thief_held_out)
    cpu = torch.device("cpu")
    assert probe_accuracy(mini, known, asked, cpu) > 0.6
    assert probe_accuracy(untrained, known, asked, cpu) < 0.3


def test_checking_says_how_far_a_retraining_lies(monkeypatch, capsys, mini):
    state = {name: value.clone() for name, value in mini.state_dict().items()}
    assert pretraining._compare(state) == 0
    assert "difference 0," in capsys.readouterr().out
    state["trunk.vit.pos_embed"] += 0.5
    assert pretraining._compare(state) == 1
    assert "difference 0.5," in capsys.readouterr().out
