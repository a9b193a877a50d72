"""A library is found by name, and one that cannot be had says so in one line."""

import importlib.metadata
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from bench.models.libraries import LIBRARIES, Library
from bench.records.nouns import UserError
from bench.suite.owners import OwnerSettings, owner_from


@pytest.fixture
def announce(monkeypatch):
    """Entry points of packages that are not there."""

    def announced(**points):
        found = [EntryPoint(name, value, LIBRARIES.group) for name, value in points.items()]
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group: [p for p in found if p.group == group]
        )
        monkeypatch.delattr(LIBRARIES, "_announced", raising=False)
        monkeypatch.setattr(LIBRARIES, "_found", {})

    yield announced
    vars(LIBRARIES).pop("_announced", None)


def made(architecture):
    raise AssertionError("nothing is built")


BARE = Library(summary="one model", names=("tiny",), make=made)
"""What a library is that says no more than it must."""

HERE = f"{__name__}:BARE"


FOUND = """
import sys
from bench.models.libraries import LIBRARIES

for name in LIBRARIES.names()[:4]:
    LIBRARIES.get(name)
print({"torch", "timm", "open_clip", "transformers"} & sys.modules.keys())
"""


def test_the_built_in_libraries_come_first_and_are_found_without_torch():
    assert LIBRARIES.names()[:4] == ["embedded", "timm", "open_clip", "transformers"]
    done = subprocess.run([sys.executable, "-c", FOUND], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_library_of_others_is_one_more_key_of_an_owner(announce):
    announce(acme=HERE)
    assert LIBRARIES.names() == ["embedded", "timm", "open_clip", "transformers", "acme"]
    assert LIBRARIES.get("acme") is BARE
    assert owner_from({"acme": "tiny", "weights": "random"}).library == "acme"


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ({}, r"no library named 'acme'; known: embedded, timm, open_clip"),
        ({"acne": HERE}, r"no library named 'acme'; did you mean 'acne'\? known: .*, acne"),
        ({"acme": "no_such_module:ACME"}, r"'acme': cannot import no_such_module:ACME \(ModuleNot"),
        ({"acme": f"{__name__}:HERE"}, r"'acme': expected \S+:HERE to be a Library, got str"),
    ],
    ids=["unknown", "misspelt", "gone", "no library"],
)
def test_a_library_that_cannot_be_had_is_told_in_one_line(announce, points, words):
    announce(**points)
    with pytest.raises(UserError, match=words) as found:
        LIBRARIES.get("acme")
    assert "\n" not in str(found.value)


def test_a_name_that_two_claim_is_nobodys(announce):
    announce(timm=HERE)
    with pytest.raises(UserError, match=r"library 'timm' is claimed by bench\S+ \(built in\) and"):
        LIBRARIES.get("timm")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"name": "tinny"}, "no acme model 'tinny'; did you mean 'tiny'"),
        ({}, "weights: expected random or a file, acme publishes none; got hub"),
        ({"weights": "random", "pretrained": "openai"}, "pretrained: expected none, acme has no t"),
    ],
    ids=["name", "weights", "tag"],
)
def test_an_owner_is_refused_what_its_library_has_not(announce, more, words):
    announce(acme=HERE)
    with pytest.raises(UserError, match=words):
        OwnerSettings(**{"library": "acme", "name": "tiny", **more})
