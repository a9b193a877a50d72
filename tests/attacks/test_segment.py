import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from made import suite

from attacks.segment import FinetuneSegment
from bench import training
from bench.data import images, manifest
from bench.data.item import IGNORE
from bench.data.settings import DataSettings
from bench.models.heads import SegmentationHead
from bench.models.surgery import with_head
from bench.models.weights import weights_digest
from bench.records.nouns import Incompatible, UserError
from bench.records.store import Store
from bench.runs.laboratory import Laboratory
from bench.suite import plan, reader
from bench.suite.todo import missing
from bench.testing import CPU, check_attack, context, owner, stranger
from bench.training import probe
from bench.training.microbatch import MicroBatches


@pytest.mark.parametrize(("decoder", "blocks"), [("linear", (5,)), ("dpt", (1, 2, 4, 5))])
def test_every_layer_moves_and_the_head_stays_on(decoder, blocks):
    victim = owner()
    made = FinetuneSegment(epochs=1, decoder=decoder).run(victim, context())
    before, after = victim.state_dict(), made.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert made.architecture.head == SegmentationHead(10, decoder, blocks)
    assert made(context().images.batch(slice(0, 4), CPU)).shape == (4, 10, 32, 32)
    assert not any(module.training for module in made.modules())


def test_a_twin_starts_from_the_same_head_whatever_the_victim():
    run = FinetuneSegment(lr=0.0, epochs=1).run
    made = [run(victim, context(7)) for victim in (owner(), stranger())]
    heads = [model.head.state_dict() for model in made]
    fresh = with_head(owner(), made[0].architecture.head, torch.Generator().manual_seed(7))
    for name, value in fresh.head.state_dict().items():
        assert torch.equal(heads[0][name], value)
        assert torch.equal(heads[1][name], value)
    assert weights_digest(made[0]) == weights_digest(owner())


def test_the_contract_holds_for_the_other_decoder_too():
    check_attack(FinetuneSegment(decoder="dpt", epochs=1))


def test_it_equals_a_plain_loop_over_pytorchs_own_parts():
    settings = FinetuneSegment(epochs=2, batch=24, lr=1e-3, schedule="linear")
    made = settings.run(owner(), context(5))

    ctx, rng = context(), torch.Generator().manual_seed(5)
    model = with_head(owner(), SegmentationHead(10, "linear", (5,)), rng)
    torch.randint(2**62, (), generator=rng)  # the seed of dropout
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 6)
    for _ in range(2):
        for chosen in torch.randperm(64, generator=rng).split(24):
            optimiser.zero_grad()
            tokens = model.forward_features(ctx.images.pixels[chosen] / 255)[:, 1:]
            scores = F.linear(
                model.head.norm(tokens),
                model.head.convolution.weight.squeeze(),
                model.head.convolution.bias,
            )
            scores = scores.mT.reshape(-1, 10, 8, 8)
            scores = F.interpolate(scores, scale_factor=4, mode="bilinear").movedim(1, -1)
            masks = ctx.images.masks[chosen].long()
            known = masks < 10
            F.cross_entropy(scores[known], masks[known]).backward()
            optimiser.step()
            scheduler.step()
    asked = ctx.held_out.batch(slice(None), CPU)
    with torch.no_grad():
        assert torch.allclose(made.segment(asked), model.segment(asked), atol=1e-3)
        assert not torch.allclose(made.segment(asked), model.segment(asked.flip(-1)), atol=1e-3)


def test_a_mask_that_shows_nothing_teaches_nothing():
    ctx = context()
    masks = torch.full_like(ctx.images.masks, IGNORE)
    masks[:, 5:9, 5:9] = 3
    ctx = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, masks=masks))
    made = FinetuneSegment(epochs=4, lr=1e-3).run(owner(), ctx)
    with torch.no_grad():
        shown = made.segment(ctx.images.batch(slice(0, 8), CPU)).argmax(1)
    assert (shown[:, 5:9, 5:9] == 3).all()
    assert made.notes["final_loss"] < math.log(10) / 2


@pytest.mark.parametrize(("batch", "count"), [(1, 2), (4, 5)])
@pytest.mark.parametrize("decoder", ["linear", "dpt"])
def test_a_batch_of_one_image_is_a_step_like_any_other(decoder, batch, count):
    """The coarsest map of a DPT on mini is one pixel: a batch norm has nothing to take there."""
    ctx = context()
    few = dataclasses.replace(ctx, images=ctx.images.subset(range(count)))
    made = FinetuneSegment(epochs=1, decoder=decoder, batch=batch).run(owner(), few)
    assert math.isfinite(made.notes["final_loss"])
    assert all(value.isfinite().all() for value in made.state_dict().values())


def with_masks(ctx, masks):
    return dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, masks=masks))


def uneven(ctx):
    """Of the first mask nothing counts, of the second one row, of the others all."""
    masks = ctx.images.masks.clone()
    masks[0], masks[1, 1:] = IGNORE, IGNORE
    return with_masks(ctx, masks)


