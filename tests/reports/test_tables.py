import csv
import dataclasses
import io
import random
import subprocess
import sys

import pytest
from made import (
    MARK,
    MUTATION,
    PRINT,
    QUERIES,
    UNTOUCHED,
    cell,
    lost,
    outline,
    record,
    stranger,
    with_secret,
)
from rich.console import Console

from bench.records.nouns import Cost, Evidence, Fidelity, Spec, Utility, canonical, packed
from bench.records.table import NOTHING, TERMINAL_COLUMN, markdown, print_table, write_tables
from bench.records.table import csv as csv_
from bench.reports.notes import LEGEND
from bench.reports.tables import tables

EXPRESS, PAPER = (Spec("activemark", {"variant": name}) for name in ("expressprint", "paper"))
COSINE = (Spec("finetune.classify", {"schedule": "cosine", "rate": 0.001}),)
LINEAR = (Spec("finetune.classify", {"schedule": "linear", "rate": 0.001}),)
PRUNE = (Spec("prune.l1", {"amount": 0.4}),)


def made(records, holes=(), **changes):
    asked = outline([*records, *holes], **changes)
    return tables(asked, {r.key: r for r in records})


def named(name, tables):
    (found,) = [table for table in tables if table.name == name]
    return found


def row(table, *starts):
    """Return the one row whose method ends with and whose attack is what is asked for."""
    method, attack = starts
    (found,) = [r for r in table.rows if r[1].endswith(method) and r[3] == attack]
    return dict(zip(table.columns, found, strict=True))


def innocents(method=MARK, seed=0, twin_errors=16.0, twins=20):
    """Return 20 plain strangers, and twins after fine-tuning with as many attack seeds.

    A copy that went through the same attack is ranked within it.
    """
    lone = [cell(method, "owner", stranger(i), seed, 0, "stranger") for i in range(20)]
    tuned = [cell(method, "owner", COSINE, seed, 100 + i) for i in range(twins)]
    return [*(record(c, 16.0) for c in lone), *(record(c, twin_errors) for c in tuned)]


def test_a_row_shows_marked_twin_and_stranger_with_both_spreads():
    copies = [record(cell(attack=COSINE, seed=s), errors) for s, errors in ((0, 2.0), (1, 9.0))]
    alike = record(cell(base="owner", attack=stranger(0, *COSINE), lineage="stranger"), 14.0)
    table, *_ = made([*copies, *innocents(), *innocents(seed=1), alike])
    found = row(table, "activemark", "finetune.classify")
    # Two models at rates 1 and 0: Wilson at 10 of 20, and the range over the two.
    assert found["marked"] == "0.500 [0.299, 0.701] (n=2: 0.000-1.000)"
    assert found["twin"] == "0.000 [0.000, 0.161] (n=40: 0.000-0.000)"
    assert found["stranger"] == "0.000 [0.000, 0.161] (n=1)"
    assert found["statistic (m/t/s)"] == "5.50 / 16.0 / 14.0"
    # 1 / (1 + 20)
    assert (found["p"], found["verdict"]) == ("0.048", "owned 2/2; other keys not read")
    assert found["ranked among"] == "20 strangers, 20 twins, 0 of 19 other keys; least p 0.048"
    assert found["utility (m/t)"] == "0.900 / 0.900 (1)"
    assert found["access"] == "needs features, weights"


def test_copies_under_several_secrets_show_their_largest_p_and_count_their_verdicts():
    copies = [record(cell(attack=COSINE, seed=s), 2.0) for s in (0, 1)]
    table, *_ = made([*copies, *innocents(), *innocents(seed=1, twin_errors=2.0)])
    found = row(table, "activemark", "finetune.classify")
    assert (found["p"], found["verdict"]) == (
        "1.000",
        "not owned 1/2, owned 1/2; other keys not read",
    )


def test_the_untouched_model_stands_beside_untouched_strangers_and_the_clean_owner():
    clean = record(cell(base="owner"), 15.0)
    table, *_ = made([record(cell(), 0.0), clean, *innocents()])
    found = row(table, "activemark", "control.identity")
    assert found["twin"].endswith("(n=1)")
    assert found["stranger"].endswith("(n=20: 0.000-0.000)")
    assert row(table, "activemark", "control.stranger")["stranger"] == found["stranger"]


def test_strangers_asked_for_alone_get_one_row_and_no_marked_copy():
    table, *_ = made([record(cell(attack=stranger(i), lineage="stranger"), 16) for i in range(3)])
    assert [r[3] for r in table.rows] == ["control.stranger"]
    assert row(table, "activemark", "control.stranger")["marked"] == NOTHING


def test_controls_of_another_kind_get_rows_of_their_own():
    kinds = [(Spec("control.model", {"name": n, "index": i}),) for n in "ab" for i in (0, 1)]
    table, *_ = made([record(cell(attack=k, lineage="stranger"), 16) for k in kinds])
    assert [r[3] for r in table.rows] == ["control.model a", "control.model b"]
    assert row(table, "activemark", "control.model a")["stranger"].endswith("(n=2: 0.000-0.000)")


