"""Suites of parts: a grid each, on one set of data."""

import pytest

from bench.records.nouns import UserError
from bench.suite import plan
from bench.suite.reader import load

pytestmark = pytest.mark.usefixtures("stand_ins")

PART = """
name: {name}
include: [base.yaml]
owners:
  - {{embedded: mini}}
methods:
  - {{name: akh, queries: {queries}}}
attacks:
  - {{name: {attack}}}
innocents: {{strangers: {strangers}}}
"""

BASE = """
data:
  digits: {}
  photos: {crops: 3}
owner_images: photos
probe: digits
"""


@pytest.fixture
def parts(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    for name, queries, attack, strangers in (
        ("one", 4, "control.identity", 2),
        ("two", 5, "prune.l1", 0),
    ):
        text = PART.format(name=name, queries=queries, attack=attack, strangers=strangers)
        (tmp_path / f"{name}.yaml").write_text(text)

    def whole(text="name: whole\nparts: [one.yaml, two.yaml]\nreductions: [small]\n"):
        (tmp_path / "whole.yaml").write_text(text)
        return load(tmp_path / "whole.yaml")

    return whole


def test_a_suite_of_parts_asks_what_each_part_asks_and_no_more(parts, tmp_path):
    whole = parts()
    assert [part.name for part in whole.parts] == ["one", "two"]
    assert len(whole.owners) == 1
    assert [m.args["queries"] for m in whole.methods] == [4, 5]
    assert whole.reductions == ("small",)
    alone = [plan.make(load(tmp_path / f"{name}.yaml"), None) for name in ("one", "two")]
    made = plan.make(whole, None)
    keys = {q.key for q in made.questions}
    assert keys == {q.key for one in alone for q in one.questions}
    assert made.stages.keys() == {key for one in alone for key in one.stages}
    asked = {(q.cell.method.args["queries"], q.cell.attack[-1].name) for q in made.questions}
    assert asked == {(4, "control.identity"), (4, "control.stranger"), (5, "prune.l1")}


def test_parts_of_parts_are_all_parts(parts, tmp_path):
    (tmp_path / "outer.yaml").write_text("name: outer\nparts: [whole.yaml, two.yaml]\n")
    parts()
    assert [part.name for part in load(tmp_path / "outer.yaml").parts] == ["one", "two", "two"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: w\nparts: [one.yaml, tow.yaml]\n", ":2: no file 'tow.yaml'; did you mean 'two"),
        ("name: w\nparts: [whole.yaml]\n", ":2: expected parts without a circle"),
        ("name: w\nparts: [one.yaml]\nseeds: [0]\n", ":3: no setting 'seeds'"),
        ("name: w\nparts: []\n", ":2: parts: expected at least 1"),
    ],
)
def test_parts_that_cannot_be_had_are_named_by_their_line(parts, text, message):
    with pytest.raises(UserError) as caught:
        parts(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("include: [base.yaml]", "include: [base.yaml]\nalpha: 0.1", "alpha: expected the same"),
        ("include: [base.yaml]", "include: [base.yaml]\ndata: {photos: {held_out: 0.4}}",
         "data 'photos': expected the same"),
    ],
)  # fmt: skip
def test_parts_at_odds_are_refused(parts, tmp_path, old, new, message):
    two = tmp_path / "two.yaml"
    two.write_text(two.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        parts()
