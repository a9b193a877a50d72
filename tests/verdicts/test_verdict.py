import dataclasses
import math
import random

import made
import numpy as np
import pytest
from made import BITS, matches, nulls
from scipy import stats

from bench.records.nouns import Evidence, Rule, Spec, UserError
from bench.verdicts import intervals
from bench.verdicts.innocents import Innocents, innocents, lineage, secret_of
from bench.verdicts.intervals import (
    difference_interval,
    mean_interval,
    means_agree,
    paired_interval,
)
from bench.verdicts.separation import readings
from bench.verdicts.verdict import (
    Rank,
    decide,
    detection_curve,
    innocents_needed,
    rank_p_value,
)

ALPHA = 0.05


def record(attack, base="owner", lineage="owner", score=0.5, weights="w", seed=0, **changes):
    asked = made.cell(base=base, attack=attack, seed=seed, lineage=lineage)
    parts = {"key": f"{attack}{weights}", "suspect_digest": weights, "evidence": matches(score)}
    return made.record(asked, **parts | changes)


def stranger(index, *attack, score):
    chain = made.stranger(index, *attack)
    return record(chain, "released", "stranger", score, f"stranger {index} {attack}")


PRUNE, TUNE = Spec("prune.l1", {"amount": 0.4}), Spec("finetune.classify")


@pytest.mark.parametrize(
    ("score", "innocent", "expected"),
    [
        (0.9, [0.1, 0.2, 0.3], 1 / 4),
        (0.2, [0.1, 0.2, 0.3], 3 / 4),  # a tie counts against ownership
        (0.0, [0.1, 0.2, 0.3], 4 / 4),
        (0.1, [0.0] * 19, 1 / 20),
        (0.0, [0.0] * 19, 1.0),
    ],
)
def test_a_p_value_is_a_rank_among_innocents(score, innocent, expected):
    assert rank_p_value(score, innocent) == expected


def test_a_p_value_agrees_with_the_one_sided_mann_whitney_test_of_one_suspect():
    innocent = list(np.random.default_rng(0).beta(2, 5, 30))
    for score in (0.05, 0.3, 0.9):
        other = stats.mannwhitneyu([score], innocent, alternative="greater", method="exact")
        assert rank_p_value(score, innocent) == pytest.approx(other.pvalue)


@pytest.mark.parametrize(
    ("alpha", "needed"), [(0.5, 1), (0.2, 4), (0.05, 19), (0.01, 99), (0.001, 999), (0.03, 33)]
)
def test_the_number_of_innocents_needed_is_known(alpha, needed):
    assert innocents_needed(alpha) == needed


def test_the_number_needed_is_the_least_that_reaches_alpha_for_every_reciprocal():
    for k in range(2, 1000):
        assert innocents_needed(1 / k) == k - 1


@pytest.mark.parametrize("alpha", [0.0, 1.0, 5.0, math.nan])
def test_an_impossible_alpha_is_refused(alpha):
    with pytest.raises(UserError, match="expected alpha between 0 and 1, got"):
        innocents_needed(alpha)


LOW = [0.1] * 19


@pytest.mark.parametrize(
    ("strangers", "descendants", "outcome", "p_value", "attainable"),
    [
        (LOW, LOW, "owned", 0.05, 0.05),
        (LOW, None, "owned", 0.05, 0.05),
        (LOW, [0.9] * 19, "not owned", 1.0, 0.05),  # read off models nobody marked
        ([0.9] * 19, LOW, "not owned", 1.0, 0.05),
        (LOW, [0.9, *LOW], "not owned", 2 / 21, 0.05),
        (LOW, LOW[:18], "undecided", 1 / 19, 1 / 19),
        (LOW[:5], None, "undecided", 1 / 6, 1 / 6),
        (LOW, [], "undecided", None, 1.0),
        ([], None, "undecided", None, 1.0),
        ([], LOW, "undecided", None, 1.0),
    ],
)
def test_a_mark_must_beat_both_nulls_and_a_fingerprint_its_strangers(
    strangers, descendants, outcome, p_value, attainable
):
    verdict = decide(0.9, nulls(strangers, descendants), ALPHA)
    assert (verdict.outcome, verdict.p_value, verdict.attainable) == (outcome, p_value, attainable)
    assert verdict.rank("strangers").n == len(strangers)
    twins = verdict.rank("descendants")
    assert (twins and twins.n) == (None if descendants is None else len(descendants))
    assert (verdict.needed, verdict.text) == (19, outcome)


