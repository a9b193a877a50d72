import dataclasses

import pytest
import torch
from made_models import CPU, images
from timm.models.vision_transformer import VisionTransformer

from bench.models.building import build
from bench.models.meter import measuring
from bench.models.suspect import View
from bench.models.vision import Architecture, VisionModel, clone
from bench.models.weights import load_state
from bench.records.nouns import Access, Incompatible
from bench.training.activations import BlockActivations, choose_block
from bench.types import Context
from methods.activemark import ActiveMark, embedding
from methods.activemark.channel import Channel, Codec, Link, _same_spot
from methods.activemark.embedding import _after_blocks, _fidelity, _message_loss
from methods.activemark.method import BY_VARIANT

QUICK = {
    "images": 8,
    "steps": 3,
    "batch": 4,
    "block": 2,
    "encoder_hidden": 32,
    "decoder_hidden": 16,
}


def context(seed=0, **kwargs):
    pools = {"images": images(seed=1), "held_out": images(seed=2)} | kwargs
    return Context(CPU, torch.Generator().manual_seed(seed), **pools)


@pytest.fixture(scope="module")
def mini():
    from bench.runs.owners import load_owner
    from bench.suite.owners import OwnerSettings

    return load_owner(OwnerSettings("embedded", "mini"), None)


def protect(mini, seed=0, ctx=None, **settings):
    return ActiveMark(**{**QUICK, **settings}).protect(mini, ctx or context(seed))


