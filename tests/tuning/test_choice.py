import pytest
from tried import ENTRY, known, trial

from bench.records.ledger import Results
from bench.records.nouns import Outline, Spec
from bench.runs.tuning.candidates import Candidate, Terms
from bench.runs.tuning.choice import Tuned, choose, outcome
from bench.runs.tuning.tables import tuning_table
from bench.runs.tuning.trials import Trial

TERMS = Terms(price=0.02)


def taken(*tried, terms=TERMS):
    return choose(ENTRY, tried, terms).chosen.args["lr"]


def test_the_largest_margin_within_the_price_is_chosen():
    assert taken(trial(0.1, 0.1), trial(0.2, 0.3, 0.02), trial(0.3, 0.5, 0.03)) == 0.2


def test_a_feature_cosine_below_the_least_is_none_within_the_price():
    tried = trial(0.1, 0.1), trial(0.2, 0.3, cosine=0.8)
    assert taken(*tried) == 0.2
    assert taken(*tried, terms=Terms(cosine=0.9)) == 0.1


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("better", "than"),
    [
        ({"queries": 20}, {"queries": 19, "origin": "default"}),
        ({"origin": "default", "work": 9.0}, {"origin": "suite"}),
        ({"origin": "suite", "work": 9.0}, {"origin": "drawn"}),
        ({"work": 1.0}, {"work": 2.0}),
    ],
)
def test_among_equals_queries_go_first_then_the_default_then_the_suites_then_passes(
    better, than, order
):
    tried = trial(0.1, 0.300, **better), trial(0.2, 0.304, **than)
    assert taken(*tried[::order]) == 0.1


def test_margins_beyond_the_tie_are_no_equals():
    assert taken(trial(0.1, 0.300, origin="default"), trial(0.2, 0.306)) == 0.2


def test_where_none_is_within_the_price_the_cheapest_that_is_read_is_kept_and_it_is_said():
    tried = trial(0.1, 0.4, 0.3), trial(0.2, 0.2, 0.1), trial(0.3, 0.0, 0.0, rate=0.5)
    made = choose(ENTRY, tried, TERMS)
    assert made.chosen.args["lr"] == 0.2
    assert made.why == "none of 2 that hold is within the price: this is the cheapest"


def test_what_is_read_off_the_clean_owner_as_often_was_not_written_and_does_not_hold():
    written, unwritten = trial(0.1, 0.1, clean=0.5), trial(0.2, 0.4, clean=0.9)
    assert taken(unwritten, written) == 0.1
    assert outcome(unwritten, TERMS) == "read off the clean owner, too"
    fingerprint = trial(0.2, 0.4, clean=None)
    assert taken(fingerprint, written) == 0.2


def test_where_none_is_read_the_suites_own_is_left_and_it_is_said():
    made = choose(ENTRY, [trial(0.1, 0.4, rate=0.5)], TERMS)
    assert (made.chosen, made.why) == (ENTRY, "none holds: left as it was")
    failed = Trial(Candidate(ENTRY, ENTRY, "suite"), reason="failed: no memory")
    made = choose(ENTRY, [failed], TERMS)
    assert (made.chosen, made.why) == (ENTRY, "none could be tried: left as it was")


def test_of_several_owners_the_worst_counts():
    one, other = trial(0.1, 0.4, 0.01), trial(0.1, 0.2, 0.05, rate=0.8)
    both = Trial(one.candidate, (*one.owners, *other.owners))
    assert (both.margin, both.price.lost, both.rate) == (pytest.approx(0.2), 0.05, 0.8)
    assert choose(ENTRY, [both], TERMS).why.startswith("none of 1 that hold is within")


def test_the_table_shows_every_candidate_which_is_chosen_and_by_what_rule(monkeypatch):
    known(monkeypatch)
    tried = (
        trial(0.1, 0.1, origin="default"),
        trial(0.2, 0.3, 0.012),
        Trial(
            Candidate(ENTRY, Spec(ENTRY.name, {"lr": 0.3}), "suite"),
            reason="9,000 passes, over 5,000",
        ),
    )
    made = choose(ENTRY, tried, TERMS)
    table = tuning_table(Tuned("demo", TERMS, (made,), Results(Outline("d", "", 0.05, ()), {})))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["setting"] for row in rows] == ["lr=0.1", "lr=0.2", "lr=0.3"]
    assert [row["outcome"] for row in rows] == [
        *("within the price", "chosen", "9,000 passes, over 5,000")
    ]
    assert (rows[1]["margin"], rows[1]["price"]) == ("+0.300", "+0.012 [+0.002, +0.022]")
    said = "\n".join(table.notes)
    assert "no suspect, no stranger, no attacked copy" in said
    assert "the largest margin of 2 that hold within the price" in said
