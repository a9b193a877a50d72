import dataclasses
import math

import pytest
import torch
from scipy import stats

from bench.models import Architecture, View, build, clone, randomised
from bench.models.meter import measuring
from bench.models.symmetry import bake_means, permutation, permute_neurons, shift_writers
from bench.models.symmetry import map_stream as mapped
from bench.models.weights import weights_digest
from bench.testing import context, owner
from bench.types import Access, ExactNull, Incompatible, Sizes, UserError
from bench.verdicts.exact.coins import log10_p
from bench.verdicts.verdict import decide_exactly
from methods.whitebox import (
    DeepSigns,
    FreeUchida,
    NeuralMark,
    Uchida,
    bits,
    deepsigns,
    embedding,
    neuralmark,
    projections,
    tensors,
)
from methods.whitebox.uchida import mean_filter

LOG10 = math.log(10)

BRIEF = {"steps": 150, "batch": 4, "lr": 3e-3}

SOLVED = Uchida(embedding="closed form")
TRAINED = Uchida(bits=12, **BRIEF)
HASHED = NeuralMark(bits=16, pooled=48, rounds=2, **BRIEF)
CENTRED = DeepSigns(images=32, clusters=4, bits=8, **BRIEF)

MARKS = {"solved": SOLVED, "trained": TRAINED, "hashed": HASHED, "centred": CENTRED}


def stranger(index):
    """A model of the owner's shape that nobody trained."""
    return randomised(Architecture("embedded", "mini"), index)


@pytest.fixture(scope="module")
def made():
    """What each method makes of the owner, once."""
    return {name: method.protect(owner(), context(0, "owner")) for name, method in MARKS.items()}


def read(method, secret, suspect, **changed):
    return method.extract({**secret, **changed}, View(suspect, method.needs), context(1, "owner"))


def few(method):
    """The same method, brief: two steps, or none."""
    return dataclasses.replace(method, steps=2, batch=4)


def sizes():
    ctx = context(0, "owner")
    return Sizes(len(ctx.images), len(ctx.held_out), 6, 65, 48)


@pytest.mark.parametrize("name", MARKS)
def test_the_released_model_carries_its_bits_and_is_owned_without_innocents(made, name):
    evidence = read(MARKS[name], made[name].secret, made[name].model)
    count, right = len(evidence.statistic), sum(evidence.statistic)
    # Four clusters cannot carry bits that are alike in all, and some keys have such.
    assert evidence.rate == 1.0 or (name == "centred" and evidence.rate > 0.8)
    assert evidence.null == ExactNull(1)
    assert log10_p(evidence) == pytest.approx(stats.binom.logsf(right - 1, count, 0.5) / LOG10)
    assert decide_exactly(evidence, 1e-3).outcome == "owned"


@pytest.mark.parametrize("name", MARKS)
def test_innocents_and_the_clean_owner_agree_by_chance(made, name):
    for innocent in (owner(), stranger(0), stranger(1)):
        evidence = read(MARKS[name], made[name].secret, innocent)
        assert log10_p(evidence) > -3
        assert evidence.chance == 0.5


@pytest.mark.parametrize("name", MARKS)
def test_a_mark_of_another_key_is_innocent_of_this_one(made, name):
    method = MARKS[name]
    other = SOLVED.protect(owner(), context(5, "owner")).model
    assert log10_p(read(method, made[name].secret, other)) > -3


@pytest.mark.parametrize("kind", ["random", "direct", "diff"])
def test_errors_of_an_unmarked_model_are_binomial_over_keys(kind):
    method = dataclasses.replace(SOLVED, projection=kind)
    model, rng = owner(), torch.Generator().manual_seed(0)
    carrier = tensors.carrier(model, "fc1", "auto")
    keys = [method._key(model, carrier, rng) for _ in range(100)]
    right = torch.tensor([sum(method._read(key, model).statistic) for key in keys])
    # The mean of 2400 coins, and the variance of 100 sums of 24, each within 4 deviations.
    assert abs(float(right.mean()) - 12) < 4 * math.sqrt(24 / 4 / 100)
    assert 6 * (1 - 4 * math.sqrt(2 / 99)) < float(right.var()) < 6 * (1 + 4 * math.sqrt(2 / 99))