def changed_blocks(before: VisionModel, after: VisionModel) -> set[int]:
    pairs = zip(before.blocks, after.blocks, strict=True)
    return {
        i
        for i, (a, b) in enumerate(pairs)
        if any(not torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    }


@pytest.mark.parametrize(
    ("trained", "blocks", "norm"),
    [("inner", {3, 4}, False), ("tail", {3, 4, 5}, True), ("none", set(), False)],
)
def test_only_what_the_setting_names_is_trained(mini, trained, blocks, norm):
    made = protect(mini, trained=trained, lr=1e-2, read="embedding", fidelity_on="embedding")
    assert changed_blocks(mini, made.model) == blocks
    assert torch.equal(mini.trunk.vit.norm.weight, made.model.trunk.vit.norm.weight) != norm
    assert torch.equal(mini.trunk.vit.pos_embed, made.model.trunk.vit.pos_embed)


def test_all_that_follows_the_blocks_belongs_to_the_tail():
    pooled = VisionTransformer(32, 16, embed_dim=16, depth=1, num_heads=2, num_classes=0,
                               class_token=False, global_pool="map")  # fmt: skip
    names = {f"vit.{name}" for name, _ in pooled.named_parameters()}
    earlier = {n for n in names if n.startswith(("vit.patch_embed", "vit.pos_embed", "vit.blocks"))}
    assert any("attn_pool" in name for name in names)
    assert {name for name in names if _after_blocks(name)} == names - earlier


@pytest.mark.parametrize("variant", BY_VARIANT)
def test_a_setting_left_open_equals_the_variant_spelled_out(mini, variant):
    left_open = protect(mini, variant=variant)
    spelled = protect(mini, variant=variant, **BY_VARIANT[variant])
    assert torch.equal(
        left_open.secret["codec.encoder.0.weight"], spelled.secret["codec.encoder.0.weight"]
    )
    other = {"paper": "expressprint", "expressprint": "paper"}[variant]
    crossed = protect(mini, variant=other, **BY_VARIANT[variant])
    assert torch.equal(
        left_open.secret["codec.decoder.0.weight"], crossed.secret["codec.decoder.0.weight"]
    )


@pytest.mark.parametrize("variant", BY_VARIANT)
def test_caching_frozen_activations_changes_no_number(mini, variant, monkeypatch):
    cached = protect(mini, variant=variant)
    monkeypatch.setattr(embedding, "CACHE_BYTES", 0)
    computed = protect(mini, variant=variant)
    assert (cached.notes["frozen_cached"], computed.notes["frozen_cached"]) == (True, False)
    for a, b in zip(cached.model.parameters(), computed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_step_costs_the_fewest_passes(mini, monkeypatch):
    """Blocks 3, 4, 5 of 6 follow block 2: half a pass forwards, half backwards for each image."""

    def passes(steps):
        with measuring(CPU) as meter:
            protect(mini, steps=steps)
        return meter.forward_passes, meter.backward_passes

    monkeypatch.setattr(embedding, "TIMED_ROUNDS", 2)
    (f3, b3), (f7, b7) = passes(3), passes(7)
    assert (f7 - f3, b7 - b3) == pytest.approx((4 * 4 * 0.5, 4 * 4 * 0.5))
    monkeypatch.setattr(embedding, "CACHE_BYTES", 0)
    (f3, b3), (f7, b7) = passes(3), passes(7)
    assert (f7 - f3, b7 - b3) == pytest.approx((4 * 4 * 1.5, 4 * 4 * 0.5))


def test_extraction_stops_where_the_decoder_reads(mini):
    made = protect(mini)
    with measuring(CPU) as meter:
        ActiveMark(**QUICK).extract(made.secret, View(made.model, Access.WEIGHTS), context())
    assert meter.forward_passes == pytest.approx(8 * 5 / 6)
    assert meter.backward_passes == 0


def wired(mini, link, bits=4):
    """Return a codec that writes the message into channels 0 .. bits - 1 and reads them there."""
    codec = Codec(48, 48, bits, 2 * bits, bits, "linear")
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.zero_()
        for i in range(bits):  # ReLU(m) and ReLU(1 - m), so that the token carries 2 m - 1
            codec.encoder[0].weight[2 * i, 48 + i] = 1
            codec.encoder[0].weight[2 * i + 1, 48 + i] = -1
            codec.encoder[0].bias[2 * i + 1] = 1
            codec.encoder[2].weight[i, 2 * i] = 1
            codec.encoder[2].weight[i, 2 * i + 1] = -1
            codec.decoder[0].weight[i, i] = 1
            codec.decoder[2].weight[i, i] = 1
        codec.decoder[2].bias -= 0.5  # ReLU leaves 1 or 0
    return codec


def silent(model):
    """Return the model with blocks that add nothing to the residual stream."""
    made = clone(model)
    with torch.no_grad():
        for block in made.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
    return made


def secret_of(codec, link, messages, pixels, model):
    return {
        **{f"codec.{k}": v for k, v in codec.state_dict().items()},
        "link": torch.tensor(link),
        "pixels": pixels,
        "messages": messages,
        "mean": model.mean.flatten(),
        "std": model.std.flatten(),
    }


def test_bit_errors_are_counted_exactly_through_a_hand_made_codec(mini):
    link = Link(2, 46, 6, 1, 65)
    sent = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.uint8)
    expected = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]], dtype=torch.uint8)
    mark = ActiveMark(bits=4, tau=1, encoder_output="linear")
    model = silent(mini)
    secret = secret_of(wired(mini, link), link, sent, images(3).pixels, mini)
    clean = mark.extract(secret, View(model, Access.WEIGHTS), context())
    assert clean.statistic == (0.0, 0.0, 0.0)
    assert clean.rate == 1.0
    # The message is injected by the verifier, so a decoder that negates bits shows the errors.
    negate = (sent ^ expected).sum(1).tolist()
    assert negate == [0, 2, 4]
    flipped = dict(secret)
    weight = secret["codec.decoder.2.weight"].clone()
    weight[1], bias = -weight[1], secret["codec.decoder.2.bias"].clone()
    bias[1] = 0.5
    flipped |= {"codec.decoder.2.weight": weight, "codec.decoder.2.bias": bias}
    wrong = mark.extract(flipped, View(model, Access.WEIGHTS), context())
    assert wrong.statistic == (1.0, 1.0, 1.0)
    assert wrong.agreement == (0.75, 0.75, 0.75)
    assert wrong.rate == 1.0