def test_another_owners_mark_is_a_twin_in_a_row_of_its_own_and_no_marked_copy():
    clean = record(cell(base="owner"), 15.0)
    other = cell(base="other key", lineage="owner")
    keys = [dataclasses.replace(other, other_seed=seed) for seed in (1, 2)]
    others = [record(c, errors) for c, errors in zip(keys, (3.0, 14.0), strict=True)]
    table, *_ = made([record(cell(), 0.0), clean, *others, *innocents()])
    found = row(table, "activemark", "another owner's mark")
    assert found["twin"] == "0.500 [0.299, 0.701] (n=2: 0.000-1.000)"
    assert (found["marked"], found["stranger"], found["verdict"]) == ("—", "—", "—")
    assert row(table, "activemark", "control.identity")["twin"].endswith("(n=1)")
    own = row(table, "activemark", "control.identity")
    # The clean owner and finetuning are two clusters.
    assert (
        own["ranked among"] == "20 strangers, 2 of 19 clusters, 2 of 19 other keys; least p 0.333"
    )
    assert own["verdict"] == "undecided 1/1"


def with_another_key(errors, attack=UNTOUCHED, seed=1):
    asked = cell(base="other key", lineage="owner", attack=attack, attack_seed=seed)
    return record(dataclasses.replace(asked, other_seed=seed), errors)


@pytest.mark.parametrize(
    ("errors", "attack", "p_value", "verdict"),
    [
        (4.0, COSINE, "1.000", "not owned 1/1"),
        (6.0, COSINE, "0.048", "owned 1/1; other keys only at 1/2"),
        (4.0, UNTOUCHED, "1.000", "not owned 1/1"),  # no draw of attacked ones, and yet innocent
        (6.0, UNTOUCHED, "0.048", "owned 1/1; other keys not read"),
    ],
)
def test_a_copy_is_ranked_among_other_keys_copies_attacked_alike(errors, attack, p_value, verdict):
    copy = record(cell(attack=COSINE), 5.0)
    table, *_ = made([with_another_key(errors, attack), copy, *innocents()])
    found = row(table, "activemark", "finetune.classify")
    assert (found["p"], found["verdict"]) == (p_value, verdict)


def test_enough_other_keys_leave_no_reservation_and_have_a_row_for_each_attack():
    others = [with_another_key(16.0, a, s) for s in range(1, 20) for a in (UNTOUCHED, COSINE)]
    table, *_ = made([*others, record(cell(attack=COSINE), 5.0), *innocents()])
    found = row(table, "activemark", "finetune.classify")
    assert (found["p"], found["verdict"]) == ("0.050", "owned 1/1")
    assert found["ranked among"] == "20 strangers, 20 twins, 19 other keys; least p 0.050"
    for label in ("another owner's mark", "another owner's mark > finetune.classify"):
        assert row(table, "activemark", label)["twin"].endswith("(n=19: 0.000-0.000)")


def test_other_models_have_rows_by_name_and_count_among_the_strangers():
    def model(name, **settings):
        asked = cell(base="other model", lineage="stranger")
        return dataclasses.replace(asked, other_model=Spec(name, settings))

    near = [model("ViT-B-32", pretrained=tag) for tag in ("openai", "laion2b")]
    wide = lost(
        record(model("vit_large")), "incompatible", "expected the owner's width 48, got 1024"
    )
    read = [record(c, 16.0) for c in near]
    table, *_ = made([record(cell(), 0.0), *read, wide, *innocents()])
    for name in ("ViT-B-32 openai", "ViT-B-32 laion2b"):
        assert row(table, "activemark", name)["stranger"] == "0.000 [0.000, 0.161] (n=1)"
    far = row(table, "activemark", "vit_large")["stranger"]
    assert far == "incompatible: expected the owner's width 48, got 1024"
    assert row(table, "activemark", "control.identity")["stranger"].endswith("(n=20: 0.000-0.000)")
    among = row(table, "activemark", "control.identity")["ranked among"]
    assert among.startswith("22 strangers, 1 of 19 clusters, ")


def test_strangers_of_another_shape_stand_apart_however_they_were_attacked():
    def shaped(shape, *attack):
        chain = (Spec("control.stranger", {"index": 0, "shape": shape}), *attack)
        return record(cell(base="owner", attack=chain, lineage="stranger"), 16.0)

    strangers = [shaped(s, *a) for s in ("mini", "mini-deep") for a in ((), COSINE)]
    table, *_ = made([record(cell(), 0.0), record(cell(attack=COSINE), 0.0), *strangers])
    assert [r[3] for r in table.rows] == [
        "control.identity",
        "finetune.classify",
        "control.stranger mini",
        "control.stranger mini-deep",
        "control.stranger mini-deep > finetune.classify",
    ]
    assert all("(n=1)" in r[6] for r in table.rows)


