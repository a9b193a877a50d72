import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from made import MARK, bit_errors, outline, suspect
from scipy import stats

from bench.records.nouns import Rule, UserError
from bench.records.table import write_tables
from bench.verdicts import bounds
from bench.verdicts.bounds import LEVELS, chance_called, chance_missed

BITS = 32
OUTLINE = outline()


def evidence(errors, tau=5, statistic="bit errors"):
    return bit_errors(*errors, rule=Rule(statistic, "<=", tau))


def record(number, read, lineage="released", seed=0):
    return suspect(number, read, lineage, seed, MARK)


@pytest.mark.parametrize(
    ("tau", "expected"), [(4, 9.650597e-06), (5, 5.653710e-05), (6, 2.675264e-04)]
)
def test_fpr1_of_fair_bits_is_known(tau, expected):
    assert bounds.false_positive_rate(tau, BITS) == pytest.approx(expected, rel=1e-6)


def test_fpr1_is_the_sum_that_equation_6_prints():
    for tau, match in itertools.product((0, 3, 9), (0.3, 0.5, 0.9)):
        terms = (math.comb(9, j) * (1 - match) ** j * match ** (9 - j) for j in range(tau + 1))
        assert bounds.false_positive_rate(tau, 9, match) == pytest.approx(sum(terms))


@pytest.mark.parametrize(
    ("epsilon", "tau"),
    [(1e-4, 5), (5.7e-5, 5), (5.6e-5, 4), (2.68e-4, 6), (1e-9, 0), (1e-10, None), (1.0, 31)],
)
def test_tau_is_the_largest_that_keeps_fpr1_below_epsilon(epsilon, tau):
    assert bounds.largest_tau(epsilon, BITS) == tau


def test_the_threshold_must_lie_strictly_below_epsilon_as_equation_7_says():
    assert bounds.largest_tau(0.5**4, bits=4) is None  # FPR1(0) is exactly that
    assert bounds.largest_tau(5 * 0.5**4, bits=4) == 0


def test_clopper_pearson_limits_of_the_papers_setting_are_known():
    low = bounds.lower_limits([1000, 500, 0] + [0] * 997, trials=1000)
    high = bounds.upper_limits([0, 500, 1000] + [0] * 997, trials=1000)
    assert low[:3] == pytest.approx((0.981068, 1 - 0.590339, 0.0), abs=5e-7)
    assert high[:3] == pytest.approx((0.018932, 0.590339, 1.0), abs=5e-7)


def test_limits_are_exact_by_definition():
    low, high = bounds.lower_limits([7], 9, alpha=0.03), bounds.upper_limits([7], 9, alpha=0.03)
    assert stats.binom.sf(6, 9, low[0]) == pytest.approx(0.03)
    assert stats.binom.cdf(7, 9, high[0]) == pytest.approx(0.03)
    assert (bounds.lower_limits([0], 0), bounds.upper_limits([0], 0)) == ((0.0,), (1.0,))


def test_limits_hold_for_all_images_together():
    rng, trials, wrong = np.random.default_rng(0), 400, 0
    truth = np.linspace(0.05, 0.95, 10)
    for _ in range(trials):
        limits = bounds.lower_limits(rng.binomial(12, truth).tolist(), 12, alpha=0.1)
        wrong += bool(np.any(np.array(limits) > truth))
    assert wrong / trials <= 0.1 + 3.3 * math.sqrt(0.09 / trials)


def test_the_papers_remark_needs_these_limits():
    assert chance_missed([0.810] * 1000, 750) == pytest.approx(1.2272e-06, rel=1e-4)
    assert chance_called([0.542] * 1000, 600) == pytest.approx(9.6308e-05, rel=1e-4)


def enumerated(chances):
    """P[R = r] for r = 0..N by equation 12 as it is printed: over all subsets of the images."""
    n = len(chances)
    found = [0.0] * (n + 1)
    for size in range(n + 1):
        for inside in itertools.combinations(range(n), size):
            found[size] += math.prod(p if i in inside else 1 - p for i, p in enumerate(chances))
    return found


CHANCES = [
    [0.9, 0.8, 0.95, 0.99, 0.7, 0.85, 0.9],
    [0.01, 0.3, 0.0, 1.0, 0.2],
    [0.5],
    [1e-9] * 6,
]


@pytest.mark.parametrize("chances", CHANCES)
def test_the_bounds_are_the_sums_over_subsets(chances):
    exact = enumerated(chances)
    for threshold in range(len(chances) + 1):
        missed, called = sum(exact[:threshold]), sum(exact[threshold + 1 :])
        assert chance_missed(chances, threshold) == pytest.approx(missed, abs=1e-15)
        assert chance_called(chances, threshold) == pytest.approx(called, rel=1e-6, abs=1e-60)


