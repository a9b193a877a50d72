import dataclasses
import itertools

import made
import numpy as np
import pytest
from scipy import stats
from simulated import SIZES, answer, compared, named, pairs
from sklearn import metrics

from bench.records.nouns import Spec, UserError
from bench.verdicts.families import Family, holm, paired, paired_together
from bench.verdicts.innocents import innocents, populations
from bench.verdicts.intervals import exact, upper_bound
from bench.verdicts.separation import detection_at, halves, readings, roc, separation
from bench.verdicts.verdict import Verdict, decide, rank_p_value

ALPHA = 0.05

# The bound on a rate.


@pytest.mark.parametrize(("n", "bound"), [(20, 0.1391), (59, 0.0495), (299, 0.00997)])
def test_none_of_n_bounds_a_rate_by_the_rule_of_three(n, bound):
    assert upper_bound(0, n) == pytest.approx(1 - ALPHA ** (1 / n))
    assert upper_bound(0, n) == pytest.approx(bound, abs=5e-5)


def test_the_bound_on_a_rate_is_the_exact_one_of_scipy():
    for hits, n, level in ((3, 40, 0.05), (40, 40, 0.05), (1, 5, 0.01)):
        other = stats.binomtest(hits, n, alternative="less").proportion_ci(1 - level, "exact")
        assert upper_bound(hits, n, level) == pytest.approx(other.high)


def test_no_trials_bound_nothing():
    assert upper_bound(0, 0) is None


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("n", SIZES)
def test_the_bound_on_a_rate_covers_it(n, rate):
    chances = stats.binom.pmf(range(n + 1), n, rate)
    covered = sum(p for k, p in enumerate(chances) if upper_bound(k, n) >= rate)
    assert covered >= 1 - ALPHA


# Who is who.


def record(name, lineage="released", score=0.5, seed=0, weights=None, steps=("tune",)):
    done = tuple(Spec(step, {"of": name}) for step in steps)
    attack = made.stranger(name, *done) if lineage == "stranger" else done
    base = "released" if lineage == "released" else "owner"
    asked = made.cell(base=base, attack=attack, seed=seed)
    weights = f"{lineage} {name} {steps}" if weights is None else weights
    return made.record(asked, key=f"{weights} {seed} {score}", suspect_digest=weights,
                       evidence=made.matches(score))  # fmt: skip


def other_model(name, score, weights, seed=0):
    read = record(name, "stranger", score, seed, weights, steps=())
    cell = dataclasses.replace(read.cell, base="other model", other_model=Spec(name))
    return dataclasses.replace(read, cell=cell)


def other_key(score):
    read = record("other", "owner", score, weights="marked with another key")
    return dataclasses.replace(read, cell=dataclasses.replace(read.cell, base="other key"))


def test_a_population_holds_each_model_once_and_conservatively():
    records = [
        record(0, score=0.9, weights="copy"),
        record(1, score=0.8, weights="copy"),  # the same weights: the lower score counts
        record(0, "owner", 0.3, weights="twin"),
        record(1, "owner", 0.4, weights="twin"),
        record(0, "stranger", 0.1, steps=()),
        record(0, "stranger", 0.2),  # the same stranger, attacked
        record(1, "stranger", 0.15, steps=()),
        record(2, weights="clean", score=0.35),  # an attack that gave back the clean owner
    ]
    for given in (records, records[::-1]):
        (found,) = populations(given).values()
        assert [r.evidence.score for r in found.marked] == [0.8]
        assert sorted(r.evidence.score for r in found.twins) == [0.35, 0.4]
        assert [r.evidence.score for r in found.strangers] == [0.2, 0.15]
        assert found.innocent == found.twins + found.strangers


def test_populations_of_two_keys_are_kept_apart_and_cells_without_evidence_left_out():
    failed = dataclasses.replace(record(3), status="failed", evidence=None)
    found = populations([record(0), record(0, seed=1), failed])
    assert [len(p.marked) for p in found.values()] == [1, 1]


