import dataclasses
from collections import Counter
from typing import ClassVar, get_args

import numpy as np
import pytest
from made import ArrayStore, suite
from PIL import Image
from safetensors.numpy import save_file

from bench.data import manifest
from bench.records.nouns import SCHEMA, Access, Readout, UserError, digest
from bench.records.store import Store
from bench.registry import ATTACKS, METHODS
from bench.suite import graph, grid, plan, reader
from bench.suite.todo import guesses, missing, spare_copies
from bench.types import PositiveShare, Reading

pytestmark = pytest.mark.usefixtures("stand_ins")

TUNE, PRUNE = "{name: finetune.classify, data: digits, epochs: 1}", "{name: prune.l1, amount: 0.2}"
SUITE = suite(
    methods=["{name: activemark, steps: 2, batch: 4, images: 4}"],
    attacks=["{name: control.identity}", TUNE, f"[{PRUNE}, {TUNE}]"],
    seeds="[0]",
    innocents="{strangers: 2, twin_seeds: 3, attacked_strangers: 1, pretraining_steps: 1}",
)


@pytest.fixture
def make(tmp_path):
    def made(text=SUITE, *edits, data=None):
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "suite.yaml").write_text(text)
        return plan.make(reader.load(tmp_path / "suite.yaml"), data)

    return made


def cells(made, **wanted):
    found = [q.cell for q in made.questions]
    return [c for c in found if all(getattr(c, k) == v for k, v in wanted.items())]


def chain(cell):
    return tuple(step.name for step in cell.attack)


def keys(made):
    return {q.key for q in made.questions}


def test_every_attacked_mark_has_its_twin_with_the_same_attack_and_seed(make):
    made = make(SUITE, ("seeds: [0]", "seeds: [0, 7]"))
    marked, twins = cells(made, lineage="released"), cells(made, lineage="owner")
    assert {c.attack_seed for c in marked if len(c.attack) > 1} == {0, 7}
    for cell in marked:
        assert dataclasses.replace(cell, base="owner", lineage="owner") in twins


def test_a_twin_draws_what_its_marked_copy_draws(make):
    made = make()
    suspects = {
        (q.cell.lineage, chain(q.cell), q.cell.attack_seed): made.stages[q.suspect]
        for q in made.questions
    }
    marked = {where: stage for where, stage in suspects.items() if where[0] == "released"}
    assert len(marked) == 3
    for (_, names, seed), stage in marked.items():
        twin = suspects["owner", names, seed]
        assert stage.recipe == twin.recipe
        assert stage.parents != twin.parents


def test_twin_seeds_and_strangers_are_as_many_as_were_asked_for(make):
    made = make()
    twins = Counter(chain(c) for c in cells(made, lineage="owner"))
    assert twins == {
        ("control.identity",): 1,  # nothing random about it
        ("finetune.classify",): 3,
        ("prune.l1", "finetune.classify"): 3,
    }
    strangers = Counter(chain(c) for c in cells(made, lineage="stranger"))
    assert strangers == {("control.stranger",): 2}  # a mark's twins answer for the attack
    assert all(c.base == "owner" for c in cells(made, lineage="stranger"))


PRINTS = ("{name: activemark, steps: 2, batch: 4, images: 4}", "{name: prints.some}")


@dataclasses.dataclass(frozen=True)
class Prints:
    """A fingerprint of weights that nobody carries out."""

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = False

    def protect(self, owner, ctx): ...
    def extract(self, secret, suspect, ctx): ...


@pytest.fixture
def prints(monkeypatch):
    monkeypatch.setitem(METHODS._plugins, "prints.some", (Prints, 1))


def test_strangers_of_a_fingerprint_are_attacked_each_with_a_seed_of_its_own(make, prints):
    made = make(
        SUITE,
        PRINTS,
        ("seeds: [0]", "seeds: [4, 7]"),
        ("{strangers: 2, ", "{strangers: 3, "),
        ("attacked_strangers: 1", "attacked_strangers: 2"),
    )
    asked = [q for q in made.questions if q.cell.lineage == "stranger"]
    assert Counter(chain(q.cell) for q in asked) == {  # for each of two claims
        ("control.stranger",): 6,
        ("control.stranger", "finetune.classify"): 4,
        ("control.stranger", "prune.l1", "finetune.classify"): 4,
    }
    attacked = [q for q in asked if len(q.cell.attack) > 1]
    assert all(q.cell.attack_seed == q.cell.attack[0].args["index"] for q in attacked)
    assert len({q.suspect for q in attacked}) == 4  # made once, and read by both claims
    assert len({q.extract for q in attacked}) == 8


def test_an_attack_that_is_not_random_is_done_to_strangers_with_no_seed(make, prints):
    pruned = (f"[{PRUNE}, {TUNE}]", PRUNE)
    made = make(SUITE, PRINTS, pruned, ("attacked_strangers: 1", "attacked_strangers: 2"))
    found = [c for c in cells(made, lineage="stranger") if chain(c)[-1] == "prune.l1"]
    assert [(c.attack[0].args["index"], c.attack_seed) for c in found] == [(0, 0), (1, 0)]