@pytest.mark.parametrize("level", [1e-6, 1e-3, 0.05, 0.3])
@pytest.mark.parametrize("chances", CHANCES)
def test_thresholds_are_those_brute_force_finds(chances, level):
    exact, n = enumerated(chances), len(chances)
    high = [r for r in range(1, n + 1) if sum(exact[:r]) <= level]
    low = [r for r in range(n) if sum(exact[r + 1 :]) <= level]
    assert bounds.high_threshold(chances, level) == max(high, default=None)
    assert bounds.low_threshold(chances, level) == min(low, default=None)


PERFECT, GUESSED = evidence([0] * 1000), evidence([16] * 1000)


def test_image_level_bounds_separate_in_the_papers_setting():
    found = bounds.bounds([PERFECT] * 1000, [GUESSED] * 1000, "images")
    assert found.images == 1000
    assert found.lower == pytest.approx((0.981068,) * 1000, abs=5e-7)
    assert found.upper == pytest.approx((0.018932,) * 1000, abs=5e-7)
    assert (found.missed.threshold, found.called.threshold) == (750, 600)
    assert found.missed.probability < 1e-100
    assert found.high == stats.binom.ppf(1e-6, 1000, found.lower[0])
    assert found.low == stats.binom.isf(1e-4, 1000, found.upper[0])
    assert found.separates


def test_bits_as_printed_take_a_guess_for_half_a_detection():
    found = {level: bounds.bounds([PERFECT] * 1000, [GUESSED] * 1000, level) for level in LEVELS}
    # 16,000 of 32,000 bits: the innocent "rate" is a half, the image-level one 5.65e-5.
    high = stats.binomtest(16_000, 32_000).proportion_ci(1 - 1e-8, "exact").high
    printed, through = found["bits, as printed"], found["bits, through eq. 6"]
    assert printed.upper[0] == pytest.approx(high, rel=1e-6)
    assert through.upper[0] == pytest.approx(stats.binom.cdf(5, BITS, 1 - high), rel=1e-5)
    for reading in found.values():
        assert reading.low == stats.binom.isf(1e-4, 1000, reading.upper[0])
    assert (found["images"].low, through.low, printed.low) == (37, 3, 575)
    assert all(f.separates for f in found.values())


@pytest.mark.parametrize(
    ("suspects", "level", "vacuous"),
    [(90, "images", True), (91, "images", False), (2, "bits, as printed", True)],
)
def test_few_flawless_suspects_prove_nothing_and_the_bound_says_so(suspects, level, vacuous):
    found = bounds.bounds([PERFECT] * suspects, [GUESSED] * 3, level).missed
    assert found.vacuous == vacuous
    assert (found.probability > found.level) == vacuous
    assert found.needed == {"images": 91, "bits, as printed": 3}[level]


def test_the_suspects_needed_follow_from_the_limit_that_the_remark_needs():
    flawless = bounds.bounds([PERFECT], [], "images")
    # (alpha / N) ** (1 / M) >= l(x), and the like for u(x), by hand.
    low = next(x for x in np.arange(0.75, 1, 1e-4) if stats.binom.cdf(749, 1000, x) <= 1e-6)
    high = next(x for x in np.arange(0.6, 0, -1e-4) if stats.binom.sf(600, 1000, x) <= 1e-4)
    assert flawless.missed.needed == math.ceil(math.log(5e-9) / math.log(low))
    assert flawless.called.needed == math.ceil(math.log(5e-9) / math.log(1 - high))
    assert flawless.called.vacuous  # no innocent was read


def test_a_bound_that_suspects_earned_is_not_vacuous_even_if_it_is_large():
    found = bounds.bounds([evidence([9] * 1000)] * 200, [GUESSED] * 200, "images")
    assert (found.missed.vacuous, found.missed.probability, found.high) == (False, 1.0, None)
    assert not found.separates


def test_too_few_images_are_no_matter_of_suspects():
    found = bounds.bounds([evidence([0] * 4)] * 50, [evidence([16] * 4)] * 50, "bits, as printed")
    assert found.called.needed is None
    assert found.called.vacuous


@pytest.mark.parametrize(
    ("read", "words"),
    [
        ([], "got 0 with"),
        ([evidence([1, 2]), evidence([1])], r"\[1, 2\] images"),
        ([evidence([1]), evidence([1], tau=4)], r"tau \[4, 5\]"),
        ([evidence([1], statistic="mutation")], "read with one secret by 'bit errors <= tau'"),
        ([evidence([0, 0])], "a message's bits are unknown"),
    ],
)
def test_what_cannot_be_bounded_is_refused(read, words):
    with pytest.raises(UserError, match=words):
        bounds.bounds(read, [], "bits, as printed")


def test_the_bound_of_equation_13_holds_where_its_assumptions_do():
    """Fresh models, independent images: no more than alpha of the bounds lie below the truth."""
    rng, wrong, trials = np.random.default_rng(1), 0, 200
    chances = rng.uniform(0.7, 0.95, 40)
    truth = chance_missed(chances.tolist(), 30)
    for _ in range(trials):
        limits = bounds.lower_limits(rng.binomial(60, chances).tolist(), 60, alpha=0.1)
        wrong += chance_missed(limits, 30) < truth
    assert wrong / trials <= 0.1 + 3.3 * math.sqrt(0.09 / trials)


