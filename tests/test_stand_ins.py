"""Stand-ins say of themselves what the plug-ins say that they stand for."""

import dataclasses

import pytest
import stand_ins

from bench.registry import ATTACKS, METHODS

FACTS = ("needs", "marks", "offers", "derived", "random", "labelled", "uses_base", "uses_head")


def facts(cls):
    return [getattr(cls, fact, None) for fact in FACTS]


@pytest.mark.parametrize("name", [*stand_ins.METHODS, *stand_ins.ATTACKS])
def test_a_stand_in_has_the_facts_and_defaults_of_its_plug_in(name):
    registry = METHODS if name in stand_ins.METHODS else ATTACKS
    stand_in, plug_in = (stand_ins.METHODS | stand_ins.ATTACKS)[name], registry.get(name)
    assert facts(stand_in) == facts(plug_in)
    spec = registry.spec(name, {})
    assert dataclasses.asdict(stand_in()).items() <= spec.args.items()
    assert spec.version == stand_ins.VERSIONS.get(name, 1)
