import dataclasses
import random

import pytest
from made import matches, outline, suspect, with_secret

from bench.records.nouns import Spec
from bench.verdicts import level
from bench.verdicts.innocents import Innocents
from bench.verdicts.intervals import upper_bound
from bench.verdicts.separation import halves

OUTLINE = outline(name="calibration")
PRINT = Spec("ipguard")


UNTOUCHED, TUNED = (Spec("control.identity"),), (Spec("finetune.classify"),)


def record(score, number, lineage="stranger", seed=0, tried=TUNED):
    """Return a fingerprint's reading of one attacked model, as a score over 100 queries."""
    hits = round(100 * score)
    read = matches(*[1.0] * hits, *[0.0] * (100 - hits))
    return suspect(number, read, lineage, seed, PRINT, tried)


def table_of(records):
    return level.level_table(OUTLINE, [("mini", "ipguard", records)])


def lines(records):
    table = table_of(records)
    found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return {line["innocents"]: line for line in found}


def line(records):
    """The line of a fingerprint, or of a mark the first, which says what became of copies."""
    return lines(records)["strangers"]


def marked(records):
    return [dataclasses.replace(r, marks=True) for r in records]


def other_key(score, key, seed=0):
    made = record(score, 1000 + key, "owner", seed)
    cell = dataclasses.replace(made.cell, base="other key", other_seed=key)
    return dataclasses.replace(made, cell=cell, marks=True)


def strangers(count, tried=TUNED):
    return [record(0.10 + i / 1000, i, tried=tried) for i in range(count)]


def test_a_method_that_parts_all_models_has_full_power_at_its_level():
    (found,) = lines(
        [*strangers(99), *(record(0.9, i, "released") for i in range(10))]
    ).values()  # a fingerprint's descendants are guilty
    assert found["n"] == "0, attacked 99"
    assert found["attacked copies owned"] == "10 of 10 [0.69, 1.00]"  # 0.05 / 2 = 0.69 ** 10
    assert found["AUC"].startswith("1.000 [")
    tpr, _, rest = found["TPR at FPR 0.05"].partition(" (FPR ")
    hits, _, bound = rest.rstrip(")").partition("/49 <= ")
    bounded = f"{upper_bound(int(hits), 49):.3f}"
    assert (tpr, bound) == ("1.000 = 10/10 [0.69, 1.00]", bounded)
    assert found["Holm"] == "0 of 10, 199 needed"  # 0.05 / 10 = 1 / 200


def test_strangers_are_judged_by_a_half_that_has_not_seen_them():
    scores = {f"stranger {i}": i / 100 for i in range(79)}
    null, unseen = halves(scores)
    ranks = [(1 + sum(scores[o] >= scores[n] for o in null)) / 41 for n in unseen]
    found = level.fresh(scores, 0.05)
    assert (found.called, found.judged) == (sum(p <= 0.05 for p in ranks), 39)
    assert found.upper == upper_bound(found.called, 39)
    # Leaving one out would count 3 of 79 whatever the scores; here all unseen may be called.
    lucky = {name: float(name in unseen) for name in scores}
    assert level.fresh(lucky, 0.05).called == 39
    assert level.fresh(dict.fromkeys(scores, 0.5), 0.05).called == 0


@pytest.mark.parametrize(("count", "judged"), [(36, 0), (37, 18)])
def test_too_few_innocents_check_nothing_and_the_number_needed_is_told(count, judged):
    names = {str(i): 0.1 for i in range(count)}
    assert level.fresh(names, 0.05).judged == judged
    said = line(strangers(count))["called owned"]
    assert said.startswith("37 needed") == (not judged)


def attacks(scores):
    """The innocents of a mark: twins of so many attacks, the clean owner among them."""
    twins = {f"attack {i}": {f"{i} {j}": s for j, s in enumerate(found)}
             for i, found in enumerate(scores)}  # fmt: skip
    return Innocents(descendants={"": {"clean": 0.2}, **twins}, clean=0.2)


def test_the_twins_of_an_attack_are_judged_by_the_other_attacks_alone():
    quiet = [[0.1, 0.05]] * 19
    found = level.unseen_attacks(attacks([*quiet, [0.9, 0.8, 0.15]]), 0.05)
    assert (found.called, found.judged) == (2, 19 * 2 + 3)  # each by 20 clusters
    assert level.unseen_attacks(attacks([*quiet, [0.2]]), 0.05).called == 0  # a tie with the owner
    assert level.unseen_attacks(attacks(quiet[1:]), 0.05).judged == 0  # 18 others are left
    loud = level.unseen_attacks(attacks([*quiet, [0.9], [0.85]]), 0.05)
    assert (loud.called, loud.judged) == (1, 40)  # 0.85 ranks second of 22