def suspects(marked=20, twins=20, strangers=20, images=40, seed=0, errors=0):
    rng = np.random.default_rng(seed)
    guess = lambda: evidence(rng.binomial(BITS, 0.5, images))  # noqa: E731
    return [
        *(record(i, evidence([errors] * images), seed=seed) for i in range(marked)),
        *(record(i, guess(), "owner", seed) for i in range(twins)),
        *(record(i, guess(), "stranger", seed) for i in range(strangers)),
    ]


def rows(*groups):
    made = bounds.bounds_table(OUTLINE, groups)
    return {row[2]: dict(zip(made.columns, row, strict=True)) for row in made.rows}


def test_the_table_shows_every_level_beside_suspects_counted_whole():
    found = rows(("mini", "mark", suspects()))
    assert list(found) == [*LEVELS, "models"]
    assert {row["marked / innocent"] for row in found.values()} == {"20 / 40"}
    upper = 1 - 0.05 ** (1 / 20)  # 0 of 20
    assert found["models"]["P[R < 0.75 N]"] == f"0/20 (<= {upper:.3f})"
    assert found["images"]["P[R < 0.75 N]"].startswith("vacuous: needs ")
    assert found["models"]["separated"] == "yes (seen)"


def test_the_worst_of_several_keys_is_shown():
    bad = suspects(seed=1, errors=9)  # never read under tau = 5
    found = rows(("mini", "mark", [*suspects(), *bad]))
    assert found["models"]["P[R < 0.75 N]"].startswith("20/20 (<= 1.000")
    assert found["models"]["R high / N"] == "0.000"
    assert (found["images"]["R high / N"], found["images"]["separated"]) == (
        "none",
        "no",
    )


def test_suspects_that_are_not_there_make_no_bound():
    found = rows(("mini", "mark", suspects(marked=0)))
    assert found["models"]["P[R < 0.75 N]"] == "vacuous: no suspects"
    assert found["images"]["P[R < 0.75 N]"].startswith("vacuous")
    assert found["images"]["l(x)"] == "0.000"


def test_a_copy_that_cannot_be_read_is_missed_at_every_threshold():
    read = suspects()
    lost = dataclasses.replace(read[0], status="incompatible", evidence=None, suspect_digest="")
    found = rows(("mini", "mark", [lost, *read[1:]]))
    assert {row["marked / innocent"] for row in found.values()} == {"20 / 40"}
    upper = stats.beta.ppf(0.95, 2, 19)  # Clopper and Pearson of 1 of 20
    assert found["models"]["P[R < 0.75 N]"] == f"1/20 (<= {upper:.3f})"
    assert (found["models"]["R high / N"], found["models"]["separated"]) == ("0.000", "no (seen)")
    # All 40 images together: 19 of 20 copies, or 19 * 32 of 20 * 32 bits.
    for level, hits, trials in (("images", 19, 20), ("bits, as printed", 19 * 32, 20 * 32)):
        lower = stats.beta.ppf(bounds.ALPHA / 40, hits, trials - hits + 1)
        assert found[level]["l(x)"] == f"{lower:.3f}"
    groups = [[("mini", "mark", one)] for one in ([lost, *read[1:]], read)]
    noted = [bounds.bounds_table(OUTLINE, group).notes for group in groups]
    assert [bounds.UNREAD in notes for notes in noted] == [True, False]


def test_one_model_is_one_suspect():
    twice = [*suspects(), *suspects()]
    assert rows(("mini", "mark", twice)) == rows(("mini", "mark", suspects()))


def test_methods_that_count_no_bits_have_no_rows():
    other = record(0, evidence([1, 2], statistic="mutation"))
    assert bounds.bounds_table(OUTLINE, [("mini", "print", [other])]).rows == ()


def test_suspects_read_on_different_images_are_said_to_be():
    ragged = [record(0, evidence([1, 2])), record(1, evidence([1]))]
    found = rows(("mini", "mark", ragged))
    assert "expected suspects read with one secret" in found["images"]["separated"]


@pytest.mark.parametrize("vacuous", [True, False])
def test_a_bound_near_one_is_never_printed_as_a_number(vacuous):
    found = rows(("mini", "mark", suspects(marked=5 if vacuous else 700, errors=9)))
    cell = found["images"]["P[R < 0.75 N]"]
    assert cell.startswith("vacuous") if vacuous else cell == "no bound below 0.95"


def test_the_table_can_be_written(tmp_path):
    made = bounds.bounds_table(OUTLINE, [("mini", "mark", suspects())])
    assert {p.name for p in write_tables(Path(tmp_path), [made])} == {"bounds.md", "bounds.csv"}
