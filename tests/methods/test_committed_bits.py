import dataclasses

import pytest
import torch

from bench import testing
from bench.models.building import randomised
from bench.models.meter import measuring
from bench.models.suspect import View
from bench.models.vision import Architecture, clone
from bench.records.nouns import Incompatible, UserError
from bench.testing import context, methods, owner, stranger
from bench.types import ExactNull, Protected, Sizes
from bench.verdicts.exact.coins import log10_p
from bench.verdicts.verdict import decide_exactly
from methods.committed_bits import CommittedBits, HiddenCommittedBits, coins, reading
from methods.committed_bits.embedding import displacements, shapes
from methods.patterns import patterns

QUICK = {
    **{"images": 16, "bits": 8, "steps": 100, "batch": 16, "lr": 5e-3, "decoys": 64, "public": 192},
    "rehearsed": 0.0,
}
METHOD = CommittedBits(**QUICK)
HIDDEN = HiddenCommittedBits(**QUICK)


@pytest.fixture(scope="module")
def made():
    return methods._protected(METHOD)  # which the checks share


@pytest.fixture(scope="module")
def hidden():
    return methods._protected(HIDDEN)


def read(made, suspect, method=METHOD, **changed):
    secret = {**made.secret, **changed}
    return method.extract(secret, View(suspect, method.needs), context(1, "owner"))


def test_the_released_model_is_owned_and_no_innocent_is(made):
    assert log10_p(read(made, made.model)) < -6
    for innocent in (owner(), stranger(0), stranger(1)):
        assert log10_p(read(made, innocent)) > -3


def test_a_verdict_needs_nothing_but_the_evidence(made):
    verdict = decide_exactly(read(made, made.model), 1e-6)
    assert (verdict.outcome, verdict.needed) == ("owned", 0)


def test_hidden_features_are_read_as_well(hidden):
    assert log10_p(read(hidden, hidden.model, HIDDEN)) < -6
    assert log10_p(read(hidden, owner(), HIDDEN)) > -3
    assert {"wanted.0", "wanted.1", "wanted.2"} <= hidden.secret.keys()


def test_p_is_uniform_over_redrawn_bits_on_an_unmarked_model(made):
    rng = torch.Generator().manual_seed(0)
    first = read(made, owner())
    drawn = [
        read(Protected(made.model, METHOD.redrawn(made.secret, rng)), owner()) for _ in range(20)
    ]
    steps = {tuple(map(abs, e.null.steps(e.agreement))) for e in (first, *drawn)}
    assert len(steps) == 1
    p_values = sorted(10 ** log10_p(e) for e in drawn)
    assert max(abs(p - (i + 0.5) / 20) for i, p in enumerate(p_values)) < 0.4


class Peeking(CommittedBits):
    """Turns every displacement a little towards its bit before it is scaled."""

    def extract(self, secret, suspect, ctx):
        honest = super().extract(secret, suspect, ctx)
        steps = honest.null.steps(honest.agreement)
        agreement = tuple(0.5 + min(15, s + 2) / 30 for s in steps)
        return dataclasses.replace(honest, agreement=agreement)


class Unmoved(CommittedBits):
    def redrawn(self, secret, rng):
        return secret


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Peeking, "distances from 1/2 depend on the bits"),
        (Unmoved, "bits as they were"),
    ],
)
def test_the_check_of_exact_nulls_fails_a_method_that_looks(broken, said, made, monkeypatch):
    monkeypatch.setattr(methods, "_protected", lambda method: made)
    with pytest.raises(AssertionError, match=said):
        testing.method_with_an_exact_null_has_fair_bits(broken(**QUICK))


def test_features_in_another_basis_and_scale_are_read_alike(made):
    plain = log10_p(read(made, made.model))
    features = turned(made.model)
    found = METHOD.extract(made.secret, features, context(1, "owner"))
    assert log10_p(found) == pytest.approx(plain, rel=0.3)
    assert log10_p(found) < -5


class turned:
    """A suspect that answers in another basis, permuted, scaled and shifted, of another width."""

    def __init__(self, model, width=96):
        rng = torch.Generator().manual_seed(3)
        self._view = View(model, METHOD.needs)
        self._turn = torch.randn(model.width, width, generator=rng)

    def features(self, images):
        return self._view.features(images) @ self._turn * 7 + 3


