import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml

from bench.records import settings
from bench.records.nouns import Access, Spec, UserError
from bench.registry import Registry
from bench.suite import grid, innocents
from bench.suite.innocents import InnocentSettings
from bench.suite.owners import OwnerSettings
from bench.suite.reader import load
from bench.types import Attack, Method

SUITE = """\
name: demo
owners:
  - embedded: mini
  - timm: deit_tiny_patch16_224
    weights: weights/deit.safetensors
methods:
  - {name: stamp, steps: 400}
attacks:
  - {name: control.none}
  - - {name: prune.some, amount: 0.4}
    - {name: tune, data: digits, schedule: cosine}
data:
  digits: {}
  photos: {crops: 8}
  clothing: {loader: folder, path: clothing}
owner_images: photos
probe: digits
"""


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    methods, attacks = Registry("method", Method), Registry("attack", Attack)

    @methods.register("stamp", version=3)
    @dataclass(frozen=True)
    class Stamp:
        """Stamp it."""

        needs: ClassVar[Access] = Access.ALL
        marks: ClassVar[bool] = True
        steps: int = 2500
        rate: float = 1e-4
        layers: tuple[int, ...] = (1,)
        span: tuple[int, int] = (0, 4)

        def protect(self, owner, ctx): ...
        def extract(self, secret, suspect, ctx): ...

    class Base:
        offers: ClassVar[Access] = Access.ALL
        derived: ClassVar[bool] = True
        random: ClassVar[bool] = True

        def run(self, victim, ctx): ...

    @attacks.register("control.none")
    @dataclass(frozen=True)
    class Nothing(Base):
        """Do nothing."""

        random: ClassVar[bool] = False

    @attacks.register("prune.some")
    @dataclass(frozen=True)
    class Prune(Base):
        """Prune some."""

        amount: float = 0.2
        rounds: int = 1

        def __post_init__(self):
            if not 0 < self.amount < 1:
                raise ValueError(f"expected amount in (0, 1), got {self.amount}")

    @attacks.register("tune")
    @dataclass(frozen=True)
    class Tune(Base):
        """Tune it."""

        data: str = "digits"
        schedule: Literal["cosine", "linear"] = "linear"

    @attacks.register("control.other")
    @dataclass(frozen=True)
    class Other(Base):
        """Another model altogether."""

        derived: ClassVar[bool] = False

    monkeypatch.setattr(grid, "METHODS", methods)
    for asked in (grid, innocents):
        monkeypatch.setattr(asked, "ATTACKS", attacks)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="x.yaml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path.relative_to(tmp_path)

    return write


def test_a_suite_holds_its_specs_with_every_default_spelled_out(write):
    found = load(write(SUITE))
    assert found.methods == (
        Spec("stamp", {"steps": 400, "rate": 1e-4, "layers": [1], "span": [0, 4]}, 3),
    )
    assert [[step.name for step in chain] for chain in found.attacks] == [
        ["control.none"],
        ["prune.some", "tune"],
    ]
    assert found.attacks[1][1].args == {"data": "digits", "schedule": "cosine"}
    assert found.data["digits"].loader == "digits"
    assert found.data["clothing"].path == "clothing"
    assert (found.seeds, found.alpha, found.innocents) == ((0,), 0.05, InnocentSettings(19, 6, 0))


def test_recipes_of_descendants_are_attacks_like_any_and_included_ones_are_not_asked_twice(write):
    own = (
        "innocents:\n  descendants:\n    - {name: tune}\n    - [{name: prune.some}, {name: tune}]\n"
    )
    write(SUITE + own, "base.yaml")
    found = load(
        write("name: more\ninclude: [base.yaml]\ninnocents: {descendants: [{name: tune}]}\n")
    )
    named = [[step.name for step in chain] for chain in found.innocents.descendants]
    assert named == [["tune"], ["prune.some", "tune"]]
    assert found.innocents.descendants[0][0].args == {"data": "digits", "schedule": "linear"}