def mark_read(seed, high):
    """Return 40 strangers, the highest with the score told, and twins of 20 attacks."""
    lone = [record(0.1, i, seed=seed) for i in range(39)] + [record(high, 39, seed=seed)]
    tuned = [(Spec("noise.weights", {"sigma": i}),) for i in range(20)]
    twins = [record(0.1, i, "owner", seed, tried) for i, tried in enumerate(tuned)]
    return marked([*lone, *twins])


def test_innocents_of_a_mark_have_a_line_for_each_kind():
    keys = [other_key(0.1 + i / 100, i, seed) for seed in (0, 1) for i in range(37)]
    copies = marked([record(0.85, 0, "released")])
    found = lines([*mark_read(0, 0.1), *mark_read(1, 0.1), *keys, *copies])
    assert [*found] == ["strangers", "descendants", "other keys"]
    assert [line["n"] for line in found.values()] == ["40", "20", "0, attacked 37"]
    assert found["strangers"]["called owned"] == f"0 of 40 (<= {1 - 0.05 ** (1 / 20):.3f})"
    assert found["descendants"]["called owned"] == f"0 of 40 (<= {1 - 0.05 ** (1 / 20):.3f})"
    called, _, rest = found["other keys"]["called owned"].partition(" of ")
    assert int(called) % 2 == 0  # both secrets alike
    assert rest.startswith("36 (<= ")
    assert found["strangers"]["attacked copies owned"].startswith("1 of 1")
    assert (found["descendants"]["attacked copies owned"], found["other keys"]["Holm"]) == (
        "—",
        "—",
    )
    assert [line["AUC"][:5] for line in found.values()] == ["1.000", "1.000", "1.000"]


def test_strangers_that_went_through_an_attack_are_counted_beside_the_untouched():
    alike = [record(0.1, i) for i in range(37)]
    found = line([*strangers(20, UNTOUCHED), *alike])
    assert found["n"] == "20, attacked 37"
    assert found["called owned"] == f"0 of 18 (<= {upper_bound(0, 18):.3f})"  # by the other 19


def test_areas_under_the_curve_are_told_kind_by_kind_and_never_pooled():
    copies = marked([record(0.5, i, "released") for i in range(4)])
    found = lines([*mark_read(0, 0.1), other_key(0.9, 1), *copies])
    assert [line["AUC"][:5] for line in found.values()] == ["1.000", "1.000", "0.000"]


def test_copies_owned_say_against_which_innocents_alpha_is_out_of_reach():
    copies = marked([record(0.85, 0, "released")])
    read = [*mark_read(0, 0.1), *copies]
    assert line(read)["attacked copies owned"] == "1 of 1 [0.03, 1.00]; other keys not read"
    one = line([*read, other_key(0.3, 1)])["attacked copies owned"]
    assert one == "1 of 1 [0.03, 1.00]; other keys only at 1/2"
    assert line([*read, other_key(0.9, 1)])["attacked copies owned"].startswith("0 of 1")


@pytest.mark.parametrize(("keys", "said"), [(1, True), (3, True), (4, False)])
def test_an_interval_over_few_keys_is_said_to_be_too_narrow(keys, said):
    read = [
        record(score, i, lineage, seed)
        for seed in range(keys)
        for i, (score, lineage) in enumerate([(0.1, "stranger"), (0.9, "released")])
    ]
    text = "\n".join(table_of(read).notes)
    assert "exact (Clopper-Pearson) where scores do not overlap" in text
    assert ("too narrow over fewer than 4 keys" in text) == said


def test_enough_innocents_survive_holm():
    copies = [record(0.9, i, "released") for i in range(4)]
    assert line([*strangers(99), *copies])["Holm"] == "4 of 4"


def test_copies_that_score_like_strangers_are_not_owned():
    found = line([*strangers(40), *(record(0.1, i, "released") for i in range(5))])
    assert found["attacked copies owned"] == "0 of 5 [0.00, 0.52]"
    assert float(found["AUC"].split()[0]) < 0.5


@pytest.mark.parametrize("count", [0, 5])
def test_with_too_few_innocents_nothing_is_claimed(count):
    found = line([*strangers(count), record(0.9, 0, "released")])
    assert found["called owned"] == "37 needed"
    assert found["attacked copies owned"] == "undecided 1"
    assert found["Holm"].endswith("needed")


@pytest.mark.parametrize(("count", "expected"), [(18, False), (19, True)])
def test_a_verdict_can_be_had_with_as_many_innocents_as_it_needs(count, expected):
    assert level.decidable(OUTLINE, [("mini", "ipguard", strangers(count))]) == expected