@pytest.mark.parametrize(
    ("other_keys", "outcome", "p_value", "text"),
    [
        ((), "owned", 0.05, "owned; other keys not read"),
        ((0.8,), "owned", 0.05, "owned; other keys only at 1/2"),
        ((0.8, 0.8), "owned", 0.05, "owned; other keys only at 1/3"),
        ((0.9,), "not owned", 1.0, "not owned"),  # a tie: 2 of 2
        ((0.8, 0.95, 0.1), "not owned", 2 / 4, "not owned"),
        ([0.8] * 18, "owned", 0.05, "owned; other keys only at 1/19"),
        ([0.8] * 19, "owned", 0.05, "owned"),
        ([0.8] * 39, "owned", 0.05, "owned"),
        ([0.8] * 38 + [0.95], "owned", 0.05, "owned"),  # 2 of 40
        ([0.8] * 18 + [0.95], "not owned", 2 / 20, "not owned"),
    ],
)
def test_other_keys_are_a_null_of_their_own_and_too_few_of_them_leave_a_reservation(
    other_keys, outcome, p_value, text
):
    verdict = decide(0.9, nulls(LOW, LOW, other_keys), ALPHA)
    assert (verdict.outcome, verdict.p_value, verdict.text) == (outcome, p_value, text)
    assert verdict.rank("other keys").n == len(other_keys)
    assert verdict.attainable == 0.05
    short = decide(0.9, nulls(LOW[:5], LOW, other_keys), ALPHA)
    assert (short.outcome, short.reservation) == ("undecided", "")


def test_without_any_innocents_nothing_is_decided():
    assert decide(0.9, (), ALPHA).outcome == "undecided"


@pytest.mark.parametrize(
    ("score", "p_value", "outcome"),
    [(0.85, 1.0, "not owned"), (0.9, 1.0, "not owned"), (0.91, 1 / 62, "owned")],
)
def test_many_twins_of_strong_attacks_do_not_hide_the_clean_owner(score, p_value, outcome):
    twins = [0.2] * 60 + [0.9]  # the clean owner, which 60 attacked twins fall short of
    assert rank_p_value(0.85, twins) < ALPHA  # the rank alone would call it owned
    verdict = decide(score, nulls(LOW, twins, known=0.9), ALPHA)
    assert (verdict.rank("descendants").p, verdict.outcome) == (p_value, outcome)
    assert verdict.rank("strangers").p == 0.05


def test_known_innocents_say_nothing_about_an_empty_null():
    assert decide(0.5, nulls(LOW, [], known=0.9), ALPHA).rank("descendants").p is None


@pytest.mark.parametrize(
    ("clean", "public", "bar"), [(None, None, None), (0.4, None, 0.4), (0.4, 0.7, 0.7)]
)
def test_the_bar_is_the_highest_of_the_clean_owner_and_the_public_model(clean, public, bar):
    assert Innocents(clean=clean, public=public).bar == bar


SKEWED = {
    "beta": lambda rng, n: rng.beta(0.3, 4, n),
    "all zero": lambda rng, n: np.zeros(n),
    "tied": lambda rng, n: rng.integers(0, 3, n) / 2,
    "coarse binomial": lambda rng, n: rng.binomial(8, 0.1, n) / 8,
}


@pytest.mark.parametrize("draw", SKEWED.values(), ids=SKEWED)
@pytest.mark.parametrize(("n", "alpha"), [(5, 0.05), (5, 0.2), (19, 0.05), (99, 0.05)])
def test_decide_holds_its_error_rate_on_innocents(draw, n, alpha):
    rng, trials, owned = np.random.default_rng(n), 2000, 0
    for _ in range(trials):
        *innocent, suspect = draw(rng, n + 1).tolist()
        owned += decide(suspect, nulls(innocent), alpha).outcome == "owned"
    # 3.3 standard errors: the exact level passes by chance alone in all but 1 of 2,000 runs.
    assert owned / trials <= alpha + 3.3 * math.sqrt(alpha * (1 - alpha) / trials)


