"""The exact null of evidence: p-values against counting, far below what a float holds."""

import math
from fractions import Fraction

import pytest

from bench.records.nouns import Evidence, ExactNull, Rule, UserError
from bench.verdicts.exact.coins import least_log10_p, log10_p, p_text, power_of_ten
from bench.verdicts.verdict import decide_exactly

RULE = Rule("agreement", ">=", 0.5)


def evidence(steps, levels=1):
    agreement = tuple(0.5 + step / (2 * levels) for step in steps)
    return Evidence(agreement, agreement, RULE, "bit", 0.5, null=ExactNull(levels))


def counted(steps):
    """Count all sign flips, in whole numbers."""
    ways = {0: 1}
    for step in map(abs, steps):
        made = {}
        for value, count in ways.items():
            for flipped in (value + step, value - step):
                made[flipped] = made.get(flipped, 0) + count
        ways = made
    share = Fraction(sum(c for v, c in ways.items() if v >= sum(steps)), 2 ** len(steps))
    return math.log10(share.numerator) - math.log10(share.denominator)


CASES = [
    ([1] * 10 + [-1] * 3, 1),
    ([1] * 400 + [-1] * 100, 1),
    ([1] * 1999 + [-1], 1),
    ([1] * 2000, 1),
    ([-1] * 7, 1),
    ([1, -1], 1),
    ([0, 0, 1], 1),
    ([0, 0, 0], 1),
    ([3, -5, 7, 1, 0, -2, 4], 7),
    ([15, -1, 9, 12, -3] * 60, 15),
    ([15, 14, 13, 2, 1] * 200, 15),
    ([255] * 30 + [-1] * 3, 255),
]


@pytest.mark.parametrize(("steps", "levels"), CASES)
def test_p_is_the_share_of_all_sign_flips(steps, levels):
    found = log10_p(evidence(steps, levels))
    assert found == pytest.approx(counted(steps), rel=1e-9, abs=1e-9)
    assert found >= least_log10_p(evidence(steps, levels)) - 1e-9


def test_p_goes_below_what_a_float_holds():
    found = log10_p(evidence([1] * 4000 + [-1] * 40))
    assert found < -1000
    assert power_of_ten(found) > 0
    verdict = decide_exactly(evidence([1] * 4000), 0.05)
    assert (verdict.outcome, verdict.needed) == ("owned", 0)
    assert verdict.log10_p == pytest.approx(-4000 * math.log10(2))


@pytest.mark.parametrize(
    ("exponent", "text"),
    [
        (0.0, "1.000"),
        (math.log10(0.031), "0.031"),
        (math.log10(4.2e-5), "4.2e-05"),
        (-122.0, "1.0e-122"),
        (-412 + math.log10(1.3), "1.3e-412"),
        (-4 + 1e-9, "1.0e-04"),
        (math.log10(9.99e-7), "1.0e-06"),
    ],
)
def test_p_is_written_as_tables_write_it(exponent, text):
    assert p_text(exponent) == text


def test_a_verdict_needs_no_innocents_but_an_alpha():
    assert decide_exactly(evidence([1] * 5), 0.05).outcome == "owned"
    assert decide_exactly(evidence([1] * 4), 0.05).outcome == "not owned"
    with pytest.raises(UserError, match="expected alpha between 0 and 1, got 0"):
        decide_exactly(evidence([1]), 0)


def test_agreements_between_two_steps_are_refused():
    with pytest.raises(ValueError, match="expected agreements in steps of 1/2 from 1/2"):
        Evidence((0.7,), (0.7,), RULE, "bit", 0.5, null=ExactNull())
    with pytest.raises(ValueError, match="expected 1 to 255 levels, got 0"):
        ExactNull(0)


def test_evidence_without_an_exact_null_has_no_such_p():
    with pytest.raises(ValueError, match="expected evidence with an exact null, got none"):
        log10_p(Evidence((1.0,), (1.0,), RULE, "bit", 0.5))