def test_populations_agree_with_the_innocents_that_verdicts_are_ranked_among():
    records = [
        *(record(i, "owner", 0.1 * i) for i in range(4)),
        *(record(i, "stranger", 0.05 * i) for i in range(5)),
        *(record(i, "stranger", 0.05 * i + 0.01, steps=()) for i in range(5)),
        *(other_model(name, 0.3, "one model") for name in ("vit", "vit.tag")),
        other_key(0.9),
    ]
    (found,) = populations(records).values()
    (null,) = innocents(records).values()
    strangers, descendants, _ = null.against("", ALPHA)
    assert sorted(r.evidence.score for r in found.twins) == list(descendants.scores)
    assert sorted(r.evidence.score for r in found.strangers) == list(strangers.scores)
    assert [r.evidence.score for r in found.other_keys] == [0.9]
    assert list(null.other_keys.values()) == [{"marked with another key": 0.9}]
    assert len(strangers.scores) == 6  # one model under two names is one stranger


def test_one_model_under_two_names_is_one_reading_whichever_key_reads_it():
    read = [
        other_model(name, 0.3, "one model", seed=s) for s, name in enumerate(("vit", "vit.tag"))
    ]
    _, innocent = readings(read)
    assert [r.model for r in innocent["strangers"]] == ["one model"] * 2


def test_every_kind_of_innocent_is_read_apart_and_shares_its_luck_with_its_like():
    key = [dataclasses.replace(r, cell=dataclasses.replace(r.cell, other_seed=1), key=f"k {i}")
           for i, r in enumerate((other_key(0.9), other_key(0.8)))]  # fmt: skip
    key[1] = dataclasses.replace(key[1], suspect_digest="the same key, attacked")
    twins = [record(0, "owner", 0.3, weights=f"twin {i}") for i in range(2)]
    tuned = record("x", "owner", 0.4, weights="tuned")
    read = [record(0), *key, *twins, tuned, record(0, "stranger", 0.1)]
    marked, innocent = readings(read)
    (population,) = populations(read).values()
    assert len(population.innocent) == 6
    assert [r.score for r in marked] == [0.5]
    assert {kind: len({r.model for r in found}) for kind, found in innocent.items()} == {
        "strangers": 1,
        "descendants": 2,  # attacks
        "other keys": 1,
    }
    assert [len(found) for found in innocent.values()] == [1, 3, 2]
    prints = [dataclasses.replace(r, marks=False) for r in read]
    assert [*readings(prints)[1]] == ["strangers"]


def test_readings_name_a_stranger_alike_whatever_was_done_to_it():
    marked, innocent = readings(
        [record(0), record(0, "stranger", 0.1), record(0, "stranger", 0.2, seed=1, steps=())]
    )
    assert [r.score for r in marked] == [0.5]
    assert len({r.key for r in innocent["strangers"]}) == 2
    assert len({r.model for r in innocent["strangers"]}) == 1


# Curves.

MARKED, INNOCENT = [0.9, 0.8, 0.8, 0.4, 0.3], [0.8, 0.3, 0.3, 0.1]


# Of equal scores the innocent's is taken for the higher: then scikit-learn, too, loses every tie.
LIFTED = [score + 1e-6 for score in INNOCENT]

TRUTH = [1] * len(MARKED) + [0] * len(INNOCENT)


def test_the_curve_is_the_one_of_scikit_learn_with_every_tie_lost():
    found = [(p.false_positive_rate, p.true_positive_rate) for p in roc(MARKED, INNOCENT)]
    rates = metrics.roc_curve(TRUTH, MARKED + LIFTED, drop_intermediate=False)[:2]
    truth = list(zip(*(r.tolist() for r in rates), strict=True))
    assert found[0] == truth[0] == (0, 0)
    assert found[-1] == truth[-1] == (1, 1)
    assert all(any(point == pytest.approx(other) for other in truth) for point in found)
    # Rising first, then going right: the steps enclose the area, scikit-learn's.
    steps = sum((f - g) * t for (g, _), (f, t) in itertools.pairwise(found))
    assert steps == pytest.approx(metrics.auc(*rates))


def test_in_the_area_a_tie_is_no_win():
    area = separation(named(MARKED, "m"), named(INNOCENT, "i")).area
    assert area == pytest.approx(metrics.roc_auc_score(TRUTH, MARKED + LIFTED))
    assert separation(named([0] * 5, "m"), named([0] * 5, "i")).area == 0.0