def test_extraction_runs_the_suspects_own_blocks(mini):
    """A block after b that erases the stream leaves nothing to read."""
    link = Link(2, 46, 6, 1, 65)
    sent = torch.tensor([[1, 1, 1, 1]], dtype=torch.uint8)
    secret = secret_of(wired(mini, link), link, sent, images(1).pixels, mini)
    model = silent(mini)
    with torch.no_grad():
        model.blocks[3].mlp.fc2.bias.fill_(-9.0)
    found = ActiveMark(bits=4, tau=1, encoder_output="linear").extract(
        secret, View(model, Access.WEIGHTS), context()
    )
    assert found.statistic == (4.0,)


@pytest.mark.parametrize(
    ("norm", "expected"), [("mse", (4 * 0.25 + 4 * 0.25) / 8), ("l1", 4 * 0.5), ("bce", 0.6931472)]
)
def test_message_loss_at_even_odds_equals_the_hand_count(norm, expected):
    loss = _message_loss(torch.zeros(2, 4), torch.tensor([[0.0, 1, 1, 0]] * 2), norm)
    assert float(loss) == pytest.approx(expected)


def test_fidelity_loss_equals_the_hand_count():
    difference = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert float(_fidelity(difference, "l2")) == pytest.approx(2.5)
    assert float(_fidelity(difference, "mse")) == pytest.approx(25 / 4)
    assert float(_fidelity(difference, "l2_squared")) == pytest.approx(25 / 2)


def test_select_keeps_only_images_without_error_and_yield_tells_their_share(mini):
    settings = {"bits": 2, "tau": 0, "steps": 40, "batch": 8, "codec_lr": 0.01, "weight": 100.0,
                "encoder_output": "linear"}  # fmt: skip
    everything = protect(mini, **settings)
    selected = protect(mini, **settings, select=True)
    share = everything.notes["yield"]
    assert 0 < share < 1
    assert len(selected.secret["pixels"]) == round(8 * share) == selected.notes["trigger_images"]
    view = View(selected.model, Access.WEIGHTS)
    evidence = ActiveMark(**{**QUICK, **settings}).extract(selected.secret, view, context())
    assert evidence.rate == 1.0


def test_fixed_triggers_are_trained_on_and_generic_ones_never(mini):
    ctx = context()
    rows = {tuple(p.flatten().tolist()) for p in ctx.images.pixels}
    fixed = protect(mini, variant="paper").secret["pixels"]
    generic = protect(mini, variant="expressprint").secret["pixels"]
    assert all(tuple(p.flatten().tolist()) in rows for p in fixed)
    assert not any(tuple(p.flatten().tolist()) in rows for p in generic)


@pytest.mark.parametrize("read", ["embedding", "output_token", "last_block_input"])
@pytest.mark.parametrize("axis", ["token", "channel"])
def test_every_reading_can_be_written_and_read(mini, axis, read):
    settings = {"axis": axis, "read": read, "index": 3, "fidelity_on": "tokens"}
    made = protect(mini, **settings)
    mark = ActiveMark(**{**QUICK, **settings})
    evidence = mark.extract(made.secret, View(made.model, Access.WEIGHTS), context())
    assert len(evidence.statistic) == 8
    written = made.secret["codec.encoder.2.bias"].shape[0]
    assert written == (48 if axis == "token" else 65)


@pytest.mark.parametrize(
    "settings",
    [
        {"fidelity_under": "plain"},
        {"index": "massive"},
        {"index": "random"},
        {"block": "auto"},
        {"augment": True},
        {"precision": "bfloat16"},
        {"message_norm": "bce"},
        {"preprocess": "owner"},
        {"binarise": ">="},
        {"token_match": "patch", "depth_match": "from_end"},
    ],
    ids=repr,
)
def test_every_other_setting_marks_and_reads(mini, settings):
    made = protect(mini, **settings)
    mark = ActiveMark(**{**QUICK, **settings})
    evidence = mark.extract(made.secret, View(made.model, Access.WEIGHTS), context())
    assert all(0 <= e <= 32 for e in evidence.statistic)