@pytest.mark.parametrize(
    ("twin_seeds", "recipes", "said"),
    [
        (6, 16, ""),  # two attacks, 16 more, and the clean owner
        (6, 15, "needs 19 recipes of descendants, the suite has 18 with the clean owner"),
        (19, 15, "marks will be undecided, but after random attacks, of 19 twins each"),
    ],
)
def test_a_suite_says_when_its_attacks_are_too_few_to_be_a_null(write, twin_seeds, recipes, said):
    more = ", ".join(f"{{name: prune.some, rounds: {2 + i}}}" for i in range(recipes))
    own = f"innocents: {{twin_seeds: {twin_seeds}, descendants: [{more}]}}\n"
    warnings = "\n".join(load(write(SUITE + own)).warnings)
    assert said in warnings if said else "descendants" not in warnings


def test_an_owner_is_named_without_the_path_of_its_weights(write):
    mini, deit = load(write(SUITE)).owners
    assert mini == OwnerSettings("embedded", "mini")
    assert deit.from_file
    assert deit.weights == "weights/deit.safetensors"
    assert deit.spec().name == "deit_tiny_patch16_224"
    assert deit.spec().args["weights"] == "file"
    assert "deit.safetensors" not in str(deit.spec())


def test_a_classifier_is_part_of_its_owner_and_an_owner_without_one_is_named_as_ever(write):
    line = "embedded: mini"
    mini, _ = load(write(SUITE.replace(line, f"{line}\n    classifier: {{data: digits}}"))).owners
    assert mini.spec().args["classifier"] == {
        "data": "digits",
        "backbone": "frozen",
        "epochs": 30,
        "lr": 0.01,
        "batch": 32,
        "schedule": "cosine",
        "weight_decay": 0.01,
        "dropout": 0.1,
    }
    assert "classifier" not in load(write(SUITE)).owners[0].spec().args


def test_numbers_may_be_written_as_everybody_writes_them(write):
    text = SUITE.replace("steps: 400", "rate: 1e-3, layers: [2, 3]")
    args = load(write(text)).methods[0].args
    assert (args["rate"], args["layers"]) == (0.001, [2, 3])


OWNER = "  - embedded: mini"

UNDER_THE_NAME = [
    # what the file says beside, from line 2 on; the line that is blamed; what the error must say
    ("sedes: [1]", 2, "no setting 'sedes'; did you mean 'seeds'?"),
    ("inculde: [y]", 2, "no setting 'inculde'; did you mean 'include'"),
    ("alpha: 1.5", 2, "alpha: expected a number less than 1, got 1.5"),
    ("alpha: '0.1'", 2, "alpha: expected a number, got '0.1'"),
    ("alpha: .nan", 2, "alpha: expected a finite number, got nan"),
    ("seeds: [0, 1.5]", 2, "seeds: expected a whole number, got 1.5"),
    ("seeds: []", 2, "seeds: expected at least 1, got none"),
    ("innocents: 19", 2, "expected a mapping, got 19"),
    (
        "innocents:\n  strangers: 19\n  twins: 6",
        4,
        "no setting 'twins'; did you mean 'twin_seeds'?",
    ),
    ("innocents:\n  other_keys: -1", 3, "other_keys: expected a number"),
    ("innocents:\n  other_shapes: -1", 3, "expected a number greater th"),
    ("innocents:\n  models: mini", 3, "models: expected a list, got 'mi"),
    ("innocents:\n  descendants: tune", 3, "descendants: expected a list, got 'tune'"),
    (
        "innocents:\n  descendants:\n    - {name: tune}\n    - {name: tuen}",
        5,
        "no attack named 'tuen'; did you mean 'tune'?",
    ),
    (
        "innocents:\n  descendants:\n    - - {name: prune.some}\n"
        "      - {name: tune,\n         data: digit}",
        6,
        "attack 'tune': data: no data set 'digit'; did you mean 'digits'?",
    ),
    (
        "innocents:\n  descendants:\n    - {name: tune}\n    - {name: control.other}",
        5,
        "descendants: expected attacks on the owner's model, got the control control.other",
    ),
    (
        "innocents:\n  models:\n    - embedded: mini\n    - embedded: mimi",
        5,
        "no embedded model 'mimi'; did you mean 'mini'",
    ),
    (
        "innocents:\n  models:\n    - timm: vit\n      weights: random",
        5,
        "weights: expected hub or a file, got random; an untrained network is nobody's model",
    ),
    (
        "innocents:\n  models:\n    - timm: vit\n      classifier: {data: digits}",
        5,
        "classifier: expected none, the model is read as it comes",
    ),
]