def test_an_interval_is_the_same_each_time_whatever_the_order():
    scores = np.random.default_rng(0).normal((1, 0), 1, (19, 2))
    marked, innocent = named(scores[:, 0], "m"), named(scores[:, 1], "i")
    first = separation(marked, innocent)
    assert first == separation(marked[::-1], innocent[::-1])
    low, high = first.interval
    assert 0 <= low < first.area < high <= 1
    given = [separation(marked, innocent, np.random.default_rng(s)).interval for s in (1, 1, 2)]
    assert given[0] == given[1] != given[2]
    assert (first.marked, first.innocent, first.keys) == (19, 19, 1)


def test_populations_that_do_not_overlap_get_an_exact_interval_and_not_a_point():
    found = separation(named([0.9] * 7, "m"), named([0.1] * 40, "i"))
    low = stats.binomtest(7, 7).proportion_ci(method="exact").low
    assert (found.area, found.interval) == (1.0, (pytest.approx(low), 1.0))
    swapped = separation(named([0.1] * 7, "m"), named([0.9] * 40, "i"))
    assert (swapped.area, swapped.interval) == (0.0, (0.0, pytest.approx(1 - low)))


def test_a_model_read_twice_is_no_more_evidence_than_read_once():
    rng = np.random.default_rng(3)
    marked, innocent = named(rng.normal(1, 1, 20), "m"), named(rng.normal(0, 1, 20), "i")
    copied = [dataclasses.replace(r, key=k) for r in innocent for k in "0123"]
    marks = [dataclasses.replace(r, key=k) for r in marked for k in "0123"]
    once, often = separation(marked, innocent).interval, separation(marks, copied).interval
    assert often[1] - often[0] > 0.85 * (once[1] - once[0])  # images or copies would halve it


# Detection at a stated rate.


def test_halves_are_disjoint_and_follow_from_the_digests_alone():
    names = [f"model {i}" for i in range(39)]
    first, second = halves(names)
    assert (len(first), len(second), first | second) == (20, 19, set(names))
    assert halves([*reversed(names), names[0]]) == (first, second)
    grown = halves([*names, "another"])
    assert len(grown[0] ^ first) <= 2  # at most the border moves


def test_the_threshold_is_set_on_one_half_and_checked_on_the_other():
    scores = {f"i {i}": i / 100 for i in range(79)}
    setting, checking = halves(scores)
    found = detection_at(pairs([0.9, 0.7, 0.1], "m"), scores.items(), rate=0.1)
    # 40 set the threshold: a rank of 4 in 41 is the last within 0.1.
    threshold = sorted((scores[m] for m in setting), reverse=True)[3]
    assert (found.calibrating, found.held_out, found.threshold) == (40, 39, threshold)
    assert found.true_positive_rate == sum(s > threshold for s in (0.9, 0.7, 0.1)) / 3
    assert found.false_positives == sum(scores[m] > threshold for m in checking)
    assert found.upper == upper_bound(found.false_positives, 39)


def test_a_detection_is_what_a_rank_among_the_calibrating_half_allows():
    rng = np.random.default_rng(5)
    for n, rate in itertools.product((5, 8, 39, 120), (0.05, 0.2, 0.34)):
        others = dict(pairs(rng.integers(0, 9, n) / 9, "i"))
        setting, _ = halves(others)
        null = [others[m] for m in setting]
        found = detection_at(pairs(np.linspace(0, 1, 19), "m"), others.items(), rate)
        ranks = [rank_p_value(s, null) <= rate for s in np.linspace(0, 1, 19)]
        assert (found.true_positive_rate or 0.0) == sum(ranks) / 19


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 37), (0.01, 197), (0.2, 7)])
def test_too_few_innocents_set_no_threshold_and_the_number_needed_is_told(rate, needed):
    few = detection_at(pairs([1, 1], "m"), pairs([0] * (needed - 1), "i"), rate)
    assert (few.threshold, few.true_positive_rate, few.interval) == (None, None, None)
    assert (few.false_positives, few.upper, few.needed) == (None, None, needed)
    enough = detection_at(pairs([1, 1], "m"), pairs([0] * needed, "i"), rate)
    assert (enough.threshold, enough.true_positive_rate) == (0.0, 1.0)


