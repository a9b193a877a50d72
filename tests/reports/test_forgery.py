"""What accusers forge is judged as honest claims are, and stands beside what thieves evade."""

import dataclasses

import pytest
from made import MARK, PRINT, UNTOUCHED, cell, lost, matches, outline, record, stranger

from bench.records import ledger
from bench.records.nouns import Evidence, ExactNull, Rule, Spec
from bench.reports.blocks import grouped
from bench.reports.price import accusers, both

SEARCH, FORGE, THIEF = Spec("search", {"draws": 10}), Spec("forge"), Spec("overmark")
PRUNE = (Spec("prune.l1", {"amount": 0.4}),)


def noted(stopped_by, keys=1):
    return {"protect": {"stopped_by": stopped_by, "keys_tried": keys}}


def share(right, n=20):
    return matches(*[1.0] * right, *[0.0] * (n - right))


def claim(accuser, accused, scores, stopped_by, keys=1, method=PRINT, seed=0):
    """A forged claim on the accused-th of as many strangers as there are scores."""
    return [
        record(
            cell(method, "owner", stranger(i), seed, accuser=accuser, accused=accused),
            evidence=read if isinstance(read, Evidence) else share(read),
            notes=noted(stopped_by, keys),
            suspect_digest=f"stranger {i}",
        )
        for i, read in enumerate(scores)
    ]


def tables(*records, made=accusers):
    return made.tables(outline(records), {r.key: r for r in records})


