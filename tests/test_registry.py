import enum
import importlib.metadata
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar, Literal

import pytest

from bench.records.nouns import Access, UserError
from bench.records.plugins import Origin
from bench.records.settings import SettingError, settings
from bench.registry import Registry, Source
from bench.types import (
    Attack,
    Count,
    Facts,
    Later,
    Method,
    NotNegative,
    OpenShare,
    Paper,
    PartialShare,
    Positive,
    PositiveFloat,
    PositiveShare,
    Reading,
    Share,
)


class Norm(enum.Enum):
    ONE = "l1"
    TWO = "l2"


class Base:
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True

    def run(self, victim, ctx): ...


@dataclass(frozen=True, slots=True)
class Prune(Base):
    """Prune the smallest weights.

    H. Author, "A paper about
    pruning", https://example.org/paper
    """

    amount: float = 1
    steps: int = 3
    layers: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (1, 2)
    schedule: Literal["cosine", "linear"] = "cosine"
    norm: Norm = Norm.ONE
    limit: float | None = None
    block: int | Literal["auto", "last"] = "auto"
    strict: bool = False

    def __post_init__(self):
        if not 0 < self.amount <= 1:
            raise ValueError(f"expected amount in (0, 1], got {self.amount}")


@pytest.fixture
def attacks():
    registry = Registry("attack", Attack)
    registry.register("prune.some", version=2)(Prune)
    registry.__dict__["_announced"] = {}  # whatever happens to be installed
    return registry


