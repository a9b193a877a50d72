"""Published data sets in their authors' layouts, tiny and broken."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.cli import sampling
from bench.data import images
from bench.data.images import Preprocess
from bench.data.manifest import assumed, is_there, read, split
from bench.data.published import DATA_SETS
from bench.data.settings import DataSettings
from bench.records.nouns import UserError

SMALL = Preprocess((8, 8))
PETS = DataSettings("oxford-pets", "pets")
TRIMAPS = DataSettings("oxford-pets", "pets", targets="trimaps")
FOOD = DataSettings("foodseg103", "food")


@pytest.fixture
def root(tmp_path):
    """Both data sets, of pictures in one colour each."""
    shades = itertools.count()

    def pictures():
        for shade in shades:
            yield Image.new("RGB", (144, 144), (shade % 256, shade // 256, 7))

    sampling.pets(tmp_path / "pets", pictures(), breeds=3, images=4)
    sampling.foodseg(tmp_path / "food", pictures(), images=3)
    return tmp_path


def test_pets_are_listed_by_their_own_lists_with_breeds_as_classes(root):
    listed = read("pets", PETS, root)
    assert listed.classes == ("Breed_0", "Breed_1", "Breed_2")
    assert Counter(i.part for i in listed.items) == {"train": 12, "test": 12}
    for item in listed.items:
        assert item.file.startswith(f"images/Breed_{item.label}_")
    pools = split(listed)
    trained = pools.owner_images + pools.thief_images
    assert {listed.items[i].part for i in trained} == {"train"}


def test_pets_breeds_load_as_labels_and_trimaps_as_masks(root):
    loaded = images.load(read("pets", PETS, root), range(5), SMALL)
    assert (loaded.masks, loaded.classes) == (None, 3)
    assert loaded.labels.tolist() == [0, 0, 0, 0, 1]
    listed = read("pets", TRIMAPS, root)
    assert listed.classes == ("background", "pet")
    assert {item.label for item in listed.items} == {None}
    shown = images.load(listed, range(4), Preprocess((4, 4))).masks
    for row, item in enumerate(listed.items[:4]):
        with Image.open(root / "pets" / item.mask) as trimap:
            ids = torch.tensor([[trimap.getpixel((18 + 36 * x, 18 + 36 * y)) for x in range(4)]
                                for y in range(4)])  # fmt: skip
        expected = torch.where(ids == 1, 1, torch.where(ids == 2, 0, 255))
        assert torch.equal(shown[row].long(), expected)


def test_foodseg_lists_its_parts_and_names_its_classes(root):
    listed = read("food", FOOD, root)
    assert (len(listed.classes), listed.classes[:2]) == (104, ("background", "ingredient 1"))
    assert Counter(i.part for i in listed.items) == {"train": 3, "test": 3}
    for item in listed.items:
        image, mask = Path(item.file), Path(item.mask)
        assert (image.parts[:3], mask.parts[:3]) == (
            ("Images", "img_dir", item.part),
            ("Images", "ann_dir", item.part),
        )
        assert image.stem == mask.stem
    assert int(images.load(listed, range(3), SMALL).masks.max()) > 10


@pytest.mark.parametrize("settings", [TRIMAPS, FOOD], ids=["trimaps", "foodseg103"])
def test_the_digest_changes_with_a_mask_and_not_with_the_folder(root, settings):
    before = read("set", settings, root)
    (root / settings.path).rename(root / "elsewhere")
    (root / "elsewhere").rename(root / settings.path)
    assert read("again", settings, root).digest == before.digest
    mask = root / settings.path / before.items[0].mask
    with Image.open(mask) as image:
        changed = image.copy()
    changed.putpixel((0, 0), 1 + changed.getpixel((0, 0)) % 3)
    changed.save(mask)
    assert read("set", settings, root).digest != before.digest


def lose(path):
    return lambda root: (root / path).unlink()


def append(path, line):
    def change(root):
        with (root / path).open("a") as file:
            file.write(line)

    return change


BROKEN = {
    "no list": (PETS, lose("pets/annotations/test.txt"), r"expected annotations/test\.txt in .*"),
    "a picture is lost": (
        PETS,
        lose("pets/images/Breed_1_2.jpg"),
        r"found no images/Breed_1_2\.jpg \(1 of 24 missing\)",
    ),
    "a trimap is lost": (
        TRIMAPS,
        lose("pets/annotations/trimaps/Breed_0_0.png"),
        r"a trimap for every image, found no .*Breed_0_0\.png \(1 of 24 missing\)",
    ),
    "a line is torn": (
        PETS,
        append("pets/annotations/trainval.txt", "# a comment\nBreed_9_1\n"),
        r"trainval\.txt:14: expected an image, its class .*, got 'Breed_9_1'",
    ),
    "a class is skipped": (
        PETS,
        append("pets/annotations/test.txt", "Breed_9_1 5 1 1\n"),
        r"expected classes 1 \.\. 5, no image is of 4",
    ),
    "no names": (FOOD, lose("food/category_id.txt"), r"expected category_id\.txt in .*"),
    "a name out of order": (
        FOOD,
        append("food/category_id.txt", "7\tseven\n"),
        r"category_id\.txt:105: expected '104' and the name of that class, got '7\tseven'",
    ),
    "a mask is lost": (
        FOOD,
        lose("food/Images/ann_dir/test/00000004.png"),
        r"a mask for every image, found no Images/ann_dir/test/00000004\.png \(1 of 6 missing\)",
    ),
    "no test part": (
        FOOD,
        lambda root: (root / "food/Images/img_dir/test").rename(root / "food/gone"),
        r"expected Images/img_dir/test/ in .*, found none",
    ),
    "an empty list": (
        PETS,
        lambda root: (root / "pets/annotations/test.txt").write_text("\n# none\n"),
        r"test\.txt: expected a list, it is empty",
    ),
    "a list that is no text": (
        PETS,
        lambda root: (root / "pets/annotations/test.txt").write_bytes(b"\xff\xfe\x00"),
        r"test\.txt: this is not text",
    ),
    "no folder": (FOOD, lambda root: (root / "food").rename(root / "gone"), "expected a folder"),
}


@pytest.mark.parametrize(("settings", "change", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_or_missing_is_named_in_one_line(root, settings, change, message):
    change(root)
    with pytest.raises(UserError, match=message) as raised:
        read("set", settings, root)
    assert "\n" not in str(raised.value)
    assert "'set'" in str(raised.value)


def test_a_trimap_of_other_ids_and_a_picture_that_is_none_are_named(root):
    listed = read("set", TRIMAPS, root)
    Image.new("L", (144, 144), 9).save(root / "pets" / listed.items[0].mask)
    with pytest.raises(UserError, match=r"Breed_0_0\.png: expected ids 1, 2, 3, got 9"):
        images.load(listed, [0], SMALL)
    (root / "pets" / listed.items[1].file).write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"Breed_0_1\.jpg: expected an image, got a web page"):
        images.load(read("set", PETS, root), [1], SMALL)


def test_an_id_beyond_foodsegs_classes_is_refused_without_a_way_out_that_it_lacks(root):
    listed = read("set", FOOD, root)
    Image.new("L", (144, 144), 104).save(root / "food" / listed.items[0].mask)
    with pytest.raises(UserError, match=r"expected ids 0\.\.103, got 104$"):
        images.load(listed, [0], SMALL)


@pytest.mark.parametrize("held", [("val",), ("test", "val"), ("val", "check")])
def test_a_folder_with_train_and_others_holds_out_the_others(tmp_path, held):
    for part in ("train", *held):
        for name in (f"{c}/{c}{i}.jpg" for c in ("hat", "shoe") for i in range(4)):
            path = tmp_path / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{part}{name}".encode())
    listed = read("products", DataSettings("folder", str(tmp_path)))
    assert listed.classes == ("hat", "shoe")
    assert Counter(item.part for item in listed.items) == {"train": 8, "test": 8 * len(held)}


def test_ilsvrcs_validation_images_in_synset_folders_are_the_classes_in_sorted_order(tmp_path):
    pictures = (Image.new("RGB", (9, 9), (i, 0, 0)) for i in range(256))
    sampling.imagenet(tmp_path, pictures, classes=3, images=2)
    listed = read("imagenet", DataSettings("folder", str(tmp_path), dataset="ilsvrc2012-val"))
    assert listed.classes == ("n01440764", "n01440765", "n01440766")
    assert [item.label for item in listed.items] == [0, 0, 1, 1, 2, 2]
    assert listed.items[0].file == "n01440764/ILSVRC2012_val_00000001.JPEG"


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        (PETS, "oxford-iiit-pet"),
        (FOOD, "foodseg103"),
        (DataSettings("folder", "products", dataset="e-commerce-products"), "e-commerce-products"),
    ],
    ids=["pets", "foodseg", "products"],
)
def test_a_published_data_set_that_is_not_there_can_be_counted_with(tmp_path, settings, known):
    assert not is_there("set", settings, tmp_path)
    listed, published = assumed("set", settings), DATA_SETS[known]
    assert (len(listed.items), len(listed.classes)) == (published.images, published.classes)
    assert sum(item.part == "test" for item in listed.items) == published.tested
    pools = split(listed)
    assert all((pools.owner_images, pools.owner_held_out, pools.thief_images))


def test_a_folder_of_the_users_own_has_no_size_before_it_is_there(tmp_path):
    assert assumed("set", DataSettings("folder", "mine")) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loader": "foodseg103"}, "path: expected a folder"),
        ({"loader": "folder", "path": "x", "targets": "trimaps"}, "targets: expected none"),
        ({"loader": "folder", "path": "x", "dataset": "cifar"}, "dataset: expected one of ilsvrc"),
        ({"loader": "foodseg103", "path": "x", "dataset": "foodseg103"}, "dataset: expected none"),
        ({"loader": "oxford-pets", "path": "x", "classes": 2}, "classes: expected none"),
    ],
)
def test_settings_that_do_not_suit_a_loader_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DataSettings(**settings)