def test_a_copy_that_the_clean_owner_outdoes_is_not_owned_however_it_ranks():
    clean = record(cell(base="owner"), 4.0, suspect_digest="clean")
    copies = [record(cell(attack=COSINE, seed=0, attack_seed=i), e) for i, e in enumerate((5, 3))]
    read = [clean, *copies, *innocents(twins=60)]
    table, *_ = made(read)
    tuned = row(table, "activemark", "finetune.classify")
    assert tuned["p"] == "1.000"  # the first ranks above all 60 twins
    assert tuned["verdict"] == "not owned 1/2, owned 1/2; other keys not read"
    assert (
        "1 for a mark that does not outscore every innocent that is known and no draw: the clean "
        "owner, the public model it was finetuned from, twins of the row's own attack that are too "
        "few to rank, and, where no other key was attacked alike, other keys' untouched copies"
    ) in notes(table)
    unread = "The clean owner itself was not read: no copy had to score above it."
    assert unread not in notes(table)
    assert unread in notes(made(read[1:])[0])


def test_a_model_read_twice_is_one_model():
    twice = [cell(base="owner", attack=PRUNE, attack_seed=s) for s in (0, 1)]
    table, *_ = made([record(c, 16.0, suspect_digest="pruned") for c in twice])
    assert row(table, "activemark", "prune.l1")["twin"] == "0.000 [0.000, 0.161] (n=1)"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (lost(record(cell()), "failed", "RuntimeError: a\nb | c"), "failed: RuntimeError: a b | c"),
        (lost(record(cell()), "skipped", "needs labels"), "skipped: needs labels"),
        (lost(record(cell()), "incompatible", ""), "incompatible"),
        (None, "hole"),
    ],
)
def test_a_missing_number_is_said_in_words(record, text):
    table, *_ = made([record] if record else [], [] if record else [cell()])
    found = row(table, "activemark", "control.identity")
    assert found["marked"] == text
    assert found["twin"] == found["p"] == found["utility (m/t)"] == "—"
    assert found["verdict"] == ("incompatible 1/1" if text == "incompatible" else "—")


def test_a_copy_that_cannot_be_read_counts_as_a_lost_claim_with_its_utility_beside_it():
    gone = lost(record(cell(attack=COSINE, seed=1), suspect_digest="gone"), "incompatible", "width")
    gone = dataclasses.replace(gone, utility=Utility("accuracy", 0.8, "digits", 360))
    copies = [record(cell(), 0.0), record(cell(attack=COSINE), 0.0), gone]
    clean = record(cell(base="owner"), 16.0, suspect_digest="clean")
    found = made([*copies, record(cell(PRINT), 0.0), clean, *innocents()])
    line = row(found[0], "activemark", "finetune.classify")
    assert line["verdict"] == "incompatible 1/2, owned 1/2; other keys not read"
    assert line["utility (m/t)"] == "0.850 / 0.900 (1)"  # 0.9 of the one that was read, 0.8 of this
    assert "counts as a claim that is lost" in notes(found[0])
    sides = named("Table 2 side by side", found)
    (line,) = [r for r in sides.rows if r[2] == "finetune.classify" and "positive" in r[1]]
    assert line[3] == "1.000 incompatible 1/2, owned 1/2; other keys not read"
    figure = {(r[2], r[3]): r[4:] for r in named("Figure 3", found).rows}
    # 0 errors in one, none read
    assert figure["finetune.classify", "marked"] == ("2", *["0.500"] * 8)


def test_a_partly_answered_row_names_its_holes():
    table, *_ = made([record(cell(), 0.0)], [cell(seed=1), cell(seed=2)])
    marked = row(table, "activemark", "control.identity")["marked"]
    assert marked == "1.000 [0.839, 1.000] (n=1) + hole (2)"


def test_a_long_reason_is_cut():
    table, *_ = made([lost(record(cell()), "failed", "x" * 500)])
    text = row(table, "activemark", "control.identity")["marked"]
    assert text.endswith("x…")
    assert len(text) < 60


def test_too_few_innocents_leave_every_suspect_undecided():
    table, *_ = made([record(cell(attack=COSINE), 0.0), *innocents(twins=3)])
    found = row(table, "activemark", "finetune.classify")
    assert (found["p"], found["verdict"]) == ("0.500", "undecided 1/1")  # 3 twins are one cluster
    few = "20 strangers, 1 of 19 clusters, 0 of 19 other keys; least p 0.500"
    assert found["ranked among"] == few


@pytest.mark.parametrize(
    ("attacked", "p_value", "verdict", "among"),
    [
        (0, "—", "undecided 1/1", "0 of 19 strangers attacked alike; least p 1.000"),
        (18, "0.053", "undecided 1/1", "18 of 19 strangers attacked alike; least p 0.053"),
        (20, "0.048", "owned 1/1", "20 strangers attacked alike; least p 0.048"),
    ],
)
def test_a_fingerprint_is_judged_by_strangers_attacked_alike(attacked, p_value, verdict, among):
    alike = [
        record(cell(PRINT, "owner", stranger(i, *COSINE), 0, i, "stranger"), 16.0)
        for i in range(attacked)
    ]
    copies = [record(cell(PRINT, attack=a), 0.0) for a in (COSINE, UNTOUCHED)]
    table, *_ = made([*copies, *alike, *innocents(PRINT, twins=0)])
    found = row(table, "adv_tra", "finetune.classify")
    assert (found["p"], found["verdict"], found["ranked among"]) == (p_value, verdict, among)
    assert (found["access"], found["twin"]) == ("needs labels", "—")
    whole = row(table, "adv_tra", "control.identity")
    assert (whole["verdict"], whole["ranked among"]) == (
        "owned 1/1",
        "20 strangers; least p 0.048",
    )


