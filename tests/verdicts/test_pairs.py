import dataclasses
import random

import pytest
from made import UNTOUCHED, matches, outline, suspect, with_secret

from bench.records.nouns import Fidelity, Spec, packed
from bench.verdicts import pairs

OUTLINE = outline(name="compared")
KEYS = 8


def record(method, score, number, attack, seed, lineage="released"):
    tried = (Spec("prune.l1", {"amount": attack}),)
    return suspect(number, matches(score), lineage, seed, Spec(method), tried)


def read(method, score, keys=KEYS, strangers=19):
    """Three attacked copies under each key, and strangers attacked alike, read with each."""
    every = [(attack, key) for key in range(keys) for attack in range(3)]
    copies = [record(method, score, 0, *which) for which in every]
    lone = [record(method, 0.1, i, *w, "stranger") for w in every for i in range(strangers)]
    return [*copies, *lone]


def lines(groups):
    made = pairs.pairs_table(OUTLINE, groups)
    return [dict(zip(made.columns, row, strict=True)) for row in made.rows]


def test_a_method_that_always_recognises_beats_one_that_never_does():
    (line,) = lines([("mini", "a", read("a", 0.9)), ("mini", "b", read("b", 0.1))])
    assert (line["first"], line["second"], line["copies"]) == ("a", "b", "24 of 24")
    assert (line["only first"], line["only second"], line["difference"]) == ("24", "0", "+1.000")
    # All 8 keys speak for one side: 2 of the 2 ** 8 swaps are as far from none.
    assert (line["keys"], line["p"], line["least p"]) == ("8", "0.00781", "0.00781")
    assert (line["Holm p"], line["outcome"]) == ("0.00781", "first detects more")


def test_copies_are_said_to_share_recipes_and_p_to_hold_for_these_models():
    table = pairs.pairs_table(OUTLINE, [("mini", name, read(name, 0.9)) for name in "ab"])
    assert "on copies made by the same recipes" in table.caption
    assert "conditional on this owner and these strangers" in "\n".join(table.notes)