@pytest.mark.parametrize("batch", [1, 64])
def test_a_wholly_ignored_mask_is_no_divergence(batch):
    made = FinetuneSegment(epochs=1, batch=batch, lr=1e-4).run(owner(), uneven(context()))
    assert math.isfinite(made.notes["final_loss"])
    assert all(value.isfinite().all() for value in made.state_dict().values())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_in_parts_the_loss_is_the_mean_over_what_counts_in_the_whole_batch(size, monkeypatch):
    settings = FinetuneSegment(epochs=1, batch=16, lr=1e-3)
    ctx = uneven(context(5))
    few = dataclasses.replace(ctx, images=ctx.images.subset(range(16)))
    whole = settings.run(owner(), few)
    few = dataclasses.replace(few, rng=torch.Generator().manual_seed(5))
    monkeypatch.setattr(training.loop, "MicroBatches", lambda batch: MicroBatches(size))
    parts = settings.run(owner(), few)
    assert parts.notes["final_loss"] == pytest.approx(whole.notes["final_loss"], rel=1e-5)
    with torch.no_grad():
        head = with_head(owner(), whole.architecture.head, torch.Generator().manual_seed(5))
        scores = head.segment(few.images.batch(slice(None), CPU))
    known = few.images.masks != IGNORE
    plain = F.cross_entropy(scores.movedim(1, -1)[known], few.images.masks[known].long())
    assert whole.notes["final_loss"] == pytest.approx(float(plain), rel=1e-5)


def test_masks_of_which_nothing_counts_are_refused_in_one_line():
    ctx = context()
    nothing = with_masks(ctx, torch.full_like(ctx.images.masks, IGNORE))
    with pytest.raises(UserError, match="with pixels that count, got 'x' with none") as raised:
        FinetuneSegment(data="x").run(owner(), nothing)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_the_thief_learns_the_task_beyond_naming_the_majority():
    scenes = manifest.read("digit-scenes", DataSettings("digit-scenes", crops=80))
    pools, size = manifest.split(scenes), owner().preprocess
    train = images.load(scenes, pools.thief_images, size)
    test = images.load(scenes, pools.thief_held_out, size)
    ctx = dataclasses.replace(context(), images=train)
    made = FinetuneSegment(lr=2e-3, batch=8).run(owner(), ctx)
    majority = probe.class_iou(torch.zeros_like(test.masks), test.masks, 11).nanmean()
    assert 0.05 < majority < 0.10  # background is nine pixels of ten, and one class of eleven
    assert probe.mean_iou(made, test, CPU) > majority + 0.10
    assert made.notes["steps"] == 10 * math.ceil(len(train) / 8)


SUITE = suite(
    methods=["{name: activemark, steps: 2, batch: 4, images: 4}"],
    attacks=["{name: finetune.segment, epochs: 1}"],
    data="{digits: {max_images: 20}, photos: {max_images: 12}, digit-scenes: {max_images: 24}}",
    innocents="{strangers: 0, twin_seeds: 1}",
)


def test_the_bench_measures_iou_on_scenes_the_thief_never_saw(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SUITE)
    made, store = plan.make(reader.load(tmp_path / "tiny.yaml"), None), Store(tmp_path / "store")
    question = next(q for q in made.questions if q.cell.base == "owner")
    laboratory = Laboratory(made, store, None, CPU)
    for key in missing(made, store, [question]):
        laboratory.carry_out(made.stages[key])
    found = store.find(question.utility).payload["utility"]
    suspect = laboratory._model(question.suspect)
    scenes = made.manifests["digit-scenes"]
    held_out = images.load(scenes, manifest.split(scenes).thief_held_out, suspect.preprocess)
    assert found == {
        "metric": "mIoU",
        "value": pytest.approx(probe.mean_iou(suspect, held_out, CPU)),
        "task": "digit-scenes, thief's test images",
        "n": 24,
        "chance": 0.0,
        "right": "",  # of pixels, not of images
    }


def test_images_without_masks_are_refused_by_the_name_of_their_set():
    ctx = context()
    bare = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, masks=None))
    with pytest.raises(UserError, match="got 'digits' without; give `data`") as raised:
        FinetuneSegment(data="digits").run(owner(), bare)
    assert "\n" not in str(raised.value)


def test_the_suspect_has_no_scores_in_the_owners_label_space():
    made = FinetuneSegment(epochs=1).run(owner(), context())
    with pytest.raises(Incompatible, match="mini has no classification head"):
        made.logits(context().images.batch(slice(0, 2), CPU))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", 0), ("batch", 0), ("lr", -1e-4), ("lr", float("nan")), ("weight_decay", -1.0),
     ("warmup", 1.0), ("warmup", -0.1)],
)  # fmt: skip
def test_settings_out_of_range_are_refused_in_one_line(setting, value):
    with pytest.raises(UserError, match=rf"': {setting}: expected [^\n]*, got {value}$"):
        FinetuneSegment(**{setting: value})