@pytest.mark.parametrize("kind", ["random", "direct", "diff"])
@pytest.mark.parametrize("tensor", ["fc1", "fc2", "patch"])
def test_the_closed_form_writes_every_bit_into_every_tensor(kind, tensor):
    method = Uchida(embedding="closed form", projection=kind, tensor=tensor)
    made = method.protect(owner(), context(2, "owner"))
    assert made.notes["bits_carried"] == 1.0
    assert read(method, made.secret, made.model).rate == 1.0


def test_projections_are_as_the_paper_has_them():
    direct, diff = (projections.drawn(kind, 60, 24, b"a seed") for kind in ("direct", "diff"))
    assert torch.equal(direct.sum(1), torch.ones(60).double())
    assert torch.equal(direct.abs().sum(1), torch.ones(60).double())
    assert torch.equal(diff.sum(1), torch.zeros(60).double())
    assert torch.equal(diff.abs().sum(1), 2 * torch.ones(60).double())
    assert direct.sum(0).min() >= 2  # every place once before any twice
    normal = projections.drawn("random", 200, 200, b"a seed")
    assert abs(float(normal.mean())) < 0.02
    assert abs(float(normal.std()) - 1) < 0.02


def test_what_a_writer_means_over_its_outputs_is_free_to_write_and_free_to_erase():
    images = context(0, "owner").held_out.batch(slice(0, 8), torch.device("cpu"))
    with torch.no_grad():
        clean = owner().forward_features(images)
    moved = {}
    for tensor in ("fc1", "fc2", "patch"):
        method = Uchida(embedding="closed form", tensor=tensor)
        made = method.protect(owner(), context(0, "owner"))
        with torch.no_grad():
            found = made.model.forward_features(images) - clean
        moved[tensor] = float(found.abs().max() / clean.abs().max())
        rng = torch.Generator().manual_seed(0)
        erased = read(method, made.secret, bake_means(made.model))
        shifted = read(method, made.secret, shift_writers(made.model, 1.0, rng))
        assert read(method, made.secret, made.model).rate == 1.0
        assert (erased.rate == 1.0) == (tensor == "fc1")
        assert (log10_p(erased) > -3) == (log10_p(shifted) > -3) == (tensor != "fc1")
    assert max(moved["fc2"], moved["patch"]) < 1e-5 < 1e-2 < moved["fc1"]


def test_readers_survive_permuted_neurons_and_not_permuted_channels(made):
    rng = torch.Generator().manual_seed(0)
    secret, model = made["trained"].secret, made["trained"].model
    assert read(TRAINED, secret, permute_neurons(model, rng)).rate == 1.0
    turned = mapped(model, permutation(48, 1.0, rng))
    assert log10_p(read(TRAINED, secret, turned)) > -3


def test_rounding_to_eight_bits_keeps_every_bit(made):
    for name in ("solved", "trained", "hashed"):
        model = clone(made[name].model)
        with torch.no_grad():
            for layer in model.layers():
                step = layer.weight.abs().amax(1, keepdim=True) / 127
                layer.weight.copy_((layer.weight / step).round() * step)
        assert read(MARKS[name], made[name].secret, model).rate == 1.0


def test_a_second_key_leaves_most_of_the_first_while_both_are_few_beside_the_inputs():
    left = {4: [], 16: []}
    for count, found in left.items():
        method = dataclasses.replace(SOLVED, bits=count)
        for seed in range(0, 24, 2):
            first = method.protect(owner(), context(seed, "owner"))
            second = method.protect(first.model, context(seed + 1, "owner"))
            assert read(method, second.secret, second.model).rate == 1.0
            found.append(read(method, first.secret, second.model).rate)
    few, many = (sum(found) / len(found) for found in left.values())
    assert few > 0.8 > many > 0.6


