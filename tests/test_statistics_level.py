"""How often a verdict calls an innocent owned, by simulation: seeded, over every kind of null."""

import math

import numpy as np
import pytest

from bench import statistics

SIZES = (5, 19, 40, 99, 299)
ALPHAS = (0.05, 0.2)


def correlated(rng, n):
    return rng.normal() + 0.3 * rng.normal(size=n)


SCORES = {
    "skewed": lambda rng, n: rng.beta(0.3, 4, n),
    "heavy-tailed": lambda rng, n: rng.standard_cauchy(n),
    "tied": lambda rng, n: rng.integers(0, 3, n) / 2,
    "mostly zero": lambda rng, n: rng.binomial(1, 0.03, n) * rng.random(n),
    "all zero": lambda rng, n: np.zeros(n),
    "correlated": correlated,
}


def most(alpha, trials):
    # 3.3 standard errors: the exact level passes by chance alone in all but 1 of 2,000 runs.
    return alpha + 3.3 * math.sqrt(alpha * (1 - alpha) / trials)


def shares(draw, n, alpha, trials=600, marks=False):
    """Return how often an innocent is called owned and how often it is left undecided."""
    rng, outcomes = np.random.default_rng(n), []
    for trial in range(trials):
        *innocent, suspect = draw(rng, n + 1).tolist()
        nulls = [innocent, None]
        if marks:  # an innocent of one null meets any other null at all
            nulls = [innocent, rng.normal(trial % 3 - 1, 1, n).tolist()]
            nulls = nulls if trial % 2 else nulls[::-1]
        outcomes.append(statistics.decide(suspect, *nulls, alpha).outcome)
    return outcomes.count("owned") / trials, outcomes.count("undecided") / trials


@pytest.mark.parametrize("draw", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("marks", [False, True], ids=["fingerprint", "mark"])
def test_an_innocent_is_called_owned_with_the_chance_alpha_at_most(draw, n, marks):
    for alpha in ALPHAS:
        owned, undecided = shares(draw, n, alpha, marks=marks)
        assert owned <= most(alpha, 600)
        assert undecided == (n < statistics.innocents_needed(alpha))


@pytest.mark.parametrize("name", ["skewed", "heavy-tailed", "correlated"])
@pytest.mark.parametrize("n", [19, 99, 299])
def test_the_whole_of_alpha_is_used_where_scores_never_tie(name, n):
    owned, _ = shares(SCORES[name], n, 0.05, trials=1500)
    assert abs(owned - 0.05) <= most(0.05, 1500) - 0.05


@pytest.mark.parametrize("n", SIZES)
def test_innocents_that_all_score_zero_are_never_called_and_a_single_step_above_them_is(n):
    owned, _ = shares(SCORES["all zero"], n, 0.2)
    assert owned == 0
    verdict = statistics.decide(1e-9, [0.0] * n, None, 0.2)
    assert (verdict.outcome, verdict.p_value) == ("owned", 1 / (n + 1))


@pytest.mark.parametrize("n", [5, 18])
def test_too_few_innocents_leave_everybody_undecided_and_the_number_needed_is_told(n):
    for score in (0.0, 1.0, math.inf):
        verdict = statistics.decide(score, [0.1] * n, [0.1] * 299, 0.05)
        assert (verdict.outcome, verdict.needed) == ("undecided", 19)
        assert verdict.attainable == 1 / (n + 1)


def test_the_check_would_catch_a_verdict_that_is_too_generous(monkeypatch):
    """Counting only innocents that score strictly higher breaks the level where scores tie."""
    generous = lambda score, null: (1 + sum(o > score for o in null)) / (1 + len(null))  # noqa: E731
    monkeypatch.setattr(statistics, "rank_p_value", generous)
    owned, _ = shares(SCORES["tied"], 40, 0.05)
    assert owned > most(0.05, 600)
