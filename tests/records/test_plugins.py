import importlib.metadata
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from bench.records.nouns import UserError
from bench.records.plugins import Origin, Values
from bench.records.settings import SettingError


@dataclass(frozen=True)
class Shade:
    name: str


BLACK, WHITE = Shade("black"), "white"


@pytest.fixture
def shades(monkeypatch, tmp_path):
    """A table with one shade built in, to which entry points and modules can be added."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def table(*points, **modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        found = [EntryPoint(name, value, "bench.shades") for name, value in points]
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group: [p for p in found if p.group == group]
        )
        built_in = {"black": f"{__name__}:BLACK"}
        return Values("shade", Shade, key="shade", built_in=built_in)

    yield table
    for name in set(sys.modules) - before:
        del sys.modules[name]


GREY = f"from {__name__} import Shade\nGREY = Shade('grey')\n"


def test_those_built_in_come_first_and_others_by_name_and_none_is_imported(shades):
    table = shades(("red", "nowhere:RED"), ("grey", "greys:GREY"))
    assert table.names() == ["black", "grey", "red"]
    assert table.origin_of("red") == Origin("nowhere:RED", "")


def test_a_value_is_found_by_its_name_wherever_it_lives(shades):
    table = shades(("grey", "greys:GREY"), greys=GREY)
    assert table.get("black") is BLACK
    assert table.get("grey") == Shade("grey")
    assert table.get("grey") is table.get("grey")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gray", r"^no shade named 'gray'; did you mean 'grey'\? known: black, both, grey, none"),
        ("none", r"^shade 'none': cannot import nowhere:NONE \(ModuleNotFoundError: .*'nowhere'\)"),
        ("torn", r"^shade 'torn': cannot import torn:TORN \(ZeroDivisionError: division by zero\)"),
        ("text", r"^shade 'text': expected test_plugins:WHITE to be a Shade, got str$"),
        ("both", r"^shade 'both' is claimed by here:BOTH \(\?\) and there:BOTH \(\?\)$"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line_that_names_its_origin(shades, name, message):
    places = {"grey": "greys:GREY", "none": "nowhere:NONE", "torn": "torn:TORN"}
    table = shades(
        *places.items(),
        ("text", "test_plugins:WHITE"),
        ("both", "here:BOTH"),
        ("both", "there:BOTH"),
        torn="1 / 0",
    )
    with pytest.raises(SettingError, match=message) as raised:
        table.get(name)
    assert "\n" not in str(raised.value)
    assert raised.value.where == ("shade",)


def test_nobody_takes_a_name_that_is_built_in(shades):
    claim = rf"claimed by {__name__}:BLACK \(built in\) and greys:GREY \(\?\)"
    with pytest.raises(UserError, match=claim):
        shades(("black", "greys:GREY"), greys=GREY).get("black")
