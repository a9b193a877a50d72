import numpy as np
import pytest
import torch
from PIL import Image

from bench.data import images
from bench.data.drawing import SCENE, _crop, digits_table
from bench.data.embedded import digits_for, photograph_file
from bench.data.images import Images, Preprocess, _fit, load, sent
from bench.data.item import IGNORE
from bench.data.manifest import read
from bench.data.settings import DataSettings
from bench.records.nouns import UserError

SMALL = Preprocess((32, 32))


def paint(path, size=(40, 30), mode="RGB", colour=(200, 100, 50), **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **how)


@pytest.fixture
def pictures(tmp_path):
    for i in range(6):
        paint(tmp_path / ("ab"[i % 2]) / f"{i}.png", colour=(i * 40, 10, 200))
    return read("pictures", DataSettings("folder", str(tmp_path)))


def test_digits_are_scikit_learns_enlarged():
    datasets = pytest.importorskip("sklearn.datasets")
    known = datasets.load_digits()
    loaded = load(read("digits", DataSettings("digits")), range(50), Preprocess((8, 8), 0.9))
    assert np.allclose(loaded.pixels[:, 0] / 255 * 16, known.images[:50], atol=16 / 255)
    assert loaded.labels.tolist() == known.target[:50].tolist()
    assert (loaded.pixels[:, 0] == loaded.pixels[:, 2]).all()
    enlarged = torch.nn.functional.interpolate(
        torch.tensor(known.images[:50, None] / 16), (32, 32), mode="bilinear"
    )
    loaded = load(read("digits", DataSettings("digits")), range(50), SMALL)
    assert (loaded.pixels[:, :1] / 255 - enlarged).abs().max() < 2.5 / 255


def test_crops_are_squares_of_their_photograph_and_differ():
    listed = read("photos", DataSettings("photos", crops=4))
    loaded = load(listed, range(len(listed.items)), SMALL)
    assert loaded.pixels.shape == (64, 3, 32, 32)
    assert loaded.labels is None
    assert loaded.sources[:5] == ("astronaut",) * 4 + ("brick",)
    assert len({bytes(p.numpy().tobytes()) for p in loaded.pixels}) == 64


def test_a_crop_depends_on_its_photograph_and_number_alone():
    few = load(read("photos", DataSettings("photos", crops=2)), [3], SMALL)
    many = load(read("photos", DataSettings("photos", crops=9)), [0, 10], SMALL)
    assert torch.equal(few.pixels[0], many.pixels[1])


def test_every_crop_lies_inside_and_is_at_least_64_pixels_wide(monkeypatch):
    listed = read("photos", DataSettings("photos", crops=30))
    with Image.open(photograph_file("coins")) as opened:
        whole = opened.copy()
    boxes = []
    monkeypatch.setattr(Image.Image, "crop", lambda self, box: boxes.append(box) or self)
    for item in listed.items:
        if item.source == "coins":
            _crop(whole, item)
    widths = [right - left for left, _, right, _ in boxes]
    assert min(widths) >= 64
    assert max(widths) <= min(whole.size)
    assert all(b[0] >= 0 and b[1] >= 0 and b[2] <= 384 and b[3] <= 303 for b in boxes)
    assert [b[3] - b[1] for b in boxes] == widths


def test_the_middle_of_an_image_is_kept(tmp_path):
    """Left third red, middle green, right blue: a square crop of 60 x 20 sees the middle only."""
    bands = np.zeros((20, 60, 3), np.uint8)
    for band in range(3):
        bands[:, 20 * band : 20 * (band + 1), band] = 255
    for i in range(4):
        Image.fromarray(bands + np.uint8(i)).save(tmp_path / f"{i}.png")
    listed = read("x", DataSettings("folder", str(tmp_path)))
    pixels = load(listed, [0], Preprocess((16, 16), 0.8)).pixels[0]
    assert pixels.float().mean((1, 2))[1] > 250
    assert pixels.float().mean((1, 2))[[0, 2]].max() < 5
    wide = load(listed, [0], Preprocess((10, 30))).pixels[0]
    assert wide.shape == (3, 10, 30)
    assert wide[:, 5, 1].argmax() == 0
    assert wide[:, 5, -2].argmax() == 2


@pytest.mark.parametrize(
    ("mode", "name", "how"),
    [
        ("L", "x.png", {}),
        ("P", "x.png", {"transparency": b"\x00\x80"}),
        ("RGBA", "x.png", {}),
        ("1", "x.bmp", {}),
        ("CMYK", "x.jpg", {}),
        ("RGB", "x.webp", {}),
    ],
)
def test_every_kind_of_image_becomes_rgb(mode, name, how, tmp_path):
    paint(tmp_path / name, mode=mode, **how)
    listed = read("x", DataSettings("folder", str(tmp_path)))
    assert load(listed, [0], SMALL).pixels.shape == (1, 3, 32, 32)


