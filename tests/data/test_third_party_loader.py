"""A package that is not ours brings a loader in one file, the one that the suites' README shows."""

import dataclasses
import importlib.metadata
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from documents import ROOT, blocks
from packages import install, program, python
from PIL import Image

from bench.data import images
from bench.data.images import Preprocess
from bench.data.item import Item, Listing, Picture
from bench.data.manifest import is_there, read, split
from bench.data.settings import LOADERS, DataSettings, Loader
from bench.records import ledger
from bench.records.nouns import UserError

DOCUMENT = ROOT / "suites/README.md"

[CARDS] = (text for text in blocks(DOCUMENT, "python") if "my_cards" in text)
[ENTRY_POINT] = blocks(DOCUMENT, "toml")

FILES = {
    "pyproject.toml": f"""
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "my-cards"
version = "1.0"

{ENTRY_POINT}
[tool.setuptools]
py-modules = ["my_cards"]
""",
    "my_cards.py": CARDS,
}

SUITE = """
name: dealt
owners: [{embedded: mini}]
methods:
  - {name: activemark, steps: 2, batch: 4, images: 4, encoder_hidden: 32, decoder_hidden: 16}
attacks:
  - {name: finetune.classify, data: cards, epochs: 1}
data: {cards: {loader: my.cards, path: cards}}
owner_images: cards
probe: cards
innocents: {strangers: 0, twin_seeds: 0}
"""

DECODE = """
import sys
from pathlib import Path
from bench.data import Preprocess, images
from bench.data.manifest import read
from bench.data.settings import DataSettings

listed = read("cards", DataSettings("my.cards", "cards"), Path(sys.argv[1]))
loaded = images.load(listed, range(4), Preprocess((4, 4)))
print(listed.classes, loaded.labels.tolist(), loaded.pixels[:, :, 0, 0].tolist())
"""

NO_TORCH = """
import sys
from pathlib import Path
from bench.data.manifest import read
from bench.data.settings import DataSettings

read("cards", DataSettings("my.cards", "cards"), Path(sys.argv[1]))
sys.exit("torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return install(FILES, tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty cards of a red of their own, spades and hearts in turn."""
    root = tmp_path_factory.mktemp("data")
    (root / "cards").mkdir()
    lines = ["file,shows"]
    for i in range(40):
        Image.new("RGB", (24, 24), (6 * i, 10, 200)).save(root / f"cards/{i}.png")
        lines.append(f"{i}.png,{('spades', 'hearts')[i % 2]}")
    (root / "cards/cards.csv").write_text("\n".join(lines))
    return root


def test_its_loader_is_listed_beside_those_built_in(installed):
    last = program(installed, "bench", "list", "data").splitlines()[-1].rstrip()
    assert last.startswith("my.cards")
    assert last.endswith("images that cards.csv lists, with what they show")


def test_its_loader_lists_without_torch_and_its_files_are_opened(installed, data, tmp_path):
    python(installed, "-c", NO_TORCH, data)
    (tmp_path / "decode.py").write_text(DECODE)
    said = program(installed, tmp_path / "decode.py", data)
    pixels = [[6 * i, 10, 200] for i in range(4)]
    assert said == f"('hearts', 'spades') [1, 0, 1, 0] {pixels}\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_loader_feeds_the_owner_and_the_thief(installed, data, tmp_path):
    suite = tmp_path / "dealt.yaml"
    suite.write_text(SUITE)
    given = [suite, "--data", data]
    checked = program(installed, "bench", "check", *given)
    assert "ok       data cards: 40 images, 2 classes" in checked
    assert "dealt: 2 cells, 0 answered" in program(
        installed, "bench", "plan", *given, "--results", tmp_path
    )
    where = ("--results", tmp_path, "--device", "cpu", "--workers", 1)
    program(installed, "bench", "run", *given, *where)
    records = ledger.latest(ledger.read(tmp_path / "dealt")).values()
    assert {(r.status, r.utility.task) for r in records} == {("ok", "cards, thief's test images")}


@pytest.fixture
def announce(monkeypatch):
    """Make a loader known for the length of a test."""

    def announce(loader, name="mine"):
        monkeypatch.setattr(sys.modules[__name__], "MINE", loader, raising=False)
        points = [EntryPoint(name, f"{__name__}:MINE", LOADERS.group)]
        monkeypatch.setattr(
            importlib.metadata,
            "entry_points",
            lambda group: [p for p in points if p.group == group],
        )
        LOADERS.__dict__.pop("_announced", None)
        monkeypatch.setattr(LOADERS, "_found", {})

    yield announce
    LOADERS.__dict__.pop("_announced", None)


def drawn(name, settings, root):
    return Listing(tuple(Item(f"grey {i}", i % 2, index=i) for i in range(8)), ("even", "odd"))