def test_more_bits_than_inputs_are_not_all_carried():
    method = dataclasses.replace(SOLVED, bits=200)
    made = method.protect(owner(), context(0, "owner"))
    assert made.notes["bits_carried"] < 0.95


def test_without_a_commitment_any_innocent_is_made_to_carry_any_bits():
    method, innocent = FreeUchida(bits=24), stranger(0)
    key = method.forged(View(innocent, Access.WEIGHTS), context(3, "owner"))
    evidence = read(method, key, innocent)
    assert evidence.rate == 1.0
    assert evidence.null is None  # a key that anybody may choose says nothing by itself
    assert 0.2 < read(method, key, stranger(1)).rate < 0.8
    projection = key["projection"]
    assert abs(float(projection.mean())) < 0.1
    assert abs(float(projection.std()) - 1) < 0.1


def test_with_a_commitment_a_forger_can_only_draw_again():
    seen = View(stranger(0), Access.WEIGHTS)
    keys = [SOLVED.forged(seen, context(seed, "owner")) for seed in range(20)]
    logs = [log10_p(read(SOLVED, key, stranger(0))) for key in keys]
    assert min(logs) > -4
    with pytest.raises(UserError, match="expected the bits that the secret commits to"):
        read(SOLVED, keys[0], stranger(0), bits=1 - keys[0]["bits"])


def test_hashing_a_forged_projection_as_neuralmark_does_leaves_chance():
    vector = mean_filter(stranger(0), tensors.carrier(stranger(0), "fc1", "auto"))
    rng, right = torch.Generator().manual_seed(0), []
    for number in range(20):
        sought = torch.randint(2, (64,), generator=rng, dtype=torch.uint8)
        forged = projections.forged(vector, sought, bytes([number]))
        assert bits.compare(forged @ vector, sought).rate == 1.0
        right.append(bits.compare(forged @ vector, hashed(forged, 64)).rate)
    assert abs(sum(right) / 20 - 0.5) < 0.05


def hashed(projection, count):
    """b = H(K), as the paper has it."""
    return bits.drawn({"projection": projection}, count, {})


@pytest.mark.parametrize(("rounds", "least", "most"), [(1, 0.9, 1.0), (4, 0.53, 0.75)])
def test_a_projection_fitted_to_an_innocent_foresees_the_hash_of_itself(rounds, least, most):
    weights = torch.randn(2304, generator=torch.Generator().manual_seed(1)).double()
    rng = torch.Generator().manual_seed(0)
    fitted = neuralmark.forged(weights, 32, 64, rounds, 2500, rng)
    right = []
    for number in range(30):  # thirty keys: what is added changes the hash, and hardly a value
        key = fitted * (1 + 1e-9 * number)
        watermark = hashed(key, 32)
        kept = neuralmark.filtered(len(weights), watermark, rounds)
        right.append(bits.compare(key @ neuralmark.pooled(weights[kept], 64), watermark).rate)
    assert least < sum(right) / 30 <= most


def test_a_filter_keeps_what_stands_at_ones_round_by_round():
    watermark = torch.tensor([1, 0, 1])
    assert neuralmark.filtered(7, watermark, 1).tolist() == [0, 2, 3, 5, 6]
    assert neuralmark.filtered(7, watermark, 2).tolist() == [0, 3, 5]
    weights = torch.arange(6.0)
    assert neuralmark.pooled(weights, 3).tolist() == [0.5, 2.5, 4.5]


def test_the_filters_of_two_keys_share_few_weights():
    rng = torch.Generator().manual_seed(0)
    marks = [torch.randint(2, (32,), generator=rng) for _ in range(2)]
    first, second = ({*neuralmark.filtered(48 * 48, b, 4).tolist()} for b in marks)
    assert len(first & second) < 0.3 * min(len(first), len(second))