@pytest.mark.parametrize("n", [19, 99])
def test_decide_uses_all_of_its_error_rate_when_scores_never_tie(n):
    rng, trials = np.random.default_rng(n), 4000
    draws = rng.beta(0.3, 4, (trials, n + 1)).tolist()
    owned = sum(decide(s, nulls(rest), ALPHA).outcome == "owned" for s, *rest in draws)
    assert abs(owned / trials - ALPHA) < 3.3 * math.sqrt(ALPHA * (1 - ALPHA) / trials)


@pytest.mark.parametrize("innocent_as", ["stranger", "descendant"])
def test_a_mark_holds_its_error_rate_on_either_kind_of_innocent(innocent_as):
    rng, trials, owned = np.random.default_rng(1), 2000, 0
    for _ in range(trials):
        strangers, twins = rng.beta(1, 9, 19).tolist(), rng.beta(2, 5, 19).tolist()
        suspect = float(rng.beta(1, 9) if innocent_as == "stranger" else rng.beta(2, 5))
        owned += decide(suspect, nulls(strangers, twins), ALPHA).outcome == "owned"
    assert owned / trials <= ALPHA + 3.3 * math.sqrt(ALPHA * (1 - ALPHA) / trials)


@pytest.mark.parametrize(
    "walks",
    [
        pytest.param([k / 45 for k in (0, 7, 11, 13, 29, 31, 37, 41, 44, 45)], id="10 walks"),
        pytest.param(  # their mean lies half way between two roundings
            [4 / 20, *[k / 20 for k in (3, 7, 9, 11, 13, 17, 19, 14) * 32][1:]], id="256 walks"
        ),
    ],
)
def test_equal_totals_tie_in_whatever_order_they_were_summed(walks):
    rng = random.Random(0)
    orders = [tuple(rng.sample(walks, len(walks))) for _ in range(40)]
    assert len({sum(order) for order in orders}) > 1  # in floating point they are not one number
    own, *others = (matches(*order).score for order in orders)
    assert {own} == set(others)
    assert rank_p_value(own, others) == 1.0


def test_innocents_are_counted_as_models():
    records = [
        stranger(0, score=0.2),
        stranger(0, PRUNE, score=0.6),  # the same stranger, attacked: its highest score counts
        stranger(0, TUNE, score=0.4),
        stranger(1, score=0.3),
        record((PRUNE,), weights="pruned", score=0.45),
        record((PRUNE, PRUNE), weights="pruned", score=0.45),  # pruned twice is pruned once
        record((TUNE,), weights="tuned", score=0.5),
        record((TUNE,), "released", "released", weights="marked", score=0.99),
    ]
    (null,) = innocents(records).values()
    assert scores(null) == ((0.3, 0.6), (0.45, 0.5), ())


def scores(null, attack=""):
    """What a suspect left untouched is ranked among, kind by kind."""
    return tuple(tuple(met.scores) for met in null.against(attack, ALPHA))


def other_model(name, *attack, score, weights):
    found = record((*attack, Spec("control.identity")), lineage="stranger", score=score)
    cell = dataclasses.replace(found.cell, base="other model", other_model=Spec(name))
    return dataclasses.replace(found, cell=cell, suspect_digest=weights)


def test_a_model_under_two_names_is_one_stranger():
    records = [
        stranger(0, score=0.2),
        other_model("vit", score=0.3, weights="vit"),
        other_model("vit.tag", score=0.3, weights="vit"),
        other_model("clip", score=0.4, weights="clip"),
        other_model("mini again", score=0.9, weights="clean"),  # the owner is nobody's stranger
    ]
    (null,) = innocents(records).values()
    assert scores(null) == ((0.2, 0.3, 0.4), (0.9,), ())
    assert null.clean == 0.9