UNDER_AN_OWNER = [
    # what it says of the first owner, from line 4 on
    ("    image_size: 64", 4, "image_size: expected none"),
    ("    family: clip", 4, "family: expected none, it is models listed as innocents that may"),
    (
        "    classifier: {epochs: 5,\n      data: digit}",
        5,
        "classifier: data: no data set 'digit'; did you mean 'digits'?",
    ),
    (
        "    classifier: {data: photos}",
        4,
        "classifier: data: expected labelled images, got 'photos' (loader 'photos')",
    ),
    ("    classifier: {data: digits, epoch: 5}", 4, "no setting 'epoch'; did you mean 'epochs'?"),
    (
        "    classifier: {data: digits,\n      backbone: frosen}",
        5,
        "backbone: expected 'frozen' or 'finetuned', got 'frosen'; did you mean 'frozen'?",
    ),
    ("    classifier: {}", 4, "expected a value for 'data'"),
    ("    classifier: digits", 4, "expected a mapping"),
]

IN_PLACE_OF = [
    # what it says instead of what
    ("name: demo\n", "", 1, "expected a value for 'name', got none"),
    ("name: demo", "name: de/mo", 1, "name: expected letters, digits"),
    ("name: demo", f"name: {'d' * 61}", 1, "name: expected 60 letters at most, got 'ddd"),
    (OWNER, "  - embeded: mini", 3, "no setting 'embeded'; did you mean 'embedded'"),
    (OWNER, "  - weights: random", 3, "expected one of embedded, timm, open_clip"),
    (OWNER, "  - {embedded: a, timm: b}", 3, "got embedded and timm"),
    (OWNER, "  - mini", 3, "expected a mapping such as {timm: "),
    (OWNER, "  - embedded: mimi", 3, "no embedded model 'mimi'; did you mean 'mini'"),
    (OWNER, "  - embedded: 5", 3, "no embedded model '5'"),
    (OWNER, "  - embedded: null", 3, "name: expected text, got nothing"),
    ("steps: 400}", "\n     steps: 0400}", 8, "steps: expected a whole number, got '0400'"),
    (OWNER, "  - open_clip: ViT-B-32", 3, "pretrained: expected open_clip's tag"),
    ("weights/deit.safetensors", "hbu", 5, "weights: expected hub, random or a file ending in"),
    ("weights/deit.safetensors", "hub\n    seed: 4", 6, "seed: expected none unless weights is"),
    ("weights/deit.safetensors", "hub\n    image_size: 0", 6, "image_size: expected a number gre"),
    ("{name: stamp, steps: 400}", "{name: stmp}", 7, "no method named 'stmp'; did you mean 'stamp"),
    ("{name: stamp, steps: 400}", "stamp", 7, "expected a mapping such as {name: ...}"),
    ("{name: stamp, steps: 400}", "{steps: 400}", 7, "expected the name of a method, got None"),
    ("steps: 400}", "\n     stepz: 4}", 8, "no setting 'stepz'; did you mean 'steps'?"),
    ("steps: 400}", "\n     steps: '4'}", 8, "steps: expected a whole number, got '4'"),
    (
        "steps: 400}",
        "steps: 1,\n     layers: [1,\n       a]}",
        9,
        "layers: expected a whole number",
    ),
    ("steps: 400}", "\n     span: [1]}", 8, "expected a value for 'span.1', got none"),
    ("methods:\n  - {name: stamp, steps: 400}", "methods: []", 6, "methods: expected at least 1"),
    ("control.none", "control.nome", 9, "no attack named 'control.nome'; did you mean 'control.n"),
    ("amount: 0.4", "rounds: 2,\n       amount: 4", 11, "expected amount in (0, 1), got 4"),
    ("schedule: cosine", "schedule: cosin", 11, "did you mean 'cosine'?"),
    ("data: digits, s", "data: digit, s", 11, "no data set 'digit'; did you mean 'digits'?"),
    ("  - {name: control.none}", "  - []", 9, "expected at least 1, got none"),
    (
        "  photos: {crops: 8}",
        "  photos:\n    crop: 8",
        15,
        "no setting 'crop'; did you mean 'crops",
    ),
    ("  photos: {crops: 8}", "  photos:\n    crops: 0", 15, "crops: expected at least 1, got 0"),
    ("  photos: {crops: 8}", "  photos:", 14, "expected a mapping, got nothing"),
    (
        "loader: folder, ",
        "",
        15,
        "no loader named 'clothing'; known: digits, photos, digit-scenes, folder, masks, "
        "oxford-pets, foodseg103",
    ),
    ("owner_images: photos", "owner_images: photo", 16, "no data set 'photo'; did you mean 'phot"),
    ("probe: digits", "probe: digit", 17, "probe: no data set 'digit'"),
    ("probe: digits", "probe: digits\nname: again", 18, "'name' already stands on line 1"),
    ("{name: stamp, steps: 400}", "{name: stamp, name: stamp}", 7, "'name' already stands on line"),
    ("probe: digits", "probe: [digits", 18, "this is not YAML: expected ',' or ']'"),
    ("probe: digits", "probe: !!python/name:os.system", 17, "this is not YAML: could not"),
    ("probe: digits", "probe: &a [*a]", 17, "an anchor that contains itself"),
    ("probe: digits", "? [a]\n: b", 17, "expected a word as key"),
    ("probe: digits", "include: other.yaml", 17, "expected a list of files"),
    ("probe: digits", "include:\n  - y.yaml", 18, "no file 'y.yaml' to include; did you mean 'x.y"),
    ("probe: digits", "include: [x.yaml]", 17, "without a circle, got x.yaml -> x.yaml"),
]