def test_models_of_other_widths_are_read(made):
    for name in ("mini-wide", "mini-deep"):
        other = randomised(Architecture("embedded", name), 0)
        assert log10_p(read(made, other)) > -3


def test_a_suspect_without_such_a_block_or_with_infinite_features_is_incompatible(made, hidden):
    method = dataclasses.replace(HIDDEN, block=7)
    with pytest.raises(Incompatible, match="expected a block 7, got 6 blocks"):
        method.protect(owner(), context(0, "owner"))
    assert "expected a block 7" in method.unreadable(owner(), owner())
    assert HIDDEN.unreadable(owner(), owner()) == ""
    broken = clone(owner())
    with torch.no_grad():
        next(broken.blocks.parameters()).fill_(torch.nan)
    with pytest.raises(Incompatible, match="expected finite features"):
        read(made, broken)


@pytest.mark.parametrize("name", ["nonce", "owner", "triggers", "public", "directions.0", "bits"])
def test_a_secret_that_was_changed_anywhere_is_refused(made, name):
    value = made.secret[name].clone()
    value.view(torch.uint8).view(-1)[0] ^= 1
    with pytest.raises(UserError, match="expected the bits that the secret commits to"):
        read(made, owner(), **{name: value})


@pytest.mark.parametrize("changed", [{"levels": 1}, {"holder": "somebody else"}])
def test_a_rule_that_was_changed_is_refused(made, changed):
    with pytest.raises(UserError, match="expected the bits that the secret commits to"):
        read(made, owner(), dataclasses.replace(METHOD, **changed))


def test_bits_follow_from_the_secret_alone_and_are_fair():
    secret = {"nonce": torch.zeros(32, dtype=torch.uint8)}
    one = coins.with_bits(secret, (100, 100), {"levels": 1}, 0)["bits"]
    again = coins.with_bits({**secret, "bits": one}, (100, 100), {"levels": 1}, 0)["bits"]
    other = coins.with_bits(secret, (100, 100), {"levels": 2}, 0)["bits"]
    assert torch.equal(one, again)
    assert abs(float(one.double().mean()) - 0.5) < 0.03
    assert abs(float((one == other).double().mean()) - 0.5) < 0.03


def test_one_level_counts_bits(made):
    method = dataclasses.replace(METHOD, levels=1)
    evidence = read(Protected(made.model, method._with_bits(made.secret)), made.model, method)
    assert evidence.null == ExactNull(1)
    assert set(evidence.agreement) <= {0.0, 0.5, 1.0}


def test_passes_are_counted(made):
    ctx = context(0, "owner")
    sizes = Sizes(len(ctx.images), len(ctx.held_out), 6, 65, 48)
    few = dataclasses.replace(METHOD, steps=2, rehearsed=1.0)
    with measuring(ctx.device) as meter:
        few.protect(owner(), ctx)
    told = few.protect_passes(sizes)
    assert (meter.forward_passes, meter.backward_passes) == (told.forward, told.backward)
    with measuring(ctx.device) as meter:
        read(made, owner())
    assert meter.forward_passes == METHOD.extract_passes(sizes).forward


def test_what_is_mapped_and_missed():
    rng = torch.Generator().manual_seed(0)
    seen, asked = (torch.randn(n, 12, generator=rng).double() for n in (80, 5))
    turn = torch.randn(12, 6, generator=rng).double()
    found, missed = reading._mapped(seen, asked, seen @ turn + 2)
    assert torch.allclose(found, asked @ turn + 2, atol=1e-3)
    assert missed.abs().max() < 1e-3


def test_displacements_are_as_long_as_told_and_patterns_are_images():
    directions = torch.linalg.qr(torch.randn(6, 6))[0][:, :4]
    moved = displacements(torch.randint(2, (9, 4)), directions, 8.0)
    assert torch.allclose(moved.norm(dim=1), torch.full((9,), 8.0))
    drawn = patterns(3, (40, 56), torch.Generator().manual_seed(0))
    assert (drawn.shape, drawn.dtype) == ((3, 3, 40, 56), torch.uint8)
    varied = shapes(30, (40, 56), torch.Generator().manual_seed(0))
    assert (varied.shape, varied.dtype) == ((30, 3, 40, 56), torch.uint8)
    assert varied.float().mean((1, 2, 3)).std() > 40  # dark and bright ones