def test_a_stranger_under_two_names_is_one_however_it_was_attacked():
    named = Spec("control.peer", {"index": 7})
    twin = record((named,), lineage="stranger", score=0.3, weights=f"stranger 0 {()}")
    attacked = record((named, PRUNE), lineage="stranger", score=0.5, weights="pruned")
    (null,) = innocents([attacked, stranger(0, score=0.2), twin]).values()
    assert scores(null)[0] == (0.5,)


def other_key(number, score, *attack, **changes):
    done = attack or (Spec("control.identity"),)
    found = record(done, "other key", "owner", score, f"key {number} {attack}", **changes)
    return dataclasses.replace(found, cell=dataclasses.replace(found.cell, other_seed=number))


def text(*attack):
    return " > ".join(step.text for step in attack)


def test_copies_marked_with_other_keys_are_ranked_after_the_same_attack():
    own = record((Spec("control.identity"),), "released", "released", 0.9, "marked with key 0")
    read = [
        own,
        *(other_key(1, 0.4), other_key(2, 0.3)),
        *(other_key(1, 0.1, PRUNE), other_key(2, 0.2, PRUNE)),
        record((TUNE,), weights="tuned", score=0.2),
    ]
    (null,) = innocents(read).values()
    assert scores(null) == ((), (0.2,), (0.3, 0.4))
    assert scores(null, text(PRUNE)) == ((), (0.2,), (0.1, 0.2))
    *_, keys = null.against(text(TUNE), ALPHA)  # nobody tuned theirs: a bar, and no draws
    assert (keys.scores, keys.bar, keys.counted) == ((), 0.4, "attacked alike")
    prints = [dataclasses.replace(r, marks=False) for r in read]
    (null,) = innocents(prints).values()
    assert scores(null) == ((),)


def test_other_keys_that_are_one_and_the_same_are_one_innocent():
    others = [other_key(1, 0.4), other_key(2, 0.3), other_key(3, 0.2)]
    own = {0: "own", 1: "one", 2: "one", 3: "three"}
    claims = [record((PRUNE,), "released", "released", seed=seed) for seed in own]
    told = [made.with_secret(r, own[r.cell.method_seed]) for r in (*others, *claims)]
    of_key_0 = made.with_secret(claims[0], "own")
    assert scores(innocents(told)[secret_of(of_key_0)]) == ((), (), (0.2, 0.4))
    assert [r.model for r in readings(told)[1]["other keys"]] == ["key one", "key one", "key three"]


def test_another_key_that_changed_nothing_is_the_clean_owner():
    undone = other_key(1, 0.4, suspect_digest="clean")
    (null,) = innocents([undone]).values()
    assert (scores(null), null.clean) == (((), (0.4,), ()), 0.4)


def test_the_public_model_an_owner_came_from_is_known_and_a_cluster_of_its_own():
    base = record((Spec("control.identity"),), "other model", "owner", 0.7, "public")
    base = dataclasses.replace(base, cell=dataclasses.replace(base.cell, other_model=Spec("vit")))
    clean = record((Spec("control.identity"),), weights="clean", score=0.3)
    (null,) = innocents([base, clean]).values()
    assert scores(null) == ((), (0.3, 0.7), ())
    assert (null.clean, null.public, null.bar) == (0.3, 0.7, 0.7)


OWN = Spec("vit", {"library": "timm", "classifier": {"backbone": "finetuned"}})


def of_a_fingerprint(*records, owner=OWN):
    cells = [dataclasses.replace(r.cell, owner=owner) for r in records]
    pairs = zip(records, cells, strict=True)
    return [dataclasses.replace(r, marks=False, cell=cell) for r, cell in pairs]


@pytest.mark.parametrize(
    ("score", "outcome"), [(0.7, "not owned"), (0.69, "not owned"), (0.71, "owned")]
)
@pytest.mark.parametrize("attack", [(), (TUNE,)])
def test_a_copy_no_nearer_than_the_public_model_is_nobodys_by_a_fingerprint(score, outcome, attack):
    base = record((Spec("control.identity"),), "other model", "stranger", 0.7, "public")
    public = Spec("vit", {"library": "timm"})
    base = dataclasses.replace(base, cell=dataclasses.replace(base.cell, other_model=public))
    others = [stranger(i, *attack, score=0.1) for i in range(19)]
    (null,) = innocents(of_a_fingerprint(base, *others)).values()
    assert (null.public, null.bar) == (0.7, 0.7)
    (met,) = null.against(text(*attack), ALPHA)
    assert len(met.scores) == 19
    assert decide(score, (met,), ALPHA).outcome == outcome