ERRORS = [
    *(
        ("name: demo", f"name: demo\n{added}", line, message)
        for added, line, message in UNDER_THE_NAME
    ),
    *((OWNER, f"{OWNER}\n{added}", line, message) for added, line, message in UNDER_AN_OWNER),
    *IN_PLACE_OF,
]


@pytest.mark.parametrize(("old", "new", "line", "message"), ERRORS, ids=[e[3] for e in ERRORS])
def test_an_error_is_one_line_that_names_the_line_and_the_way_out(write, old, new, line, message):
    assert SUITE.count(old) == 1 or old == "name: demo"
    with pytest.raises(UserError) as caught:
        load(write(SUITE.replace(old, new, 1)))
    text = str(caught.value)
    assert text.startswith(f"x.yaml:{line}: ")
    assert message in text
    assert "\n" not in text


LIKE_NUMBERS = [
    "01",
    "1e3",
    "no",
    "off",
    "yes",
    "1:30",
    "0x1F",
    "2024-01-02",
    "1_000",
    "true",
    "12",
]


@pytest.mark.parametrize("text", LIKE_NUMBERS)
def test_a_name_is_the_text_that_stands_there_whatever_it_looks_like(write, text):
    renamed = SUITE.replace("photos: {crops: 8}", f"{text}: {{loader: folder, path: {text}}}")
    renamed = renamed.replace("owner_images: photos", f"owner_images: {text}")
    found = load(write(renamed.replace("name: demo", f"name: {text.replace(':', '.')}")))
    assert found.name == text.replace(":", ".")
    assert (found.owner_images, found.data[text].path) == (text, text)


@pytest.mark.parametrize("text", ["0123456789012345", "12345678901234e5", "1234567890123456"])
def test_a_digest_of_digits_alone_is_no_number(write, text):
    found = load(write(SUITE.replace(OWNER, f"{OWNER}\n    digest: {text}")))
    assert found.owners[0].digest == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("5", 5.0), ("1e-3", 1e-3), ("+1.5E+1", 15.0)],
)
def test_numbers_are_read_as_they_always_were(write, text, value):
    found = load(write(SUITE.replace("steps: 400", f"rate: {text}")))
    assert found.methods[0].args["rate"] == value


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_a_file_that_is_no_mapping_is_refused(write, text):
    with pytest.raises(UserError, match=r"^x\.yaml:1: expected a mapping"):
        load(write(text))


def test_bytes_that_are_no_text_are_refused_with_their_line(write):
    path = write("")
    path.write_bytes(b"name: demo\ntitle: \xff\n")
    with pytest.raises(UserError, match=r"^x\.yaml:2: this is not text"):
        load(path)


def test_a_nul_byte_is_named_with_its_line(write):
    path = write("")
    path.write_bytes(b"name: demo\n\ntitle: a\0b\n")
    with pytest.raises(UserError, match=r"^x\.yaml:3: this is not text: it has a NUL byte"):
        load(path)