def test_a_model_with_several_scores_counts_once_and_against_the_detector():
    innocent = [*pairs([0.1] * 7, "i"), ("i 0", 0.5), ("i 1", 0.5), ("i 2", 0.5), ("i 3", 0.5)]
    found = detection_at([("m", 0.9), ("m", 0.4)], innocent, rate=0.2)
    assert (found.marked, found.calibrating + found.held_out) == (1, 7)
    assert found.true_positive_rate in (0.0, 1.0)
    assert detection_at([("m", 0.9), ("m", 0.05)], innocent, 0.2).true_positive_rate == 0.0


def test_nobody_marked_is_detected_at_no_rate():
    found = detection_at([], pairs([0.1] * 40, "i"), 0.05)
    assert (found.true_positive_rate, found.interval, found.false_positives) == (None, None, 0)


# Many verdicts.


def judged(p, attainable=1 / 1000):
    return Verdict("undecided", p, attainable, 0)


def test_holms_procedure_is_the_one_of_the_textbook():
    found = holm([judged(p) for p in (0.01, 0.04, 0.03, 0.005)], ALPHA)
    # Holm (1979): 4 * 0.005, 3 * 0.01, 2 * 0.03, then monotone.
    assert found.adjusted == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert found.outcomes == ("owned", "not owned", "not owned", "owned")


@pytest.mark.parametrize(("m", "needed"), [(1, 19), (2, 39), (10, 199), (56, 1119)])
def test_the_innocents_that_the_least_p_needs_to_survive_are_told(m, needed):
    assert holm([judged(0.5)] * m, ALPHA).needed == needed
    survives = holm([judged(1 / (needed + 1), 1 / (needed + 1))] * m, ALPHA)
    assert survives.outcomes == ("owned",) * m
    lost = holm([judged(1 / needed, 1 / needed)] * m, ALPHA)
    assert lost.outcomes == ("undecided",) * m


def test_a_verdict_without_a_p_value_still_counts_as_a_hypothesis():
    found = holm([judged(0.03), judged(None)], ALPHA)
    assert found.outcomes == ("not owned", "undecided")
    assert found.adjusted == (pytest.approx(0.06), None)
    assert holm([], ALPHA) == Family((), (), 19)


def test_holm_calls_nothing_owned_that_decide_leaves_undecided():
    verdicts = [decide(0.9, made.nulls([0.1] * n, [0.1] * 40), ALPHA) for n in (5, 18, 19, 300)]
    found = holm(verdicts, ALPHA)
    for verdict, outcome in zip(verdicts, found.outcomes, strict=True):
        assert verdict.outcome == "owned" or outcome == "undecided"


# Two methods on the same recipes.


def cell(attack, seed=0, owner="mini", method="mark"):
    return made.cell(Spec(method), attack=(Spec(attack),), seed=seed, owner=Spec(owner))


def test_pairs_are_matched_by_recipe_and_the_rest_is_counted():
    first = [answer(*a) for a in ((cell("x"), True), (cell("y"), False), (cell("x", 1), True))]
    second = [answer(cell("y", method="b"), True), answer(cell("x", method="b"), False)]
    second += [answer(cell("z", method="b"), True), answer(cell("x", 1, "other", "b"), True)]
    found = paired(first, second, ALPHA)
    assert (found.pairs, found.only_first, found.only_second, found.unmatched) == (2, 1, 1, 3)
    assert found.clusters == 1


def test_pairs_that_share_a_key_of_either_method_are_one_cluster_and_one_reading_is_one_pair():
    """Seeds 0 and 1 are one key of the first method, seeds 1 and 2 one of the second."""
    first = [answer(cell("x", seed), True, k) for seed, k in enumerate("aabc")]
    second = [answer(cell("x", seed, method="b"), False, k) for seed, k in enumerate("deef")]
    found = paired(first, second, ALPHA)
    assert (found.pairs, found.clusters, found.p_value) == (4, 2, 0.5)  # {0, 1, 2} and {3}
    once = [answer(cell("x", s), True, "a", "one") for s in (0, 1)]
    alike = [answer(cell("x", s, method="b"), False, "b", "other") for s in (0, 1)]
    found = paired(once, alike, ALPHA)
    assert (found.pairs, found.only_first, found.clusters, found.unmatched) == (1, 1, 1, 0)
    assert paired(once, [], ALPHA).unmatched == 1