def test_the_order_asked_for_is_the_order_given(pictures):
    there, back = load(pictures, [0, 1, 2], SMALL), load(pictures, [2, 1, 0], SMALL)
    assert torch.equal(there.pixels, back.pixels.flip(0))
    assert there.labels.tolist() == back.labels.tolist()[::-1]


def test_a_second_load_comes_from_the_cache(pictures, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = load(pictures, range(6), SMALL, cache)
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("decoded again"))
    again = load(pictures, range(6), SMALL, cache)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, again.labels)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "damage", [lambda f: f.write_bytes(b"x"), lambda f: f.write_bytes(f.read_bytes()[:-9])]
)
def test_a_damaged_cache_is_decoded_anew(damage, pictures, tmp_path):
    cache = tmp_path / "cache"
    first = load(pictures, range(6), SMALL, cache)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    damage(file)
    assert torch.equal(load(pictures, range(6), SMALL, cache).pixels, first.pixels)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("indices", "how"),
    [([0, 1], Preprocess((32, 32), 0.9)), ([0, 1], Preprocess((32, 16))), ([1, 0], SMALL)],
)
def test_other_images_or_preprocessing_are_cached_apart(indices, how, pictures, tmp_path):
    load(pictures, [0, 1], SMALL, tmp_path / "cache")
    load(pictures, indices, how, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("keep", [0, 20, 400])
def test_a_broken_jpeg_is_named_in_one_line(keep, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(noise).save(tmp_path / "a" / "bad.jpg")
    path = tmp_path / "a" / "bad.jpg"
    path.write_bytes(path.read_bytes()[:keep])
    listed = read("x", DataSettings("folder", str(tmp_path)))
    with pytest.raises(UserError, match=r"'x': a/bad\.jpg: expected an image") as raised:
        load(listed, [0], SMALL)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


@pytest.fixture
def masked(tmp_path):
    """Blocks of pure red, green and blue, and masks that name them 0, 1 and 2."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(6):
        ids = rng.integers(0, 3, (8, 12)).repeat(8, 0).repeat(8, 1).astype(np.uint8)  # (64, 96)
        Image.fromarray(np.eye(3, dtype=np.uint8)[ids] * 255).save(tmp_path / f"images/{i}.png")
        Image.fromarray(ids).save(tmp_path / f"masks/{i}.png")
    return tmp_path


def listed(root, **settings):
    return read("x", DataSettings("masks", str(root), **{"classes": 3, **settings}))


@pytest.mark.parametrize(
    "how",
    [Preprocess((32, 32)), Preprocess((64, 64), 0.5), Preprocess((16, 24)), Preprocess((80, 80))],
)
def test_masks_stay_on_their_pixels_when_cut_and_resized(how, masked):
    loaded = load(listed(masked), range(6), how)
    assert loaded.masks.shape == (6, *how.size)
    assert loaded.masks.dtype == torch.uint8
    assert torch.equal(loaded.pixels.argmax(1), loaded.masks.long())
    assert (loaded.labels, loaded.classes) == (None, 3)


def test_masks_come_from_the_cache_and_follow_a_subset(masked, tmp_path):
    cache = tmp_path / "cache"
    first, again = (load(listed(masked), range(6), SMALL, cache) for _ in range(2))
    assert torch.equal(first.masks, again.masks)
    assert len(list(cache.iterdir())) == 1
    chosen = again.subset([4, 1])
    assert torch.equal(chosen.masks, first.masks[[4, 1]])
    assert torch.equal(chosen.pixels.argmax(1), chosen.masks.long())


@pytest.mark.parametrize("ignored", [0, 2, 200])
def test_an_ignored_id_counts_nowhere(ignored, masked):
    for path in (masked / "masks").iterdir():
        with Image.open(path) as mask:
            ids = np.array(mask)
        ids[ids == 2] = max(ignored, 2)
        Image.fromarray(ids).save(path)
    plain = load(listed(masked, classes=3, ignore_index=ignored), range(6), SMALL)
    gone = plain.pixels.argmax(1) == min(ignored, 2)
    assert (plain.masks[gone] == IGNORE).all()
    assert torch.equal(plain.masks[~gone].long(), plain.pixels.argmax(1)[~gone])


def test_a_mask_with_a_palette_is_read_by_its_indices(masked):
    for path in (masked / "masks").iterdir():
        with Image.open(path) as opened:
            mask = opened.copy()
        mask.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 70])
        assert mask.mode == "P"
        mask.save(path)
    loaded = load(listed(masked), range(6), SMALL)
    assert torch.equal(loaded.pixels.argmax(1), loaded.masks.long())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((64, 96), 7, np.uint8), r"expected ids 0\.\.2, got 7; raise `classes`"),
        (np.eye(64, 96, dtype=np.uint8) * 3, r"expected ids 0\.\.2, got 3; raise `classes`"),
        (np.zeros((64, 96, 3), np.uint8), r"expected one id a pixel, got colours \(mode RGB\)"),
        (np.zeros((96, 64), np.uint8), r"of the image's size 96 x 64, got 64 x 96"),
    ],
)
def test_a_mask_that_cannot_be_right_is_named_in_one_line(mask, message, masked):
    Image.fromarray(mask).save(masked / "masks/2.png")
    with pytest.raises(UserError, match=rf"^data 'x': masks/2\.png: .*{message}") as raised:
        load(listed(masked), range(6), SMALL)
    assert "\n" not in str(raised.value)


def test_scenes_show_the_photographs_own_digits_where_their_masks_say_so():
    scenes = read("digit-scenes", DataSettings("digit-scenes", crops=2))
    loaded = load(scenes, range(32), Preprocess((SCENE, SCENE)))
    assert (loaded.labels, loaded.classes) == (None, 11)
    labels = digits_table().labels
    for pixels, mask, source in zip(loaded.pixels, loaded.masks, loaded.sources, strict=True):
        shown = set(mask.unique().tolist()) - {0}
        dealt = {1 + int(labels[i]) for i in digits_for(source, len(labels))}
        assert 1 <= len(shown) <= 2
        assert shown <= dealt
        ink = pixels[:, mask > 0]
        assert ink.min() > 127  # a digit is bright where its mask is
        assert torch.equal(ink[0], ink[2])  # and without colour
    assert len({bytes(m.numpy().tobytes()) for m in loaded.masks}) == 32


def test_a_scene_is_a_digit_of_scikit_learns_pasted_on_a_crop():
    scenes = read("digit-scenes", DataSettings("digit-scenes", crops=1))
    at = next(i for i, item in enumerate(scenes.items) if item.source == "rocket")
    loaded = load(scenes, [at], Preprocess((SCENE, SCENE)))
    crop = load(read("photos", DataSettings("photos", crops=1)), [at], Preprocess((128, 128)))
    changed = (loaded.pixels[0] != crop.pixels[0]).any(0)
    assert 0.2 < changed.float().mean() < 0.9
    assert (loaded.masks[0][~changed] == 0).all()


def test_a_scene_depends_on_its_photograph_and_number_alone():
    few = load(read("s", DataSettings("digit-scenes", crops=2)), [3], SMALL)
    many = load(read("s", DataSettings("digit-scenes", crops=9)), [0, 10], SMALL)
    assert torch.equal(few.pixels[0], many.pixels[1])
    assert torch.equal(few.masks[0], many.masks[1])


def test_batches_are_floats_in_the_unit_interval_and_subsets_keep_everything_aligned():
    pixels = torch.arange(4 * 3 * 2 * 2).reshape(4, 3, 2, 2).mul(5).to(torch.uint8)
    images = Images(pixels, torch.tensor([3, 1, 2, 0]), 4, ("a", "b", "c", "d"))
    chosen = images.subset([2, 0])
    assert (len(chosen), chosen.sources, chosen.labels.tolist()) == (2, ("c", "a"), [2, 3])
    batch = images.batch(torch.tensor([2, 0]), torch.device("cpu"))
    assert torch.equal(batch, chosen.pixels.double().div(255).float())
    assert torch.equal(images.batch(slice(1, 3), torch.device("cpu")), pixels[1:3].float() / 255)


@pytest.mark.parametrize(("mode", "columns"), [("center", (64, 191)), ("squash", (0, 255))])
def test_a_wide_image_is_cut_or_squashed(mode, columns):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (128, 1))  # a pixel's value is its column
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    fitted = _fit(image, Preprocess((32, 32), interpolation="bilinear", mode=mode))
    assert fitted.shape == (32, 32, 3)
    assert abs(int(fitted[16, 0, 0]) - columns[0]) <= 5
    assert abs(int(fitted[16, -1, 0]) - columns[1]) <= 5


def test_what_goes_to_a_gpu_goes_from_pinned_memory_without_waiting(monkeypatch):
    calls = []

    class Bytes(torch.Tensor):
        def pin_memory(self):
            calls.append("pinned")
            return self

        def to(self, device, non_blocking):
            calls.append((device.type, non_blocking))
            return self

    values = torch.zeros(2, dtype=torch.uint8).as_subclass(Bytes)
    sent(values, torch.device("cuda"))
    sent(values, torch.device("cpu"))
    assert calls == ["pinned", ("cuda", True), ("cpu", True)]


def test_nothing_is_copied_where_it_is():
    values = torch.arange(3)
    assert sent(values, torch.device("cpu")) is values


@pytest.mark.parametrize("side", [89, 219, 670])
def test_an_image_can_be_kept_whole_at_any_size(side):
    assert side / 666 * 666 > side  # by a rounding
    image = Image.new("RGB", (side, side))
    assert _fit(image, Preprocess((666, 666))).shape == (666, 666, 3)
