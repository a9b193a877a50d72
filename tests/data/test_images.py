import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from bench.data import images
from bench.data.drawing import SCENE, _crop, digits_table
from bench.data.embedded import digits_for, photograph_file
from bench.data.images import Images, Preprocess, _fit, load, sent
from bench.data.item import IGNORE
from bench.data.manifest import read
from bench.data.settings import DataSettings
from bench.records.nouns import UserError
from bench.training.probe import class_iou

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


@pytest.mark.parametrize("keep", [20, 400])
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


def shown(path, how=None, **settings):
    """The pixels of the one image in a folder."""
    listed = read("x", DataSettings("folder", str(path), **settings))
    with Image.open(path / listed.items[0].file) as image:
        size = image.size[::-1]
    return load(listed, [0], how or Preprocess(size)).pixels[0].permute(1, 2, 0).numpy()


LEVELS = np.arange(256, dtype=np.uint16).repeat(16).reshape(64, 64) * 257  # 0, 257 .. 65535


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_of_sixteen_bits_the_upper_eight_stay(name, tmp_path):
    Image.fromarray(LEVELS + (LEVELS < 64000) * np.uint16(3)).save(tmp_path / name)
    pixels = shown(tmp_path)
    assert np.array_equal(pixels[..., 0], LEVELS // 257)
    assert np.array_equal(pixels[..., 0], pixels[..., 2])
    assert len(np.unique(pixels)) == 256


def test_sixteen_bits_of_the_other_byte_order_are_read_alike(tmp_path):
    Image.fromarray(LEVELS.astype(">u2")).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image:
        assert image.mode == "I;16B"
    assert np.array_equal(shown(tmp_path)[..., 1], LEVELS // 257)


def test_of_twelve_bits_in_a_tiff_the_upper_eight_stay(tmp_path):
    """Two levels, 0x123 and 0xFED, in three bytes: TIFF 6.0, sections 2 to 4."""
    tags = [
        (256, 2),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, 3),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    pixels = b"\x12\x3f\xed\x00"
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    (tmp_path / "x.tif").write_bytes(b"II*\x00" + struct.pack("<I", 12) + pixels + directory)
    assert shown(tmp_path)[0, :, 0].tolist() == [0x12, 0xFE]


@pytest.mark.parametrize("values", [np.int32([[0, 70000]]), np.float32([[0.0, 0.5]])])
def test_pixels_that_do_not_say_what_is_white_are_refused(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"'x': x\.tif: expected 8 or 16 bits a channel, got mode"):
        shown(tmp_path)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # torchvision's own
@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "CMYK", "YCbCr"])
@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.gif", "x.jpg", "x.bmp"])
def test_colours_are_those_torchvision_reads(mode, name, tmp_path):
    loader = pytest.importorskip("torchvision.datasets.folder").default_loader
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 4), dtype=np.uint8)
    try:
        Image.fromarray(noise).convert("RGB" if mode[0] in "CY" else "RGBA").convert(mode).save(
            tmp_path / name
        )
    except (OSError, ValueError):
        pytest.skip(f"Pillow writes no {mode} as {name}")
    assert np.array_equal(shown(tmp_path), np.asarray(loader(str(tmp_path / name))))


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    first, *others = (Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(1, 4))
    first.save(tmp_path / "x.gif", save_all=True, append_images=others)
    assert (shown(tmp_path) == (60, 0, 0)).all()


def test_an_image_is_read_as_it_is_stored_whatever_a_viewer_does_with_it(tmp_path):
    """As torchvision's and timm's data sets do, and so the training of published weights."""
    loader = pytest.importorskip("torchvision.datasets.folder").default_loader
    ramp = np.tile(np.arange(40, dtype=np.uint8)[:, None] * 6, (1, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp).convert("RGB").save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(shown(tmp_path), np.asarray(loader(str(tmp_path / "x.png"))))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_the_smallest_images_are_read(size, mode, tmp_path):
    paint(tmp_path / "x.png", size)
    pixels = shown(tmp_path, Preprocess((24, 24), 0.9, mode=mode, fill=(200, 100, 50)))
    assert (pixels == (200, 100, 50)).all()


def test_a_thread_of_an_image_takes_no_more_memory_than_what_is_kept(monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 999, 3), dtype=np.uint8))
    how = Preprocess((24, 24), 0.9)
    whole = _fit(image, how).astype(int)
    monkeypatch.setattr("bench.data.images.LARGEST", 26 * 26)
    assert abs(_fit(image, how) - whole).max() <= 1
    assert _fit(Image.new("RGB", (1, 60000), (9, 9, 9)), Preprocess((224, 224), 0.9)).min() == 9