def test_the_owners_normalisation_reaches_a_suspect_of_another_size(mini, monkeypatch):
    owner, suspect = clone(mini), build(Architecture("timm", "test_vit", 64, None))
    owner.mean.fill_(0.1)
    owner.std.fill_(0.2)
    made = protect(owner, preprocess="owner")
    seen = []
    embed = suspect.trunk.embed
    monkeypatch.setattr(suspect.trunk, "embed", lambda x: (seen.append(x), embed(x))[1])
    mark = ActiveMark(**{**QUICK, "preprocess": "owner"})
    codec = Codec(64, 64, 32, 16, 16, "linear")
    norm = owner.mean, owner.std
    pixels, messages = made.secret["pixels"], made.secret["messages"]
    Channel(Link(2, 2, 6, 1, 17), codec, mark.wiring).wrong(suspect, pixels, messages, norm)
    resized = suspect.normalise(pixels / 255) * suspect.std + suspect.mean
    torch.testing.assert_close(seen[0], (resized - 0.1) / 0.2, rtol=0, atol=1e-5)


def test_joint_classifier_finetunes_every_block_before_marking(mini):
    labelled = images(seed=1, labels=torch.arange(12) % 3, classes=3)
    made = protect(mini, ctx=context(images=labelled), classifier="joint")
    assert changed_blocks(mini, made.model) == set(range(6))
    assert made.model.architecture == mini.architecture


def test_a_joint_classifier_leaves_none_of_the_librarys_own_behind():
    shape = Architecture("timm", "test_vit", 32, "own")
    labelled = images(seed=1, labels=torch.arange(12) % 3, classes=3)
    settings = {"classifier": "joint", "index": 2, "block": 2, "trained": "tail"}
    made = protect(build(shape), ctx=context(images=labelled), **settings)
    assert made.model.architecture.head is None
    load_state(build(made.model.architecture), made.model.state_dict(), "stored")


def test_what_is_only_timed_moves_no_draw(mini, monkeypatch):
    timed = protect(mini, augment=True, steps=6)
    monkeypatch.setattr(embedding, "TIMED_ROUNDS", 2)
    less = protect(mini, augment=True, steps=6)
    for a, b in zip(timed.model.parameters(), less.model.parameters(), strict=True):
        assert torch.equal(a, b)


def other_shape(monkeypatch, **shape):
    from bench.models.libraries import embedded

    monkeypatch.setattr(embedded, "MINI", {**embedded.MINI, **shape})
    return build(Architecture("embedded", "mini"))


@pytest.mark.parametrize(
    ("shape", "settings", "says"),
    [
        ({"embed_dim": 24}, {}, "expected the owner's width 48, got 24"),
        ({"depth": 3}, {}, "expected more than 3 blocks, got 3"),
        (
            {"patch_size": 8},
            {"axis": "channel", "index": 3},
            "expected the owner's token count 65, got 17",
        ),
        ({"patch_size": 8}, {}, "expected a token 46, the suspect has none"),
    ],
    ids=repr,
)
def test_a_suspect_that_cannot_be_read_is_incompatible(mini, monkeypatch, shape, settings, says):
    made = protect(mini, **settings)
    suspect = View(other_shape(monkeypatch, **shape), Access.WEIGHTS)
    with pytest.raises(Incompatible, match=says):
        ActiveMark(**{**QUICK, **settings}).extract(made.secret, suspect, context())


def test_token_and_depth_can_be_matched_to_another_shape(mini, monkeypatch):
    link = Link(2, 46, 6, 1, 65)
    deeper = silent(other_shape(monkeypatch, depth=8, reg_tokens=4))
    placed = ActiveMark(bits=4, tau=1, token_match="patch", depth_match="from_end")
    found = Channel(link, wired(mini, link), placed.wiring).fitted(deeper).link
    assert (found.block, found.place) == (4, 50)
    plain = Channel(link, wired(mini, link), ActiveMark().wiring).fitted(deeper).link
    assert (plain.block, plain.place) == (2, 46)


def profile_of(tops, median=0.05):
    return tuple(
        BlockActivations(i, (t, t, t, t, t), median, 0, 0, 1.0) for i, t in enumerate(tops)
    )


