"""How often an innocent of each kind is called owned, however alike innocents are: by simulation.

Every innocent is one more draw of its kind, and the other kinds meet it as mildly as they can.
Levels are realised ones; the power beside them is that of a suspect two deviations above.
"""

import random

import pytest
from simulated import allowed

from bench.verdicts.innocents import Innocents
from bench.verdicts.verdict import decide, innocents_needed

ALPHA, TRIALS = 0.05, 3000

POWER = 2.0
"""Standard deviations by which a guilty suspect stands above innocents."""


def named(scores):
    return {str(number): score for number, score in enumerate(scores)}


def realised(draw, seed=0, trials=TRIALS):
    """Return the shares of innocents and of guilty suspects called owned.

    `draw` returns the innocents of a claim, the attack, and the score of an innocent after it.
    """
    rng, level, power = random.Random(seed), 0, 0
    for _ in range(trials):
        innocents, attack, score = draw(rng)
        null = innocents.against(attack, ALPHA)
        level += decide(score, null, ALPHA).outcome == "owned"
        power += decide(score + POWER, null, ALPHA).outcome == "owned"
    print(f"level {level / trials:.3f}, power {power / trials:.3f}")
    return level / trials, power / trials


def normal(rng, count):
    return [rng.gauss(0, 1) for _ in range(count)]


def tied(rng, count):
    return [rng.randint(0, 2) / 2 for _ in range(count)]


MILD = {"": named([-9.0] * 19)}
"""Innocents of another kind that nobody has trouble with."""

CLUSTERS = {f"mild {i}": {f"mild {i}": -9.0} for i in range(19)}


def of_strangers(scores, marks):
    descendants = CLUSTERS if marks else None
    return Innocents({"": named(scores)}, descendants, MILD if marks else {})


def of_other_keys(scores):
    return Innocents(MILD, CLUSTERS, {"": named(scores)})


@pytest.mark.parametrize("marks", [False, True], ids=["fingerprint", "mark"])
@pytest.mark.parametrize("count", [19, 20, 40, 99])
def test_against_strangers_alone(count, marks):
    def draw(rng):
        *scores, own = normal(rng, count + 1)
        return of_strangers(scores, marks), "", own

    level, power = realised(draw)
    exact = (count + 1) // 20 / (count + 1)  # ranks up to alpha are each as likely as any
    assert abs(level - exact) <= allowed(exact, TRIALS) - exact
    assert power >= 0.3


@pytest.mark.parametrize("marks", [False, True], ids=["fingerprint", "mark"])
@pytest.mark.parametrize("count", [0, 1, 5, 18])
def test_few_strangers_decide_nothing(count, marks):
    def draw(rng):
        *scores, own = normal(rng, count + 1)
        return of_strangers(scores, marks), "", own

    assert realised(draw, trials=100) == (0, 0)


@pytest.mark.parametrize("count", [19, 40, 99])
def test_heavy_ties_cost_power_and_never_the_level(count):
    def draw(rng):
        *scores, own = tied(rng, count + 1)
        return of_strangers(scores, marks=False), "", own

    level, power = realised(draw)
    assert level <= allowed(ALPHA, TRIALS)
    assert power == 1.0  # above every tie


def attacked(rng, attacks, seeds, likeness, lift=0.0):
    """Twins of some attacks: a share `likeness` of their variance is their attack's own."""
    twins = {}
    for number in range(attacks):
        luck = rng.gauss(lift, 1)
        own = [likeness**0.5 * luck + (1 - likeness) ** 0.5 * rng.gauss(0, 1) for _ in range(seeds)]
        twins[f"attack {number}"] = {f"{number} {i}": s for i, s in enumerate(own)}
    return twins


def holds_its_level_among_clusters(draw):
    level, power = realised(draw)
    assert level <= allowed(ALPHA, TRIALS)
    assert power >= 0.1


LIKENESS = pytest.mark.parametrize("likeness", [0.0, 0.5, 0.9, 1.0])
"""Intraclass correlation: real descendants of one attack showed 0.35 to 0.61."""


@LIKENESS
@pytest.mark.parametrize("seeds", [1, 4])
def test_an_innocent_of_an_attack_with_few_twins_is_ranked_among_clusters(seeds, likeness):
    """The suspect's own attack is one of the clusters: its own twins stand among innocents."""

    def draw(rng):
        twins = attacked(rng, 20, seeds + 1, likeness)
        own = twins["attack 0"].pop(f"0 {seeds}")
        return Innocents(MILD, twins, MILD), "attack 0", own

    holds_its_level_among_clusters(draw)


