"""What stands between a model and who asks it: maps against references, detectors, and Views."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from bench.models import Architecture, Head, Served, Service, View, clone, randomised, with_head
from bench.models.serving import KINDS, answers, suspicion
from bench.models.serving.maps import changed, told
from bench.models.weights import weights_digest
from bench.records.nouns import Access, UserError
from bench.testing import context, owner
from bench.training import probe

CPU = torch.device("cpu")


def some(count=6):
    return context().images.batch(slice(0, count), CPU)


def scores(count=6, k=5):
    return torch.randn(count, k, generator=torch.Generator().manual_seed(1))


def given(kind, amount=0.0, images=None, **other):
    images = some() if images is None else images
    return changed(images, (Served(kind, amount, **other),), images)


def sent(kind, amount=0.0, found=None, scored=True, **other):
    found = scores() if found is None else found
    return told(found, (Served(kind, amount, **other),), some(len(found)), scored)


def served(model, *maps):
    made = clone(model)
    made.architecture = dataclasses.replace(made.architecture, served=maps)
    return made


def classifier(seed=0):
    return with_head(owner(), Head(10), torch.Generator().manual_seed(seed)).eval()


def test_jpeg_is_pillows():
    for found, image in zip(given("jpeg", 60), some(), strict=True):
        file = io.BytesIO()
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=60)
        expected = np.asarray(Image.open(file)).transpose(2, 0, 1) / 255
        assert np.allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("sd", [0.5, 1.0])
def test_a_blur_is_scipys(sd):
    radius = int(np.ceil(3 * sd))
    expected = ndimage.gaussian_filter(
        some().double().numpy(), (0, 0, sd, sd), mode="nearest", radius=(0, 0, radius, radius)
    )
    assert np.allclose(given("blur", sd).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 3, 7])
def test_so_many_bits_are_so_many_levels(bits):
    ramp = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    found = given("bits", bits, ramp)
    assert len(found.unique()) == 2**bits
    assert float((found - ramp).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6


def test_a_query_that_was_shrunk_has_its_size_and_lost_its_detail():
    found = given("resize", 0.5)
    assert found.shape == some().shape
    even = torch.full((1, 3, 32, 32), 0.3)
    assert torch.allclose(given("resize", 0.5, even), even, atol=1e-5)
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2  # finer than half the pixels hold
    board = board.float().expand(1, 3, 32, 32)
    assert float(given("resize", 0.5, board).std()) < 0.2 * float(board.std())


def test_a_mirrored_query_is_mirrored():
    assert torch.equal(given("flip"), some().flip(3))


def test_noise_has_its_deviation_and_is_equal_for_equal_queries_alone():
    grey = torch.full((2, 3, 64, 64), 0.5)
    grey[1, 0, 0, 0] = 0.51
    found = given("noise", 0.03, grey, seed=3)
    assert float((found - grey).std()) == pytest.approx(0.03, rel=0.05)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert torch.equal(found, given("noise", 0.03, grey, seed=3))
    assert torch.equal(found[1:], given("noise", 0.03, grey[1:], seed=3))
    assert not torch.equal(found, given("noise", 0.03, grey, seed=4))


def test_rounded_answers_have_so_many_decimals():
    assert torch.allclose(sent("round", 1) * 10, (scores() * 10).round(), atol=1e-5)


def test_perturbed_answers_scatter_by_their_own_deviation():
    found = 5 * torch.randn(6, 4000, generator=torch.Generator().manual_seed(0))
    moved = sent("perturb", 0.1, found, scored=False) - found
    assert torch.allclose(moved.std(1), torch.full((6,), 0.5), rtol=0.1)


def test_of_scores_the_highest_are_told_and_the_others_are_the_lowest():
    found, told_ = scores(), sent("topk", 2)
    assert torch.equal(told_.topk(2).values, found.topk(2).values)
    assert torch.equal(told_.argmax(1), found.argmax(1))
    assert torch.equal(told_.sort().values[:, :3], found.amin(1, keepdim=True).expand(-1, 3))


def test_of_features_the_largest_are_told_and_the_others_are_nothing():
    found, told_ = scores(), sent("topk", 2, scored=False)
    assert ((told_ != 0).sum(1) == 2).all()
    assert torch.equal(told_.abs().amax(1), found.abs().amax(1))


def test_a_temperature_is_of_scores_alone():
    assert torch.equal(sent("temperature", 4.0), scores() / 4)
    assert torch.equal(sent("temperature", 4.0, scored=False), scores())


def test_unsure_labels_are_flipped_to_the_second_and_no_others():
    found = torch.tensor([[1.0, 0.9, 0.0], [1.0, 0.2, 0.0], [0.0, 0.3, 0.4]])
    flipped = sent("labelflip", 1.0, found, bound=0.5)
    assert flipped.tolist() == [
        pytest.approx([0.9, 1.0, 0.0]),
        pytest.approx([1.0, 0.2, 0.0]),
        pytest.approx([0.0, 0.4, 0.3]),
    ]
    some_ = torch.stack([sent("labelflip", 0.3, scores(64), bound=9.0, seed=s) for s in range(8)])
    share = (some_.argmax(2) != scores(64).argmax(1)).double().mean()
    assert abs(float(share) - 0.3) < 4 * (0.3 * 0.7 / 512) ** 0.5


def test_queries_asked_again_are_refused_and_others_are_not():
    service = Service(served(owner(), Served("detect.features", 1, bound=1e-3)))
    model = owner()
    with torch.no_grad():
        first = service.ask(some(), model.embedding)
        assert service.answered == 1.0
        again = service.ask(some(), model.embedding)
    assert (service.asked, service.refused) == (12, 6)
    assert service.answered == 0.5
    assert torch.equal(first, model.features(some()))
    assert not torch.equal(again, first)
    assert torch.equal(again.sort().values, first.sort().values)  # its numbers in another order


@pytest.mark.parametrize(
    ("kind", "amount"), [("detect.features", 3), ("detect.pixels", 3), ("detect.jpeg", 75)]
)
def test_how_questions_are_batched_changes_no_answer(kind, amount):
    images, how = some(12), Served(kind, amount)
    with torch.no_grad():
        tokens = owner().forward_features(images)
        found, _ = suspicion(owner(), how, images, tokens, torch.empty(0))
        # Between two of them, or rounding would decide.
        bound = float(found.sort().values[5:7].mean())
        model = served(owner(), dataclasses.replace(how, bound=bound))
        whole, parted = Service(model), Service(model)
        one = whole.ask(images, model.embedding)
        parts = [parted.ask(part, model.embedding) for part in images.split(5)]
    assert torch.allclose(one, torch.cat(parts), atol=1e-5)
    assert whole.refused == parted.refused == 6


def test_an_answer_that_came_to_nothing_is_not_remembered():
    service = Service(served(owner(), Served("detect.features", 1, bound=1e-3)))

    def out_of_memory(tokens):
        raise torch.OutOfMemoryError

    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
        service.ask(some(), out_of_memory)
    with torch.no_grad():
        service.ask(some(), owner().embedding)
    assert (service.asked, service.refused) == (6, 0)


FLIP = Served("flip")


def test_who_asks_is_answered_by_the_server_and_who_sees_weights_sees_through():
    model, images = classifier(), some()
    view = View(served(model, FLIP), Access.ALL)
    with torch.no_grad():
        mirrored = model.logits(images.flip(3))
        assert torch.equal(view.logits(images), mirrored)
        assert torch.equal(view.labels(images), mirrored.argmax(1))
        assert torch.equal(view.features(images), model.features(images.flip(3)))
        assert torch.equal(view.network.logits(images), model.logits(images))
        assert torch.equal(view.network.features(images), model.features(images))


def test_whoever_grafts_a_head_is_answered_with_features():
    model, images, head = owner(), some(), classifier(3)
    maps = (Served("round", 0), Served("temperature", 9.0))
    view = View(served(model, *maps), Access.LOGITS, head.forward_head, grafted=True)
    with torch.no_grad():
        tokens = model.forward_features(images).round()
        assert torch.equal(view.logits(images), head.forward_head(tokens))


def test_a_view_says_what_share_was_answered():
    view = View(served(owner(), Served("detect.features", 1, bound=1e-3)), Access.FEATURES)
    view.features(some(4))
    view.features(some(4))
    assert view.answered == 0.5
    assert View(owner(), Access.FEATURES).answered == 1.0


def test_usefulness_is_measured_as_the_model_is_served():
    model, images = classifier(), context().images
    mirrored = dataclasses.replace(images, pixels=images.pixels.flip(3))
    found = probe.head_right(served(model, FLIP), images, CPU)
    assert torch.equal(found, probe.head_right(model, mirrored, CPU))
    assert torch.equal(
        probe.pooled_features(served(model, FLIP), images, CPU),
        probe.pooled_features(model, mirrored, CPU),
    )


def test_a_served_model_is_described_in_json_and_another_model_by_name():
    made = served(owner(), Served("noise", 0.1, seed=2**53 - 1), Served("detect.jpeg", 75, 0.5))
    written = json.loads(json.dumps(made.architecture.json()))
    assert Architecture.of(written) == made.architecture
    assert weights_digest(made) != weights_digest(owner())
    assert weights_digest(made) != weights_digest(served(owner(), FLIP))
    assert "served" not in owner().architecture.json()


def test_a_map_of_another_version_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^served: expected one of [^\n]*, got 'hypnotise'[^\n]*$"):
        answers(served(owner(), Served("hypnotise")), some())


def test_a_detector_that_would_not_see_what_was_sent_is_refused_in_one_line():
    blind = served(owner(), Served("detect.pixels", 3), FLIP)
    with pytest.raises(UserError, match=r"^served: expected a detector to see [^\n]*, got flip "):
        Service(blind)
    assert Service(served(owner(), FLIP, Served("detect.pixels", 3))).asked == 0


def test_every_kind_answers_with_numbers():
    model = classifier()
    for kind in KINDS:
        maps = Served(kind, 1.0, bound=1.0)
        assert answers(served(model, maps), some()).isfinite().all(), kind
    bare = randomised(Architecture("embedded", "mini"), 0)
    assert torch.equal(answers(bare, some()), bare(some()))
