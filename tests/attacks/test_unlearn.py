import dataclasses

import pytest
import torch

from attacks.unlearn import Codec, Rear, RemovalNet, SurrogateCodec, _mixed
from bench.models import Architecture, build
from bench.records.nouns import Incompatible, UserError
from bench.testing import CPU, _with_digits_head, context, owner

SHORT = {"epochs": 1, "batch": 32}


def asked():
    return context().images.batch(slice(None), CPU)


def moved(before, after):
    """Name the tensors that are not what they were."""
    one, other = before.state_dict(), after.state_dict()
    return {name for name in one if not torch.equal(one[name], other[name])}


def likeness(one, other):
    with torch.no_grad():
        return float(torch.cosine_similarity(one.features(asked()), other.features(asked())).mean())


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_rear_alone_is_drawn_and_learns(blocks):
    victim = _with_digits_head(owner())
    made = Rear(blocks=blocks, **SHORT).run(victim, context(3))
    changed = {name.split(".blocks.")[1].split(".")[0] for name in moved(victim, made)}
    assert changed == {str(6 - 1 - i) for i in range(blocks)}
    assert made.architecture.head == victim.architecture.head


def test_the_rear_comes_from_no_weight_of_the_victim():
    """At a rate that moves nothing two seeds give other blocks, none of them the victim's."""
    one, other = (Rear(lr=1e-12, **SHORT).run(owner(), context(seed)) for seed in (1, 2))
    for left, right in ((one, other), (owner(), one)):
        weights = [m.state_dict()["trunk.vit.blocks.5.mlp.fc1.weight"] for m in (left, right)]
        assert abs(torch.corrcoef(torch.stack([w.flatten() for w in weights]))[0, 1]) < 0.05


def test_the_rear_learns_to_give_the_victims_features():
    drawn = Rear(lr=1e-12, blocks=2, **SHORT).run(owner(), context(3))
    made = Rear(epochs=8, batch=16, blocks=2, lr=2e-3).run(owner(), context(3))
    # Features of one model are alike to begin with: an untrained rear has a cosine of 0.89.
    assert 1 - likeness(owner(), made) < 0.3 * (1 - likeness(owner(), drawn))
    assert made.notes["steps"] == 32


def test_more_blocks_than_there_are_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^finetune\.rear: blocks: expected the victim's 6 or"):
        Rear(blocks=7).run(owner(), context())
    with pytest.raises(Incompatible, match="expected a sequence of transformer blocks"):
        Rear().run(build(Architecture("timm", "test_resnet")), context())


def test_a_codec_is_drawn_from_the_generator_it_is_given():
    one, other = (Codec(4, 8, 3, 5).draw(torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_bits_arrive_on_the_victim_and_less_of_them_on_the_copy():
    """The decoder reads the victim. Once the model has hidden them, another one reads less."""
    how = SurrogateCodec(
        **{"bits": 4, "rounds": 2, "epochs": 2, "codec_epochs": 25, "refresh_epochs": 1},
        **{"batch": 16, "lr": 1e-3, "codec_lr": 1e-2, "weight": 10.0},
    )
    made = how.run(owner(), context(3))
    assert made.notes["codec_loss"] < 0.6 < made.notes["last_codec_loss"]
    assert likeness(owner(), made) > 0.5  # 0.70 to 0.85, by how a processor sums: trained hard
    assert all(p.requires_grad for p in made.parameters())


def test_a_late_patch_is_read_where_it_was_written_and_hardly_elsewhere():
    how = SurrogateCodec(
        **{"block": 4, "token": 46, "bits": 4, "rounds": 1, "epochs": 1, "codec_epochs": 40},
        **{"batch": 16, "lr": 0.0, "codec_lr": 1e-2},
    )
    pooled, there = (
        dataclasses.replace(how, read=read).run(owner(), context(3)).notes["codec_loss"]
        for read in ("pooled", "token")
    )
    assert there < 0.1 < 0.6 < pooled


def test_a_place_that_the_victim_lacks_is_refused_in_one_line():
    for name, value, most in (("block", 6, 5), ("token", 65, 64)):
        wrong = dataclasses.replace(SurrogateCodec(), **{name: value})
        said = rf"^finetune\.surrogate_codec: {name}: expected 0 to {most}, got {value}$"
        with pytest.raises(UserError, match=said):
            wrong.run(owner(), context())


def test_scores_are_mixed_with_the_farthest_where_the_class_stays():
    scores = torch.tensor([[4.0, 0.0], [3.0, 1.0], [0.0, 8.0], [0.0, 2.0]])
    # The farthest of each: the third, the third, the first, the third.
    expected = torch.tensor([[4.0, 0.0], [3.0, 1.0], [2.0, 4.0], [0.0, 5.0]])
    assert torch.equal(_mixed(scores), expected)


def test_signed_steps_bring_back_the_class_of_a_state_that_was_moved():
    victim = _with_digits_head(owner())
    with torch.no_grad():
        state = victim.run_blocks(victim.embed(asked()), 0, 3)
        labels = victim.logits(asked()).argmax(1)
    kept, apart = [], []
    for steps in (0, 20):
        how = RemovalNet(shuffled=0.2, noise=0.3, inner_steps=steps)
        rng = torch.Generator().manual_seed(0)
        made = how._elsewhere(victim.requires_grad_(False), state, labels, 3, rng)
        with torch.no_grad():
            said = victim.forward_head(victim.finish(victim.run_blocks(made, 3))).argmax(1)
        kept.append(float((said == labels).double().mean()))
        apart.append(float((made - state).std() / state.std()))
    assert kept[1] > max(kept[0], 0.9)
    assert min(apart) > 0.3


def test_a_copy_learns_states_elsewhere_and_answers_as_before():
    victim = _with_digits_head(owner())
    made = RemovalNet(epochs=3, batch=16, block=3, inner_steps=4).run(victim, context(3))
    with torch.no_grad():
        before, after = (m.run_blocks(m.embed(asked()), 0, 4) for m in (victim, made))
        same = victim.logits(asked()).argmax(1) == made.logits(asked()).argmax(1)
    assert float((after - before).std() / before.std()) > 0.1
    assert same.double().mean() > 0.7


def test_a_victim_without_a_classifier_or_such_a_block_is_refused_in_one_line():
    with pytest.raises(Incompatible, match=r"^removalnet: expected a victim that classifies"):
        RemovalNet().run(owner(), context())
    with pytest.raises(UserError, match=r"^removalnet: block: expected 0 to 5, got 6$"):
        RemovalNet(block=6).run(_with_digits_head(owner()), context())


def test_what_these_thieves_know_is_said():
    assert Rear.adaptive == "that a block is written to"
    assert SurrogateCodec.adaptive == "that a token carries a message"