@pytest.fixture
def announce(monkeypatch, tmp_path):
    """Offer entry points, and modules of the given text for them to point at."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def announce(*points, **modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        found = [EntryPoint(name, value, "bench.attacks") for name, value in points]
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group: [p for p in found if p.group == group]
        )
        return Registry("attack", Attack)

    yield announce
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_spec_spells_out_every_default_in_json(attacks):
    spec = attacks.spec("prune.some", {"norm": "l2"})
    assert (spec.name, spec.version) == ("prune.some", 2)
    assert spec.args == {
        "amount": 1.0,
        "steps": 3,
        "layers": [1, 2],
        "pair": [1.0, 2.0],
        "schedule": "cosine",
        "norm": "l2",
        "limit": None,
        "block": "auto",
        "strict": False,
    }


@dataclass(frozen=True)
class Grown(Prune):
    """Prune, some suites later."""

    mixup: Later[NotNegative] = 0.0
    layers_too: Later[tuple[int, ...]] = (1,)


def test_the_default_of_a_later_setting_goes_without_saying(attacks):
    attacks.register("prune.grown", version=2)(Grown)
    before = attacks.spec("prune.some", {}).args
    assert attacks.spec("prune.grown", {}).args == before
    assert attacks.spec("prune.grown", {"mixup": 0, "layers_too": [1]}).args == before
    said = attacks.spec("prune.grown", {"mixup": 0.2, "layers_too": [2]}).args
    assert said == {**before, "mixup": 0.2, "layers_too": [2]}
    assert attacks.build("prune.grown", said) == Grown(mixup=0.2, layers_too=(2,))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"amount": 1.0}),
        ({"amount": 1}, {"amount": 1.0}),
        ({"limit": 2}, {"limit": 2.0}),
        ({"layers": (4,)}, {"layers": [4]}),
        ({"steps": 5, "strict": True}, {"strict": True, "steps": 5}),
        ({"pair": [1, 2]}, {}),
    ],
)
def test_a_spec_does_not_depend_on_spelling(attacks, one, other):
    texts = {repr(attacks.spec("prune.some", args)) for args in (one, other)}
    assert len(texts) == 1


def test_what_is_built_has_the_types_it_declares(attacks):
    built = attacks.build("prune.some", {"amount": 1, "layers": [4], "norm": "l2"})
    assert built == Prune(amount=1.0, layers=(4,), norm=Norm.TWO)
    assert isinstance(built.amount, float)


REFUSED = [
    (
        {"amounts": 1},
        "no setting 'amounts'; did you mean 'amount'? known: amount, steps,",
        "amounts",
    ),
    ({"steps": "1"}, "steps: expected a whole number, got '1'", "steps"),
    ({"steps": 1.0}, "steps: expected a whole number, got 1.0", "steps"),
    ({"steps": True}, "steps: expected a whole number, got true", "steps"),
    ({"amount": "1"}, "amount: expected a number, got '1'", "amount"),
    ({"amount": float("nan")}, "amount: expected a finite number, got nan", "amount"),
    ({"amount": float("inf")}, "amount: expected a finite number, got inf", "amount"),
    ({"steps": 4, "amount": 7}, "expected amount in (0, 1], got 7.0", "amount"),
    ({"strict": 1}, "strict: expected true or false, got 1", "strict"),
    ({"layers": 3}, "layers: expected a list, got 3", "layers"),
    ({"schedule": None}, "schedule: expected 'cosine' or 'linear', got nothing", "schedule"),
    (
        {"schedule": "cosin"},
        "expected 'cosine' or 'linear', got 'cosin'; did you mean 'cosine",
        "sch",
    ),
    ({"block": "aut"}, "expected a whole number or 'auto' or 'last', got 'aut'; did you", "block"),
    ({"layers": ["a", "a"]}, "layers: expected a whole number, got 'a'", "layers"),
    ({"norm": "l3"}, "norm: expected 'l1' or 'l2', got 'l3'", "norm"),
    ({"pair": [1.0]}, "expected a value for 'pair.1', got none", "pair"),
]


@pytest.mark.parametrize(("args", "message", "culprit"), REFUSED, ids=[m for _, m, _ in REFUSED])
def test_a_wrong_setting_is_named_in_one_line(attacks, args, message, culprit):
    with pytest.raises(SettingError) as caught:
        attacks.build("prune.some", args)
    assert str(caught.value).startswith("attack 'prune.some': ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.where[0].startswith(culprit)


@pytest.mark.parametrize(("args", "message", "culprit"), REFUSED, ids=[m for _, m, _ in REFUSED])
def test_python_refuses_what_a_suite_is_refused_in_the_same_words(attacks, args, message, culprit):
    with pytest.raises(SettingError) as built:
        attacks.build("prune.some", args)
    with pytest.raises(SettingError) as called:
        attacks.get("prune.some")(**args)
    assert str(called.value) == str(built.value)


def test_settings_may_stand_in_order_in_python(attacks):
    with pytest.raises(SettingError, match="steps: expected a whole number, got 'three'"):
        Prune(0.5, "three")
    assert Prune(0.5, 4).steps == 4


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (Positive, 0, "a number greater than 0, got 0"),
        (Count, -1, "a number greater than or equal to 0, got -1"),
        (PositiveFloat, 0.0, "a number greater than 0, got 0.0"),
        (NotNegative, -0.1, "a number greater than or equal to 0, got -0.1"),
        (Share, 1.1, "a number less than or equal to 1, got 1.1"),
        (PositiveShare, 0.0, "a number greater than 0, got 0.0"),
        (PartialShare, 1.0, "a number less than 1, got 1.0"),
        (OpenShare, 1.0, "a number less than 1, got 1.0"),
        (Positive | None, 0, "a number greater than 0, got 0"),
    ],
)
def test_an_annotation_says_what_a_setting_may_be(annotation, value, words):
    ranged = dataclass(frozen=True)(type("Ranged", (), {"__annotations__": {"x": annotation}}))
    with pytest.raises(SettingError) as caught:
        settings(ranged, {"x": value})
    assert (str(caught.value), caught.value.where) == (f"x: expected {words}", ("x",))


def test_the_culprit_is_found_beside_settings_without_default():
    @dataclass(frozen=True)
    class Needy:
        path: str
        crops: int = 1

        def __post_init__(self):
            if self.crops < 1:
                raise ValueError("expected crops")

    with pytest.raises(SettingError) as caught:
        settings(Needy, {"path": "x", "crops": 0})
    assert caught.value.where == ("crops",)


def test_an_unknown_name_meets_its_nearest(attacks):
    with pytest.raises(UserError, match=r"no attack named 'prune\.sone'; did you mean 'prune\.som"):
        attacks.get("prune.sone")
    with pytest.raises(UserError, match=r"no attack named 'xyz'; known: prune\.some"):
        attacks.get("xyz")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"run": Base.run}, "must be a frozen dataclass"),
        (dataclass(frozen=True)(type("Lame", (), {})), "lacks derived, offers, random, run"),
        (
            dataclass(frozen=True)(type("Named", (Base,), {"__annotations__": {"name": str}})),
            "has a setting 'name'",
        ),
    ],
)
def test_a_class_that_cannot_serve_is_refused_when_it_registers(body, message):
    cls = type("Thawed", (Base,), body) if isinstance(body, dict) else body
    with pytest.raises(UserError, match=f"attack 'x': test_registry:{cls.__name__} {message}"):
        Registry("attack", Attack).register("x")(cls)


class Sign:
    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False

    def protect(self, owner, ctx): ...

    def extract(self, secret, suspect, ctx): ...


def made(base, settings=None, **members):
    """A frozen dataclass with settings of these defaults, and members of its own."""
    body = {"__annotations__": dict.fromkeys(settings or {}, "object"), **(settings or {})}
    return dataclass(frozen=True)(type("Made", (base,), {**body, **members}))


def counted(self, sizes): ...


@pytest.mark.parametrize(
    ("base", "settings", "members", "meant"),
    [
        (Sign, {}, {"protect_pases": counted}, "'protect_pases'; did you mean 'protect_passes'?"),
        (Sign, {}, {"extract_pass": counted}, "'extract_pass'; did you mean 'extract_passes'?"),
        (Sign, {}, {"unreadible": counted}, "'unreadible'; did you mean 'unreadable'?"),
        (Sign, {"read_out": "graft"}, {}, "'read_out'; did you mean 'readout'?"),
        (Sign, {"precison": "float32"}, {}, "'precison'; did you mean 'precision'?"),
        (Base, {}, {"use_base": True}, "'use_base'; did you mean 'uses_base'?"),
        (Base, {}, {"uses_heads": True}, "'uses_heads'; did you mean 'uses_head'?"),
        (Base, {}, {"pases": counted}, "'pases'; did you mean 'passes'?"),
        (Base, {"datas": "digits"}, {}, "'datas'; did you mean 'data'?"),
    ],
)
def test_a_near_miss_of_what_a_plug_in_may_have_is_refused(base, settings, members, meant):
    kind, protocol = ("method", Method) if base is Sign else ("attack", Attack)
    with pytest.raises(SettingError) as caught:
        Registry(kind, protocol).register("x")(made(base, settings, **members))
    assert str(caught.value) == f"{kind} 'x': test_registry:Made has {meant}"


@pytest.mark.parametrize(
    ("base", "settings", "members", "says"),
    [
        (Base, {"passes": 3}, {}, "passes: expected a method, got something else"),
        (Sign, {}, {"protect_passes": None}, "protect_passes: expected a method, got something"),
        (Sign, {"readout": "guess"}, {}, "readout: expected 'graft', 'relinear' or 'native', got"),
        (Sign, {}, {"readout": "graft"}, "readout: expected a setting, got something else"),
        (Sign, {"precision": "half"}, {}, "precision: expected 'float32' or 'bfloat16', got"),
        (Base, {"data": ("digits",)}, {}, "data: expected text, got ['digits']"),
        (Base, {}, {"uses_base": "yes"}, "uses_base: expected true or false, got 'yes'"),
        (Base, {"uses_head": True}, {}, "uses_head: expected a ClassVar, got a setting"),
        (Sign, {}, {"facts": "a bit"}, "facts: expected Facts(...), got str"),
    ],
)
def test_a_member_of_the_right_name_and_the_wrong_kind_is_refused(base, settings, members, says):
    kind, protocol = ("method", Method) if base is Sign else ("attack", Attack)
    with pytest.raises(SettingError) as caught:
        Registry(kind, protocol).register("x")(made(base, settings, **members))
    assert str(caught.value).startswith(f"{kind} 'x': test_registry:Made: {says}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "settings", "members"),
    [
        (Base, {"date": "today", "base": 2, "rate": 0.1}, {"passed": counted}),
        (Base, {"data": None, "readouts": 3}, {"passes": counted, "uses_base": False}),
        (Base, {"data": "digits", "datas": 2}, {}),
        (Sign, {"readout": "native", "precision": "bfloat16"}, {"protect_passes": counted}),
        (Sign, {}, {"facts": Facts("bit", Paper(2017, "Uchida et al.", "doi:1"))}),
    ],
)
def test_names_of_its_own_and_members_of_the_right_kind_are_welcome(base, settings, members):
    kind, protocol = ("method", Method) if base is Sign else ("attack", Attack)
    registry, cls = Registry(kind, protocol), made(base, settings, **members)
    assert registry.register("x")(cls) is cls


@dataclass(frozen=True)
class Judging:
    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False

    points: int = 3
    tau: Reading[PositiveShare] = 0.5
    way: Reading[Literal["plain", "other"] | None] = None
    readout: Literal["graft", "relinear", "native"] = "graft"

    def protect(self, owner, ctx): ...
    def extract(self, secret, suspect, ctx): ...


def test_settings_of_reading_are_told_and_keep_their_ranges():
    registry = Registry("method", Method)
    registry.register("judging")(Judging)
    assert registry.reading("judging") == ("tau", "way", "readout")
    with pytest.raises(SettingError, match="tau: expected a number greater than 0, got 0"):
        registry.build("judging", {"tau": 0})


def test_whose_head_answers_is_no_setting_of_reading_of_a_method_that_sees_the_network():
    registry = Registry("method", Method)
    registry.register("sees")(type("Sees", (Judging,), {"needs": Access.WEIGHTS}))
    assert registry.reading("sees") == ("tau", "way")


def test_an_attack_reads_nothing():
    @dataclass(frozen=True)
    class Marked(Base):
        amount: Reading[Share] = 0.5

    with pytest.raises(SettingError, match="marks 'amount' as Reading; expected that of methods"):
        Registry("attack", Attack).register("x")(Marked)


def test_two_classes_of_one_name_are_both_named(attacks):
    other = dataclass(frozen=True)(type("Other", (Base,), {}))
    with pytest.raises(UserError, match=r"claimed by test_registry:Prune and test_registry:Other"):
        attacks.register("prune.some")(other)
    assert attacks.get("prune.some") is Prune


def test_a_class_defined_again_in_the_same_place_replaces_itself(attacks):
    again = dataclass(frozen=True)(type("Prune", (Base,), {}))
    attacks.register("prune.some", version=3)(again)
    assert attacks.spec("prune.some", {}).version == 3


MODULE = '''"""Do nothing at all.