def greys(manifest, items):
    """Draw a grey square for every item."""
    shades = {item.index: (item.index * 30,) * 3 for item in items}
    return lambda item: Picture(Image.new("RGB", (4, 4), shades[item.index]))


def unmixed(manifest, items):
    return lambda item: Picture(Image.new("L", (4, 4)))


def unmasked(manifest, items):
    return lambda item: Picture(Image.new("RGB", (4, 4)))


GREYS = Loader("greys", drawn, f"{__name__}:greys", on_disk=False)


def test_a_loader_may_draw_its_pictures_and_needs_no_folder(announce):
    announce(GREYS)
    settings = DataSettings("mine")
    listed = read("greys", settings)
    loaded = images.load(listed, [2, 5], Preprocess((4, 4)))
    assert is_there("greys", settings)
    assert loaded.pixels.float().mean((1, 2, 3)).tolist() == [60, 150]
    assert loaded.labels.tolist() == [0, 1]
    assert all(map(len, dataclasses.astuple(split(listed))))


def test_what_a_loader_says_of_its_content_is_in_the_digest(announce):
    def digest(content):
        announce(dataclasses.replace(GREYS, listed=lambda *asked: Listing(
            drawn(*asked).items, ("even", "odd"), content)))  # fmt: skip
        return read("greys", DataSettings("mine")).digest

    assert digest("one") == digest("one") != digest("two")


def test_a_loader_may_have_masks_and_take_how_many_ids_they_hold(announce, tmp_path):
    for i in range(4):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.mask.png")

    def listed(name, settings, root):
        found = (Item(str(i), None, f"{i}.png", mask=f"{i}.mask.png") for i in range(4))
        return Listing(tuple(found), tuple(map(str, range(settings.classes))))

    announce(Loader("masks", listed, takes=frozenset({"classes"}), masked=True))
    settings = DataSettings("mine", str(tmp_path), classes=4)
    loaded = images.load(read("masks", settings), range(4), Preprocess((4, 4)))
    assert torch.equal(loaded.masks[:, 0, 0], torch.arange(4, dtype=torch.uint8))
    assert (loaded.labels, loaded.classes) == (None, 4)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("text", r"^loader 'mine': expected .*:MINE to be a Loader, got str$"),
        (
            dataclasses.replace(GREYS, opened="nowhere:greys"),
            r"^loader 'mine': cannot import nowhere:greys \(ModuleNotFoundError: .*\)$",
        ),
        (
            dataclasses.replace(GREYS, opened=f"{__name__}:SUITE"),
            r"^loader 'mine': expected .*:SUITE to be a function, got str$",
        ),
        (
            dataclasses.replace(GREYS, listed=lambda *_: [Item("a")]),
            r"^data 'set': loader 'mine': expected a Listing, got list$",
        ),
        (
            dataclasses.replace(GREYS, listed=lambda *_: Listing((Item("a", 2),), ("x", "y"))),
            r"^data 'set': loader 'mine': expected labels 0\.\.1, one an image, got 2 of a$",
        ),
        (
            dataclasses.replace(GREYS, listed=lambda *_: Listing((Item("a"),), ("x", "y"))),
            r"expected labels 0\.\.1, one an image, got None of a$",
        ),
        (
            dataclasses.replace(GREYS, opened=f"{__name__}:unmixed"),
            r"^data 'set': loader 'mine': expected a picture in RGB, got L$",
        ),
        (
            dataclasses.replace(GREYS, masked=True, opened=f"{__name__}:unmasked"),
            r"expected a picture in RGB and a mask in L, got RGB$",
        ),
    ],
    ids=[
        "no loader",
        "no module",
        "no function",
        "no listing",
        "a label beyond",
        "no label",
        "grey",
        "no mask",
    ],
)
def test_a_loader_that_cannot_be_right_is_refused_in_one_line_with_its_name(
    announce, loader, message
):
    announce(loader)
    with pytest.raises(UserError, match=message) as raised:
        images.load(read("set", DataSettings("mine")), [0], Preprocess((4, 4)))
    assert "\n" not in str(raised.value)


def test_a_name_that_is_built_in_is_nobody_elses(announce):
    announce(GREYS, "digits")
    with pytest.raises(UserError, match=r"'digits' is claimed by .*:DIGITS \(built in\) and "):
        DataSettings("digits")


def test_every_loader_built_in_opens_with_a_function_that_is_there():
    for name in LOADERS.names():
        where = LOADERS.get(name).opened
        assert callable(LOADERS.imported(EntryPoint(name, where, LOADERS.group))), name


def test_no_module_of_a_loader_needs_torch():
    code = (
        "import sys; from bench.data.settings import LOADERS; "
        "[LOADERS.get(name) for name in LOADERS.names()]; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'PIL', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