def test_a_fingerprint_of_a_finetuned_public_model_says_what_a_copy_must_exceed():
    public = Spec("mini", {"library": "embedded"})
    owner = Spec("mini", {**public.args, "classifier": {"backbone": "finetuned"}})
    asked = cell(PRINT, "other model", UNTOUCHED, 0, 0, "stranger", owner, other_model=public)
    copies = [record(cell(PRINT, attack=a, owner=owner), 4.0) for a in (COSINE, UNTOUCHED)]
    alike = [
        record(cell(PRINT, "owner", stranger(i, *chain), 0, i, "stranger", owner), 16.0)
        for i in range(20)
        for chain in ((), COSINE)
    ]
    for errors, verdict in ((3.0, "not owned 1/1"), (5.0, "owned 1/1")):
        table, *_ = made([*copies, *alike, record(asked, errors)])
        for attack in ("control.identity", "finetune.classify"):
            assert row(table, "adv_tra", attack)["verdict"] == verdict
        assert f"owner finetuned scores {1 - errors / 32:.3f}: a copy must score" in notes(table)


def test_a_fingerprint_has_marked_copies_and_strangers_but_no_twins():
    copies = [record(cell(PRINT, attack=a), e) for a, e in ((UNTOUCHED, 0.0), (COSINE, 4.0))]
    alike = record(cell(PRINT, "owner", stranger(0, *COSINE), lineage="stranger"), 24.0)
    untouched = dataclasses.replace(copies[0], suspect_digest="clean")  # it is the clean owner
    table, *_ = made([untouched, copies[1], alike, *innocents(PRINT, twins=0)])
    for attack, own, other, n in (
        ("control.identity", "0.00", "16.0", 20),
        ("finetune.classify", "4.00", "24.0", 1),
    ):
        found = row(table, "adv_tra", attack)
        assert found["marked"].endswith("(n=1)")
        assert found["twin"] == "—"
        assert f"(n={n}" in found["stranger"]
        assert found["statistic (m/t/s)"] == f"{own} / — / {other}"
        assert found["utility (m/t)"] == "0.900 / — (1)"
    assert not any("twin" in note for note in table.notes if note not in LEGEND)


def guessed(scores):
    """Return strangers that agree as much as told, with a method that knows no chance level."""
    records = [record(cell(PRINT), 0.0)]
    for index, score in enumerate(scores):
        asked = cell(PRINT, "owner", stranger(index), 0, 0, "stranger")
        evidence = Evidence((score,) * QUERIES, (1 - score,) * QUERIES, MUTATION, "path", None)
        records.append(record(asked, evidence=evidence))
    own = dataclasses.replace(records[0].evidence, chance=None)
    return [dataclasses.replace(records[0], evidence=own), *records[1:]]


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        # Means 0.25 and 0.30; Student's 3.182 * 0.1291 / sqrt(4) about the second.
        (
            [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45],
            "chance agreement not known beforehand: 0.250 by the strangers of even number (n=4); "
            "those of odd number agree: 0.300 [0.095, 0.505] (n=4)",
        ),
        (
            [0.1, 0.8, 0.2, 0.7, 0.1, 0.8],
            "0.133 by the strangers of even number (n=3); those of odd number do not agree: "
            "0.767 [0.623, 0.910] (n=3)",
        ),
        (
            [0.1, 0.2],
            "0.100 by the strangers of even number (n=1), too few to check it on others",
        ),
        ([], "chance agreement not known: it takes strangers to tell, and none was read"),
    ],
)
def test_strangers_tell_a_chance_level_nobody_knows_and_others_check_it(scores, said):
    table, *_ = made(guessed(scores))
    assert said in notes(table)


def test_attacked_strangers_and_other_keys_do_not_tell_the_chance_level():
    scores = guessed([0.2, 0.2, 0.4, 0.4])
    attacked = record(cell(PRINT, "owner", stranger(0, *COSINE), lineage="stranger"), 0.0)
    other = [
        dataclasses.replace(r, key=r.key[::-1], cell=dataclasses.replace(r.cell, method_seed=1))
        for r in scores[1:]
    ]
    asked = [*scores, attacked, *other]
    outlined = outline([])
    outlined = dataclasses.replace(outlined, cells=tuple((r.key, r.cell) for r in asked))
    table, *_ = tables(outlined, {r.key: r for r in asked})
    assert "0.300 by the strangers of even number (n=2)" in notes(table)


def notes(table):
    return "\n".join(table.notes)