def test_a_bomb_is_refused_in_one_line_and_a_large_image_is_read(tmp_path, monkeypatch):
    paint(tmp_path / "x.png", (50, 50))
    listed = read("x", DataSettings("folder", str(tmp_path)))
    whole = load(listed, [0], SMALL).pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2400)  # Pillow warns, and opens it
    assert torch.equal(load(listed, [0], SMALL).pixels, whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1249)  # ... and no longer
    refused = r"'x': x\.png: expected an image of 2,498 pixels at most, got .* 2,500"
    with pytest.raises(UserError, match=refused) as raised:
        load(listed, [0], SMALL)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, before it gives up
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.tif", "x.webp", "x.bmp", "x.ppm"])
@pytest.mark.parametrize("damage", ["text", "torn", "head"])
def test_a_damaged_file_of_any_kind_is_named_in_one_line(name, damage, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    damaged = {"text": b"<html>404</html>", "torn": whole[: len(whole) // 3], "head": whole[:9]}
    (tmp_path / name).write_bytes(damaged[damage])
    listed = read("x", DataSettings("folder", str(tmp_path)))
    with pytest.raises(UserError, match=rf"^data 'x': {name}: expected an image") as raised:
        load(listed, [0], SMALL)
    assert "\n" not in str(raised.value)


SIZES = [(300, 200), (200, 300), (500, 333), (255, 257), (64, 64), (50, 400)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wanted", [(64, 64), (48, 64)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0, 1.15])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_timms_own_transform(size, wanted, mode, crop_pct, interpolation):
    timm = pytest.importorskip("timm.data")
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ).resize(size)  # neighbours are alike, as in photographs
    known = timm.create_transform(
        (3, *wanted), interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode,
        mean=(0.2, 0.4, 0.6), normalize=False,
    )  # fmt: skip
    fill = (51, 102, 153) if mode == "border" else (0, 0, 0)
    found = _fit(image, Preprocess(wanted, crop_pct, interpolation, mode, fill))
    assert np.array_equal(found, known(image).permute(1, 2, 0).numpy())


def test_of_224_at_a_crop_of_nine_tenths_224_of_248_pixels_are_kept():
    assert Preprocess((224, 224), 0.9).resized(480, 640) == (248, 330)  # int(248 * 640 / 480)
    ramp = Image.fromarray(np.tile(np.arange(248, dtype=np.uint8), (248, 1))).convert("RGB")
    assert _fit(ramp, Preprocess((224, 224), 0.9))[0, :, 0].tolist() == list(range(12, 236))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_open_clips_own_transform(mode, size):
    open_clip = pytest.importorskip("open_clip")
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    known = open_clip.image_transform(
        64, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=mode, fill_color=7
    )
    modes = {"shortest": "center", "longest": "border"}
    found = _fit(image, Preprocess((64, 64), mode=modes.get(mode, mode), fill=(7, 7, 7)))
    assert np.array_equal(found, (known(image) * 255).round().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.9, 1.15])
def test_a_mask_is_cut_where_its_image_is_and_what_is_put_beside_it_is_ignored(mode, crop_pct):
    ids = np.zeros((60, 90), np.uint8)
    ids[:, 45:] = 1
    image = Image.fromarray(np.stack([ids * 255] * 3, -1) // 2 + 60)
    how = Preprocess((32, 32), crop_pct, "bilinear", mode)
    pixels, masks = _fit(image, how)[..., 0], _fit(Image.fromarray(ids), how, ids=True)
    beside = pixels == 0
    assert (masks[beside] == IGNORE).all()
    assert ((masks == IGNORE) == beside).all()
    sure = ~beside & ((pixels < 70) | (pixels > 180))
    assert ((pixels > 120)[sure] == (masks == 1)[sure]).all()
    assert sure.sum() > 400


def halves(root, size=(64, 96), above=255):
    """Four images whose masks are 0, but for a quarter of the pixels."""
    ids = np.zeros(size, np.uint8)
    ids[:, : size[1] // 4] = above
    for i in range(4):
        paint(root / f"images/{i}.png", size[::-1], colour=(i, 0, 0))
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(ids).save(root / f"masks/{i}.png")
    return root


def test_masks_of_0_and_255_are_not_ignored_unless_that_is_said(tmp_path):
    root = halves(tmp_path)
    with pytest.raises(UserError, match=r"expected ids 0\.\.1, got 255; .*name .*`ignore_index`"):
        load(listed(root, classes=2), range(4), SMALL)
    named = load(listed(root, classes=2, ignore_index=255), range(4), SMALL)
    assert [(named.masks == i).sum().item() for i in (0, 1, 255)] == [3584, 0, 512]


def test_a_model_that_says_background_has_a_mean_iou_of_three_eighths(tmp_path):
    """A quarter is 1 and all is said to be 0: IoU 3/4 and 0. With 255 ignored it would be 1."""
    loaded = load(listed(halves(tmp_path, above=1), classes=2), range(4), Preprocess((64, 96)))
    said = torch.zeros_like(loaded.masks)
    assert class_iou(said, loaded.masks, loaded.classes).tolist() == [0.75, 0]
    assert float(class_iou(said, loaded.masks, loaded.classes).nanmean()) == 0.375


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.int32([[0, -1]]), r"expected ids 0\.\.2, got -1"),
        (np.uint16([[0, 256]]), r"expected ids 0\.\.2, got 256"),
        (np.uint16([[0, 511]]), r"expected ids 0\.\.2, got 511"),
        (np.float32([[0, 0.5]]), r"expected one id a pixel, got fractions \(mode F\)"),
    ],
)
def test_ids_are_never_wrapped_or_rounded(values, message, tmp_path):
    root = halves(tmp_path, (64, 96), above=1)
    (root / "masks/1.png").unlink()
    Image.fromarray(values.repeat(64, 0).repeat(48, 1)).save(root / "masks/1.tif")
    with pytest.raises(UserError, match=rf"^data 'x': masks/1\.tif: {message}"):
        load(listed(root), range(4), SMALL)


def test_masks_of_sixteen_bits_and_of_one_are_read_by_their_ids(tmp_path):
    root = halves(tmp_path, (64, 96), above=1)
    expected = load(listed(root), range(4), SMALL).masks
    for i, kind in ((1, np.uint16), (2, bool)):
        with Image.open(root / f"masks/{i}.png") as mask:
            ids = np.asarray(mask)
        Image.fromarray(ids.astype(kind)).save(root / f"masks/{i}.png")
    assert torch.equal(load(listed(root), range(4), SMALL).masks, expected)
    with Image.open(root / "masks/1.png") as mask:
        ids = np.asarray(mask).astype(np.uint16)
    Image.fromarray(ids * 65535).save(root / "masks/1.png")
    far = load(listed(root, ignore_index=65535), range(4), SMALL).masks
    assert torch.equal(far[1] == IGNORE, expected[1] == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn", ["as stored", "as seen", "with the same tag"])
def test_a_mask_lies_on_what_it_shows_whatever_the_orientation(orientation, drawn, tmp_path):
    """Red is 1, and in one corner: the mask is drawn by threshold, on what its painter saw."""
    stored = np.zeros((40, 64, 3), np.uint8)
    stored[4:12, 40:60, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i in range(4):
        picture = Image.fromarray(stored + np.array([0, i, 0], np.uint8))
        paint(tmp_path / f"images/{i}.png")
        picture.save(tmp_path / f"images/{i}.png", exif=exif)
        (tmp_path / "masks").mkdir(exist_ok=True)
        with Image.open(tmp_path / f"images/{i}.png") as opened:
            seen = ImageOps.exif_transpose(opened) if drawn == "as seen" else opened
            ids = (np.asarray(seen)[..., 0] > 127).astype(np.uint8)
        tag = {"exif": exif} if drawn == "with the same tag" else {}
        Image.fromarray(ids).save(tmp_path / f"masks/{i}.png", **tag)
    if orientation in (2, 3, 4) and drawn != "with the same tag":  # nobody can tell which it is
        with pytest.raises(UserError, match=f"that lie alike, got EXIF orientation {orientation}"):
            load(listed(tmp_path), range(4), SMALL)
        return
    loaded = load(listed(tmp_path), range(4), SMALL)
    assert torch.equal(loaded.pixels[:, 0] > 127, loaded.masks == 1)
    assert loaded.masks.sum() > 0