def test_a_key_whose_filter_leaves_too_little_is_drawn_again():
    model, rng = owner(), torch.Generator().manual_seed(0)
    carrier, method = tensors.carrier(model, "fc1", "auto"), NeuralMark()
    for _ in range(30):
        secret = method._key(model, carrier, rng)
        assert len(method._kept(secret, carrier)) >= method.pooled
    plain = (torch.randint(2, (32,), generator=rng) for _ in range(100))
    assert min(len(neuralmark.filtered(48 * 48, b, 4)) for b in plain) < method.pooled


def test_a_filter_that_leaves_too_little_is_refused():
    with pytest.raises(UserError, match="expected at least pooled = 2000 weights behind"):
        NeuralMark(pooled=2000).protect(owner(), context(0, "owner"))


def test_centres_are_read_in_a_stream_that_was_shifted_and_scaled(made):
    secret, model = made["centred"].secret, made["centred"].model
    moved = mapped(model, torch.eye(48, dtype=torch.float64), scale=3.0, shift=5.0)
    assert read(CENTRED, secret, moved).agreement == read(CENTRED, secret, model).agreement
    rng = torch.Generator().manual_seed(0)
    assert log10_p(read(CENTRED, secret, mapped(model, permutation(48, 1.0, rng)))) > -3


def test_centres_are_means_over_clusters():
    features = torch.tensor([[0.0, 2.0], [2.0, 4.0], [5.0, 5.0]])
    found = deepsigns._centres(features, torch.tensor([1, 1, 0]), 2)
    assert found.tolist() == [[5.0, 5.0], [1.0, 3.0]]


def test_fewer_images_than_clusters_are_refused():
    with pytest.raises(UserError, match="expected an image for each of clusters = 8, got 4"):
        DeepSigns(images=4).protect(owner(), context(0, "owner"))


@pytest.mark.parametrize("name", MARKS)
def test_suspects_of_another_shape_are_incompatible_and_that_is_known_before(made, name):
    method, secret = MARKS[name], made[name].secret
    wide, cnn = Architecture("embedded", "mini-wide"), Architecture("timm", "test_resnet")
    for architecture in (wide, cnn):
        other = randomised(architecture, 0)
        said = method.unreadable(owner(), other)
        assert said.startswith("expected ")
        with pytest.raises(Incompatible, match="expected "):
            read(method, secret, other)
        with torch.device("meta"):
            assert method.unreadable(build(owner().architecture), build(architecture)) == said
    assert method.unreadable(owner(), stranger(0)) == ""
    assert "expected a block 9" in dataclasses.replace(method, block=9).unreadable(owner(), owner())


@pytest.mark.parametrize("name", ["solved", "hashed", "centred"])
def test_a_secret_that_was_changed_anywhere_is_refused(made, name):
    secret = made[name].secret
    for part in secret:
        value = secret[part].clone()
        value.view(torch.uint8).view(-1)[0] ^= 1
        with pytest.raises(UserError, match="expected the bits that the secret commits to"):
            read(MARKS[name], secret, owner(), **{part: value})
    other = dataclasses.replace(MARKS[name], holder="somebody else")
    with pytest.raises(UserError, match="expected the bits that the secret commits to"):
        read(other, secret, owner())


@pytest.mark.parametrize("name", ["solved", "hashed", "centred"])
def test_redrawn_bits_are_others_and_all_else_stays(made, name):
    method, secret = MARKS[name], made[name].secret
    drawn = method.redrawn(secret, torch.Generator().manual_seed(0))
    apart = {part for part in secret if not torch.equal(secret[part], drawn[part])}
    assert apart == {"nonce", "bits"}
    assert log10_p(read(method, drawn, made[name].model)) > -3
    if name != "centred":
        assert torch.equal(method._projection(secret), method._projection(drawn))