@pytest.mark.parametrize(
    ("twin_errors", "marked_errors", "p_value", "said"),
    [
        (2.0, 2.0, "1.000", True),
        (16.0, 2.0, "0.048", False),
        (18.0, 18.0, "1.000", False),  # the mark is gone: strangers score as high
    ],
)
def test_a_mark_read_off_unmarked_models_is_called_that(twin_errors, marked_errors, p_value, said):
    marked = record(cell(attack=COSINE), marked_errors)
    table, *_ = made([marked, *innocents(twin_errors=twin_errors)])
    text = (
        "mini, activemark: descendants of the unmarked owner score like the marked copy "
        "(finetune.classify): the mark would be read off models that nobody marked with its key."
    )
    assert (text in table.notes) == said
    assert row(table, "activemark", "finetune.classify")["p"] == p_value


def test_without_strangers_no_twin_is_said_to_be_like_a_mark_that_may_be_lost():
    twins = [r for r in innocents(twin_errors=5.0) if r.cell.lineage == "owner"]
    table, *_ = made([record(cell(attack=COSINE), 5.0), *twins])
    assert "score like the marked copy" not in notes(table)


def test_keys_that_read_alike_on_all_suspects_they_share_are_said_to():
    """Readings of one suspect under two keys share its weights; queries may swap places."""

    def read(seed, errors):
        agreement = (0.0,) * errors + (1.0,) * (QUERIES - errors)
        found = Evidence(agreement[:: 1 - 2 * seed], agreement, MUTATION, "path", None)
        return [
            record(
                cell(PRINT, "owner", stranger(i), seed, lineage="stranger"),
                evidence=found if i else dataclasses.replace(found, agreement=(0.5,) * QUERIES),
                suspect_digest=f"stranger {i}",
            )
            for i in range(3)
        ]

    said = (
        "mini, adv_tra: its keys read alike on all 3 suspects they share; they count apart, for "
        "nothing says that they are one."
    )
    assert said in made([*read(0, 4), *read(1, 4)])[0].notes
    assert "read alike" not in notes(made([*read(0, 4), *read(1, 5)])[0])
    assert "read alike" not in notes(made(read(0, 4))[0])  # a single key has no other
    same = [*read(0, 4)[1:], *read(1, 4)[1:]]
    assert "read alike" not in notes(made(same)[0])  # one reading throughout tells nothing


def test_suspects_that_could_be_read_in_part_alone_are_counted():
    def read(index, **noted):
        return record(
            cell(PRINT, "owner", stranger(index), lineage="stranger"),
            evidence=Evidence((0.5,) * 4, (0.5,) * 4, MUTATION, "path", None),
            suspect_digest=f"stranger {index}",
            notes={"extract": noted} if noted else {},
        )

    whole = [read(0), read(1, compared=98, of=98)]
    assert "in part" not in notes(made(whole)[0])
    partly = [read(2, compared=97, of=98), read(3, compared=49, of=98)]
    said = "2 suspects were read in part: at least 49 of 98 queries."
    assert said in notes(made([*whole, *partly])[0])


def test_a_suspect_with_the_clean_owners_weights_is_a_twin_whatever_made_it():
    undone = record(cell(attack=PRUNE), 1.0, suspect_digest="clean")
    table, *_ = made([undone, *innocents()])
    found = row(table, "activemark", "prune.l1")
    assert found["marked"] == "the clean owner"
    assert found["twin"].startswith("1.000")
    assert "the suspect has the clean owner's weights, hence is a twin: prune.l1." in notes(table)


SAME_KEYS = "mini, adv_tra: method seeds 0 and 1 give one and the same key, which counts as one."


@pytest.mark.parametrize(
    ("secrets", "owned", "unread"),
    [(("one", "one"), 1, 1), (("one", "two"), 2, 2), ((None, None), 2, 2)],
)
def test_one_suspect_read_with_keys_that_are_one_is_one_copy(secrets, owned, unread):
    def told(read, seed):
        return read if secrets[seed] is None else with_secret(read, secrets[seed])

    read = []
    for seed in (0, 1):
        alone = [cell(PRINT, "owner", stranger(i, *COSINE), seed, 0, "stranger") for i in range(19)]
        lone = [record(c, 0.9, suspect_digest=f"stranger {i}") for i, c in enumerate(alone)]
        copy = record(cell(PRINT, attack=COSINE, seed=seed, attack_seed=0), 0.1)
        read += [told(r, seed) for r in (*lone, dataclasses.replace(copy, suspect_digest="copy"))]
        # What could not be read says nothing of its key or its weights: others do.
        read.append(
            dataclasses.replace(
                lost(record(cell(PRINT, attack=PRUNE, seed=seed, attack_seed=0)), "incompatible"),
                suspect_digest="",
            )
        )
    found = made(read)
    table = named("Table 2", found)
    tuned, pruned = (row(table, "adv_tra", a) for a in ("finetune.classify", "prune.l1"))
    assert tuned["marked"].endswith("(n=1)")
    assert tuned["verdict"] == f"owned {owned}/{owned}"
    assert pruned["verdict"] == f"incompatible {unread}/{unread}"
    assert (SAME_KEYS in table.notes) == (secrets == ("one", "one"))