@pytest.mark.parametrize(
    ("owner", "other"),
    [
        (OWN, Spec("another", {"library": "timm"})),
        (OWN, Spec("vit", {"library": "open_clip"})),
        (Spec("vit", {"library": "timm", "classifier": {"backbone": "frozen"}}), Spec("vit")),
    ],
)
def test_any_other_model_is_a_stranger_of_a_fingerprint(owner, other):
    base = record((Spec("control.identity"),), "other model", "stranger", 0.7, "other")
    base = dataclasses.replace(base, cell=dataclasses.replace(base.cell, other_model=other))
    (null,) = innocents(of_a_fingerprint(base, owner=owner)).values()
    assert (scores(null), null.bar) == (((0.7,),), None)


def twins(attack, *scores):
    return [record(attack, weights=f"{attack} {i}", score=s) for i, s in enumerate(scores)]


def steps(count):
    return [(Spec("noise.weights", {"sigma": i}),) for i in range(count)]


def test_many_twins_do_not_hide_a_copy_marked_with_another_key():
    read = [
        *(stranger(i, score=0.1) for i in range(19)),
        *twins((TUNE,), *[0.2] * 60),
        *(record((Spec("control.identity"),), weights="clean", score=0.3), other_key(1, 0.8)),
    ]
    (null,) = innocents(read).values()
    for score, outcome in ((0.8, "not owned"), (0.81, "owned; other keys not read")):
        verdict = decide(score, null.against(text(TUNE), ALPHA), ALPHA)
        assert (verdict.text, verdict.rank("descendants").n) == (outcome, 60)


def test_descendants_are_ranked_within_the_attack_where_it_has_twins_enough():
    clean = record((Spec("control.identity"),), weights="clean", score=0.45)
    read = [clean, *twins((TUNE,), *(0.4 + i / 100 for i in range(19))), *twins((PRUNE,), 0.1, 0.3)]
    (null,) = innocents(read).values()
    tuned, pruned = (null.against(text(step), ALPHA)[1] for step in (TUNE, PRUNE))
    assert (tuned.counted, len(tuned.scores), tuned.bar) == ("within the attack", 19, 0.45)
    assert (pruned.counted, pruned.scores) == ("clusters", (0.3, 0.45, 0.58))
    assert null.against(text(TUNE), 0.04)[1].counted == "clusters"  # 24 would be needed


def test_a_copy_must_outscore_the_few_twins_of_its_own_attack_as_well():
    read = [row for i, step in enumerate(steps(38)) for row in twins(step, i / 100)]
    (null,) = innocents([*read, *twins((PRUNE,), 0.9)]).values()
    for score, p in ((0.9, 1.0), (0.91, 1 / 40)):  # among 39 clusters 0.9 alone would be 2 / 40
        verdict = decide(score, null.against(text(PRUNE), ALPHA), ALPHA)
        assert verdict.rank("descendants") == Rank("descendants", p, 39, "clusters")


def test_a_cluster_is_an_attack_and_attacks_that_give_one_model_are_one():
    read = [row for i, step in enumerate(steps(18)) for row in twins(step, i / 100, i / 50)]
    clean = record((Spec("control.identity"),), weights="clean", score=0.05)
    undone = record((PRUNE,), weights="clean", score=0.05)  # pruned of nothing
    twice = [record((step,), weights="same", score=0.6) for step in (TUNE, Spec("tuned anew"))]
    (null,) = innocents([*read, clean, undone, *twice]).values()
    highest = sorted([*(i / 50 for i in range(18)), 0.05, 0.6])
    assert list(scores(null)[1]) == highest
    verdict = decide(0.7, null.against(text(PRUNE), ALPHA), ALPHA)
    assert verdict.rank("descendants") == Rank("descendants", 1 / 21, 20, "clusters")