def test_with_one_pair_a_cluster_the_test_is_mcnemars_exact_one():
    for ours, theirs in ((9, 1), (7, 3), (5, 5), (12, 0)):
        first = [[True]] * ours + [[False]] * theirs + [[True]] * 4
        second = [[False]] * ours + [[True]] * theirs + [[True]] * 4
        found = compared(first, second)
        sign = stats.binomtest(ours, ours + theirs).pvalue
        assert found.p_value == pytest.approx(sign)
        assert (found.only_first, found.only_second) == (ours, theirs)


def test_the_p_value_is_the_share_of_all_swaps_of_clusters():
    rng = np.random.default_rng(2)
    for _ in range(20):
        first, second = rng.random((2, 7, 5)) < [[[0.7]], [[0.4]]]
        found = compared(first, second)
        differences = (first.astype(int) - second).sum(axis=1)
        flips = np.array(list(itertools.product((1, -1), repeat=7))) @ differences
        assert found.p_value == np.mean(abs(flips) >= abs(differences.sum()))


def test_many_copies_of_one_cluster_are_one_piece_of_luck():
    found = compared([[True] * 50] * 3, [[False] * 50] * 3)
    assert (found.only_first, found.p_value, found.attainable) == (150, 0.25, 0.25)
    assert (found.outcome, found.needed) == ("undecided", 6)


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 6), (0.01, 8), (0.25, 3), (0.5, 2)])
def test_the_clusters_needed_are_the_fewest_that_can_decide(alpha, needed):
    few, enough = (compared([[True]] * n, [[False]] * n, alpha) for n in (needed - 1, needed))
    assert (few.outcome, few.needed) == ("undecided", needed)
    assert (enough.outcome, enough.attainable) == ("first detects more", 2 / 2**needed)
    assert compared([[False]] * needed, [[True]] * needed, alpha).outcome == "second detects more"


def test_methods_that_agree_do_not_differ_and_nothing_in_common_is_undecided():
    same = compared([[True, False]] * 8, [[True, False]] * 8)
    assert (same.outcome, same.p_value, same.only_first) == ("no difference", 1.0, 0)
    nothing = compared([[True]] * 8, [])
    assert (nothing.outcome, nothing.p_value, nothing.attainable) == ("undecided", None, 1.0)
    assert nothing.unmatched == 8


def test_comparisons_passed_together_are_decided_by_holm_and_told_the_keys_that_takes():
    pair = compared([[True]] * 8, [[False]] * 8)
    other = compared([[False]] * 7, [[True]] * 7)
    same = compared([[True]] * 8, [[True]] * 8)
    nothing = compared([[True]], [])
    found = paired_together([pair, other, same, nothing], ALPHA)
    # 4 * 2 / 2 ** 8 and 3 * 2 / 2 ** 7, by hand.
    assert [p for _, p in found] == [0.03125, 0.046875, 1.0, None]
    outcomes = [decided.outcome for decided, _ in found]
    assert outcomes == ["first detects more", "second detects more", "no difference", "undecided"]
    assert {decided.needed for decided, _ in found} == {8}  # 2 / 2 ** 8 <= 0.05 / 4
    assert paired_together([], ALPHA) == ()
    assert paired_together([pair], ALPHA) == ((pair, pair.p_value),)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rate", [0.02, 0.5, 0.97])
def test_exact_intervals_cover_a_rate_whatever_it_is(n, rate):
    chances = stats.binom.pmf(range(n + 1), n, rate)
    ends = [exact(k, n, ALPHA) for k in range(n + 1)]
    covered = sum(p for p, (low, high) in zip(chances, ends, strict=True) if low <= rate <= high)
    assert covered >= 1 - ALPHA


def test_an_impossible_rate_is_refused():
    with pytest.raises(UserError, match="expected alpha between 0 and 1"):
        detection_at([], [], 0.0)