def test_the_price_of_a_mark_comes_before_its_attacks():
    price = Fidelity((0.9, 0.95, 1.0), 0.7, 0.6, 80, "digits")
    table, *_ = made([record(cell(), fidelity=price), *innocents()])
    assert [r[3] for r in table.rows[:2]] == [
        "price: feature cosine",
        "price: probe accuracy, owner -> released",
    ]
    # 0.95 -+ Student's 4.303 * 0.05 / sqrt(3), and no cosine exceeds 1. Wilson by hand: 48 of 80
    # in [0.4905, 0.7004], 56 of 80 in [0.5923, 0.7894]; Newcombe takes the root of two squares.
    cosine = row(table, "activemark", "price: feature cosine")["marked"]
    assert cosine == "0.9500 [0.8258, 1.0000] (n=1)"
    probe = row(table, "activemark", "price: probe accuracy, owner -> released")["marked"]
    assert probe == "0.700 -> 0.600: -0.100 [-0.241, +0.047] (n=1)"


def right(*counts):
    """The answers of two models: right by both, by the first alone, the second alone, by none."""
    both, first, second, neither = counts
    one = packed([True] * (both + first) + [False] * (second + neither))
    return one, packed([True] * both + [False] * first + [True] * second + [False] * neither)


def test_the_owners_own_task_is_part_of_the_price_paired_over_its_images():
    price = Fidelity((0.9, 0.95, 1.0), 0.76, 0.96, 50, "digits", *right(36, 2, 12, 0))
    own = dict(zip(("owner_right", "released_right"), right(36, 2, 12, 0)[::-1], strict=True))
    priced = dataclasses.replace(price, own_task="digits", own_images=50, **own)
    found = made([record(cell(), fidelity=priced), record(cell(PRINT)), *innocents()])
    table, sides = found[0], named("Table 2 side by side", found)
    # R. G. Newcombe, Stat. Med. 17 (1998) 2635-2650, table III, method 10: 0.0569 to 0.3404.
    probe = row(table, "activemark", "price: probe accuracy, owner -> released")["marked"]
    assert probe == "0.760 -> 0.960: +0.200 [+0.057, +0.340] (n=1)"
    found = row(table, "activemark", "price: own task, owner -> released")["marked"]
    assert found == "0.960 -> 0.760: -0.200 [-0.340, -0.057] (n=1)"
    (compared,) = [r for r in sides.rows if r[2] == "price: the owner's own task"]
    assert compared[3:] == ("0.960 -> 0.760 [-0.340, -0.057]", "none")
    assert "A comparison at unequal prices orders nothing" in notes(sides)


def held(asked, value, metric="accuracy", task="digits, held out", chance=0.1, **changes):
    return record(asked, utility=Utility(metric, value, task, 100, "", chance), **changes)


@pytest.mark.parametrize(("value", "usable"), [(0.5, True), (0.499, False), (0.1, False)])
def test_a_copy_worth_less_than_half_of_the_owner_above_a_guess_is_no_usable_theft(value, usable):
    clean = held(cell(base="owner"), 0.9, suspect_digest="clean")  # half way from 0.1 is 0.5
    copies = [held(cell(), 0.7), held(cell(attack=PRUNE), value)]
    table, *_ = made([*copies, clean, *innocents()])
    text = row(table, "activemark", "prune.l1")["utility (m/t)"]
    assert text.endswith(", no usable theft") != usable
    assert ("no usable theft: the copies keep less than 0.5 of" in notes(table)) != usable
    assert row(table, "activemark", "control.identity")["utility (m/t)"] == "0.700 / 0.900 (1)"


def test_on_a_task_that_the_owner_was_not_held_to_the_best_attack_tells_what_a_theft_is_worth():
    task = {"task": "products, thief's test images"}
    asked = [held(cell(), 0.9), held(cell(attack=PRUNE), 0.6)]
    asked += [held(cell(attack=LINEAR), 0.2, **task), held(cell(attack=COSINE), 0.5, **task)]
    twin = held(cell(base="owner", attack=COSINE), 0.8, **task)
    table, *_ = made([*asked, twin, *innocents()])
    worth = {attack: row(table, "activemark", attack)["utility (m/t)"] for attack in (
        "prune.l1", "finetune.classify linear", "finetune.classify cosine")}  # fmt: skip
    assert [text.endswith("no usable theft") for text in worth.values()] == [False, True, False]


def test_an_owner_without_a_classifier_is_said_to_have_no_task_of_its_own():
    price = Fidelity((0.9, 0.95), 0.76, 0.96, 50, "digits", *right(36, 2, 12, 0))
    table, *_ = made([record(cell(), fidelity=price), *innocents()])
    found = row(table, "activemark", "price: own task, owner -> released")["marked"]
    assert found == "none: the owner has no classifier of labelled images of its own"


def test_methods_and_attacks_are_named_by_the_settings_that_differ():
    cells = [cell(m, attack=a) for m in (EXPRESS, PAPER) for a in (COSINE, LINEAR, PRUNE + LINEAR)]
    table, *_ = made([], cells)
    assert {r[1] for r in table.rows} == {"activemark expressprint", "activemark paper"}
    assert [r[3] for r in table.rows[:3]] == [
        "finetune.classify cosine",
        "finetune.classify linear",
        "prune.l1 > finetune.classify linear",
    ]