BOMB = "a: &a0 [1]\n" + "".join(
    f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 200)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "x.yaml:1: expected anchors that repeat at most 100,000 entries"),
        ("a: &a 1\nb: [" + "*a," * 200_000 + "]", "x.yaml:2: expected at most 10,000 aliases"),
        ("name: " + "[" * 5000, "x.yaml:1: expected at most 64 levels of nesting"),
        ("name:\n  - " + "[" * 5000 + "]" * 5000, "x.yaml:2: expected at most 64 levels"),
    ],
)
def test_what_would_never_end_is_refused_at_once(write, text, words):
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        load(write(text))
    assert str(caught.value).startswith(words)
    assert time.process_time() - began < 5  # it took for ever; the wide margin is for slow machines


def test_many_comments_are_passed_over_at_once_and_keep_lines_and_texts(write):
    kept = SUITE.replace("name: demo", "name: demo  # its name\ntitle: 'a # b\n\n  # c'")
    began = time.process_time()
    assert load(write(("# why\n" + " #\n") * 20_000 + kept)).title == "a # b\n# c"
    assert time.process_time() - began < 5
    with pytest.raises(UserError, match=r"^x\.yaml:40001: no setting 'nam'"):
        load(write(("# why\n" + " #\n") * 20_000 + "nam: demo\n"))


@pytest.mark.parametrize(
    ("text", "kind"),
    [("!!int abc", "int"), ("!!float abc", "float"), ("!!bool abc", "bool"), ("9" * 5000, "int"),
     ("!!timestamp abc", "timestamp")],
)  # fmt: skip
def test_a_value_that_is_not_what_its_tag_promises_is_named_with_its_line(write, text, kind):
    path = write(SUITE.replace("probe: digits", f"probe: digits\nalpha: {text}"))
    with pytest.raises(UserError, match=f"x.yaml:18: expected what YAML calls {kind}, got '"):
        load(path)


def test_what_is_listed_twice_counts_once_in_the_order_of_the_first(write):
    twice = SUITE.replace("probe: digits", "probe: digits\nseeds: [3, 1, 3, 0, 1]")
    assert load(write(twice)).seeds == (3, 1, 0)


def test_a_missing_file_is_named_beside_its_nearest_neighbour(write):
    neighbour = write(SUITE, "demo.yaml")
    with pytest.raises(UserError, match=r"^demos\.yaml: No such file.*did you mean 'demo\.yaml'"):
        load(neighbour.with_name("demos.yaml"))
    with pytest.raises(UserError, match=r"^nowhere/demo\.yaml: No such file"):
        load(Path("nowhere/demo.yaml"))


def test_an_include_lies_beneath_the_file_that_names_it(write):
    write(SUITE, "base.yaml")
    found = load(
        write("""\
            name: more
            include: [base.yaml]
            attacks:
              - {name: prune.some, amount: 0.9}
              - {name: control.none}
            data:
              photos: {crops: 16}
        """)
    )
    assert found.name == "more"
    assert [chain[-1].name for chain in found.attacks] == ["control.none", "tune", "prune.some"]
    assert (found.data["photos"].crops, found.data["digits"].loader) == (16, "digits")


def test_two_includes_may_share_a_third_without_asking_anything_twice(write):
    write(SUITE, "base.yaml")
    write("include: [base.yaml]\nseeds: [1]", "left.yaml")
    write("include: [base.yaml]\nseeds: [1, 2]", "right.yaml")
    found = load(write("include: [left.yaml, right.yaml]"))
    assert found.seeds == (1, 2)
    assert (found.owners, found.methods) == (load(write(SUITE)).owners, load(write(SUITE)).methods)


def test_an_error_in_an_include_names_the_file_it_stands_in(write):
    write(SUITE.replace("stamp", "stmp"), "base.yaml")
    with pytest.raises(UserError, match=r"^base\.yaml:7: no method named 'stmp'"):
        load(write("include: [base.yaml]\nname: x"))


def test_includes_in_a_circle_are_refused_where_the_circle_closes(write):
    write("name: y\ninclude: [x.yaml]", "y.yaml")
    with pytest.raises(UserError, match=r"^y\.yaml:2: .* got x\.yaml -> y\.yaml -> x\.yaml"):
        load(write("include: [y.yaml]"))


