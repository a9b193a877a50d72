import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from bench.data.embedded import PHOTOGRAPHS, digits_for
from bench.data.manifest import read, split
from bench.data.settings import DataSettings
from bench.records.nouns import UserError


def folder(root, names):
    """Write files whose bytes are their own names: a manifest never looks inside."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


CLASSED = [f"{c}/{c}{i}.jpg" for c in ("shoe", "hat") for i in range(10)]
PARTED = [f"{part}/{name}" for part in ("train", "test") for name in CLASSED]
FLAT = [f"n{i:02d}.png" for i in range(12)]

PAIRS = [f"{kind}/{i:02d}{end}" for kind, end in (("images", ".jpg"), ("masks", ".png"))
         for i in range(12)]  # fmt: skip
PARTED_PAIRS = [f"{Path(n).parent}/{part}/{part}{Path(n).name}" for n in PAIRS
                for part in ("train", "test")]  # fmt: skip
MASKS = DataSettings("masks", "set", classes=11, ignore_index=11)

LOADERS = {
    "digits": (DataSettings("digits"), []),
    "photos": (DataSettings("photos", crops=3), []),
    "digit scenes": (DataSettings("digit-scenes", crops=3), []),
    "masks": (MASKS, PAIRS),
    "masks in train and test": (MASKS, PARTED_PAIRS),
    "class folders": (DataSettings("folder", "set"), CLASSED),
    "train and test": (DataSettings("folder", "set"), PARTED),
    "flat": (DataSettings("folder", "set", labels="sorted"), FLAT),
}


@pytest.fixture(params=LOADERS)
def listed(request, tmp_path):
    settings, names = LOADERS[request.param]
    folder(tmp_path / "set", names)
    return read("set", settings, tmp_path)


def sources(listed, pool):
    return {listed.items[i].source for i in pool}


def four(listed):
    return list(dataclasses.astuple(split(listed)))


def test_no_source_is_in_two_pools_and_every_item_is_in_one(listed):
    pools = four(listed)
    assert all(pools)
    assert sorted(sum(pools, ())) == list(range(len(listed.items)))
    parts = [sources(listed, pool) for pool in pools]
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_splitting_again_gives_the_same_pools(listed):
    again = read(listed.name, listed.settings, listed.root.parent if listed.root else None)
    assert split(again) == split(listed)
    assert again.digest == listed.digest


@pytest.mark.parametrize(("share", "owner", "thief"), [(0.5, 8, 8), (0.25, 4, 12)])
def test_the_share_counts_photographs(share, owner, thief):
    listed = read("photos", DataSettings("photos", owner_share=share, crops=2))
    pools = [sources(listed, pool) for pool in four(listed)]
    assert (len(pools[0] | pools[1]), len(pools[2] | pools[3])) == (owner, thief)


def test_the_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    listed = read("digits", DataSettings("digits"))
    assert [item.label for item in listed.items] == datasets.load_digits().target.tolist()
    assert listed.classes == tuple("0123456789")


def test_photographs_are_the_sixteen_known_ones_and_unlabelled():
    listed = read("photos", DataSettings("photos", crops=5))
    assert len(PHOTOGRAPHS) == 16
    assert len(listed.items) == 80
    assert {item.label for item in listed.items} == {None}
    assert listed.classes == ()


def test_a_digit_is_dealt_to_one_photograph_and_stays_with_its_party():
    dealt = {photograph: digits_for(photograph, 1797) for photograph in PHOTOGRAPHS}
    assert sorted(sum(dealt.values(), ())) == list(range(1797))
    assert {len(digits) for digits in dealt.values()} == {112, 113}
    scenes, digits, photos = (
        read(loader, DataSettings(loader)) for loader in ("digit-scenes", "digits", "photos")
    )
    for party in ("owner", "thief"):
        both = [f"{party}_images", f"{party}_held_out"]
        mine, whole, single = (
            set().union(*(sources(listed, getattr(split(listed), pool)) for pool in both))
            for listed in (scenes, photos, digits)
        )
        assert mine == whole
        assert {f"digit {i}" for photograph in mine for i in dealt[photograph]} == single


def test_an_image_is_listed_with_its_mask(tmp_path):
    listed = read("set", MASKS, folder(tmp_path / "set", PARTED_PAIRS).parent)
    assert len(listed.items) == 24
    assert listed.classes == tuple(map(str, range(11)))
    assert listed.masked
    for item in listed.items:
        part, stem = Path(item.file).parts[1], Path(item.file).stem
        assert (item.part, item.label) == (part, None)
        assert (item.file, item.mask) == (f"images/{part}/{stem}.jpg", f"masks/{part}/{stem}.png")


def test_the_digest_changes_with_the_masks_and_what_their_ids_mean(tmp_path):
    root = folder(tmp_path / "set", PAIRS)
    found = {read("set", MASKS, tmp_path).digest}
    for change in ({"classes": 12}, {"ignore_index": None}):
        found.add(read("set", dataclasses.replace(MASKS, **change), tmp_path).digest)
    (root / "masks/03.png").write_bytes(b"other")
    found.add(read("set", MASKS, tmp_path).digest)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (PAIRS[:12], r"expected images/ and masks/ in .*, no masks/, got images/; rename it$"),
        (PAIRS[12:], r"expected images/ and masks/ in .*, no images/, got masks/; rename it$"),
        ([*PAIRS, "images/extra.jpg"], r"no masks/extra\.png \(1 of 13 missing\)"),
        ([f"images/hat/{i}.jpg" for i in range(4)] + PAIRS[12:], "without class folders"),
    ],
)
def test_images_without_their_masks_are_refused_in_one_line(names, message, tmp_path):
    folder(tmp_path / "set", names)
    with pytest.raises(UserError, match=message) as raised:
        read("set", MASKS, tmp_path)
    assert "\n" not in str(raised.value)
    assert "'set'" in str(raised.value)


def test_class_folders_number_the_classes_in_sorted_order(tmp_path):
    listed = read("x", DataSettings("folder", str(folder(tmp_path, CLASSED))))
    assert listed.classes == ("hat", "shoe")
    assert {(i.file.split("/")[0], i.label) for i in listed.items} == {("hat", 0), ("shoe", 1)}


def test_a_flat_folder_has_labels_only_when_asked(tmp_path):
    root = str(folder(tmp_path, FLAT))
    plain = read("x", DataSettings("folder", root))
    numbered = read("x", DataSettings("folder", root, labels="sorted"))
    assert ({i.label for i in plain.items}, plain.classes) == ({None}, ())
    assert [i.label for i in numbered.items] == list(range(12))
    assert numbered.classes == tuple(name.removesuffix(".png") for name in FLAT)


def test_train_and_test_folders_become_images_and_held_out(tmp_path):
    listed = read("x", DataSettings("folder", str(folder(tmp_path, PARTED))))
    pools = split(listed)
    images, held = pools.owner_images + pools.thief_images, pools.owner_held_out
    assert {listed.items[i].part for i in images} == {"train"}
    assert {listed.items[i].part for i in held + pools.thief_held_out} == {"test"}


def test_a_copy_under_another_name_stays_with_its_original(tmp_path):
    root = folder(tmp_path, CLASSED)
    (root / "hat" / "copy.jpg").write_bytes((root / "hat" / "hat0.jpg").read_bytes())
    listed = read("x", DataSettings("folder", str(root)))
    twins = {
        i for i, item in enumerate(listed.items) if item.file in ("hat/copy.jpg", "hat/hat0.jpg")
    }
    assert len(twins) == 2
    assert [twins <= set(pool) for pool in four(listed)].count(True) == 1


def test_a_file_in_both_train_and_test_is_never_trained_on(tmp_path):
    root = folder(tmp_path, PARTED)
    (root / "train/hat/leak.jpg").write_bytes((root / "test/hat/hat0.jpg").read_bytes())
    listed = read("x", DataSettings("folder", str(root)))
    pools = split(listed)
    leaked = {i for i, item in enumerate(listed.items) if item.file == "train/hat/leak.jpg"}
    assert leaked & set(pools.owner_held_out + pools.thief_held_out)


def test_a_limit_thins_every_photograph_alike():
    full = split(read("photos", DataSettings("photos", crops=10)))
    listed = read("photos", DataSettings("photos", crops=10, max_images=12))
    chosen = split(listed).owner_images
    assert chosen == full.owner_images[:12]
    counts = [sum(listed.items[i].source == s for i in chosen) for s in sources(listed, chosen)]
    assert counts == [2] * 6


CHANGES = {
    "a byte": lambda root: (root / "hat/hat0.jpg").write_bytes(b"other"),
    "a label": lambda root: (root / "hat/hat0.jpg").rename(root / "shoe/hat0.jpg"),
    "a class": lambda root: (root / "hat").rename(root / "cap"),
    "a file less": lambda root: (root / "hat/hat0.jpg").unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_digest_changes_with_the_data(change, tmp_path):
    root = folder(tmp_path, CLASSED)
    before = read("x", DataSettings("folder", str(root))).digest
    change(root)
    assert read("x", DataSettings("folder", str(root))).digest != before


@pytest.mark.parametrize(
    "setting", [{"owner_share": 0.4}, {"held_out": 0.2}, {"crops": 4}, {"max_images": 5}]
)
def test_the_digest_changes_with_the_settings(setting):
    assert read("x", DataSettings("photos", **{"crops": 3, **setting})).digest != (
        read("x", DataSettings("photos", crops=3)).digest
    )


def test_the_digest_does_not_change_when_the_folder_moves(tmp_path):
    there = read("a", DataSettings("folder", str(folder(tmp_path / "there", CLASSED))))
    here = read("b", DataSettings("folder", "here"), folder(tmp_path / "here", CLASSED).parent)
    assert here.digest == there.digest
    assert here.items == there.items


def test_a_source_is_named_by_its_bytes(tmp_path):
    listed = read("x", DataSettings("folder", str(folder(tmp_path, FLAT))))
    assert listed.items[0].source == hashlib.sha256(b"n00.png").hexdigest()[:16]


def test_other_files_are_passed_over(tmp_path):
    root = folder(tmp_path, [*FLAT, "notes.txt", "._n00.png", "N99.JPEG"])
    listed = read("x", DataSettings("folder", str(root)))
    assert [item.file for item in listed.items] == ["N99.JPEG", *FLAT]


BROKEN_FOLDERS = {
    "missing": (None, {}, "found none at .*--data DIR or BENCH_DATA"),
    "empty": (["notes.txt"], {}, "expected images"),
    "a stray image": ([*CLASSED, "stray.jpg"], {}, "'stray.jpg'"),
    "train only": (["train/hat/a.jpg"], {}, "got train$"),
    "train beside others": ([*PARTED, "extra/a.jpg"], {}, "got test, train, extra$"),
    "sorted class folders": (CLASSED, {"labels": "sorted"}, "flat folder"),
}


@pytest.mark.parametrize(("names", "extra", "message"), BROKEN_FOLDERS.values(), ids=BROKEN_FOLDERS)
def test_a_folder_that_cannot_be_read_is_refused_in_one_line(names, extra, message, tmp_path):
    if names is not None:
        folder(tmp_path / "set", names)
    with pytest.raises(UserError, match=message) as raised:
        read("set", DataSettings("folder", "set", **extra), tmp_path)
    assert "\n" not in str(raised.value)
    assert "'set'" in str(raised.value)


def test_a_relative_folder_needs_a_data_root():
    with pytest.raises(UserError, match="--data DIR or set BENCH_DATA"):
        read("clothing", DataSettings("folder", "clothing"), None)


def test_three_files_cannot_serve_four_pools(tmp_path):
    listed = read("x", DataSettings("folder", str(folder(tmp_path, FLAT[:3]))))
    with pytest.raises(UserError, match="two sources or more"):
        split(listed)


WRONG_SETTINGS = [
    ({"loader": "digits", "owner_share": 1.0}, "owner_share: expected a share"),
    ({"loader": "digits", "held_out": 0.0}, "held_out: expected a share"),
    ({"loader": "photos", "crops": 0}, "crops: expected at least 1"),
    ({"loader": "photos", "max_images": 0}, "max_images: expected at least 1"),
    ({"loader": "folder"}, "path: expected a folder"),
    ({"loader": "digits", "path": "x"}, "path: expected none"),
    ({"loader": "digit-scenes", "path": "x"}, "path: expected none"),
    ({"loader": "masks", "classes": 3}, "path: expected a folder"),
    ({"loader": "masks", "path": "x"}, "classes: expected .*, got none"),
    ({"loader": "masks", "path": "x", "classes": 1}, "classes: expected .*, got 1"),
    ({"loader": "masks", "path": "x", "classes": 256}, "classes: expected .*, got 256"),
    ({"loader": "digits", "classes": 3}, "classes: expected none"),
    ({"loader": "photos", "ignore_index": 3}, "ignore_index: expected none"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG_SETTINGS)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DataSettings(**settings)


def test_listing_the_embedded_data_imports_neither_torch_nor_their_packages():
    code = (
        "import sys; from bench.data.settings import *; from bench.data.manifest import *; "
        "split(read('d', DataSettings('digits'))); "
        "read('p', DataSettings('photos')); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'sklearn', 'skimage')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def read_folder(root, **settings):
    return read("x", DataSettings("folder", str(root), **settings))


def labelled(listed):
    return {item.file: listed.classes[item.label] for item in listed.items}


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git"])
def test_hidden_folders_and_what_archivers_leave_are_no_classes(name, tmp_path):
    root = folder(tmp_path, CLASSED)
    before = read_folder(root)
    folder(root, [f"{name}/hat0-checkpoint.jpg", f"hat/{name}/hat0.jpg"])
    after = read_folder(root)
    assert (after.digest, after.classes) == (before.digest, ("hat", "shoe"))
    assert [item.label for item in after.items] == [0] * 10 + [1] * 10
    assert any("hidden" in note for note in after.notes)


def test_hidden_folders_do_not_stand_beside_train_and_test(tmp_path):
    root = folder(tmp_path, [*PARTED, ".ipynb_checkpoints/hat0.jpg", "train/.cache/a.jpg"])
    assert read_folder(root).classes == ("hat", "shoe")


def test_links_are_followed_as_torchvision_does(tmp_path):
    """Three classes: a folder, a link to a folder, and a folder of links to files."""
    datasets = pytest.importorskip("torchvision.datasets")
    folder(tmp_path / "elsewhere", [f"{i}.jpg" for i in range(4)])
    root = folder(tmp_path / "set", [f"hat/h{i}.jpg" for i in range(4)])
    (root / "cap").symlink_to(tmp_path / "elsewhere")
    (root / "shoe").mkdir()
    for i in range(3):
        (root / f"shoe/s{i}.jpg").symlink_to(tmp_path / f"elsewhere/{i}.jpg")
    known = datasets.ImageFolder(str(root))
    found = read_folder(root)
    assert list(found.classes) == known.classes == ["cap", "hat", "shoe"]
    expected = [(str(Path(file).relative_to(root)), label) for file, label in known.samples]
    assert [(item.file, item.label) for item in found.items] == sorted(expected)


def test_a_link_into_its_own_folder_ends(tmp_path):
    root = folder(tmp_path, CLASSED)
    (root / "hat" / "again").symlink_to(root)
    (root / "shoe" / "here").symlink_to(root / "shoe")
    assert len(read_folder(root).items) == 20


def test_a_link_to_nowhere_is_named(tmp_path):
    root = folder(tmp_path, CLASSED)
    (root / "hat" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    with pytest.raises(UserError, match=r"hat/gone\.jpg: expected an image \(No such file"):
        read_folder(root)


def test_an_empty_file_is_named_before_anything_is_decoded(tmp_path):
    root = folder(tmp_path, CLASSED)
    (root / "hat" / "none.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"hat/none\.jpg: .*empty file"):
        read_folder(root)


ENDINGS = (
    ".jpg",
    ".JPG",
    ".jpeg",
    ".jfif",
    ".PNG",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".TIFF",
    ".ppm",
)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_class_is_read_whatever_the_kind_of_its_images(ending, tmp_path):
    root = folder(tmp_path, [*CLASSED, *(f"cap/{i}{ending}" for i in range(3))])
    found = read_folder(root)
    assert found.classes == ("cap", "hat", "shoe")
    assert [item.label for item in found.items].count(0) == 3


@pytest.mark.parametrize(
    ("names", "got"), [([], "nothing"), (["a.heic", "b.heic", "c.txt"], r"2 \.heic, 1 \.txt")]
)
@pytest.mark.parametrize("part", ["", "train/"])
def test_a_class_folder_without_images_is_refused_instead_of_lost(names, got, part, tmp_path):
    root = folder(tmp_path, PARTED if part else CLASSED)
    folder(root, [f"{part}cap/{name}" for name in names])
    (root / part / "cap").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=rf"in every class folder, got {got} in {part}cap/"):
        read_folder(root)


def test_a_class_that_one_part_shows_and_another_has_empty_is_refused(tmp_path):
    root = folder(tmp_path, [name for name in PARTED if not name.startswith("test/shoe")])
    (root / "test/shoe").mkdir()
    with pytest.raises(UserError, match="in every class folder, got nothing in test/shoe/"):
        read_folder(root)


def test_classes_named_by_numbers_are_in_their_order(tmp_path):
    """As text, 10 would stand before 2: then 988 of 1000 labels are wrong."""
    found = read_folder(folder(tmp_path, [f"{c}/{c}-{i}.jpg" for c in range(1000) for i in (0, 1)]))
    assert found.classes == tuple(map(str, range(1000)))
    assert all(item.label == int(item.file.partition("/")[0]) for item in found.items)
    assert any("order of numbers" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["2", "10", "1"], ["1", "2", "10"]),
        (["02", "10", "01"], ["01", "02", "10"]),
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10", "9", "a"], ["10", "9", "a"]),  # one name is no number: text
        (["1e3", "2", "10"], ["10", "1e3", "2"]),
        (["off", "no", "null", "01"], ["01", "no", "null", "off"]),
    ],
)
def test_labels_follow_numbers_only_where_all_names_are_whole_numbers(names, order, tmp_path):
    found = read_folder(folder(tmp_path, [f"{c}/{c}-{i}.jpg" for c in names for i in (0, 1)]))
    assert list(found.classes) == order
    assert all(name == file.partition("/")[0] for file, name in labelled(found).items())


def test_sorted_files_named_by_numbers_are_in_their_order_too(tmp_path):
    found = read_folder(folder(tmp_path, [f"{i}.jpg" for i in range(120)]), labels="sorted")
    assert all(item.label == int(Path(item.file).stem) for item in found.items)


def test_classes_from_one_on_are_said_to_be_labels_from_nought_on(tmp_path):
    found = read_folder(folder(tmp_path, [f"{c}/{c}{i}.jpg" for c in (1, 2) for i in range(4)]))
    assert found.notes == ("class 1 is label 0 and class 2 is label 1",)


def test_one_class_is_nothing_to_tell_apart(tmp_path):
    found = read_folder(folder(tmp_path, [f"hat/{i}.jpg" for i in range(8)]))
    assert (found.classes, {item.label for item in found.items}) == ((), {None})
    assert "one class, 'hat'" in found.notes[0]


def test_what_is_passed_over_is_said(tmp_path):
    found = read_folder(folder(tmp_path, [*CLASSED, "hat/a.heic", "hat/b.heic", "list.csv"]))
    assert found.notes == ("passed over what is no image: 2 .heic, 1 .csv",)


def test_one_image_under_two_labels_and_in_two_encodings_is_said(tmp_path):
    root = folder(tmp_path, [*CLASSED, "hat/hat0.png"])
    (root / "shoe/shoe3.jpg").write_bytes((root / "hat/hat1.jpg").read_bytes())
    label, encoding = read_folder(root).notes
    assert label == "hat/hat1.jpg and shoe/shoe3.jpg are one image under two labels"
    assert encoding.startswith("1 names stand for several files, such as hat/hat0:")


@pytest.mark.parametrize(
    "parts", [("Train", "Test"), ("training", "validation"), ("valid", "test")]
)
def test_parts_of_other_names_do_not_become_classes(parts, tmp_path):
    root = folder(tmp_path, [f"{part}/{name}" for part in parts for name in CLASSED])
    with pytest.raises(UserError, match="expected train/ beside test/"):
        read_folder(root)


def test_of_two_images_for_one_mask_or_class_neither_is_taken(tmp_path):
    root = folder(tmp_path / "set", [*PAIRS, "images/03.png"])
    with pytest.raises(UserError, match=r"one image a mask, got both 03\.jpg and 03\.png"):
        read("set", MASKS, tmp_path)
    (root / "images/03.png").unlink()
    (root / "masks/03.tif").write_bytes(b"other")
    with pytest.raises(UserError, match=r"one mask an image, got both 03\.png and 03\.tif"):
        read("set", MASKS, tmp_path)
    flat = folder(tmp_path / "flat", [*FLAT, "n03.jpg"])
    with pytest.raises(UserError, match=r"one file a class, got both n03\.jpg and n03\.png"):
        read_folder(flat, labels="sorted")


def test_masks_may_be_of_any_kind_that_keeps_ids_and_spare_ones_are_said(tmp_path):
    names = [*(f"images/{i}.JPG" for i in range(8)), *(f"masks/{i}.PNG" for i in range(7))]
    folder(tmp_path / "set", [*names, "masks/7.tif", "masks/8.png"])
    found = read("set", MASKS, tmp_path)
    assert [item.mask for item in found.items] == [*names[8:], "masks/7.tif"]
    assert found.notes == ("passed over 1 masks without an image, such as 8.png",)