@pytest.mark.parametrize("known", [4, 8])
@pytest.mark.parametrize("name", ["solved", "direct", "diff", "hashed", "centred"])
def test_seeds_that_agree_in_their_first_and_last_bytes_give_other_projections(
    made, name, known, monkeypatch
):
    """A generator takes 32 bits of a seed, and a seed that is searched is no secret."""
    method = MARKS.get(name) or dataclasses.replace(SOLVED, projection=name)
    secret = made[name if name in MARKS else "solved"].secret
    ends = bytes(range(known))
    found = list[torch.Tensor]()
    for middle in (b"one", b"two"):
        monkeypatch.setattr(bits, "projecting", lambda *_, middle=middle: ends + middle + ends)
        found.append(method._projection(secret))
    assert found[0].shape == found[1].shape
    assert not torch.equal(*found)
    if name in MARKS:
        assert not bool((found[0] == found[1]).any())


@pytest.mark.parametrize("name", ["solved", "hashed", "centred"])
def test_a_projection_follows_from_all_that_is_committed_to_but_nonce_and_bits(made, name):
    method, secret = MARKS[name], made[name].secret
    before = bits.projecting(secret, method._rule)
    assert len(before) >= 32
    for part in secret:
        value = secret[part].clone()
        value.view(torch.uint8).view(-1)[-1] ^= 1
        changed = bits.projecting({**secret, part: value}, method._rule)
        assert (changed == before) == (part in ("nonce", "bits"))


def test_weights_that_are_not_finite_are_incompatible(made):
    broken = clone(owner())
    with torch.no_grad():
        for parameter in broken.blocks.parameters():
            parameter.fill_(torch.nan)
    for name in ("solved", "hashed", "centred"):
        with pytest.raises(Incompatible, match="expected finite values"):
            read(MARKS[name], made[name].secret, broken)


def test_a_value_of_nothing_tells_nothing():
    evidence = bits.compare(torch.tensor([0.0, 2.0, -2.0]), torch.tensor([1, 1, 1]))
    assert evidence.agreement == (0.5, 1.0, 0.0)


@pytest.mark.parametrize("name", MARKS)
def test_passes_are_counted(made, name):
    method, ctx = few(MARKS[name]), context(0, "owner")
    with measuring(ctx.device) as meter:
        method.protect(owner(), ctx)
    told = method.protect_passes(sizes())
    assert meter.forward_passes == pytest.approx(told.forward)
    assert meter.backward_passes == pytest.approx(told.backward)
    with measuring(ctx.device) as meter:
        read(MARKS[name], made[name].secret, owner())
    assert meter.forward_passes == pytest.approx(method.extract_passes(sizes()).forward)
    assert (name == "centred") == bool(meter.forward_passes)


@pytest.mark.parametrize("name", ["trained", "centred"])
def test_tokens_that_are_too_many_to_keep_are_asked_for_again(name, monkeypatch):
    method, ctx = few(MARKS[name]), context(0, "owner")
    kept = method.protect(owner(), ctx)
    monkeypatch.setattr(embedding, "KEPT_BYTES", 0)
    ctx = context(0, "owner")
    with measuring(ctx.device) as meter:
        again = method.protect(owner(), ctx)
    assert meter.forward_passes == pytest.approx(method.protect_passes(sizes()).forward)
    for one, other in zip(kept.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    base = owner()
    clean, _ = embedding.look_once(base, lambda images: [base.forward_features(images)], ctx)
    assert clean.kept is None


def test_deviations_are_those_of_all_tokens_however_they_are_batched():
    rng = torch.Generator().manual_seed(0)
    values = 1000 + torch.randn(100, 5, generator=rng, dtype=torch.float64)
    found = embedding.Scatter()
    for part in values.split(37):
        found = found.joined(part)
    torch.testing.assert_close(found.deviation, values.std(0))
    torch.testing.assert_close(found.mean, values.mean(0))


def test_the_owner_stays_as_it_is():
    model = owner()
    before = weights_digest(model)
    for method in MARKS.values():
        few(method).protect(model, context(0, "owner"))
    assert weights_digest(model) == before