def test_anchors_and_merge_keys_keep_their_lines(write):
    text = SUITE.replace("{crops: 8}", "&photos {crops: 8}").replace(
        "loader: folder", "<<: *photos, held_out: 0.2, loader: folder"
    )
    clothing = load(write(text)).data["clothing"]
    assert (clothing.crops, clothing.held_out) == (8, 0.2)
    with pytest.raises(UserError, match=r"^x\.yaml:15: held_out: expected a share"):
        load(write(text.replace("held_out: 0.2", "held_out: 2")))


@pytest.mark.parametrize(
    ("alpha", "strangers", "needed"),
    [(0.05, 19, None), (0.05, 18, 19), (0.01, 99, None), (0.01, 19, 99), (0.05, 0, 19)],
)
def test_a_suite_says_when_its_alpha_is_out_of_reach(write, alpha, strangers, needed):
    text = f"{SUITE}alpha: {alpha}\ninnocents: {{strangers: {strangers}}}\n"
    expected = f"alpha = {alpha} needs {needed} strangers, the suite asks for {strangers}: "
    assert of_strangers(load(write(text))) == (
        [expected + "verdicts will be undecided"] if needed else []
    )


def of_strangers(suite):
    return [said for said in suite.warnings if "descendants" not in said]


def test_models_and_other_shapes_count_towards_the_strangers_that_alpha_needs(write):
    models = "[{timm: a}, {open_clip: ViT-B-32, pretrained: openai}]"
    text = f"{SUITE}innocents: {{strangers: 14, other_shapes: 1, models: {models}}}\n"
    found = load(write(text))
    assert [model.name for model in found.innocents.models] == ["a", "ViT-B-32"]
    assert [w.split(": ")[0] for w in of_strangers(found)] == [
        "alpha = 0.05 needs 19 strangers, the suite asks for 18"
    ]
    assert of_strangers(load(write(text.replace("shapes: 1", "shapes: 2")))) == []
    kin = text.replace("{timm: a}", "{timm: a}, {timm: a2}")  # of one family: they count once
    assert (found.innocents.independent, load(write(kin)).innocents.independent) == (18, 18)


def test_a_suite_is_its_content_not_its_spelling(write):
    turned = yaml.dump(dict(reversed(yaml.safe_load(SUITE).items())), sort_keys=False)
    spelled = SUITE.replace("- {name: control.none}", "- [{name: control.none}]").replace(
        "amount: 0.4", "rounds: 1, amount: 4e-1"
    )
    assert load(write(turned)) == load(write(spelled)) == load(write(SUITE))


@pytest.mark.parametrize(
    ("flags", "gpus", "hidden", "chosen"),
    [
        ("flags : avx2 fma", 0, None, "float32"),
        ("flags : avx2 avx512_bf16", 0, None, "bfloat16"),
        ("Features : asimd bf16", 0, None, "bfloat16"),
        ("flags : avx2", 1, None, "bfloat16"),
        ("flags : avx2", 1, "", "float32"),
        (None, 0, None, "float32"),
    ],
    ids=["avx2", "avx512", "arm", "GPU", "hidden GPU", "unknown"],
)
def test_a_precision_that_is_left_to_the_plan_stands_in_the_recipe(
    monkeypatch, tmp_path, flags, gpus, hidden, chosen
):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"{flags}\n")
    for number in range(gpus):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(settings, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(settings, "GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    methods = Registry("method", Method)

    @methods.register("stamp")
    @dataclass(frozen=True)
    class Stamp:
        """Stamp it."""

        needs: ClassVar[Access] = Access.ALL
        marks: ClassVar[bool] = True
        precision: Literal["float32", "bfloat16"] = "float32"

        def protect(self, owner, ctx): ...
        def extract(self, secret, suspect, ctx): ...

    said = innocents.named_spec(methods, {"name": "stamp", "precision": "auto"})
    assert said == innocents.named_spec(methods, {"name": "stamp", "precision": chosen})
    assert said.args == {"precision": chosen}
    with pytest.raises(UserError, match="precision: expected 'float32' or 'bfloat16', got 'autos'"):
        innocents.named_spec(methods, {"name": "stamp", "precision": "autos"})