def rows(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


NINETEEN = [3] * 19


def test_an_innocent_is_owned_where_it_outscores_nineteen_strangers():
    [table] = tables(*claim(FORGE, 0, [20, *NINETEEN], "replay"))
    [row] = rows(table)
    assert (row["owned"], row["rate"], row["others' rate"]) == ("1/1", "1.000", "0.150")
    assert row["with commitment"] == "refused: replay"
    assert any(note.startswith("replay: ") for note in table.notes)


def test_one_stranger_less_decides_nothing():
    [table] = tables(*claim(FORGE, 0, [20, *NINETEEN[1:]], "replay"))
    assert rows(table)[0]["owned"] == "0/1, undecided 1"


def test_a_stranger_that_agrees_as_much_saves_the_accused():
    [table] = tables(*claim(FORGE, 1, [20, 20, *NINETEEN], "date"))
    assert rows(table)[0]["owned"] == "0/1"
    assert rows(table)[0]["others' highest"] == "1.000"


def test_the_best_of_ten_registered_keys_is_judged_at_a_tenth_of_the_level():
    [table] = tables(*claim(SEARCH, 0, [20, *NINETEEN], "count", keys=10))
    [row] = rows(table)
    assert (row["keys"], row["owned"], row["with commitment"]) == ("10", "1/1", "0/1, undecided 1")
    [table] = tables(*claim(SEARCH, 0, [20, *[3] * 199], "count", keys=10))
    assert rows(table)[0]["with commitment"] == "1/1"  # it takes 199 strangers


def test_one_registered_key_is_an_honest_claim():
    [table] = tables(*claim(SEARCH, 0, [20, *NINETEEN], "count"))
    assert rows(table)[0]["with commitment"] == "1/1"


def test_an_exact_null_is_asked_for_its_own_p_value():
    """Ten bits of ten agree: p = 2^-10, which no choice among ten keys explains."""
    bits = Evidence(
        (1.0,) * 10, (1.0,) * 10, Rule("bit agrees", ">=", 1), "bit", 0.5, {}, ExactNull()
    )
    few = dataclasses.replace(bits, agreement=(1.0,) * 7, statistic=(1.0,) * 7)
    [table] = tables(*claim(SEARCH, 0, [bits], "count", keys=10))
    assert (rows(table)[0]["owned"], rows(table)[0]["with commitment"]) == ("1/1", "1/1")
    [table] = tables(*claim(SEARCH, 0, [few], "count", keys=10))  # p = 1 / 128, above 0.005
    assert (rows(table)[0]["owned"], rows(table)[0]["with commitment"]) == ("1/1", "0/1")


def test_a_blind_claim_accuses_everybody_in_turn():
    [table] = tables(*claim(FORGE, None, [20, *NINETEEN], "replay"))
    assert rows(table)[0]["owned"] == "1/20"


def test_a_dispute_shows_both_keys_on_the_accusers_model():
    asked = [
        record(cell(MARK, accuser=THIEF), 20.0, notes=noted("date")),
        record(cell(MARK, "accuser", lineage="released", accuser=THIEF), 0.0, notes=noted("date")),
        record(cell(MARK, "accuser", lineage="released", accuser=THIEF, other_seed=0), 1.0),
        *claim(THIEF, None, [], "date"),
    ]
    first, disputes = tables(*asked)
    assert rows(first)[0]["accuses"] == "the owner"
    assert disputes.rows == (("mini", "activemark", "overmark", "0.000", "1.000", "1.000"),)


def test_who_can_do_nothing_with_a_method_has_a_row_that_says_why():
    asked = claim(FORGE, None, [0], "replay")
    [table] = tables(lost(asked[0], "skipped", "no way to fit it is written down"))
    assert rows(table)[0]["accuses"] == "skipped: no way to fit it is written down"


def test_forged_claims_are_in_no_other_table():
    honest, made = record(cell()), claim(FORGE, 0, [20], "replay", method=MARK)
    [block], _ = grouped(outline([honest, *made]), {r.key: r for r in (honest, *made)})
    assert [r.key for r in block.records] == [honest.key]


def test_records_of_forged_claims_are_read_back_and_honest_ones_are_written_as_before(tmp_path):
    made, honest = claim(FORGE, 0, [20], "replay")[0], record(cell())
    for one in (made, honest):
        ledger.append(tmp_path / "records" / "one.jsonl", one)
    assert ledger.answers(tmp_path / "records") == {r.key: r for r in (made, honest)}
    lines = (tmp_path / "records" / "one.jsonl").read_text().splitlines()
    assert ["accuse" in line for line in lines] == [True, False]
    ledger.write_outline(tmp_path / "suite.json", outline([made, honest]))
    assert ledger.read_outline(tmp_path / "suite.json").cells[0][1] == made.cell


# Two numbers: stand-ins of methods that differ in what they call owned.

ALWAYS, NEVER, SOUND = Spec("always"), Spec("never"), Spec("sound")


def exactly(agree, n=40):
    found = (*[1.0] * agree, *[0.0] * (n - agree))
    return Evidence(found, found, Rule("bit agrees", ">=", 1), "bit", 0.5, {}, ExactNull())


def story(method, copy, clean, accused, forged):
    """A copy, strangers, an honest claim on an innocent and one that was fitted to it."""
    owned = [
        record(cell(method, attack=UNTOUCHED), evidence=copy, marks=False),
        record(cell(method, attack=PRUNE), evidence=copy, marks=False),
        *(
            record(cell(method, "owner", stranger(i)), evidence=clean, marks=False)
            for i in range(19)
        ),
    ]
    return [
        *owned,
        *claim(SEARCH, 0, [accused, *[clean] * 19], "count", method=method),
        *claim(FORGE, 0, [forged, *[clean] * 19], "replay", method=method),
    ]


ORDER = {
    "always": story(ALWAYS, exactly(40), exactly(40), exactly(40), exactly(40)),
    "never": story(NEVER, exactly(0), exactly(0), exactly(0), exactly(0)),
    "sound": story(SOUND, exactly(40), exactly(20), exactly(20), exactly(40)),
}


def test_who_always_says_owned_comes_out_last_and_who_never_does_is_no_better():
    records = [r for made in ORDER.values() for r in made]
    found = both.both(outline(records), {r.key: r for r in records})
    assert [one.method for one in found] == ["sound", "never", "always"]
    sound, never, always = found
    assert (sound.evasion, sound.forgery, sound.forger, sound.committed) == (0.0, 1.0, "forge", 0.0)
    assert (never.evasion, never.forgery, never.committed) == (1.0, 0.0, 0.0)
    assert (always.evasion, always.forgery, always.committed) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("constant", [20, 0])
def test_by_rank_nobody_gains_by_one_answer_for_all(constant):
    made = story(ALWAYS, *[share(constant)] * 4)
    [one] = both.both(outline(made), {r.key: r for r in made})
    assert (one.evasion, one.forgery) == (1.0, 0.0)


def test_the_table_names_the_best_accuser():
    made = ORDER["sound"]
    [table] = tables(*made, made=both)
    assert table.rows == (("mini", "sound", "0.000 (1)", "1.000: forge", "0.000", "—"),)


def test_without_accusers_there_is_no_table():
    assert tables(record(cell())) == ()
    assert tables(record(cell()), made=both) == ()
