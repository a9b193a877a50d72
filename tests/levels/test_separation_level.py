"""How often an interval for an area misses, and many verdicts or comparisons err: by simulation."""

import itertools
import math

import numpy as np
import pytest
from made import nulls
from scipy import stats
from simulated import SCORES, SIZES, allowed, compared, named, pairs

from bench.verdicts.families import holm, paired_together
from bench.verdicts.separation import detection_at, separation
from bench.verdicts.verdict import decide

drawn = pytest.mark.parametrize("draw", ["skewed", "all zero", "tied", "correlated"])


@pytest.fixture(autouse=True)
def no_collecting(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels does, on every call of Holm's


@pytest.mark.parametrize(
    ("models", "keys", "gap", "stranger", "key", "least"),
    [
        (20, 1, 1.0, 1.0, 0.0, 0.90),
        (10, 8, 1.0, 1.0, 0.5, 0.93),  # strangers read with every key, copies with their own
        (20, 1, 3.5, 1.0, 0.0, 0.95),  # most populations drawn do not overlap
    ],
)
def test_the_interval_for_the_area_covers_it(models, keys, gap, stranger, key, least):
    rng, covered, trials = np.random.default_rng(0), 0, 150
    truth = stats.norm.cdf(gap / math.sqrt(1 + stranger**2 + 0.3**2 + 2 * key**2))
    for _ in range(trials):
        lifts, own = rng.normal(0, key, (2, keys)), rng.normal(0, stranger, models)
        copies, others = [], []
        for k in range(keys):
            copies += named(gap + lifts[0, k] + rng.normal(size=models), f"m {k}", k)
            others += named(lifts[1, k] + own + rng.normal(0, 0.3, models), "s", k)
        low, high = separation(copies, others, rng).interval
        covered += low <= truth <= high
    assert covered / trials >= least - 3.3 * math.sqrt(least * (1 - least) / trials)


@pytest.mark.parametrize(
    ("marked", "innocent", "truth"),
    [
        (
            lambda n, rng: rng.beta(0.6, 3, n),
            lambda n, rng: rng.beta(0.3, 4, n),
            stats.beta(0.6, 3).expect(stats.beta(0.3, 4).cdf),
        ),
        # Of 12 equally likely pairs of 0, .5, 1, 1.5 and 0, .5, 1 six are won and three are ties.
        (lambda n, rng: rng.integers(0, 4, n) / 2, lambda n, rng: rng.integers(0, 3, n) / 2, 0.5),
        (lambda n, rng: np.maximum(0, rng.normal(size=n)), lambda n, _: np.zeros(n), 0.5),
    ],
    ids=["skewed", "tied", "all zero"],
)
@pytest.mark.parametrize("n", SIZES)
def test_the_interval_for_the_area_covers_it_whatever_the_scores(n, marked, innocent, truth):
    rng, covered, trials, least = np.random.default_rng(n), 0, 100, 0.9
    for _ in range(trials):
        copies, others = named(marked(min(n, 40), rng), "m"), named(innocent(n, rng), "i")
        low, high = separation(copies, others, rng).interval
        covered += low <= truth <= high
    assert covered / trials >= least - 3.3 * math.sqrt(least * (1 - least) / trials)


@drawn
@pytest.mark.parametrize("n", SIZES)
def test_detection_holds_the_rate_it_states_on_a_new_innocent(draw, n):
    rng, trials, rate, called = np.random.default_rng(n), 400, 0.1, 0
    for _ in range(trials):
        *others, new = SCORES[draw](rng, n + 1).tolist()
        found = detection_at([("new", new)], pairs(others, "i"), rate)
        called += bool(found.true_positive_rate)
    assert called / trials <= allowed(rate, trials)


@drawn
@pytest.mark.parametrize("n", SIZES)
def test_holm_calls_any_innocent_owned_with_the_chance_alpha_at_most(draw, n):
    """Four verdicts among the same innocents depend on each other as a table's do."""
    rng, trials, alpha, wrong = np.random.default_rng(n), 200, 0.2, 0
    for _ in range(trials):
        *scores, a, b, c, d = SCORES[draw](rng, n + 4).tolist()
        verdicts = [decide(s, nulls(scores), alpha) for s in (a, b, c, d)]
        wrong += "owned" in holm(verdicts, alpha).outcomes
    assert wrong / trials <= allowed(alpha, trials)


@pytest.mark.parametrize("clusters", [4, 6, 12])
def test_the_paired_test_holds_its_level_when_copies_share_their_clusters_luck(clusters):
    rng, trials, alpha, wrong = np.random.default_rng(clusters), 200, 0.1, 0
    for _ in range(trials):
        # Either method reads all copies of a cluster with a chance of its own: strong correlation.
        chance = rng.beta(0.5, 0.5, (2, clusters, 1))
        first, second = rng.random((2, clusters, 8)) < chance
        wrong += compared(first, second, alpha).outcome not in ("no difference", "undecided")
    assert wrong / trials <= allowed(alpha, trials)


@pytest.mark.parametrize("clusters", [6, 12])
def test_comparisons_passed_together_err_with_the_chance_alpha_at_most(clusters):
    """All pairs of four methods that are alike, on the same copies: dependent as a table's are."""
    rng, trials, alpha, wrong = np.random.default_rng(clusters), 150, 0.2, 0
    for _ in range(trials):
        luck = rng.beta(0.5, 0.5, (4, clusters, 1))
        hits = rng.random((4, clusters, 4)) < luck
        pairs = [compared(a, b, alpha) for a, b in itertools.combinations(hits, 2)]
        decided = [found.outcome for found, _ in paired_together(pairs, alpha)]
        wrong += any(outcome.endswith("more") for outcome in decided)
    assert wrong / trials <= allowed(alpha, trials)
