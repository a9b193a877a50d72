import dataclasses

import pytest
import torch
import torch.nn.functional as F
from made_models import CPU
from torch import nn

from bench import testing
from bench.models.heads import Head
from bench.models.meter import Meter, aside, count, measuring
from bench.models.surgery import with_head
from bench.models.suspect import View
from bench.records.nouns import UserError
from bench.registry import METHODS
from bench.training import loop
from bench.training.microbatch import MicroBatches, _draws, in_batches
from bench.training.probe import pooled_features


def short(work, room):
    """A device on which more than `room` images at a time do not fit."""

    def tried(part):
        count(forward=part.stop - part.start)
        if part.stop - part.start > room:
            raise torch.OutOfMemoryError
        return work(part)

    return tried


def ends(part):
    return part.start, part.stop


@pytest.mark.parametrize(
    ("count", "batch", "room", "expected"),
    [
        (5, 2, 9, [(0, 2), (2, 4), (4, 5)]),
        (5, 9, 9, [(0, 5)]),
        (0, 4, 9, []),
        (7, 4, 2, [(0, 2), (2, 4), (4, 6), (6, 7)]),
        (3, 8, 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_batches_are_cut_only_where_memory_is_short(count, batch, room, expected):
    with measuring(CPU) as meter:
        assert list(in_batches(count, batch, short(ends, room))) == expected
    assert meter.forward_passes == count  # what failed is no pass
    assert (meter.micro_batch is None) == (min(count, batch) <= room)


def test_what_fitted_is_remembered_and_the_smallest_size_noted():
    micro, seen = MicroBatches(8), []
    work = short(ends, 3)
    with measuring(CPU) as outer, measuring(CPU) as inner:
        list(micro.over(8, work))
        list(micro.over(8, lambda part: seen.append(ends(part)) or work(part)))
    assert micro.size == 2
    assert seen == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert (outer.micro_batch, inner.micro_batch) == (2, 2)


def test_no_room_for_one_image_is_one_line():
    with pytest.raises(UserError, match="out of memory with one image at a time") as found:
        list(in_batches(8, 8, short(ends, 0)))
    assert "\n" not in str(found.value)


def test_other_errors_are_left_alone():
    def broken(part):
        raise RuntimeError("another")

    with pytest.raises(RuntimeError, match="another"):
        list(in_batches(8, 8, broken))


def test_on_a_gpu_its_cache_is_emptied_when_memory_is_short(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    list(in_batches(8, 8, short(ends, 2)))
    assert len(emptied) == 2  # 8, 4


def problem():
    g = torch.Generator().manual_seed(0)
    net = nn.Linear(8, 3)
    with torch.no_grad():
        net.weight.normal_(generator=g)
        net.bias.zero_()
    return net, torch.randn(11, 8, generator=g), torch.randint(3, (11,), generator=g)


@pytest.mark.parametrize("fails", ["before the pass", "on the way back"])
def test_gradients_of_parts_add_up_to_those_of_the_batch(fails):
    net, x, y = problem()
    F.cross_entropy(net(x), y).backward()
    whole = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    tried = []

    def refuse(_):
        raise torch.OutOfMemoryError

    def loss_of(part):
        tried.append(ends(part))
        out = net(x[part])
        if part.stop - part.start > 3:
            if fails == "before the pass":
                refuse(out)
            out.register_hook(refuse)
        elif len(tried) == 4:  # after other parts have left their gradients
            out.register_hook(refuse)
        loss = F.cross_entropy(out, y[part])
        return loss, loss.detach()

    micro = MicroBatches(16)
    reported = micro.accumulate(11, loss_of, net.zero_grad, CPU)
    assert tried[:2] == [(0, 11), (0, 5)]
    assert micro.size == 1
    assert float(reported) == pytest.approx(float(F.cross_entropy(net(x), y).detach()), rel=1e-6)
    for found, expected in zip(net.parameters(), whole, strict=True):
        assert float((found.grad - expected).abs().max() / expected.abs().max()) < 1e-6


def test_a_batch_taken_again_draws_from_where_it_began():
    rng, drawn = torch.Generator().manual_seed(3), []

    def loss_of(part):
        drawn.append((float(torch.rand((), generator=rng)), float(torch.rand(()))))
        if part.stop - part.start > 2:
            raise torch.OutOfMemoryError
        loss = torch.zeros((), requires_grad=True) * 1
        return loss, loss.detach()

    with torch.random.fork_rng(devices=[]):
        MicroBatches(4).accumulate(4, loss_of, lambda: None, CPU, rng)
    assert drawn[0] == drawn[1] != drawn[2]


class Tight:
    """A device that holds `room` images: a model's blocks refuse more."""

    def __init__(self, monkeypatch, room):
        from bench.models.vision import VisionModel

        whole, self.refused = VisionModel.run_blocks, 0

        def run_blocks(model, tokens, *between):
            if len(tokens) > room:
                self.refused += 1
                raise torch.OutOfMemoryError
            return whole(model, tokens, *between)

        monkeypatch.setattr(VisionModel, "run_blocks", run_blocks)


def test_training_goes_on_with_what_fits_and_learns_the_same(monkeypatch):
    def trained():
        model = with_head(testing.owner(), Head(10, 0.0), torch.Generator().manual_seed(1))
        images = testing.context().images

        def loss_of(chosen):
            return F.cross_entropy(model.logits(images.batch(chosen, CPU)), images.labels[chosen])

        rng = torch.Generator().manual_seed(0)
        how = loop.Training(epochs=1, batch=32, lr=1e-3)
        made = loop.fit(model.parameters(), loss_of, len(images), how, rng)
        return made.losses[0], model.state_dict(), rng.get_state()

    loss, weights, rng = trained()
    tight = Tight(monkeypatch, 10)
    with measuring(CPU) as meter:
        again, moved, state = trained()
    assert tight.refused == 2  # 32, 16; then eight at a time for good
    assert (meter.micro_batch, meter.forward_passes, meter.backward_passes) == (8, 64, 64)
    assert again == pytest.approx(loss, rel=1e-5)
    assert torch.equal(rng, state)
    for name, value in weights.items():  # AdamW's first steps divide by what is nearly nothing
        assert float((moved[name] - value).abs().max()) < 1e-3, name


METHODS_IN_SMALL = {
    "activemark": {"images": 20, "steps": 6, "bits": 8},
    "adv_tra": {"mode": "fast", "trajectories": 4, "classes": 4},
    "ipguard": {"points": 12, "iterations": 20, "k": 1.0},
    "akh": {"queries": 20},
    "pautov2024": {"queries": 10, "proxies": 4},
}


@pytest.mark.parametrize("name", METHODS_IN_SMALL)
def test_every_method_protects_and_reads_on_a_device_that_is_too_small(name, monkeypatch):
    method = METHODS.build(name, METHODS_IN_SMALL[name])
    owner = with_head(testing.owner(), Head(10), torch.Generator().manual_seed(5))

    def found():
        made = method.protect(owner, testing.context(1, "owner"))
        suspect = View(made.model, method.needs)
        evidence = method.extract(made.secret, suspect, testing.context(2, "owner"))
        return made, evidence, suspect.queries

    plain = found()
    tight = Tight(monkeypatch, 3)
    with measuring(CPU) as meter:
        made, evidence, queries = found()
    assert tight.refused > 0
    assert meter.micro_batch in (1, 2, 3)
    assert queries == plain[2]
    assert evidence.score == pytest.approx(plain[1].score, abs=0.05)
    if name != "activemark":  # whose training goes its own way after a rounding
        assert {k: v.shape for k, v in made.secret.items()} == {
            k: v.shape for k, v in plain[0].secret.items()
        }


def test_features_do_not_depend_on_what_fits(monkeypatch):
    images = testing.context().images
    whole = pooled_features(testing.owner(), images, CPU)
    Tight(monkeypatch, 5)
    assert torch.allclose(pooled_features(testing.owner(), images, CPU), whole, atol=1e-5)


def test_what_is_tried_aside_is_not_noted():
    with measuring(CPU) as meter, aside(CPU):
        list(in_batches(4, 4, short(ends, 2)))
    assert meter.micro_batch is None


def test_the_memory_of_a_gpu_is_asked_where_its_generators_are(monkeypatch):
    generator = torch.Generator().manual_seed(7)
    monkeypatch.setattr(torch.cuda, "default_generators", (None, generator))
    before = generator.get_state()
    put_back = _draws(torch.device("cuda", 1), ())
    torch.rand(3, generator=generator)
    put_back()
    assert torch.equal(generator.get_state(), before)


def test_meters_know_no_want_of_memory_without_one():
    assert dataclasses.asdict(Meter())["micro_batch"] is None
