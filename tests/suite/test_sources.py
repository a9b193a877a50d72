import itertools
import sys
from typing import get_args

import pytest
from made import ArrayStore, carried_out, record, suite

from bench.suite import plan, reader, sources
from bench.suite.graph import Kind

PLAIN = """
from acme.helpers import scale
from . import deeper

RATE = 0.1

def run(x, how=None):
    return scale(x) * RATE
"""

SAID_OTHERWISE = '''
"""What it is for."""
from acme.helpers import scale
from . import deeper

RATE = 0.1  # the paper's
"""How fast."""


def run(
    x,
    how=None,
):
    """Run it."""
    return (scale(x)
            * RATE)
'''


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """Write a package of these modules and return the digest of one of them."""
    monkeypatch.syspath_prepend(tmp_path)

    def digest(place="acme.plugin:Class", **modules):
        files = {
            "__init__": "",
            "plugin": PLAIN,
            "helpers": "scale = abs",
            "deeper": "from bench import types\nfrom .helpers import scale",
            "other": "x = 1",
        } | modules
        for name, text in files.items():
            path = (tmp_path / "acme").joinpath(*name.split("_in_")).with_suffix(".py")
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)
        assert "acme" not in sys.modules  # nothing is imported
        sources.plugin_digest.cache_clear()
        return sources.plugin_digest(place)

    yield digest
    sources.plugin_digest.cache_clear()


@pytest.mark.parametrize(
    ("modules", "same"),
    [
        ({"plugin": SAID_OTHERWISE}, True),
        ({"plugin": PLAIN.replace("0.1", "0.05")}, False),
        ({"plugin": PLAIN.replace("None", "False")}, False),
        ({"plugin": PLAIN.replace("0.1", "'0.1'")}, False),
        ({"plugin": PLAIN.replace("scale(x)", "scale(-x)")}, False),
        ({"helpers": "scale = round"}, False),
        ({"deeper": "from bench import types\nfrom .helpers import scale as s"}, False),
        ({"other": "x = 2"}, True),
    ],
)
def test_a_plug_ins_source_is_told_from_another_by_what_it_does(digest, modules, same):
    assert (digest() == digest(**modules)) is same


def test_what_a_method_states_of_itself_is_no_part_of_its_source(digest):
    def stated(types, facts):
        imported = f"from typing import ClassVar\nfrom bench.types import {types}\n"
        return digest(plugin=f"{imported}\nclass Class:\n    lr = 1\n{facts}")

    facts = "    facts: ClassVar[Facts] = Facts('bit', Paper(2017, 'Uchida', 'doi:1'))\n"
    before = stated("Access", "")
    assert stated("Access, Facts, Paper", facts) == before
    assert stated("Access, Facts", facts.replace("facts:", "rule:")) != before
    assert stated("Access, Rule", "") != before


def test_all_modules_of_a_package_are_a_plug_ins_source(digest):
    inside = {"deep_in___init__": "from .one import x", "deep_in_one": "x = 1", "deep_in_two": ""}
    found = [
        digest("acme.deep:Class", **inside | changed)
        for changed in ({}, {"deep_in_two": "y = 1"}, {"deep_in_two": "# y"}, {"other": "x = 3"})
    ]
    assert found[0] == found[2] == found[3] != found[1]


def test_what_has_no_file_is_unknown():
    assert sources.plugin_digest("nowhere.at.all:Class") == sources.UNKNOWN
    assert sources.plugin_digest("__main__.inner:Class") == sources.UNKNOWN


def test_every_part_of_a_stage_is_there():
    assert sources.WORK.keys() == set(get_args(Kind))
    for place in itertools.chain(*sources.WORK.values()):
        assert list(sources._parts(place)), place


@pytest.fixture
def tiny(tmp_path, stand_ins):
    """A plan, a store in which all of it lies, and its records."""
    (tmp_path / "tiny.yaml").write_text(suite())
    made, store = plan.make(reader.load(tmp_path / "tiny.yaml"), None), ArrayStore(tmp_path / "s")
    records = carried_out(made, store)
    for key, stage in made.stages.items():
        found = store.find(key)
        payload = found.payload | {"code": sources.code_of(stage, made.stages)}
        store.put(key, stage.kind, stage.recipe, stage.parents, payload)
    return made, store, records