def test_models_go_through_the_attacks_after_the_strangers(make, prints, tmp_path):
    save_file({"w": np.array([1])}, tmp_path / "a.safetensors")
    models = asking("models: [{timm: a, weights: a.safetensors, family: apart}]")
    made = make(
        SUITE, PRINTS, ("attacked_strangers: 1", "attacked_strangers: 9"), models, data=tmp_path
    )
    found = [c for c in cells(made, base="other model") if len(c.attack) > 1]
    assert [(chain(c), c.attack_seed) for c in found] == [
        (("control.identity", "finetune.classify"), 2),
        (("control.identity", "prune.l1", "finetune.classify"), 2),
    ]
    assert {c.other_model.args["family"] for c in found} == {"apart"}
    loaded = [s for s in made.stages.values() if s.kind == "owner"]
    assert not any("family" in s.recipe["owner"]["args"] for s in loaded)


def test_models_that_count_as_one_though_nobody_said_so_are_told(make, tmp_path):
    for i, name in enumerate(("vit_a", "vit_b", "vit_c")):
        save_file({"w": np.array([i])}, tmp_path / f"{name}.safetensors")
    listed = [f"{{timm: vit_{n}, weights: vit_{n}.safetensors" for n in "abc"]
    three = asking(f"models: [{', '.join(f'{entry}}}' for entry in listed)}]")
    told = [w for w in make(SUITE, three, data=tmp_path).warnings if "count as one" in w]
    (said,) = told
    assert said.startswith(
        "innocents: models: vit_a, vit_b, vit_c count as one stranger, 'timm vit'"
    )
    named = asking(f"models: [{', '.join(f'{e}, family: {i}x}}' for i, e in enumerate(listed))}]")
    assert not [w for w in make(SUITE, named, data=tmp_path).warnings if "count as one" in w]


def test_recipes_of_descendants_are_run_on_the_clean_owner_alone_and_for_marks(make, prints):
    recipes = asking(
        f"descendants: [{{name: prune.l1, amount: 0.7}}, [{PRUNE}, {{name: prune.l1}}]]"
    )
    made = make(SUITE, recipes)
    found = [c for c in cells(made) if chain(c)[-1] == "prune.l1"]
    assert [(c.base, c.lineage, c.attack_seed, len(c.attack)) for c in found] == [
        ("owner", "owner", 0, 1),
        ("owner", "owner", 0, 2),
    ]
    assert not [c for c in cells(make(SUITE, PRINTS, recipes)) if chain(c)[-1] == "prune.l1"]


def test_twins_of_none_asked_for_still_answer_each_marked_copy(make):
    made = make(SUITE, ("twin_seeds: 3", "twin_seeds: 0"), ("seeds: [0]", "seeds: [4]"))
    assert {c.attack_seed for c in cells(made, lineage="owner")} == {0, 4}


def test_a_stranger_a_suite_lists_itself_is_asked_once(make):
    listed = make(SUITE, ("  - {name: control.identity}", "  - {name: control.identity}\n"
                          "  - {name: control.stranger, index: 1}"))  # fmt: skip
    assert keys(listed) == keys(make())


def test_the_strangers_of_one_cohort_are_trained_once(make):
    kinds = Counter(s.kind for s in make(SUITE, ("strangers: 2", "strangers: 10")).stages.values())
    assert kinds["cohort"] == 1
    kinds = Counter(s.kind for s in make(SUITE, ("strangers: 2", "strangers: 11")).stages.values())
    assert kinds["cohort"] == 2


def test_methods_share_what_does_not_depend_on_them(make):
    one = make()
    two = make(
        SUITE, ("methods:", "methods:\n  - {name: activemark, steps: 3, batch: 4, images: 4}")
    )
    stages = [Counter(s.kind for s in made.stages.values()) for made in (one, two)]
    released = len(cells(one, lineage="released"))
    # Identity, tuning, and pruning before tuning: 4 steps start from each mark.
    assert released == 3
    assert stages[1]["attack"] - stages[0]["attack"] == 4
    assert stages[1]["protect"] == 2
    assert stages[1]["extract"] == 2 * stages[0]["extract"]
    assert stages[1]["cohort"] == stages[1]["owner"] == 1


def test_a_chain_shares_its_beginning(make):
    alone = make(SUITE, ("  - {name: finetune.classify, data: digits, epochs: 1}\n",
                         "  - {name: prune.l1, amount: 0.2}\n"))  # fmt: skip
    steps = [s for s in alone.stages.values() if s.kind == "attack" and s.recipe["position"] == 0]
    assert sum(s.recipe["step"]["name"] == "prune.l1" for s in steps) == 2  # marked, twin
    middles = {s.parents[0] for s in alone.stages.values() if s.recipe.get("position") == 1}
    pruned = {k for k, s in alone.stages.items() if s in steps}
    assert len(middles & pruned) == 2  # marked, twin


def test_parents_come_before_their_children(make):
    seen = set()
    for key, stage in make().stages.items():
        assert key == stage.key
        assert set(stage.parents) <= seen
        seen.add(key)


