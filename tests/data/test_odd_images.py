"""Folders as newcomers have them: each is read, or refused in one line that names the way out."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data import images
from bench.data.folders import MOST_WAYS
from bench.data.images import Preprocess, load
from bench.data.manifest import read, split
from bench.data.settings import DataSettings, described
from bench.records.files import stands_for
from bench.records.nouns import UserError, shown

SMALL = Preprocess((16, 16))

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"


def noise(seed=0, size=(12, 10)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def lay_out(root, *folders):
    for number, folder in enumerate(folders or [""] * 8):
        (root / folder).mkdir(parents=True, exist_ok=True)
        noise(number).save(root / folder / f"{number}.png")
    return root


def png(width, height):
    """A file that says how large it is, and holds next to nothing."""

    def part(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = part(b"IHDR", head) + part(b"IDAT", zlib.compress(bytes(99))) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def whole():
    import io

    written = io.BytesIO()
    noise().save(written, "png")
    return written.getvalue()


INSTEAD = {
    "a pointer": (POINTER, "got Git LFS's pointer to it; fetch it with `git lfs pull`"),
    "a web page": (b"<!doctype html><html>", "got a web page; fetch it again"),
    "a message": (b"404: Not Found", r"got a text \('404: Not Found'\)"),
    "a gzip": (b"\x1f\x8b\x08\0", "got a gzip archive; unpack it"),
    "a PDF": (b"%PDF-1.7", "got a PDF document"),
    "nothing known": (b"\0\1\2\3", "cannot decode it .of no kind that is known.; copy it again"),
    "a torn file": (whole()[:90], "cannot decode it .*; copy it again, or save it as PNG"),
    "a bomb": (png(100_000, 100_000), "178,956,970 pixels at most, got one that .* 10,000,000,000"),
    "a size without pixels": (png(9000, 9000), "cannot decode it .*truncated"),
    "a width of nought": (png(0, 10), "cannot decode it"),
}


@pytest.mark.parametrize(("content", "words"), INSTEAD.values(), ids=INSTEAD)
@pytest.mark.parametrize("file", ["x.png", "x.JPG"])
def test_what_lies_in_the_place_of_an_image_is_named(content, words, file, tmp_path):
    (lay_out(tmp_path) / file).write_bytes(content)
    listed = read("set", DataSettings("folder", str(tmp_path)))
    with pytest.raises(
        UserError, match=rf"^data 'set': {file}: expected an image.*{words}"
    ) as said:
        load(listed, range(len(listed.items)), SMALL)
    assert "\n" not in str(said.value)


def test_warnings_of_pillow_are_not_for_those_who_read_images(tmp_path, recwarn, monkeypatch):
    torn = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x99" * 30
    noise().save(tmp_path / "tag.jpg", exif=torn)
    noise(1, (60, 60)).save(tmp_path / "large.png")
    listed = read("set", DataSettings("folder", str(tmp_path)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert len(load(listed, range(2), SMALL)) == 2
    assert not recwarn.list


def test_a_thread_of_an_image_is_cut_before_it_is_enlarged(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(images, "_start", lambda full, cut: asked.append(full) or (full - cut) // 2)
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, size, *a, **k: sizes.append(size) or resize(self, size, *a, **k),
    )
    noise(0, (1, 20_000)).save(tmp_path / "x.png")
    made = load(read("set", DataSettings("folder", str(tmp_path))), [0], Preprocess((64, 64)))
    assert made.pixels.shape == (1, 3, 64, 64)
    assert max(asked) == 64 * 20_000
    assert sizes == [(64, 64)]


def test_a_net_of_links_is_refused_and_two_ways_are_not(tmp_path):
    names = [f"c{i}" for i in range(9)]
    lay_out(tmp_path, *names)
    (tmp_path / "c0" / "to").symlink_to(tmp_path / "c1")
    (tmp_path / "c1" / "to").symlink_to(tmp_path / "c0")
    assert len(read("set", DataSettings("folder", str(tmp_path))).items) == 11
    for name in names[2:]:
        for other in names[2:]:
            if name != other:
                (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    with pytest.raises(UserError, match=f"more than {MOST_WAYS} ways to it; remove links"):
        read("set", DataSettings("folder", str(tmp_path)))


def to_itself(root):
    (root / "x.png").symlink_to("x.png")


def a_fifo(root):
    os.mkfifo(root / "x.png")


def a_file(root):
    for path in root.iterdir():
        path.unlink()
    root.rmdir()
    root.write_bytes(b"PK\x03\x04")


def copies(root):
    for path in root.iterdir():
        path.write_bytes(whole())


PLACES = {
    "a link to itself": (to_itself, "set", r"x\.png: expected an image .Too many levels"),
    "a pipe": (a_fifo, "set", r"x\.png: expected an image, got what is no file"),
    "an archive": (a_file, "set.zip", "expected a folder, got a file at .*; unpack it"),
    "a misspelt folder": (lambda _: None, "sett", "found none at .*; did you mean 'set'"),
    "copies of one": (copies, "set", r"got 1 .of 8 images, 1 of them different."),
}


@pytest.mark.parametrize(("change", "path", "words"), PLACES.values(), ids=PLACES)
def test_a_place_that_is_no_folder_of_images_is_named(change, path, words, tmp_path):
    change(lay_out(tmp_path / (path if path != "sett" else "set")))
    with pytest.raises(UserError, match=words) as said:
        split(read("set", DataSettings("folder", path), tmp_path))
    assert "\n" not in str(said.value)


def test_an_image_that_may_not_be_read_is_named_before_a_run(tmp_path, monkeypatch):
    lay_out(tmp_path)
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, how: "3.png" not in str(path) and allowed(path, how)
    )
    with pytest.raises(UserError, match=r"3\.png: cannot be read; change its permissions"):
        read("set", DataSettings("folder", str(tmp_path)))


def mask(root, name, ids):
    Image.fromarray(ids).save(root / "masks" / name)


def lay_out_masks(root):
    for number in range(4):
        for part, picture in (("images", noise(number)), ("masks", None)):
            (root / part).mkdir(exist_ok=True)
            if picture is not None:
                picture.save(root / part / f"{number}.png")
        mask(root, f"{number}.png", np.full((10, 12), number % 3, np.uint8))
    return root


def under_another_name(root):
    (root / "masks/1.png").rename(root / "masks/1_mask.png")


def as_jpeg(root):
    (root / "masks/1.png").rename(root / "masks/1.jpg")


def in_another_folder(root):
    (root / "masks").rename(root / "labels")


MASKS = {
    "another name": (under_another_name, r"no masks/1\.png .*, got 1_mask\.png; masks are called"),
    "a JPEG": (as_jpeg, r"no masks/1\.png .*, got 1\.jpg; .* end in bmp, .*png"),
    "another folder": (in_another_folder, r"no masks/, got images/, labels/; rename it"),
    "another size": (
        lambda root: mask(root, "1.png", np.zeros((9, 12), np.uint8)),
        "mask of the image's size 12 x 10, got 12 x 9",
    ),
    "an id too many": (
        lambda root: mask(root, "1.png", np.full((10, 12), 3, np.uint8)),
        r"expected ids 0\.\.2, got 3; raise `classes`",
    ),
}


@pytest.mark.parametrize(("change", "words"), MASKS.values(), ids=MASKS)
def test_masks_that_do_not_go_with_their_images_are_named(change, words, tmp_path):
    change(lay_out_masks(tmp_path))
    with pytest.raises(UserError, match=words) as said:
        load(read("set", DataSettings("masks", str(tmp_path), classes=3)), range(4), SMALL)
    assert "\n" not in str(said.value)


NAMES = ["ünï.png", "two\nlines.png", "tab\t.png", "[red]x.png", "-dash.png", "a%20b.png", "UP.PNG"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_may_be_anything(name, tmp_path):
    noise(9).save(lay_out(tmp_path) / name, "png")
    listed = read("set", DataSettings("folder", str(tmp_path)))
    assert name in {item.file for item in listed.items}
    assert len(load(listed, range(len(listed.items)), SMALL)) == 9


def test_what_is_shown_of_a_name_is_one_line():
    assert shown("a\nb\x1b[31m\udcff ü") == "a\\nb\\x1b[31m\\udcff ü"


def test_a_check_prints_classes_whose_names_are_no_text(tmp_path):
    root = lay_out(tmp_path / "set", *("a", "b") * 6)
    (root / "b").rename(os.fsdecode(os.fsencode(str(root)) + b"/b\xff\n"))
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "name: s\nowners: [{embedded: mini}]\nmethods: [{name: cka, source: noise}]\n"
        "attacks: [{name: control.identity}]\n"
        f"data: {{set: {{loader: folder, path: {root}}}, digits: {{}}}}\n"
        "owner_images: set\nprobe: digits\ninnocents: {strangers: 1, twin_seeds: 0}\n"
    )
    said = subprocess.run(
        [sys.executable, "-m", "bench", "check", str(suite)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert "12 images, 2 classes: a 6, b\\udcff\\n 6" in said.stdout


@pytest.mark.parametrize(
    ("word", "near"), [("digit", "digits"), ("Photo", "photos"), ("phtos", "photos")]
)
def test_a_misspelt_embedded_set_is_asked_for_unless_a_folder_has_the_name(word, near, tmp_path):
    with pytest.raises(UserError, match=f"got '{word}'; did you mean '{near}'"):
        described(word, data_dir=tmp_path)
    (tmp_path / word).mkdir()
    assert described(word, data_dir=tmp_path) == DataSettings("folder", word)
    assert described(near) == DataSettings(near)


@pytest.mark.parametrize("content", [whole(), b"\x80", bytes(300), "ü".encode("latin-1") * 9])
def test_what_may_be_what_was_asked_for_stands_for_nothing_else(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    assert stands_for(tmp_path / "x") == ""


def test_a_text_is_told_though_a_letter_is_cut_where_the_look_ends(tmp_path):
    (tmp_path / "x").write_text("a" + "ü" * 200, "utf-8")
    assert stands_for(tmp_path / "x").startswith("a text ('aüü")


def test_pixels_are_what_they_were(tmp_path):
    noise(0, (30, 20)).save(tmp_path / "x.png")
    made = load(read("set", DataSettings("folder", str(tmp_path))), [0], Preprocess((20, 20)))
    kept = torch.from_numpy(np.asarray(noise(0, (30, 20)))[:, 5:25].copy())
    assert torch.equal(made.pixels[0].permute(1, 2, 0), kept)