def test_a_mark_needs_descendants_too():
    assert not level.decidable(OUTLINE, [("mini", "activemark", marked(strangers(40)))])


def test_neither_order_nor_repetition_changes_a_line():
    records = [*strangers(30), *(record(0.2 + i / 20, i, "released") for i in range(8))]
    expected = line(records)
    random.Random(0).shuffle(records)
    assert line(records) == expected


@pytest.mark.parametrize(
    ("secrets", "owned", "said"),
    [
        # 0.025 ** (1 / 4) and 0.025 ** (1 / 8).
        (("one", "one"), "4 of 4 [0.40, 1.00]", True),
        (("one", "two"), "8 of 8 [0.63, 1.00]", False),
    ],
)
def test_keys_that_are_one_and_the_same_count_as_one(secrets, owned, said):
    read = []
    for seed, secret in enumerate(secrets):
        copies = [
            dataclasses.replace(record(0.9, i, "released", seed), suspect_digest=f"copy {i}")
            for i in range(4)
        ]
        lone = [record(0.1, i, seed=seed) for i in range(19)]
        read += [with_secret(r, secret) for r in (*copies, *lone)]
    found = line(read)
    assert (found["n"], found["attacked copies owned"]) == ("0, attacked 19", owned)
    once = [r for r in read if r.cell.method_seed == 0]
    assert all((found[c] == line(once)[c]) == said for c in ("attacked copies owned", "Holm"))
    text = "mini, ipguard: method seeds 0 and 1 give one and the same key, which counts as one."
    assert (text in table_of(read).notes) == said


def test_a_copy_that_cannot_be_read_is_not_owned_and_outscores_nobody():
    copies = [record(0.9, i, "released") for i in range(4)]
    lost = dataclasses.replace(
        copies[0], status="incompatible", evidence=None, suspect_digest="", key="lost"
    )
    found = line([*strangers(40), lost, *copies[1:]])
    # 3 of 4: Clopper and Pearson, 0.194 to 0.994; 3 * 40 of 4 * 40 pairs are won.
    assert found["attacked copies owned"] == "3 of 4 [0.19, 0.99]"
    assert found["AUC"].startswith("0.750 [")
    assert found["TPR at FPR 0.05"].startswith("0.750 = 3/4 [0.19, 0.99]")
    assert found["Holm"] == "0 of 4, 59 needed"  # 1 / 60 is the first within 0.05 / 3


def test_a_copy_that_an_attack_left_undecided_is_lost_where_the_untouched_one_is_decided():
    lone = strangers(19, UNTOUCHED)
    gone = [
        dataclasses.replace(r, status="incompatible", evidence=None, suspect_digest="")
        for r in strangers(19)  # after the attack nobody can read them
    ]
    attacked = record(0.9, 0, "released")
    untouched = record(0.9, 1, "released", tried=UNTOUCHED)
    assert line([*lone, *gone, attacked])["attacked copies owned"] == "undecided 1"
    found = line([*lone, *gone, attacked, untouched])["attacked copies owned"]
    assert found.startswith("0 of 1 [")
    # The suite attacked too few of them: that is no success of the thief's.
    found = line([*lone, *gone[:18], attacked, untouched])["attacked copies owned"]
    assert found == "undecided 1"


@pytest.mark.parametrize("kind", [list, marked], ids=["fingerprint", "mark"])
@pytest.mark.parametrize("status", ["ok", "incompatible"])
@pytest.mark.parametrize("score", [0.0, 0.9])
def test_the_untouched_model_is_in_no_column_of_a_line(kind, status, score):
    twins = [record(0.1, i, "owner", tried=(Spec("noise.weights", {"sigma": i}),)) for i in
             range(20)]  # fmt: skip
    copies = [record(0.9, i, "released") for i in range(3)]
    lost = dataclasses.replace(
        copies[0], status="incompatible", evidence=None, suspect_digest="", key="lost"
    )
    read = [*strangers(40), *strangers(40, UNTOUCHED), *twins, *copies, lost]
    whole = record(score, 9, "released", tried=UNTOUCHED)
    if status == "incompatible":
        whole = dataclasses.replace(whole, status=status, evidence=None, suspect_digest="")
    found = line(kind(read))
    assert found["attacked copies owned"].startswith("3 of 4 [")
    assert line(kind([*read, whole])) == found
    alone = line(kind([*strangers(40), *strangers(40, UNTOUCHED), *twins, whole]))
    assert {alone[c] for c in ("attacked copies owned", "AUC", "Holm")} == {"—"}