@pytest.mark.parametrize(
    ("tops", "rule", "last", "block", "used"),
    [
        ([1, 2, 150, 400, 500], "first_massive", 4, 2, "first_massive"),
        ([1, 2, 150, 400, 500], "largest_jump", 4, 3, "largest_jump"),
        ([1, 2, 30, 35, 40], "first_massive", 4, 2, "largest_jump"),
        ([1, 2, 150, 400, 500], "largest_jump", 2, 2, "largest_jump"),
    ],
)
def test_the_expressive_block_follows_its_rule(tops, rule, last, block, used):
    choice = choose_block(profile_of(tops), rule, last)
    assert (choice.block, choice.rule) == (block, used)


def test_a_block_that_only_the_authors_code_would_take_is_noted_beside_the_one_taken(mini):
    model = clone(mini)
    with torch.no_grad():
        model.blocks[5].mlp.fc2.bias[7] = 5000.0  # behind what any reader sees
        model.blocks[2].mlp.fc2.bias[7] = 50.0
    made = ActiveMark(**{**QUICK, "block": "auto"}).protect(model, context())
    noted = [made.notes[name] for name in ("block", "block_rule", "code_block")]
    assert noted == [2, "largest_jump up to 3", 5]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tau": 40}, "tau: expected 0 to bits = 32, got 40"),
        ({"steps": 0}, "steps: expected a number greater than 0, got 0"),
        ({"variant": "paper", "augment": True}, "augment: expected False"),
    ],
    ids=repr,
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        ActiveMark(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"images": 99}, "expected 99 trigger images, the owner's pool has 12"),
        ({"block": 5}, "block: expected 0 to 4 in a model of 6 blocks, got 5"),
        ({"index": 65}, "index: expected 0 to 64"),
    ],
    ids=repr,
)
def test_settings_the_owner_cannot_meet_are_refused(mini, settings, says):
    with pytest.raises(ValueError, match=says):
        protect(mini, **settings)


def test_a_diverging_embedding_says_so(mini):
    with pytest.raises(FloatingPointError, match="lower lr"):
        protect(mini, lr=1e20, codec_lr=1e20, steps=6)


def test_the_codec_is_drawn_from_its_generator_alone():
    torch.manual_seed(1)
    first = Codec(48, 48, 32, 8, 8, "sigmoid").draw(torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    second = Codec(48, 48, 32, 8, 8, "sigmoid").draw(torch.Generator().manual_seed(5))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    widest = first.encoder[0].weight.detach().abs().max()
    assert 0 < float(widest) <= (48 + 32) ** -0.5


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ActiveMark().steps = 3  # type: ignore[misc]


def test_a_suspect_of_another_width_can_be_padded(mini, monkeypatch):
    """The hand-made codec uses channels 0 .. 3 alone, which a narrower stream has too."""
    link = Link(2, 46, 6, 1, 65)
    sent = torch.tensor([[1, 0, 1, 0]], dtype=torch.uint8)
    secret = secret_of(wired(mini, link), link, sent, images(1).pixels, mini)
    narrow = silent(other_shape(monkeypatch, embed_dim=24))
    mark = ActiveMark(bits=4, tau=1, encoder_output="linear", width_match="pad")
    found = mark.extract(secret, View(narrow, Access.WEIGHTS), context())
    assert found.statistic == (0.0,)


@pytest.mark.parametrize(
    ("patch", "owners", "suspects", "expected"),
    [(0, 64, 16, 0), (63, 64, 16, 15), (45, 64, 16, 10), (45, 256, 64, 14), (5, 16, 64, 18)],
)
def test_the_same_spot_of_another_grid_equals_the_hand_count(patch, owners, suspects, expected):
    assert _same_spot(patch, owners, suspects) == expected


def test_the_same_spot_is_read_in_a_coarser_suspect(mini, monkeypatch):
    coarse = other_shape(monkeypatch, patch_size=8)
    link, wiring = Link(2, 46, 6, 1, 65), ActiveMark(token_match="relative").wiring
    placed = Channel(link, wired(mini, link), wiring).fitted(coarse).link
    assert (placed.place, placed.tokens) == (11, 17)  # patch 45 is row 5, column 5 of 8 x 8