def test_the_price_of_a_mark_is_asked_once_on_the_untouched_model(make):
    priced = [q for q in make().questions if q.fidelity]
    assert [(q.cell.lineage, chain(q.cell)) for q in priced] == [
        ("released", ("control.identity",))
    ]


@pytest.mark.parametrize(
    "edit",
    [
        ("epochs: 1", "epochs: 2"),
        ("amount: 0.2", "amount: 0.3"),
        ("digits: {max_images: 40}", "digits: {max_images: 41}"),
        ("photos: {max_images: 24}", "photos: {max_images: 24, owner_share: 0.4}"),
        ("seeds: [0]", "seeds: [1]"),
        ("steps: 2", "steps: 3"),
        ("pretraining_steps: 1", "pretraining_steps: 2"),
    ],
)
def test_whatever_changes_numbers_changes_keys(make, edit):
    before, after = make(), make(SUITE, edit)
    concerned = {
        "epochs": lambda q: "finetune.classify" in chain(q.cell),
        "amount": lambda q: "prune.l1" in chain(q.cell),
        "pretrain": lambda q: q.cell.lineage == "stranger",
    }.get(edit[0][:8].partition(":")[0], lambda q: True)
    changed = {q.key for q in before.questions if concerned(q)}
    assert changed
    assert not changed & keys(after)
    assert {q.key for q in before.questions} - changed <= keys(after)


def test_plug_in_versions_are_in_the_keys(make, monkeypatch):
    before = make()
    cls = ATTACKS.get("prune.l1")
    monkeypatch.setitem(ATTACKS._plugins, "prune.l1", (cls, 99))
    pruned = {q.key for q in before.questions if "prune.l1" in chain(q.cell)}
    assert pruned == keys(before) - keys(make())
    monkeypatch.setitem(METHODS._plugins, "activemark", (METHODS.get("activemark"), 99))
    assert not keys(before) & keys(make())


def test_models_of_a_library_that_reads_other_pixels_now_are_made_anew(make):
    """Before that was told apart the recipe was the owner alone, as it is of embedded ones."""
    timms = make(SUITE, ("{embedded: mini}", "{timm: test_vit, weights: random}"))
    for made, more in ((make(), {}), (timms, {"library": 2})):
        (owner,) = [stage for stage in made.stages.values() if stage.kind == "owner"]
        assert owner.recipe == {"owner": made.questions[0].cell.owner.json(), **more}


def test_weights_are_in_the_keys_by_their_bytes_and_not_by_their_name(make, tmp_path):
    def planned(name, value):
        save_file({"w": np.array([value])}, tmp_path / name)
        owner = f"{{timm: test_vit, weights: {name}}}"
        return make(SUITE, ("{embedded: mini}", owner), data=tmp_path)

    one = planned("a.safetensors", 1.0)
    assert keys(one) == keys(planned("b.safetensors", 1.0))
    assert not keys(one) & keys(planned("a.safetensors", 2.0))
    assert not any(str(tmp_path) in str(s) for s in one.stages.values())


def test_order_in_the_file_is_not_in_the_keys(make):
    lines = SUITE.split("attacks:\n")[1].split("\ndata:")[0].splitlines()
    turned = make(SUITE, ("\n".join(lines), "\n".join(reversed(lines))))
    assert keys(turned) == keys(make())
    swapped = make(SUITE, ("steps: 2, batch: 4, images: 4", "images: 4, batch: 4, steps: 2"))
    assert keys(swapped) == keys(make())
    turned = "\n".join(reversed(SUITE.strip().split("\n", 1)))  # the name comes last
    assert keys(make(turned)) == keys(make())


def test_a_suspect_that_does_not_offer_what_the_method_needs_is_skipped(make, monkeypatch):
    monkeypatch.setattr(ATTACKS.get("prune.l1"), "offers", Access.BLACK_BOX)
    made = make()
    skipped = [q for q in made.questions if q.skip]
    assert {chain(q.cell)[-2:] for q in skipped} == {("prune.l1", "finetune.classify")}
    # A chain offers what each of its steps does: tuning leaves no labels, pruning no weights.
    assert skipped[0].skip == "needs weights, the suspect offers nothing"
    assert all(q.stages == () for q in skipped)
    assert not any(s.recipe.get("step", {}).get("name") == "prune.l1" for s in made.stages.values())


def test_an_owner_without_peers_is_told_so(make):
    made = make(SUITE, ("{embedded: mini}", "{timm: test_vit, weights: random}"))
    assert not cells(made, lineage="stranger")
    assert any("test_vit: strangers: n = 0" in w for w in made.warnings)


@pytest.mark.parametrize(("share", "told"), [("0.5", False), ("0.3", True)])
def test_images_that_two_sets_give_to_both_parties_are_told(make, share, told):
    again = f"photos: {{max_images: 24}}, again: {{loader: digits, owner_share: {share}}}"
    made = make(SUITE, ("photos: {max_images: 24}", again), ("{max_images: 40}", "{}"))
    found = [w for w in made.warnings if "the two share what they must not" in w]
    assert [w.split(" images")[0] for w in found] == (
        ["data digits gives the owner 359"] if told else []
    )