def test_what_was_made_by_todays_code_is_not_told_of(tiny):
    made, store, _ = tiny
    assert sources.other_code(made, store, {}).artefacts == {}
    assert list(sources.told(sources.other_code(made, store, {}))) == []


def test_what_other_code_made_is_counted_by_plug_in_and_by_stage(tiny, monkeypatch):
    made, store, _ = tiny
    kinds = [stage.kind for stage in made.stages.values()]
    known = {kind: sources.stage_digest(kind) for kind in get_args(Kind)} | {"utility": "new"}
    monkeypatch.setattr(sources, "stage_digest", known.get)
    lines = list(sources.told(sources.other_code(made, store, {})))
    assert [line.split(":")[0] for line in lines] == [
        f"{kinds.count('utility')} artefacts in the store made by other code of the stage utility"
    ]
    assert "--stale remake" in lines[0]


def test_a_plug_ins_new_code_is_told_of_where_it_protects_attacks_and_reads(tiny, monkeypatch):
    made, store, _ = tiny
    monkeypatch.setattr(sources, "plugin_digest", lambda place: f"new {place.partition(':')[2]}")
    found = sources.other_code(made, store, {}).artefacts
    asked = {name: {made.stages[key].kind for key in keys} for name, keys in found.items()}
    assert asked == {
        "activemark": {"protect", "extract"},
        "prune.l1": {"attack"},
        "control.identity": {"attack"},
        "control.stranger": {"attack"},
    }


def test_what_follows_from_other_code_is_made_again_in_other_suites_too(tiny):
    made, store, _ = tiny
    stages = made.stages
    protect = next(key for key, stage in stages.items() if stage.kind == "protect")
    prune = next(
        q.suspect
        for q in made.questions
        if q.protect == protect
        and q.cell.base == "released"
        and q.cell.attack[0].name != "control.identity"
    )
    store.put("ab" * 8, "attack", {"step": {"name": "theirs"}}, (prune,), {})
    store.put("cd" * 8, "utility", {}, ("ab" * 8,), {})
    store.put("ef" * 8, "attack", {"step": {"name": "theirs"}}, ("nowhere",), {})
    gone = sources.to_remake(made, store, sources.OtherCode({"prune.l1": [prune]}, ()))
    assert {"ab" * 8, "cd" * 8} < gone
    assert "ef" * 8 not in gone
    assert {stages[key].kind for key in gone & stages.keys()} == {"attack", "extract", "utility"}
    assert protect not in gone


def test_what_answers_of_today_follow_from_is_not_looked_at(tiny, monkeypatch):
    made, store, _ = tiny
    now = {}
    for stage in made.stages.values():
        now |= sources.code_of(stage, made.stages)
    answers = {q.key: record(q.cell, key=q.key, code=now) for q in made.questions}
    monkeypatch.setattr(store, "find", lambda key: pytest.fail("the store was read"))
    assert not sources.other_code(made, store, answers)


def test_artefacts_that_do_not_say_their_code_are_told_of_by_themselves(tiny):
    made, store, _ = tiny
    key = next(key for key, stage in made.stages.items() if stage.kind == "attack")
    found = store.find(key)
    store.put(key, found.kind, found.recipe, found.parents, {"cost": {"seconds": 1.0}})
    (line,) = sources.told(sources.other_code(made, store, {}))
    assert line.startswith("1 artefact in the store that do")


def test_answers_say_from_what_code_they_follow(tiny):
    made, _, records = tiny
    now = {}
    for stage in made.stages.values():
        now |= sources.code_of(stage, made.stages)
    first, second, third = made.questions[:3]
    answers = {
        first.key: record(first.cell, key=first.key, code=now),
        second.key: record(second.cell, key=second.key, code=now | {"extract": "another"}),
        third.key: record(third.cell, key=third.key),  # of the days before
    }
    assert sources.answered_by_others(made, answers) == [second.key, third.key]
    (line,) = sources.told(sources.OtherCode({}, [second.key, third.key]))
    assert line.startswith("2 answers follow from other code than today's")
    assert len(records) == len(made.questions)
