import dataclasses
from typing import ClassVar

import pytest
from commands import bench

from bench import testing
from bench.cli.looking import ASSUMED
from bench.records.nouns import Access
from bench.registry import METHODS


def in_table(listed, name):
    """What both tables of a list say of a method, cell by cell."""
    rows = [line.strip("| ").split(" | ") for line in listed.splitlines() if line[:2] == "| "]
    return [cells[1:] for cells in rows if cells[0] == name]


@pytest.fixture(scope="module")
def methods_listed():
    return bench("list", "methods", "--format", "markdown").out


def test_a_method_is_listed_with_what_it_states_and_what_its_class_tells(methods_listed):
    answers, takes = in_table(methods_listed, "akh")
    assert answers == ["stolen?", "labels", "fingerprint", "image", "innocents", "head, labels"]
    paper = ["2025", "Godinot et al., AAAI", "arXiv:2412.13021"]
    assert takes == ["420 f", "100 f", *paper, "2"]  # 256 + 64 images, 100 of them twice
    answers, takes = in_table(methods_listed, "committed_bits")
    assert answers == ["stolen?", "features", "mark", "bit", "own coins", "—"]
    assert takes[2:] == ["—", "none", "—", "—"]


def test_departures_from_the_paper_are_listed_by_name(methods_listed):
    by_name = methods_listed.partition("### cka.hidden")[2].partition("###")[0]
    assert "Departures: Images stand for texts" in by_name


def test_a_method_that_states_nothing_is_listed_all_the_same(monkeypatch):
    register_a_method(monkeypatch)
    listed = bench("list", "methods", "--format", "markdown").out
    answers, takes = in_table(listed, "silent")
    known = ["features", "mark", "not stated", "innocents", "labels not stated"]
    assert answers == ["not stated", *known]
    assert takes == ["not stated", "not stated", "—", "not stated", "—", "—"]


def register_a_method(monkeypatch):
    """Have a method that must be told a setting, and says no more than it must."""

    @dataclasses.dataclass(frozen=True)
    class Silent:
        needs: ClassVar[Access] = Access.FEATURES
        marks: ClassVar[bool] = True
        amount: int

        def protect(self, owner, ctx): ...
        def extract(self, secret, suspect, ctx): ...

    monkeypatch.setattr(METHODS, "_plugins", dict(METHODS._plugins))
    METHODS.register("silent")(Silent)


def test_passes_are_counted_for_mini():
    mini = testing.owner()
    tokens = mini.prefix + mini.trunk.grid[0] * mini.trunk.grid[1]
    found = len(mini.blocks), tokens, mini.width
    assert (ASSUMED.blocks, ASSUMED.tokens, ASSUMED.width) == found