def test_a_fingerprint_is_ranked_among_strangers_attacked_alike():
    whole = [stranger(i, score=0.1) for i in range(3)]
    alike = [stranger(i, PRUNE, score=0.5 + i / 10) for i in range(2)]
    prints = [dataclasses.replace(r, marks=False) for r in [*whole, *alike]]
    (null,) = innocents(prints).values()
    assert scores(null) == ((0.1,) * 3,)
    assert scores(null, text(PRUNE)) == ((0.5, 0.6),)
    assert scores(null, text(TUNE)) == ((),)
    (null,) = innocents([*whole, *alike]).values()  # of a mark: whole, with their highest scores
    assert scores(null, text(TUNE))[0] == (0.1, 0.5, 0.6)


@pytest.mark.parametrize(
    ("specs", "count"),
    [
        ([Spec(f"vit_{i}", {"library": "timm"}) for i in range(11)], 1),
        ([Spec(f"vit_{i}", {"library": "timm", "family": "clip"}) for i in range(11)], 1),
        ([Spec(f"vit_{i}", {"library": "timm", "family": f"of {i}"}) for i in range(11)], 11),
        ([Spec(name, {"library": "timm"}) for name in ("vit_1", "deit3_l", "beit", "deit_s")], 3),
        ([Spec("ViT-B", {"library": name}) for name in ("timm", "open_clip")], 2),
        ([Spec("mini", {"library": "embedded", "weights": str(i)}) for i in range(3)], 3),
    ],
)
def test_a_family_of_published_models_is_one_stranger_with_its_highest_score(specs, count):
    read = []
    for i, spec in enumerate(specs):
        found = other_model(spec.name, score=i / 100, weights=f"weights {i}")
        cell = dataclasses.replace(found.cell, other_model=spec)
        read.append(dataclasses.replace(found, cell=cell))
    (null,) = innocents(read).values()
    strangers, *_ = scores(null)
    assert len(strangers) == count
    assert strangers[-1] == (len(specs) - 1) / 100


def test_the_clean_owner_is_known_by_its_weights_and_counts_at_its_highest():
    records = [
        record((PRUNE,), weights="clean", score=0.3),  # pruned of nothing
        record((TUNE,), weights="clean", score=0.35),  # a new head on it
        record((TUNE,), weights="tuned", score=0.8),
    ]
    (null,) = innocents(records).values()
    assert (scores(null, text(TUNE))[1], null.clean) == ((0.8,), 0.35)  # one cluster: tuned, clean
    prints = [dataclasses.replace(r, marks=False) for r in records]
    (null,) = innocents(prints).values()
    assert (null.descendants, null.clean) == (None, None)


def test_weights_come_first_and_lineage_second():
    copy = record((TUNE,), "released", "released", weights="clean")
    assert lineage(copy) == "owner"  # innocent of a mark, whatever made it
    assert lineage(dataclasses.replace(copy, marks=False)) == "released"
    assert lineage(record((TUNE,), "released", "released")) == "released"
    unknown = dataclasses.replace(copy, suspect_digest="", owner_digest="")
    assert lineage(unknown) == "released"
    (null,) = innocents([copy]).values()
    assert (scores(null), null.clean) == (((), (0.5,), ()), 0.5)


def test_a_fingerprint_has_no_innocent_descendants():
    (null,) = innocents([record((TUNE,), marks=False)]).values()
    assert null == Innocents()


def test_innocents_read_with_another_secret_do_not_count():
    records = [record((TUNE,), score=0.1), record((TUNE,), score=0.9, seed=1)]
    found = innocents(records)
    assert [scores(found[secret_of(r)])[1] for r in records] == [(0.1,), (0.9,)]


def test_cells_without_evidence_are_no_innocents():
    failed = dataclasses.replace(record((TUNE,)), status="failed", evidence=None)
    assert list(innocents([failed]).values()) == [Innocents(descendants={})]


def test_the_detection_curve_counts_queries_up_to_tau():
    evidence = Evidence((1.0,) * 4, (0.0, 2.0, 2.0, 9.0), BITS, "image", 0.5)
    expected = (0.25, 0.25, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75)
    assert detection_curve(evidence) == expected
    assert detection_curve(evidence)[5] == evidence.rate
    mutation = dataclasses.replace(evidence, rule=Rule("mutation", "<", 0.5))
    with pytest.raises(UserError, match=r"got 'mutation < 0\.5'"):
        detection_curve(mutation)