def test_all_comparisons_are_passed_together_and_say_how_many_keys_that_takes():
    groups = [
        ("mini", name, read(name, score)) for name, score in (("a", 0.9), ("b", 0.1), ("c", 0.9))
    ]
    found = {(line["first"], line["second"]): line for line in lines(groups)}
    assert [*found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found["a", "b"]["Holm p"] == found["b", "c"]["Holm p"] == "0.0234"  # 3 / 128
    assert found["b", "c"]["outcome"] == "second detects more"
    assert (found["a", "c"]["Holm p"], found["a", "c"]["outcome"]) == ("1", "no difference")
    few = [(o, m, [r for r in rs if r.cell.method_seed < 6]) for o, m, rs in groups]
    (short, *_) = lines(few)
    # Six keys reach 2 / 2 ** 6 = 0.031, enough for one comparison and not for three.
    assert (short["p"], short["outcome"]) == ("0.0312", "undecided, 7 keys needed")


def test_a_copy_that_a_method_cannot_read_is_one_that_it_does_not_own():
    unread = [
        dataclasses.replace(r, status="incompatible", evidence=None, suspect_digest="")
        if r.cell.lineage == "released" and r.cell.attack[0].args["amount"] == 0
        else r
        for r in read("b", 0.9)
    ]
    (line,) = lines([("mini", "a", read("a", 0.9)), ("mini", "b", unread)])
    # One of three attacks under each of 8 keys: 2 of 2 ** 8 swaps.
    assert (line["copies"], line["only first"], line["only second"]) == ("24 of 24", "8", "0")
    assert (line["difference"], line["p"]) == ("+0.333", "0.00781")


def test_undecided_copies_are_lost_where_the_untouched_one_is_decided_and_else_not_judged():
    few = read("b", 0.9, strangers=18)
    (line,) = lines([("mini", "a", read("a", 0.9)), ("mini", "b", few)])
    assert (line["copies"], line["difference"], line["p"]) == ("0 of 24", "—", "—")
    assert line["outcome"].startswith("undecided")
    spec = Spec("b")
    # One more stranger went through every attack, and nobody can read it any more.
    few += [
        dataclasses.replace(r, status="incompatible", evidence=None, suspect_digest="")
        for r in read("b", 0.9, strangers=1)
        if r.cell.lineage == "stranger"
    ]
    for key in range(4):  # of 8
        few.append(suspect(0, matches(0.9), "released", key, spec, UNTOUCHED))
        few += [suspect(i, matches(0.1), "stranger", key, spec, UNTOUCHED) for i in range(19)]
    (line,) = lines([("mini", "a", read("a", 0.9)), ("mini", "b", few)])
    # The untouched copies themselves, which nobody attacked, are none of those compared.
    assert (line["copies"], line["only first"], line["keys"]) == ("12 of 24", "12", "4")


def test_keys_of_a_method_that_are_one_and_the_same_are_one_piece_of_luck():
    same = [with_secret(r) for r in read("a", 0.9)]
    (line,) = lines([("mini", "a", same), ("mini", "b", read("b", 0.1))])
    assert (line["copies"], line["keys"], line["p"]) == ("24 of 24", "1", "1")
    # A fingerprint's copies are the owner's, whatever the key: both sides read three of them.
    alike = [
        with_secret(dataclasses.replace(r, suspect_digest=f"{r.cell.lineage} {r.cell.attack}"))
        for r in (*read("a", 0.9), *read("b", 0.1))
    ]
    groups = [("mini", name, [r for r in alike if r.cell.method.name == name]) for name in "ab"]
    (line,) = lines(groups)
    assert (line["copies"], line["only first"], line["keys"]) == ("3 of 3", "3", "1")


OWNER_RIGHT, RELEASED_RIGHT = ([1] * 48 + [0] * 2, [1] * 36 + [0] * 12 + [1] * 2)
"""48 and 38 of 50 images: 36 by both, 12 by the owner's alone, 2 by the released model's."""


@pytest.mark.parametrize(
    ("own", "said"),
    [
        # R. G. Newcombe, Stat. Med. 17 (1998) 2635-2650, table III, method 10: 0.0569 to 0.3404.
        (
            {
                "own_images": 50,
                "owner_right": packed(OWNER_RIGHT),
                "released_right": packed(RELEASED_RIGHT),
            },
            "own task 0.960 -> 0.760 [-0.340, -0.057], feature cosine 0.900",
        ),
        ({"owner_probe_right": "ff"}, "own task no classifier, feature cosine 0.900"),
        ({}, "own task —, feature cosine 0.900"),  # an older record does not say
    ],
)
def test_prices_stand_beside_what_was_detected_and_a_fingerprint_has_none(own, said):
    paid = Fidelity((0.85, 0.95), 0.7, 0.7, 8, "digits", **own)
    mark = [dataclasses.replace(r, marks=True) for r in read("a", 0.9)]
    mark[0] = dataclasses.replace(mark[0], fidelity=paid)
    groups = [("mini", "a", mark), ("mini", "b", read("b", 0.9))]
    (line,) = lines(groups)
    assert (line["price of first"], line["price of second"]) == (said, "none")
    table = pairs.pairs_table(OUTLINE, groups)
    assert "A comparison at unequal prices orders nothing" in "\n".join(table.notes)


def priced(method, score, lost):
    """What costs the owner so many of 100 images, which its first copy says.

    Its key decides nothing: a mark wants descendants to be ranked among, and here are none.
    """
    right = [1] * 90 + [0] * 10, [1] * (90 - lost) + [0] * (10 + lost)
    own = dict(zip(("owner_right", "released_right"), map(packed, right), strict=True))
    paid = Fidelity((0.9,), 0.7, 0.7, 8, "digits", own_images=100, **own)
    first, *others = read(method, score)
    return [dataclasses.replace(first, marks=True, fidelity=paid), *others]


def test_methods_whose_prices_lie_apart_are_neither_ordered_nor_counted():
    groups = [
        ("mini", "a", priced("a", 0.9, 2)),
        ("mini", "b", read("b", 0.1)),
        ("mini", "c", priced("c", 0.1, 3)),
    ]
    found = {(line["first"], line["second"]): line for line in lines(groups)}
    apart = found["a", "b"]
    assert (apart["only first"], apart["difference"]) == ("21", "+1.000")
    assert (apart["p"], apart["Holm p"], apart["outcome"]) == (
        *("—", "—", "not ordered: prices 0.020 apart"),
    )
    assert found["b", "c"]["outcome"] == "not ordered: prices 0.030 apart"
    # One point apart counts as equal, and Holm passes this one alone.
    assert (found["a", "c"]["Holm p"], found["a", "c"]["outcome"]) == (
        *("0.0156", "first detects more"),
    )
    table = pairs.pairs_table(OUTLINE, groups)
    assert "over 1 comparison at equal prices by Holm" in table.caption
    assert "differs by more than 0.01" in "\n".join(table.notes)


def test_a_mark_whose_price_nobody_knows_is_not_ordered():
    mark = [dataclasses.replace(r, marks=True) for r in read("a", 0.9)]
    (line,) = lines([("mini", "a", mark), ("mini", "b", read("b", 0.1))])
    assert line["outcome"] == "not ordered: a price is not known"


def test_only_methods_of_one_owner_are_compared():
    assert lines([("mini", "a", read("a", 0.9)), ("other", "b", read("b", 0.1))]) == []


def test_the_order_of_records_changes_nothing():
    groups = [("mini", name, read(name, score)) for name, score in (("a", 0.9), ("b", 0.1))]
    expected = lines(groups)
    for _, _, records in groups:
        random.Random(0).shuffle(records)
    assert lines(groups) == expected