@LIKENESS
def test_an_innocent_of_an_attack_that_nobody_foresaw_is_ranked_among_clusters(likeness):
    def draw(rng):
        twins = attacked(rng, 21, 4, likeness)
        own = next(iter(twins.pop("attack 0").values()))
        return Innocents(MILD, twins, MILD), "attack 0", own

    holds_its_level_among_clusters(draw)


@LIKENESS
def test_an_innocent_of_an_attack_with_twins_enough_is_ranked_within_it(likeness):
    def draw(rng):
        twins = attacked(rng, 3, 20, likeness, lift=2.0)
        own = twins["attack 0"].pop("0 19")
        return Innocents(MILD, twins, MILD), "attack 0", own

    level, power = realised(draw)
    assert abs(level - ALPHA) <= allowed(ALPHA, TRIALS) - ALPHA or likeness == 1.0
    assert level <= allowed(ALPHA, TRIALS)
    assert power >= 0.4


def test_ranking_every_twin_as_a_draw_of_its_own_would_break_the_level():
    """What clusters are for: twenty twins of five attacks, an innocent of a sixth."""
    rng, wrong, trials = random.Random(0), 0, TRIALS
    for _ in range(trials):
        twins = attacked(rng, 6, 4, 0.9)
        own = next(iter(twins.pop("attack 0").values()))
        pooled = {"attack 0": {k: v for group in twins.values() for k, v in group.items()}}
        null = Innocents(MILD, pooled, MILD).against("attack 0", ALPHA)
        wrong += decide(own, null, ALPHA).outcome == "owned"
        few = Innocents(MILD, twins, MILD).against("attack 0", ALPHA)
        assert decide(99.0, few, ALPHA).outcome == "undecided"
    assert wrong / trials > allowed(ALPHA, trials)


@pytest.mark.parametrize("alike", [False, True], ids=["untouched", "alike"])
def test_an_attack_that_lifts_everybody_by_two_deviations_is_ranked_alike(alike):
    def draw(rng):
        *scores, own = normal(rng, 21)
        went = named(score + 2 for score in scores)
        strangers = {"": named(normal(rng, 20))} | ({"lift": went} if alike else {})
        return Innocents(strangers), "lift", own + 2

    level, power = realised(draw)
    assert level <= allowed(ALPHA, TRIALS)
    assert (power > 0.3) == alike  # without strangers attacked alike nothing is decided


def test_ranking_an_attacked_fingerprint_among_untouched_strangers_would_break_the_level():
    def draw(rng):
        *scores, own = normal(rng, 21)
        return Innocents({"": named(scores)}), "", own + 2

    level, _ = realised(draw)
    assert level > 0.4


@pytest.mark.parametrize("count", [1, 2, 4, 18])
def test_another_keys_copy_is_called_owned_as_often_as_the_verdict_says(count):
    """Too few other keys hold no level but the one that is printed: 1 / (k + 1)."""

    def draw(rng):
        *scores, own = normal(rng, count + 1)
        return of_other_keys(scores), "", own

    level, _ = realised(draw)
    chance = 1 / (count + 1)
    assert abs(level - chance) <= allowed(chance, TRIALS) - chance
    verdict = decide(9.0, of_other_keys([0.0] * count).against("", ALPHA), ALPHA)
    assert verdict.text == f"owned; other keys only at 1/{count + 1}"


@pytest.mark.parametrize("draws", [normal, tied])
@pytest.mark.parametrize("count", [19, 40])
def test_enough_other_keys_hold_the_level(count, draws):
    assert count >= innocents_needed(ALPHA)

    def draw(rng):
        *scores, own = draws(rng, count + 1)
        return of_other_keys(scores), "", own

    level, power = realised(draw)
    assert level <= allowed(ALPHA, TRIALS)
    assert power >= 0.3


def test_other_keys_attacked_alike_hold_the_level_under_an_attack_that_lifts():
    def draw(rng):
        *scores, own = normal(rng, 20)
        keys = {"": named(normal(rng, 19)), "lift": named(score + 2 for score in scores)}
        return Innocents(MILD, CLUSTERS, keys), "lift", own + 2

    level, power = realised(draw)
    assert abs(level - ALPHA) <= allowed(ALPHA, TRIALS) - ALPHA
    assert power >= 0.3
