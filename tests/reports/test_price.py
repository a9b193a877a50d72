"""The price of removal as one grid: what a thief pays, and the worst that it buys him."""

import dataclasses
import itertools
from collections import Counter

import pytest
from made import OWNER, QUERIES, UNTOUCHED, cell, lost, outline, record, stranger

from bench.records.nouns import Cost, Evidence, Spec, StepFacts, Utility, packed
from bench.records.table import NOTHING
from bench.reports.blocks import grouped
from bench.reports.price import grid, kinds, prices
from bench.reports.price.prices import Bills, Price

N = 200
PROBE = "digits, owner's held-out images"
PRETRAINING = prices.reference(OWNER).work
TURN, TUNE, PRUNE, STEAL = (
    (Spec("turn"),),
    (Spec("tune", {"data": "digits"}),),
    (Spec("prune", {"amount": 0.5}),),
    (Spec("steal"),),
)
STEPS = (
    (TURN[0], StepFacts("exact", exact=True, images=700, data="d")),
    (TUNE[0], StepFacts("finetuning", images=700, data="d")),
    (PRUNE[0], StepFacts("compression", images=700, data="d")),
    (STEAL[0], StepFacts("extraction", adaptive="where the mark sits", images=2000, data="e")),
)


def rated(seen, rule):
    """Evidence of which a share `seen` is read, and nothing of the rest; the score goes with it."""
    good = round(seen * QUERIES)
    errors = (*[0.0] * good, *[16.0] * (QUERIES - good))
    return Evidence(tuple(1 - e / 32 for e in errors), errors, rule, "image", 0.5)


def utility(right):
    """Of N images the first so many are got right."""
    return Utility("accuracy", right / N, PROBE, N, packed([True] * right + [False] * (N - right)))


def copy(attack=UNTOUCHED, seen=1.0, right=180, work=0.0, seed=0, **parts):
    """Record a copy of the released model: what is read off it, what it is worth, what it took."""
    asked = cell(attack=attack, seed=seed)
    made = record(asked)
    costs = {"attack": Cost(1.0, forward_passes=work / 3, backward_passes=work / 3)}
    defaults = {
        "evidence": rated(seen, made.evidence.rule),
        "utility": utility(right),
        "costs": costs,
        "notes": {"protect": {"secret_digest": f"s{seed}"}},
    }
    return record(asked, **defaults | parts)


def innocents(seed=0, seen=0.0):
    """Strangers and descendants enough for verdicts, every one read at this rate."""
    asked = [
        *(cell(attack=stranger(i), seed=seed) for i in range(20)),
        *(cell(base="owner", attack=(Spec("elsewhere", {"to": i}),), seed=seed) for i in range(20)),
    ]
    notes = {"protect": {"secret_digest": f"s{seed}"}}
    clean = cell(base="owner", seed=seed)
    kept = {"utility": None, "notes": notes}
    return [
        *(record(a, evidence=rated(seen, record(a).evidence.rule), **kept) for a in asked),
        record(clean, evidence=rated(seen, record(clean).evidence.rule), suspect_digest="clean"),
    ]


def claims(*records, steps=STEPS, seen=0.0, seeds=(0,)):
    """Return the claims of one owner and method, with innocents for each key."""
    every = [*records, *itertools.chain(*(innocents(seed, seen) for seed in seeds))]
    asked = dataclasses.replace(outline(every), steps=steps)
    found = {r.key: r for r in every}
    [block] = grouped(asked, found)[0]
    bills = Bills.of(asked, found.values())
    return grid.Claims(block, prices.copies(block, bills, asked.alpha))


def tables(*records, steps=STEPS, seen=0.0, seeds=(0,)):
    every = [*records, *itertools.chain(*(innocents(seed, seen) for seed in seeds))]
    asked = dataclasses.replace(outline(every), steps=steps)
    found = {r.key: r for r in every}
    return (*grid.tables(asked, found), *kinds.tables(asked, found))


