import dataclasses
import itertools
from dataclasses import dataclass
from typing import ClassVar

import pytest
from tried import Mark, Plain, known

from bench import registry
from bench.records.nouns import UserError
from bench.records.settings import SettingError, settings
from bench.registry import METHODS
from bench.runs.tuning.candidates import (
    Terms,
    candidates,
    draws,
)
from bench.testing import method_tunes_within_its_settings


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    known(monkeypatch)


def first(name, args, count, seed=0):
    return [*itertools.islice(candidates(METHODS.spec(name, args), seed), count)]


def test_the_suites_own_entry_and_the_default_come_first_and_only_tunable_settings_move():
    found = first("fake.mark", {"lr": 0.3, "images": 4, "tau": 2}, 6)
    assert [c.origin for c in found] == ["suite", "default", *["drawn"] * 4]
    assert (found[0].spec.args["lr"], found[1].spec.args["lr"]) == (0.3, 0.1)
    assert {(c.spec.args["images"], c.spec.args["tau"]) for c in found} == {(4, 2)}
    assert len({c.spec.text for c in found}) == 6


def test_an_entry_at_the_default_is_one_candidate():
    assert [c.origin for c in first("fake.mark", {}, 2)] == ["suite and default", "drawn"]


def test_every_combination_is_drawn_once_before_candidates_end():
    found = first("fake.mark", {}, 1000)
    assert len(found) == len({c.spec.text for c in found}) == 12
    assert [c.origin for c in first("fake.plain", {}, 1000)] == ["suite and default"]


def test_a_larger_budget_begins_with_the_candidates_of_a_smaller_one():
    assert first("fake.mark", {}, 9)[:4] == first("fake.mark", {}, 4)


def test_draws_are_those_of_their_seed():
    of = [first("fake.mark", {}, 6, seed) for seed in (0, 0, 1)]
    assert of[0] == of[1] != of[2]


@pytest.mark.parametrize("seed", range(5))
def test_few_draws_fill_every_range_evenly(seed):
    declared = {"a": tuple(range(4)), "b": tuple(range(9))}
    found = [*itertools.islice(draws(declared, seed), 36)]
    for name, values in declared.items():
        # 36 draws at random would leave some value of nine out in every seventh case.
        counts = [sum(f[name] == value for f in found) for value in values]
        assert max(counts) - min(counts) <= 2


def test_more_tunable_settings_than_the_sequence_has_bases_are_refused():
    with pytest.raises(UserError, match="expected at most 8 settings, got 9"):
        next(draws({str(i): (0, 1) for i in range(9)}, 0))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"budget": 0}, "budget: expected a number greater than 0, got 0"),
        ({"price": -0.1}, "price: expected a number greater than or equal to 0, got -0.1"),
        ({"cosine": 2.0}, "cosine: expected a number less than or equal to 1, got 2.0"),
    ],
)
def test_terms_that_are_none_are_refused(asked, said):
    with pytest.raises(SettingError, match=said):
        settings(Terms, asked)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"lrr": (0.1, 0.2)}, "tunable: no setting 'lrr'; did you mean 'lr'?"),
        ("lr", "tunable: expected a mapping"),
    ],
)
def test_what_is_declared_tunable_is_checked_when_a_method_registers(declared, said):
    @dataclass(frozen=True)
    class Misspelt(Mark):
        tunable: ClassVar = declared

    with pytest.raises(SettingError) as refused:
        registry.Registry("method", registry.Method).register("misspelt")(Misspelt)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"tau": (1, 2)}, "names what only reading depends on: tau"),
        ({"lr": (0.1,)}, "leaves 'lr' no choice"),
        ({"lr": (0.1, "fast")}, "has a value that is refused"),
    ],
)
def test_a_declaration_that_breaks_its_promise_fails_the_check(declared, said):
    checked = registry.Registry("method", registry.Method)

    @checked.register("broken")
    @dataclass(frozen=True)
    class Broken(Mark):
        tunable: ClassVar = declared

    with pytest.raises(AssertionError, match=said):
        method_tunes_within_its_settings(Broken())


@pytest.mark.parametrize("method", [Mark(), Plain(), dataclasses.replace(Mark(), lr=0.5)])
def test_a_sound_declaration_and_none_pass(method):
    method_tunes_within_its_settings(method)