def test_missing_weights_are_the_users_mistake(make, tmp_path):
    gone = ("{embedded: mini}", "{timm: test_vit, weights: gone.pth}")
    with pytest.raises(UserError, match=r"expected weights at .*gone\.pth, found no such file"):
        make(SUITE, gone, data=tmp_path)


# Methods that ask for labels.

CLASSIFIED = SUITE.replace("{embedded: mini}", "{embedded: mini, classifier: {data: digits}}")


@dataclasses.dataclass(frozen=True)
class Labels:
    """A fingerprint of labels that nobody carries out."""

    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False

    count: int = 3
    readout: Readout = "graft"

    def protect(self, owner, ctx): ...
    def extract(self, secret, suspect, ctx): ...


@pytest.fixture
def labels(monkeypatch):
    for name in ("labels.some", "labels.other"):
        monkeypatch.setitem(METHODS._plugins, name, (Labels, 1))


def with_prints(*lines):
    return ("methods:", "\n  - ".join(["methods:", *lines]))


def attacks_of(made):
    return {key for key, stage in made.stages.items() if stage.kind == "attack"}


def test_no_attack_is_trained_twice_for_a_mark_and_two_fingerprints(make, labels):
    alone = make(CLASSIFIED)
    both = make(CLASSIFIED, with_prints("{name: labels.some}", "{name: labels.other}"))
    one = make(CLASSIFIED, with_prints("{name: labels.some}"))
    assert attacks_of(both) == attacks_of(one)
    twins = {q.suspect for q in alone.questions if q.cell.lineage != "released"}
    asked = [q for q in both.questions if q.cell.method.name != "activemark"]
    # Of what it reads the mark needs all but strangers that went through the attacks.
    new = {q.suspect for q in asked} - twins
    assert attacks_of(both) - attacks_of(alone) >= new
    assert {q.cell.lineage for q in asked if q.suspect in new} == {"stranger"}
    assert len({q.suspect for q in asked if q.cell.lineage == "released"}) == 3
    # Utility is measured once as well: what is tested depends on the suspect alone.
    assert len({q.utility for q in asked}) == len({q.suspect for q in asked})


def test_a_readout_is_no_part_of_making_the_fingerprint(make, labels):
    lines = [f"{{name: labels.some, readout: {way}}}" for way in get_args(Readout)]
    made = make(CLASSIFIED, with_prints(*lines))
    asked = [q for q in made.questions if q.cell.method.name == "labels.some" and not q.skip]
    assert len({q.protect for q in asked}) == 1
    assert {made.stages[q.extract].recipe["readout"] for q in asked} == {*get_args(Readout)}
    assert len(keys(made)) == len(made.questions)


@dataclasses.dataclass(frozen=True)
class Judged(Labels):
    tau: Reading[PositiveShare] = 0.5


def test_settings_of_reading_leave_the_secret_alone_and_are_told_when_it_is_read(
    make, labels, monkeypatch
):
    monkeypatch.setitem(METHODS._plugins, "labels.judged", (Judged, 1))
    lines = [f"{{name: labels.judged, tau: {tau}}}" for tau in (0.25, 0.5)]
    made = make(CLASSIFIED, with_prints(*lines))
    asked = [q for q in made.questions if q.cell.method.name == "labels.judged" and not q.skip]
    (protect,) = {q.protect for q in asked}
    stage = made.stages[protect]
    assert stage.recipe["method"]["args"] == {"count": 3}
    assert stage.settings == {"count": 3, "tau": 0.25, "readout": "graft"}
    assert {made.stages[q.extract].recipe["tau"] for q in asked} == {0.25, 0.5}
    assert len(keys(made)) == len(made.questions)
    other = make(CLASSIFIED, with_prints("{name: labels.judged, count: 4}"))
    assert protect not in other.stages


def test_methods_that_ask_for_labels_draw_on_the_images_that_taught_the_classifier(make, labels):
    made = make(CLASSIFIED, with_prints("{name: labels.some}"))
    drawn = {
        stage.recipe["method"]["name"]: made.manifest(stage.recipe["data"]).name
        for stage in made.stages.values()
        if stage.kind == "protect"
    }
    assert drawn == {"labels.some": "digits", "activemark": "photos"}


@pytest.mark.parametrize(
    ("readout", "edit", "reason"),
    [
        ("native", ("", ""), "native needs labels, the suspect offers features, weights"),
        ("graft", ("", ""), ""),
        ("relinear", ("", ""), ""),
        ("graft", (", classifier: {data: digits}", ""), "needs labels, mini has no `classifier`"),
        (
            "relinear",
            ("{embedded: mini, classifier: {data: digits}}", "{timm: test_vit, weights: random}"),
            "relinear needs labelled images, photos has none",
        ),
    ],
)
def test_labels_of_a_finetuned_suspect_are_asked_for_where_they_can_be_had(
    make, labels, readout, edit, reason
):
    edits = [edit] if edit[0] else []
    made = make(CLASSIFIED, with_prints(f"{{name: labels.some, readout: {readout}}}"), *edits)
    found = [
        q
        for q in made.questions
        if q.cell.method.name == "labels.some" and chain(q.cell)[-1] == "finetune.classify"
    ]
    assert {q.skip for q in found} == {reason}