def test_numbers_are_named_and_long_settings_go_to_the_legend():
    sparse = [(Spec("prune.l1", {"amount": a}),) for a in (0.2, 0.4)]
    wordy = [(Spec("segment", {"data": letter * 45}),) for letter in "ab"]
    table, *_ = made([], [cell(attack=a) for a in sparse + wordy])
    assert [r[3] for r in table.rows] == [
        *("prune.l1 amount=0.2", "prune.l1 amount=0.4", "segment #1", "segment #2")
    ]
    assert f"segment #2: {'b' * 45}" in table.notes


def test_of_many_settings_a_name_says_those_in_which_it_departs_from_most():
    usual = {"schedule": "constant", "lr": 0.001, "layer_decay": 1.0, "mode": "retrain_all"}
    changes = [{}, {"lr": 0.01}, {"mode": "lora"}, {"schedule": "linear", "layer_decay": 0.75}]
    chains = [(Spec("finetune.classify", {**usual, **change}),) for change in changes]
    table, *_ = made([], [cell(attack=chain) for chain in chains])
    assert [r[3].removeprefix("finetune.classify") for r in table.rows] == [
        *("", " lr=0.01", " lora", " layer_decay=0.75 linear")
    ]
    said = (
        "layer_decay=1.0, lr=0.001, mode=retrain_all, schedule=constant, but for what a name says"
    )
    assert f"finetune.classify: {said}" in table.notes


def test_the_notes_carry_rules_nulls_blocks_reductions_and_warnings():
    chosen = {"protect": {"block": 6, "block_rule": "first massive", "yield": 0.25, "loss": 1.0}}
    table, *_ = made(
        [record(cell(), 0.0, notes=chosen), *innocents()],
        reductions=("Reduced: steps 400 (paper: 2500)",),
        warnings=("alpha is strict",),
    )
    text = notes(table)
    assert "native rule bit errors <= 5, one query is one image, chance agreement 0.5" in text
    assert "block: 6, block rule: first massive, yield: 0.250." in text
    assert "The clean owner itself was not read: no copy had to score above it." in text
    assert "utility (1): accuracy, digits, n = 360." in table.notes
    assert table.notes[-2:] == ("Reduced: steps 400 (paper: 2500)", "alpha is strict")


def test_costs_are_means_over_seeds_and_medians_over_suspects():
    def priced(seed, index, seconds):
        costs = {
            "protect": Cost(60.0 + 60 * seed**2, 30.0 + 30 * seed**2, 100, 50, 800, "cpu"),
            "extract": Cost(seconds, 1.0, 64, 0, 900, "cpu"),
        }
        loop = {"protect": {"step_ratio_to_ideal": 1.0 + 0.1 * seed}}
        return record(cell(attack=COSINE, seed=seed, attack_seed=index), costs=costs, notes=loop)

    suspects = [priced(0, i, s) for i, s in enumerate((1.0, 2.0, 9.0))]
    table = named("Table 3", made([*suspects, priced(1, 0, 2.0), priced(2, 0, 2.0)]))
    head, embed = ("mini", "cpu", "activemark"), ("2.67", "160.00", "80.00", "2.00", "1.10")
    read, both = ("2.00", "1.00", "2.00"), ("100/64", "50/0", "900")
    assert table.rows == ((*head, *embed, *read, *both),)


def test_costs_nobody_measured_are_no_zeros():
    table = named("Table 3", made([record(cell())]))
    assert set(table.rows[0][1:]) == {"—", "activemark", "—/—"}


def test_figure_3_gives_the_rate_at_every_tau_for_bit_errors_only():
    marked = [record(cell(seed=s), errors) for s, errors in ((0, 2.0), (1, 6.0))]
    figure = named("Figure 3", made([*marked, record(cell(PRINT), 0.0)]))
    curve = ("0.000", "0.000", "0.500", "0.500", "0.500", "0.500", "1.000", "1.000")
    assert figure.rows == (("mini", "activemark", "control.identity", "marked", "2", *curve),)
    assert [t.name for t in made([record(cell(PRINT), 0.0)])] == ["Table 2", "Table 3"]


def full():
    """Return records and holes of every kind."""
    price = Fidelity((0.97, 0.98, 0.99), 0.9, 0.89, 360, "digits")
    costs = {"protect": Cost(1.1, 1.0), "extract": Cost(0.3, 0.1)}
    records = [
        record(
            cell(m, attack=a, seed=s),
            e + s,
            fidelity=price if a == UNTOUCHED else None,
            costs=costs,
        )
        for m in (MARK, PAPER)
        for s in (0, 1)
        for a, e in ((UNTOUCHED, 0.0), (COSINE, 3.0), (LINEAR, 5.0))
    ]
    failed = [lost(record(cell(PAPER, attack=PRUNE)), "failed", "[bold]no | memory[/bold]")]
    return [*records, *failed, *innocents(), *innocents(PAPER, 1, 4.0)], [cell(PRINT)]