def test_intervals_agree_with_scipy():
    wilson = stats.binomtest(18, 20).proportion_ci(method="wilson")
    assert intervals.wilson(0.9, 20) == pytest.approx((wilson.low, wilson.high))
    values = [0.9, 0.95, 0.97, 0.99]
    student = stats.ttest_1samp(values, 0).confidence_interval()
    assert mean_interval(values) == pytest.approx((student.low, student.high))
    assert mean_interval([0.9]) is None


@pytest.mark.parametrize("shift", [0.0, 0.08, 0.085, 0.2])
def test_means_agree_where_welchs_test_does_not_tell_them_apart(shift):
    ones, others = [0.2, 0.25, 0.31, 0.22], [x + shift for x in (0.21, 0.28, 0.24)]
    expected = stats.ttest_ind(ones, others, equal_var=False).pvalue >= 0.05
    assert means_agree(ones, others) == expected == (shift < 0.0825)


def test_means_without_any_spread_agree_if_they_are_equal():
    assert means_agree([0.2, 0.2], [0.2, 0.2, 0.2])
    assert not means_agree([0.2, 0.2], [0.3, 0.3])


def test_two_accuracies_differ_by_newcombes_interval():
    low, high = difference_interval(before=48 / 80, after=56 / 80, n=80)
    first, second = (stats.binomtest(k, 80).proportion_ci(method="wilson") for k in (56, 48))
    change = 0.7 - 0.6  # Newcombe (1998), method 10, by hand
    assert low == pytest.approx(change - math.hypot(0.7 - first.low, second.high - 0.6))
    assert high == pytest.approx(change + math.hypot(first.high - 0.7, 0.6 - second.low))


def answers(both, first, second, neither):
    """Which images two models got right, from how many both did, one alone did, and none did."""
    one = [True] * (both + first) + [False] * (second + neither)
    other = [True] * both + [False] * first + [True] * second + [False] * neither
    return one, other


@pytest.mark.parametrize(
    ("table", "interval", "within"),
    [
        # R. G. Newcombe, Stat. Med. 17 (1998) 2635-2650, table III, method 10.
        ((36, 2, 12, 0), (0.0569, 0.3404), 5e-5),
        # A. Agresti, "Categorical data analysis", 10.1: 1600 people asked twice, 794 approved both
        # times. His interval is Wald's, which many pairs come near to.
        ((794, 150, 86, 570), (-0.0587, -0.0213), 2e-4),
    ],
)
def test_two_accuracies_on_the_same_images_differ_by_newcombes_paired_interval(
    table, interval, within
):
    assert paired_interval([answers(*table)]) == pytest.approx(interval, abs=within)
    one, other = answers(*table)
    low, high = paired_interval([(other, one)])
    assert (-high, -low) == pytest.approx(interval, abs=within)


def test_pairs_that_tell_nothing_of_each_other_have_the_interval_of_independent_samples():
    independent = difference_interval(before=0.8, after=0.6, n=100)
    assert paired_interval([answers(48, 32, 12, 8)]) == pytest.approx(independent)
    low, high = paired_interval([answers(60, 20, 0, 20)])
    assert independent[0] < low < high < independent[1]


def test_of_several_pairs_it_is_the_interval_of_one_at_their_means():
    several = [answers(36, 2, 12, 0), answers(40, 4, 2, 4)]
    assert paired_interval(several) == pytest.approx(paired_interval([answers(38, 3, 7, 2)]))


def test_equal_answers_leave_an_interval_about_zero_however_few_are_wrong():
    low, high = paired_interval([answers(10, 0, 0, 0)])
    assert low < 0 < high


def test_the_two_kinds_of_spread_are_kept_apart():
    spread = intervals.spread([0.8, 1.0], queries=20)
    assert (spread.mean, spread.between, spread.models) == (0.9, (0.8, 1.0), 2)
    assert spread.within == intervals.wilson(0.9, 20)
    assert intervals.spread([0.8], queries=20).between is None  # one model has no spread