@pytest.mark.parametrize(
    "owner", ["{embedded: mini, classifier: {data: digits}}", "{embedded: mini}"]
)
def test_an_own_head_answers_in_whatever_classes_and_an_owner_needs_none(
    make, labels, monkeypatch, owner
):
    some = METHODS.get("labels.some")
    monkeypatch.setattr(some, "needs", Access.LABELS | Access.OWN_HEAD)
    text = SUITE.replace("{embedded: mini}", owner)
    made = make(text, with_prints("{name: labels.some}"))
    found = [q for q in made.questions if q.cell.method.name == "labels.some"]
    assert "finetune.classify" in {step for q in found for step in chain(q.cell)}
    assert {q.skip for q in found} == {""}


def test_a_head_can_be_put_on_what_gives_no_features_in_no_way(make, labels, monkeypatch):
    monkeypatch.setattr(ATTACKS.get("prune.l1"), "offers", Access.LABELS)
    lines = [f"{{name: labels.some, readout: {way}}}" for way in get_args(Readout)]
    made = make(CLASSIFIED, with_prints(*lines), ("attacks:", "attacks:\n  - {name: prune.l1}"))
    found = {
        q.cell.method.args["readout"]: q.skip
        for q in made.questions
        if q.cell.method.name == "labels.some" and chain(q.cell) == ("prune.l1",)
    }
    assert found == {
        "graft": "graft needs features, the suspect offers labels",
        "relinear": "relinear needs features, the suspect offers labels",
        "native": "",
    }


@pytest.mark.parametrize(
    "edit",
    [
        ("classifier: {data: digits}", "classifier: {data: digits, epochs: 2}"),
        ("classifier: {data: digits}", "classifier: {data: digits, backbone: finetuned}"),
        ("digits: {max_images: 40}", "digits: {max_images: 41}"),
    ],
)
def test_a_classifier_is_in_the_keys_of_all_that_follows_but_not_of_strangers(make, edit):
    before, after = make(CLASSIFIED), make(CLASSIFIED, edit)
    assert not keys(before) & keys(after)
    shared = {before.stages[key].kind for key in before.stages.keys() & after.stages.keys()}
    assert {"owner", "cohort"} <= shared <= {"owner", "cohort", "attack", "utility"}
    attacked = [s for k, s in after.stages.items() if s.kind == "attack" and k in before.stages]
    assert all(after.stages[s.parents[0]].kind in ("cohort", "attack") for s in attacked)


def test_owners_with_and_without_a_classifier_are_loaded_once(make):
    both = "{embedded: mini}\n  - {embedded: mini, classifier: {data: digits}}"
    made = make(SUITE, ("{embedded: mini}", both))
    kinds = Counter(s.kind for s in made.stages.values())
    assert (kinds["owner"], kinds["classifier"], kinds["protect"]) == (1, 1, 2)
    assert len({str(q.cell.owner) for q in made.questions}) == 2


def test_a_thief_without_labels_is_refused_before_he_trains(make):
    with pytest.raises(UserError, match=r"^attack 'finetune\.classify': expected labelled images"):
        make(SUITE, (TUNE, TUNE.replace("digits", "photos")))


