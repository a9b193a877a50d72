"""Settings for a ViT-L: every method has some, each says where from, and all can be planned."""

import re
from pathlib import Path

import pytest
import yaml

from bench.cli import main
from bench.registry import METHODS
from bench.suite import reader
from methods.activemark import ActiveMark

SUITES = Path(__file__).parents[2] / "suites"

FRAGMENT = SUITES / "vit-large/methods.yaml"

STEPS = 2500
"""What the fragment says the rule of length is: the steps of ActiveMark's code."""


def entries():
    """Yield each method of the fragment with the comment above it, or above its neighbours."""
    comment, spoken = [], True
    for line in FRAGMENT.read_text().partition("\nmethods:\n")[2].splitlines():
        if line.startswith("  #"):
            comment = [*([] if spoken else comment), line.strip(" #")]
            spoken = False
        elif line.startswith("  - {"):
            yield re.search(r"name: ([\w.]+)", line)[1], " ".join(comment)
            spoken = True


def asked(path):
    """Return the settings a suite file gives each method; the last of those of one name."""
    return {each["name"]: each for each in yaml.safe_load(path.read_text())["methods"]}


def rates():
    for name, comment in entries():
        if found := re.search(r"mini's ([\d.e-]+) over\s+100", comment):
            yield pytest.param(name, float(found[1]), id=name)


def lengths():
    for name, comment in entries():
        if found := re.search(r"Length: (\d+) \* (\d+) / (\d+)", comment):
            yield pytest.param(name, *map(int, found.groups()), id=name)


def test_every_method_of_ours_has_settings_and_a_source():
    ours = {n for n in METHODS.names() if METHODS.origin(n).value.startswith("methods.")}
    found = list(entries())
    assert {name for name, _ in found} == ours
    assert [name for name, comment in found if len(comment.split()) < 2] == []
    assert len(found) == len(yaml.safe_load(FRAGMENT.read_text())["methods"])


def test_the_rules_are_used_as_often_as_they_are_stated():
    assert len(list(rates())) >= 10
    assert len(list(lengths())) >= 5
    assert METHODS.build("activemark", {}).steps == STEPS


@pytest.mark.parametrize(("name", "mini"), list(rates()))
def test_a_rate_by_the_rule_is_minis_over_a_hundred(name, mini):
    given, here = asked(SUITES / "methods.yaml")[name], asked(FRAGMENT)[name]
    args = {key: value for key, value in given.items() if key != "name"}
    assert METHODS.build(name, args).lr == mini
    assert here["lr"] == pytest.approx(mini / 100)


@pytest.mark.parametrize(("name", "epochs", "images", "batch"), list(lengths()))
def test_a_length_by_the_rule_is_that_of_activemarks_code(name, epochs, images, batch):
    args = {key: value for key, value in asked(FRAGMENT)[name].items() if key != "name"}
    made = METHODS.build(name, args)
    assert (made.epochs, made.batch) == (epochs, batch)
    assert epochs * images / batch == pytest.approx(STEPS, rel=0.1)


def test_three_codes_rates_are_minis_over_a_hundred():
    marked = asked(SUITES / "methods.yaml")
    assert marked["activemark"]["lr"] == 100 * ActiveMark().lr
    here = asked(FRAGMENT)
    for name in ("holmes", "sslguard"):
        assert METHODS.build(name, {}).lr == pytest.approx(100 * here[name]["lr"])


@pytest.mark.slow
def test_every_method_can_be_planned_for_a_vit_large_that_is_not_there(tmp_path, capsys):
    suite = reader.load(SUITES / "vit-large-methods.yaml")
    [owner] = suite.owners
    assert (owner.name, owner.weights) == ("vit_large_patch14_dinov2.lvd142m", "random")
    assert {method.name for method in suite.methods} == {name for name, _ in entries()}
    arguments = [str(SUITES / "vit-large-methods.yaml"), "--data", str(tmp_path / "none")]
    assert main(["plan", *arguments, "--results", str(tmp_path), "--device", "h200"]) == 0
    said = capsys.readouterr().out
    assert "?" not in said
    assert re.search(rf"protect +│ {len(suite.methods)} ", said)
    assert list(tmp_path.iterdir()) == []