def rows(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def states(claim, budget=grid.BUDGETS[0]):
    return Counter(w.state for w in claim.grid[budget])


ATTACKS = [
    copy(),
    copy(PRUNE, 0.9, 179),
    copy(TUNE, 0.5, 180, 0.09 * PRETRAINING),
    copy(STEAL, 0.0, 172, 0.5 * PRETRAINING),
    copy(TURN, 0.0, 180),
]


def test_a_copy_is_priced_in_three_currencies():
    made = {c.attack: c.price for c in claims(*ATTACKS).copies}
    assert made["control.identity"] == Price(0.0, 0, 0.0)
    assert made["prune"] == Price(pytest.approx(0.5), 0, 0.0)  # no pass, so no image is looked at
    assert made["tune"] == Price(0.0, 700, pytest.approx(0.09))
    assert made["steal"] == Price(pytest.approx(4.0), 2000, pytest.approx(0.5))


def test_an_exact_attack_is_free_whatever_rounding_flips():
    [_, turned] = claims(copy(), copy(TURN, 1.0, 179)).copies
    assert (turned.price, turned.exact) == (Price(0.0, 0, 0.0), True)
    [_, pruned] = claims(copy(), copy((*TURN, *PRUNE), 1.0, 179)).copies
    assert (pruned.price.points, pruned.exact) == (pytest.approx(0.5), False)


def test_a_chain_costs_all_its_steps_and_images_of_one_data_set_count_once():
    """Where the record does not tell of earlier steps, records of these alone do."""
    chain = (*TUNE, *STEAL)
    told = copy(chain, work=10.0)
    told = dataclasses.replace(told, costs={**told.costs, "earlier steps": Cost(1.0, None, 100.0)})
    alone = copy(TUNE, work=60.0)
    for made, work in (((told,), 110.0), ((copy(chain, work=10.0), alone), 70.0)):
        bills = Bills.of(dataclasses.replace(outline(made), steps=STEPS), made)
        assert bills.passes(chain).work == pytest.approx(work)
    assert bills.images(chain) == 20 + 4  # no more than there were forward passes
    unknown = copy(chain, work=10.0)
    assert Bills.of(outline([unknown]), [unknown]).passes(chain) is None


def test_older_records_are_priced_by_passes_and_say_so():
    made = claims(*ATTACKS[:3], steps=())
    images = {c.attack: c.price.images for c in made.copies}
    assert images == {"control.identity": 0, "prune": 0, "tune": round(0.03 * PRETRAINING)}
    summary, priced, *_ = tables(*ATTACKS[:3], steps=())
    assert grid.OLDER in summary.notes
    assert grid.NO_EXACT in priced.notes
    assert rows(summary)[0]["exact"] == "none tried"
    assert len(tables(*ATTACKS, steps=())) == 3  # no kinds are known


def test_what_no_record_prices_is_in_no_budget():
    unknown = dataclasses.replace(copy(TUNE, 0.0), costs={}, utility=None)
    made = claims(copy(), unknown)
    assert not made.copies[1].price.known
    assert states(made, grid.DEAREST) == {"stands": 1}


def test_a_task_of_the_thiefs_own_is_held_against_the_best_that_was_reached_there():
    own = Utility("accuracy", 0.9, "clothes, thief's test images", 100)
    reached = [
        copy(TUNE, utility=dataclasses.replace(own, value=0.88)),
        copy(STEAL, utility=own),
    ]
    points = {c.attack: c.price.points for c in claims(copy(), *reached).copies}
    assert points == {"control.identity": 0.0, "tune": pytest.approx(2.0), "steal": 0.0}


def test_who_forges_a_claim_is_no_thief():
    """What an accuser cheats with removes nothing: by kind, it is the highest rate that counts."""
    forged = (Spec("forge"),)
    steps = (*STEPS, (forged[0], StepFacts("forgery")))
    made = [copy(), copy(PRUNE, 0.9), copy(forged, 0.0), copy((Spec("forge", {"n": 2}),), 0.3)]
    steps = (*steps, (made[3].cell.attack[0], StepFacts("forgery")))
    assert claims(*made, steps=steps).attacks == ["prune"]
    [_, _, _, table] = tables(*made, steps=steps)
    [row] = [row for row in rows(table) if row["change"] == "forgery"]
    assert row["activemark"].startswith("0.300 ")


def test_a_longer_list_of_attacks_can_only_lower_a_cell():
    order = {state: place for place, state in enumerate(grid.STATES)}
    for made in itertools.permutations(ATTACKS[1:]):
        listed = [claims(ATTACKS[0], *made[:count]) for count in range(len(made) + 1)]
        for fewer, more in itertools.pairwise(listed):
            for budget in grid.BUDGETS:
                [before], [after] = fewer.grid[budget], more.grid[budget]
                assert after.rate <= before.rate
                assert order[after.state] <= order[before.state]
            assert more.scores("stands") <= fewer.scores("stands")


def test_a_larger_budget_can_only_lower_a_cell():
    made = claims(*ATTACKS[:4])
    order = {state: place for place, state in enumerate(grid.STATES)}
    for small, large in itertools.product(grid.BUDGETS, repeat=2):
        if small.within(large):
            [one], [other] = made.grid[small], made.grid[large]
            assert other.rate <= one.rate
            assert order[other.state] <= order[one.state]
            assert other.attacks >= one.attacks
    assert [round(36 * score) for score in made.scores("stands")] == [35]  # the dearest is lost
    assert len(grid.BUDGETS) == 36


def test_an_exact_removal_takes_every_budget():
    made = claims(*ATTACKS)
    assert {w.state for [w] in made.grid.values()} == {"lost"}
    assert made.scores("stands") == [0.0]
    [line] = rows(tables(*ATTACKS)[0])
    assert line["score at most"] == "0.000"
    assert line["exact"] == "1, lost 1/1"
    assert line["cheapest"] == "nothing: (4)"
    assert line["for nothing"] == "0.000 lost 1/1 (4)"


def test_a_method_that_always_says_owned_is_not_rewarded():
    """Its rate is 1 everywhere, on innocents too, so no claim stands; they are beside it."""
    everything = [copy(attack, 1.0) for attack in (UNTOUCHED, PRUNE, TUNE)]
    assert claims(*everything, seen=1.0).scores("stands") == [0.0]
    [line] = rows(tables(*everything, seen=1.0)[0])
    assert line["highest innocent"].startswith("1.000 (")
    assert line["score at most"] == "0.000"


def test_what_cannot_be_read_after_an_attack_is_lost():
    gone = dataclasses.replace(lost(copy(TURN), "incompatible"), utility=utility(180))
    made = claims(copy(), gone)
    [found] = made.grid[grid.BUDGETS[0]]
    assert (found.state, found.rate) == ("lost", 0.0)
    assert made.scores("stands") == [0.0]


def test_undecided_for_want_of_innocents_neither_stands_nor_is_lost():
    asked = dataclasses.replace(outline(ATTACKS[:3]), steps=STEPS)
    summary, *_ = grid.tables(asked, {r.key: r for r in ATTACKS[:3]})
    [line] = rows(summary)
    assert (line["score at most"], line["undecided"]) == ("0.000", "1.000")
    assert line["cheapest"] == "none"


def test_the_mean_of_worst_cases_is_not_the_worst_of_means():
    """Each key falls to another attack: on the mean over keys neither attack looks that bad."""
    made = [
        *(copy(seed=seed) for seed in (0, 1)),
        copy(TURN, 0.2, seed=0),
        copy(TURN, 0.9, seed=1),
        copy(PRUNE, 0.8, seed=0),
        copy(PRUNE, 0.3, seed=1),
    ]
    found = claims(*made, seeds=(0, 1))
    worst = [w.rate for w in found.grid[grid.BUDGETS[0]]]
    assert sorted(worst) == [0.2, 0.3]
    cells = rows(tables(*made, seeds=(0, 1))[1])[0]
    assert cells["compute 0 %"].startswith("0.250 [")
    assert cells["compute 0 %"].endswith("stands 2/2 (1) (2)")


def test_keys_that_agree_have_no_interval():
    """Student's would have no width, and look like certainty."""
    found = rows(tables(*(copy(seed=seed) for seed in (0, 1)), seeds=(0, 1))[1])[0]
    assert found["compute 0 %"] == "1.000 stands 2/2 untried"


def test_a_claim_that_falls_unattacked_is_lost_at_no_price():
    [line] = rows(tables(copy(seen=0.0), copy(PRUNE, 0.0))[0])
    assert (line["score at most"], line["cheapest"]) == ("0.000", "nothing: unattacked")


def test_a_budget_that_no_attack_is_within_says_so():
    cells = rows(tables(copy(), copy(TUNE, 0.5, 180, 0.09 * PRETRAINING))[1])
    assert cells[0]["compute 0 %"] == "1.000 stands 1/1 untried"
    assert cells[1]["<= 10 %"] == "0.500 stands 1/1 (1)"
    assert [row["at most"] for row in cells][:2] == ["0 points, 0 images", "0 points, 1k images"]
    assert len(cells) == 9


def test_an_attack_that_decides_without_the_lowest_rate_is_named_too():
    """Rates are by a paper's rule, verdicts by ranks: they need not agree."""
    made = claims(*ATTACKS[:4])
    low = dataclasses.replace(made.copies[0], attack="low", rate=0.1)
    gone = dataclasses.replace(made.copies[0], attack="gone", rate=0.4, outcome="not owned")
    found = grid.worst([low, gone], grid.DEAREST)
    assert (found.rate, found.state, found.by) == (0.1, "lost", ("low", "gone"))
    assert grid._cell([found], {"low": "(1)", "gone": "(2)"}) == "0.100 lost 1/1 (1) / (2)"


def test_the_reference_of_compute_is_pretraining_or_an_epoch():
    assert prices.reference(OWNER).work == 250 * 32 * 3
    assert prices.reference(Spec("vit", {"library": "timm"})).work == 3 * 1_281_167


def test_every_attack_is_listed_with_what_it_cost():
    listed = {row["attack"]: row for row in rows(tables(*ATTACKS)[2])}
    assert listed["steal"]["images"] == "2000"
    assert listed["steal"]["compute"] == "50 %"
    assert listed["steal"]["change"] == "extraction"
    assert listed["prune"]["utility lost"].startswith("+0.5 [")
    assert listed["turn"]["utility lost"] == "+0.0"
    assert {row["in the grid"] for row in listed.values()} == {"1 of 1"}


def test_rows_by_kind_show_the_worst_and_what_the_thief_knows():
    milder = copy((Spec("prune", {"amount": 0.1}),), 0.95)
    table = tables(*ATTACKS, milder, steps=(*STEPS, (milder.cell.attack[0], STEPS[2][1])))[3]
    found = {row["change"]: row for row in rows(table)}
    assert [*found] == [
        *("needs", "untouched", "exact", "compression", "finetuning", "extraction", "innocents")
    ]
    assert found["compression"]["attacks"] == "2"
    assert found["compression"]["activemark"].startswith("0.900 owned 1/1")
    assert found["compression"]["activemark"].endswith(": prune amount=0.5")
    assert found["exact"]["activemark"].startswith("0.000 not owned 1/1")
    assert found["extraction"]["the thief knows"] == "where the mark sits"
    assert found["exact"]["the thief knows"] == NOTHING
    assert "the thief knows" not in rows(tables(*ATTACKS[:2])[3])[0]


def test_columns_come_by_what_a_method_sees_and_serving_leaves_weights_alone():
    labels = Spec("akh")
    serve = (Spec("jpeg"),)
    made = [
        *(copy(attack) for attack in (UNTOUCHED, serve)),
        record(cell(labels), access="labels", marks=False),
        record(cell(labels, attack=serve), access="labels", marks=False),
    ]
    asked = dataclasses.replace(outline([*made[2:], *made[:2]]))
    asked = dataclasses.replace(asked, steps=((serve[0], StepFacts("serving")),))
    [table] = kinds.tables(asked, {r.key: r for r in made})
    assert table.columns == ("owner", "change", "attacks", "activemark", "akh")
    [serving] = [row for row in rows(table) if row["change"] == "serving"]
    assert serving["activemark"] == "n/a"
    assert serving["akh"].endswith(": jpeg")


def test_a_chain_of_several_kinds_is_a_kind_of_its_own():
    chain = copy((*TUNE, *TURN), 0.7)
    found = [row["change"] for row in rows(tables(*ATTACKS, chain)[3])]
    assert found.index("finetuning > exact") == found.index("finetuning") + 1


def test_queries_to_the_released_model_are_told_where_any_attack_counts_them():
    """Of a thief who distils a copy of his own they are none of the owner's business."""
    own = copy((*TUNE, *STEAL), 0.0)
    asked = (STEAL[0], StepFacts("extraction", images=500, data="e", queries=1000))
    found = tables(*ATTACKS, own, steps=(*STEPS[:3], asked))[2]
    told = {row["attack"]: row["queries"] for row in rows(found)}
    assert told["steal"] == "1000"
    assert {told[name] for name in told if name != "steal"} == {NOTHING}
    assert "queries" not in tables(*ATTACKS)[2].columns