def test_a_folder_without_classes_teaches_no_classifier(make, tmp_path):
    for i in range(8):
        pixels = np.full((8, 8, 3), i * 30, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    flat = ("digits: {max_images: 40}", "digits: {loader: folder, path: .}")
    with pytest.raises(UserError, match="classifier: data: expected labelled images, got 'digits'"):
        make(CLASSIFIED, flat, data=tmp_path)


# What is left to do.


@pytest.fixture
def laid_out(make, tmp_path):
    """A plan, and a store that holds every one of its stages."""
    made, store = make(), ArrayStore(tmp_path / "store")
    for key, stage in made.stages.items():
        payload = {"cost": {"seconds": 2.0}}
        store.put(key, stage.kind, stage.recipe, stage.parents, payload, {"w": np.ones(3)})
    return made, store


def damage(store, key):
    path = store.root / key[:2] / f"{key}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def question(made, lineage, *names):
    return next(q for q in made.questions if q.cell.lineage == lineage and chain(q.cell) == names)


def test_an_empty_store_lacks_every_stage_parents_first(make, tmp_path):
    made = make()
    assert missing(made, Store(tmp_path / "none"), made.questions) == tuple(made.stages)


def test_a_full_store_lacks_nothing(laid_out):
    made, store = laid_out
    assert missing(made, store, made.questions) == ()


def test_a_lost_reading_needs_no_more_than_itself(laid_out):
    made, store = laid_out
    asked = question(made, "released", "finetune.classify")
    store.remove(asked.extract)
    assert missing(made, store, made.questions) == (asked.extract,)


def test_a_damaged_parent_is_made_again_where_it_must_be_loaded_and_only_there(laid_out):
    made, store = laid_out
    asked = question(made, "released", "prune.l1", "finetune.classify")
    pruned = made.stages[asked.suspect].parents[0]
    for key in (asked.suspect, pruned, asked.protect):
        damage(store, key)
    assert missing(made, store, made.questions) == ()  # nobody would load them
    store.remove(asked.utility)
    assert set(missing(made, store, made.questions)) == {
        asked.utility, asked.suspect, pruned, asked.protect,
    }  # fmt: skip
    store.put(pruned, "attack", {}, (), None, {"w": np.ones(3)})
    assert set(missing(made, store, [asked])) == {asked.utility, asked.suspect}


def test_a_dropped_copy_is_missed_only_by_who_must_load_it(laid_out):
    made, store = laid_out
    asked = question(made, "released", "prune.l1", "finetune.classify")
    pruned = made.stages[asked.suspect].parents[0]
    for key in (asked.suspect, pruned):
        store.drop(key)
    assert missing(made, store, made.questions) == ()
    store.remove(asked.utility)
    assert set(missing(made, store, made.questions)) == {asked.utility, asked.suspect, pruned}


def test_a_copy_is_spare_when_nobody_makes_it_or_loads_it_any_more(make):
    chained = "  - [{name: prune.l1, amount: 0.3}, {name: control.identity}]\n"
    made = make(SUITE, ("attacks:\n", f"attacks:\n{chained}"))
    asked = question(made, "released", "prune.l1", "control.identity")
    pruned = made.stages[asked.suspect].parents[0]
    copies = {key for key, stage in made.stages.items() if stage.kind == "attack"}
    assert set(spare_copies(made, ())) == copies
    assert set(spare_copies(made, {pruned})) == copies - {pruned}
    # Left untouched, a model is kept as what it was: who reads it loads the pruned one.
    assert set(spare_copies(made, {asked.utility})) == copies - {asked.suspect, pruned}


def test_a_damaged_classifier_is_made_again_for_the_record_that_names_it(make, tmp_path):
    made, store = make(CLASSIFIED), ArrayStore(tmp_path / "store")
    for key, stage in made.stages.items():
        store.put(key, stage.kind, stage.recipe, stage.parents, {}, {"w": np.ones(3)})
    (classifier,) = (key for key, stage in made.stages.items() if stage.kind == "classifier")
    (store.root / classifier[:2] / f"{classifier}.json").write_text("{")
    assert missing(made, store, made.questions) == (classifier,)


def test_a_reading_that_must_be_made_needs_the_owner_too(laid_out):
    made, store = laid_out
    asked = question(made, "released", "finetune.classify")
    store.remove(asked.extract)
    damage(store, asked.protect)
    damage(store, asked.owner)
    assert set(missing(made, store, [asked])) == {asked.extract, asked.protect, asked.owner}


def test_stages_are_guessed_by_those_alike(laid_out, make):
    made, store = laid_out
    for q in made.questions:
        store.remove(q.extract)
    guessed = guesses(made, store)
    assert not guessed.keys() & {q.extract for q in made.questions}
    again = make(SUITE, ("twin_seeds: 3", "twin_seeds: 4"))
    todo = missing(again, store, again.questions)
    guessed, new = guesses(again, store), Counter(again.stages[key].kind for key in todo)
    assert new["attack"] == 2  # one more seed of each chain; pruning was done, and draws nothing
    for kind in ("attack", "utility"):
        assert {guessed[k][0] for k in todo if again.stages[k].kind == kind} == {2.0}


def test_a_stage_on_another_model_is_not_guessed_by_those_of_this_one(laid_out, make):
    _, store = laid_out
    other = make(SUITE, ("{embedded: mini}", "{timm: test_vit, weights: random}"))
    guessed = guesses(other, store)
    assert not [k for k in guessed if other.stages[k].kind in ("protect", "attack", "utility")]


def test_numbers_that_are_not_the_plug_ins_defaults_are_listed(make):
    made = make()
    assert grid.departures(made.suite) == (
        "activemark expressprint constant: images 4 (default 1000), steps 2 (default 2500), "
        "batch 4 (default 16)",
        "finetune.classify constant: epochs 1 (default 10)",
    )


def test_shares_that_the_embedded_models_were_not_trained_on_are_told(make):
    told = make(SUITE, ("digits: {max", "digits: {owner_share: 0.3, max")).warnings
    assert sum("was trained on other shares of these images" in line for line in told) == 1
    assert not any("other shares" in line for line in make().warnings)


def test_a_stranger_is_not_mixed_with_the_owners_base(make):
    made = make(SUITE, ("[{name: prune.l1, amount: 0.2}, {", "[{name: interpolate}, {"))
    mixed = [c for c in cells(made) if "interpolate" in chain(c)]
    assert {c.lineage for c in mixed} == {"released", "owner"}
    stage = next(q for q in made.questions if "interpolate" in chain(q.cell))
    first = next(s for s in made.stages.values() if s.kind == "attack" and len(s.parents) == 2)
    assert first.parents[1] == stage.owner


COLLUDED = suite(
    methods=["{name: activemark, steps: 2, batch: 4, images: 4}"],
    attacks=["{name: control.identity}", "{name: collusion, copies: 3}"],
    seeds="[0, 4]",
    innocents="{strangers: 0, twin_seeds: 1, other_keys: 1, pretraining_steps: 1}",
)


def colluding(made):
    """Return, by claim and suspect, the seeds of the keys whose copies were averaged."""
    found = {}
    for question in made.questions:
        if "collusion" in chain(question.cell):
            parents = [made.stages[key] for key in made.stages[question.suspect].parents]
            who = question.cell.base, question.cell.method_seed, question.cell.other_seed
            found[who] = [parent.recipe.get("seed") for parent in parents]
    return found


def test_thieves_collude_with_keys_that_are_neither_the_claims_nor_the_suspects(make):
    found = colluding(make(COLLUDED))
    assert found["released", 0, None] == [0, 4, 5]
    assert found["released", 4, None] == [4, 0, 5]
    assert found["owner", 0, None] == [None, 4, 5]  # the twin: the clean owner in one place
    assert found["other key", 0, 4] == [4, 5, 6]
    assert found["other key", 4, 0] == [0, 5, 6]


def test_a_fingerprint_releases_no_copies_to_collude_with(make, labels):
    classified = COLLUDED.replace(
        "{embedded: mini}", "{embedded: mini, classifier: {data: digits}}"
    )
    made = make(classified, with_prints("{name: labels.some}"))
    asked = [q for q in made.questions if "collusion" in chain(q.cell)]
    assert {q.marks for q in asked} == {True, False}
    for question in asked:
        told = "needs copies under other keys, a fingerprint releases one model"
        assert question.skip == ("" if question.marks else told)


# Innocents that no attack made.


def asking(*innocents):
    return ("pretraining_steps: 1", ", ".join(["pretraining_steps: 1", *innocents]))


def test_another_key_is_first_one_the_suite_has_anyway(make):
    def others(seeds, count):
        made = make(SUITE, ("seeds: [0]", f"seeds: {seeds}"), asking(f"other_keys: {count}"))
        found = [(c.method_seed, c.other_seed) for c in cells(made, base="other key")]
        assert Counter(found) == dict.fromkeys(found, 3)  # untouched, and after either attack
        return list(dict.fromkeys(found)), sum(s.kind == "protect" for s in made.stages.values())

    assert others([0], 2) == ([(0, 1), (0, 2)], 3)
    assert others([4, 2], 0) == ([(4, 2), (2, 4)], 2)  # nothing more to mark
    assert others([4, 2], 1) == ([(4, 2), (2, 4)], 2)
    assert others([4, 2], 2) == ([(4, 2), (4, 5), (2, 4), (2, 5)], 3)
    assert others([0], 0) == ([], 1)


def test_another_owners_mark_is_innocent_and_the_very_suspect_the_other_claim_is_about(make):
    made = make(SUITE, ("seeds: [0]", "seeds: [0, 1]"))
    others = [q for q in made.questions if (q.cell.method_seed, q.cell.other_seed) == (0, 1)]
    own = [q for q in made.questions if q.cell.method_seed == 1 and q.cell.lineage == "released"]
    assert [chain(q.cell) for q in others] == [chain(q.cell) for q in own]
    for other, copy in zip(others, own, strict=True):  # untouched, and attacked with its own seed
        assert (other.suspect, other.cell.lineage, other.fidelity) == (copy.suspect, "owner", None)
        assert other.protect != copy.protect
    alone = make(SUITE, ("seeds: [0]", "seeds: [1]"))
    trained = {
        k for k, s in made.stages.items() if s.kind == "attack" and s.parents[0] == own[0].protect
    }
    assert trained <= set(alone.stages)  # it costs nothing but readings


def test_a_fingerprint_has_no_other_key(make, monkeypatch):
    monkeypatch.setattr(METHODS.get("activemark"), "marks", False)
    assert not cells(make(SUITE, asking("other_keys: 3")), base="other key")


def test_a_model_is_a_stranger_to_every_owner_but_itself(make, tmp_path):
    for name in "abc":
        save_file({"w": np.array([ord(name)])}, tmp_path / f"{name}.safetensors")
    a, b, c = (f"{{timm: {n}, weights: {n}.safetensors}}" for n in "abc")
    again = "{timm: a, weights: a.safetensors, image_size: 32}"
    text = SUITE.replace("{embedded: mini}", f"{a}\n  - {b}")
    made = make(text, asking(f"models: [{a}, {again}, {c}]"), data=tmp_path)
    read = [(x.owner.name, x.other_model.name) for x in cells(made, base="other model")]
    assert read == [("a", "c"), ("b", "a"), ("b", "a"), ("b", "c")]
    assert sum(stage.kind == "owner" for stage in made.stages.values()) == 4  # a, a at 32, b, c
    assert {o.name for o in made.owners.values()} == {"a", "b", "c"}
    for question in made.questions:
        if question.cell.base == "other model":
            (start,) = made.stages[question.suspect].parents
            assert made.owners[start].name == question.cell.other_model.name
            assert (question.cell.lineage, chain(question.cell)) == (
                "stranger",
                ("control.identity",),
            )


FINETUNED = ("classifier: {data: digits}", "classifier: {data: digits, backbone: finetuned}")


@pytest.mark.parametrize("marks", [True, False])
def test_the_public_model_that_an_owner_finetuned_its_own_from_is_innocent(
    make, monkeypatch, marks
):
    monkeypatch.setattr(METHODS.get("activemark"), "marks", marks)
    assert not cells(make(CLASSIFIED), base="other model")
    made = make(CLASSIFIED, FINETUNED)
    (asked,) = (q for q in made.questions if q.cell.base == "other model")
    assert asked.cell.lineage == ("owner" if marks else "stranger")
    assert made.stages[asked.suspect].parents == made.stages[asked.owner].parents
    assert made.stages[asked.owner].kind == "classifier"


def test_what_a_thief_mixes_with_is_the_public_model(make):
    mixed = ("[{name: prune.l1, amount: 0.2}, {", "[{name: interpolate}, {")
    for edits, kind in (((), "classifier"), ((FINETUNED,), "owner")):
        made = make(CLASSIFIED, mixed, *edits)
        bases = {s.parents[1] for s in made.stages.values() if s.kind == "attack" and s.parents[1:]}
        assert {made.stages[base].kind for base in bases} == {kind}


@pytest.mark.parametrize(
    ("alpha", "told"),
    [
        (0.05, "n = 1, the models listed as innocents, nobody trained models of this shape "
               "independently here; verdicts against strangers stay undecided"),
        (0.5, "n = 1, the models listed as innocents, nobody trained models of this shape "
              "independently here"),
    ],
)  # fmt: skip
def test_an_owner_without_peers_is_told_how_many_models_stand_in(make, alpha, told):
    alone = make(
        SUITE,
        ("{embedded: mini}", "{timm: test_vit, weights: random}"),
        asking("models: [{embedded: mini}]"),
        ("name: tiny", f"name: tiny\nalpha: {alpha}"),
    )
    assert f"test_vit: strangers: {told}" in alone.warnings


def test_strangers_of_other_shapes_are_trained_in_cohorts_of_their_own(make):
    made = make(SUITE, asking("other_shapes: 3"))
    shapes = [c.attack[0].args["shape"] for c in cells(made, lineage="stranger")]
    assert Counter(shapes) == {"mini": 2, "mini-deep": 3, "mini-wide": 3}
    cohorts = [s.recipe for s in made.stages.values() if s.kind == "cohort"]
    assert Counter((c.get("shape"), c["size"]) for c in cohorts) == {
        (None, 10): 1,
        ("mini-deep", 2): 2,
        ("mini-wide", 2): 2,
    }
    assert set(cohorts[0]) == {"pretraining", "cohort", "size"}  # kept from when all were alike
    assert not any("shape" in s.recipe for s in make().stages.values())


def test_what_a_cell_does_not_say_is_not_in_its_key(make):
    """Cells that existed before there were other keys, models and accusers keep their keys."""
    question = make().questions[0]
    before = dataclasses.asdict(question.cell)
    del before["other_seed"], before["other_model"], before["accuser"], before["accused"]
    stages = [question.extract, question.utility, question.fidelity]
    assert question.key == digest(SCHEMA, "cell", before, stages, "")


def test_a_plan_says_of_every_step_what_a_report_cannot_ask(make, monkeypatch):
    """An attack that says nothing is "other", or exact where it says that; strangers are none."""
    made = make()
    monkeypatch.setattr(ATTACKS.get("prune.l1"), "exact", True, raising=False)
    monkeypatch.setattr(ATTACKS.get("finetune.classify"), "adaptive", "the key", raising=False)
    told = {spec.name: facts for spec, facts in graph.steps(made)}
    assert {name: facts.change for name, facts in told.items()} == {
        "control.identity": "other",
        "finetune.classify": "other",
        "prune.l1": "exact",
    }
    assert (told["prune.l1"].exact, told["finetune.classify"].adaptive) == (True, "the key")
    digits = made.manifests["digits"]
    pool = len(manifest.split(digits).thief_images)
    assert {(f.images, f.data) for f in told.values()} == {(pool, digits.digest)}
    monkeypatch.setattr(ATTACKS.get("prune.l1"), "change", "compression", raising=False)
    assert {s.name: f.change for s, f in graph.steps(made)}["prune.l1"] == "compression"


def test_hardness_is_measured_where_asked_once_a_suspect_and_moves_no_key(make):
    plain, asked = make(), make(SUITE + "hardness: true\n")
    assert keys(asked) == keys(plain)
    assert asked.stages.keys() - plain.stages.keys() == {q.hardness for q in asked.questions}
    assert {q.hardness for q in plain.questions} == {None}
    for question in asked.questions:
        stage = asked.stages[question.hardness]
        assert (stage.kind, stage.parents) == ("hardness", (question.suspect, question.owner))
        assert question.hardness in question.stages