def test_the_same_records_give_the_same_bytes_whatever_their_order(tmp_path):
    records, holes = full()
    asked = outline([*records, *holes])
    expected = None
    for seed in range(5):
        random.Random(seed).shuffle(records)
        folder = tmp_path / str(seed)
        paths = write_tables(folder, tables(asked, {r.key: r for r in records}))
        found = {p.name: p.read_bytes() for p in paths}
        assert found == (expected := expected or found)
    assert sorted(expected) == [
        *("bounds.csv", "bounds.md", "figure-3.csv", "figure-3.md"),
        *("table-2-side-by-side.csv", "table-2-side-by-side.md", "table-2.csv", "table-2.md"),
        *("table-3.csv", "table-3.md"),
    ]
    assert sorted(p.name for p in folder.iterdir()) == sorted(expected)  # nothing half-written


def test_every_cell_survives_csv_and_markdown():
    records, holes = full()
    for table in made(records, holes):
        assert [tuple(r) for r in csv.reader(io.StringIO(csv_(table)))] == [
            table.columns,
            *table.rows,
        ]
        bars = [n for n in markdown(table).replace("\\|", "").splitlines() if "| " in n]
        columns = len(table.columns) - table.heads
        assert {line.count("|") for line in bars} == {columns + 1}
        assert len(bars) == len(table.rows) + 2 * len(table.blocks())


def test_tables_read_at_120_columns_with_nothing_cut_off():
    records, holes = full()
    for table in made(records, holes):
        console = Console(width=120, file=io.StringIO())
        print_table(table, console)
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= 120
        shown = "".join(text.split())
        for word in (w for cells in table.rows for c in cells[table.heads :] for w in c.split()):
            assert word in shown or len(word) > TERMINAL_COLUMN


def test_a_report_needs_neither_torch_nor_a_heavy_library_to_be_imported():
    heavy = {"torch", "timm", "open_clip", "torchvision", "pandas", "statsmodels", "scipy"}
    code = (
        f"import sys, bench.reports.tables; sys.exit(' '.join({heavy!r} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_specs_that_differ_only_in_version_are_told_apart():
    newer = dataclasses.replace(MARK, version=2)
    table, *_ = made([], [cell(MARK), cell(newer)])
    assert [r[1] for r in table.rows] == ["activemark version=1", "activemark version=2"]
    assert canonical(MARK.json()) != canonical(newer.json())


def at_block(block, **changes):
    return Spec("activemark", {"steps": 400, "variant": "paper", "block": block, **changes})


def test_one_mark_at_several_blocks_makes_table_1():
    records = [
        record(cell(at_block(11), attack=COSINE), 4.0),
        record(cell(at_block(11)), 0.0),
        record(cell(at_block(11), "owner", COSINE), 16.0),
        record(cell(at_block(11), "owner", COSINE, attack_seed=1), 5.0),
        record(cell(at_block(2)), 15.0),
    ]
    table, *_ = made(records)
    assert table.name == "Table 1"
    lines = [r[2:] for r in table.rows]
    assert lines == [
        ("2", "control.identity", "0.000", "0.000", "15.00", "—", "—", "—"),
        ("11", "finetune.classify", "0.000", "1.000", "4.00", "0.000", "0.000", "10.50"),
        ("11", "control.identity", "1.000", "1.000", "0.00", "—", "—", "—"),
    ]


def test_marks_that_differ_in_more_than_their_block_are_no_sweep():
    records = [record(cell(at_block(2)), 0.0), record(cell(at_block(3, steps=500)), 0.0)]
    assert "Table 1" not in [t.name for t in made(records)]


def test_methods_stand_side_by_side_on_the_same_suspects():
    strangers = [
        record(cell(m, "owner", stranger(i), 0, 0, "stranger"), e)
        for i in range(20)
        for m, e in ((MARK, 16.0), (PRINT, 0.9))
    ]
    price = Fidelity((0.9, 0.8), 0.9, 0.9, 100, "digits")
    table = named(
        "Table 2 side by side",
        made(
            [
                record(cell(), 0.0, fidelity=price),
                record(cell(PRINT), 0.0),
                record(cell(base="owner"), 16.0, suspect_digest="clean"),
                record(cell(PRINT, attack=PRUNE), 0.9),
                *strangers,
            ],
            [cell(attack=PRUNE)],
        ),
    )
    assert table.caption.startswith("every method on copies made by the same recipes")
    assert "conditional on this owner and these strangers" in notes(table)
    assert table.columns == ("owner", "kind", "experiment", "activemark", "adv_tra")
    assert [(r[1].partition(":")[0], *r[2:]) for r in table.rows] == [
        ("what is compared", "needs", "features, weights", "labels"),
        ("what is compared", "rate of", "image: bit errors <= 5", "image: mutation < 0.5"),
        ("what is compared", "price: feature cosine", "0.850", "none"),
        ("what is compared", "price class", "about 0 points", "about 0 points"),
        ("positive", "control.identity", "1.000 undecided 1/1", "1.000 owned 1/1"),
        ("positive", "prune.l1", "hole", "0.000 undecided 1/1"),  # no stranger was pruned
        ("negative", "control.identity", "0.000 (n=1)", "—"),
        ("negative", "control.identity", "0.000 (n=20)", "0.000 (n=20)"),
    ]