N. Body, "Nothing", arXiv 0000.00000.
"""
from dataclasses import dataclass
from bench.registry import ATTACKS
from test_registry import Base

ANNOUNCED = {}

@dataclass(frozen=True)
class Nothing(Base):
    """Do nothing."""
'''


def test_a_plug_in_is_imported_when_asked_for_and_not_before(announce, monkeypatch):
    registry = announce(
        ("nothing", "plug_in:Nothing"), plug_in=MODULE + "REG.register('nothing')(Nothing)"
    )
    monkeypatch.setattr("builtins.REG", registry, raising=False)
    assert registry.names() == ["nothing"]
    assert registry.origin("nothing") == Origin("plug_in:Nothing", "")
    assert "plug_in" not in sys.modules
    assert registry.get("nothing").__name__ == "Nothing"
    assert registry.source("nothing") == Source(
        "Do nothing.", 'N. Body, "Nothing", arXiv 0000.00000.'
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module", r"ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = ", r"SyntaxError: invalid syntax"),
        ("raise RuntimeError('first\\nsecond')", r"RuntimeError: first"),
        ("", r"AttributeError: module 'plug_in' has no attribute 'Nothing'"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_says_why_in_one_line(announce, text, reason):
    registry = announce(("nothing", "plug_in:Nothing"), plug_in=text)
    with pytest.raises(UserError, match=rf"cannot import plug_in:Nothing \({reason}") as caught:
        registry.get("nothing")
    assert "\n" not in str(caught.value)


def test_an_entry_point_must_lead_to_a_class_of_that_name(announce):
    registry = announce(("nothing", "plug_in:Nothing"), plug_in=MODULE)
    with pytest.raises(UserError, match="plug_in:Nothing does not register itself by that name"):
        registry.get("nothing")


def test_two_entry_points_of_one_name_are_both_named(announce):
    registry = announce(("nothing", "here:Nothing"), ("nothing", "there:Nothing"))
    with pytest.raises(UserError, match=r"claimed by here:Nothing \(\?\) and there:Nothing"):
        registry.get("nothing")


def test_what_was_registered_by_hand_is_traced_to_its_class(attacks):
    assert attacks.origin("prune.some") == Origin("test_registry:Prune", "")
    assert attacks.source("prune.some") == Source(
        "Prune the smallest weights.",
        'H. Author, "A paper about pruning", https://example.org/paper',
    )


def test_naming_plug_ins_and_reading_suites_and_records_needs_no_torch():
    code = "import sys, bench.registry, bench.suite.reader, bench.records.ledger; "
    code += "sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
