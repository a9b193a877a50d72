"""One claim, a copy for every user: whose copy is a suspect, of a million users?"""

import dataclasses
import math

import pytest
import torch
from commands import bench
from safetensors.torch import load_file, save_file

import bench as api
from bench.models.suspect import View
from bench.models.weights import Loaded, headless, weights_digest
from bench.registry import METHODS
from bench.runs.claims import making, tracing
from bench.runs.claims.key import write
from bench.runs.claims.reading import nothing_else
from bench.testing import CPU, context, owner, stranger
from methods import commitment

QUICK = {
    **{"images": 24, "bits": 16, "steps": 300, "batch": 24, "lr": 5e-3, "decoys": 64},
    **{"public": 192},
}
pytestmark = pytest.mark.slow

MILLION = 1_000_000
USERS = (7, 999_999)


def loaded(model):
    bare = headless(model)
    return Loaded(bare, {}, weights_digest(bare), ())


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The key of a claim, and two users' copies of it with their keys."""
    ctx = context(0, "owner")
    pools = ctx.images, ctx.held_out
    spec = METHODS.spec("committed_bits", QUICK)
    first = making.protect(owner(), spec, pools, making.generator(0, ""), CPU).key
    home = tmp_path_factory.mktemp("copies")
    homes = {str(user): home / str(user) for user in USERS}
    made = tracing.copy_for_users(owner(), first, pools, homes, CPU, lambda made: None)
    models = [load_file(one.model_file) for one in made]
    return first, made, models


def averaged(states):
    """Return the average of copies, as their users make it together."""
    both = owner()
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    both.load_state_dict(mean, strict=False)
    return both


def test_copies_share_all_of_a_claim_but_their_bits(copies):
    first, made, _ = copies
    for user, one in zip(USERS, made, strict=True):
        assert one.key.method.args["user"] == user
        different = {
            name
            for name, value in one.key.secret.items()
            if not torch.equal(value, first.secret[name])
        }
        assert different == {commitment.BITS}
        assert one.released.rate > 0.6  # drawn anew every time: 0.70 to 0.80, and 0.5 by chance


@pytest.mark.parametrize("which", [0, 1])
def test_of_a_million_users_the_one_is_named_whose_copy_it_is(copies, which):
    first, _, models = copies
    found = tracing.trace("a copy", loaded(averaged([models[which]])), first, MILLION, 1e-6, CPU)
    assert [one.user for one in found.named] == [USERS[which]]
    assert found.closest[0].log10_p < -6


def test_two_users_who_average_their_copies_are_both_named(copies):
    first, _, models = copies
    found = tracing.trace("an average", loaded(averaged(models)), first, MILLION, 0.01, CPU)
    assert {one.user for one in found.named} == set(USERS)


def test_nobody_is_named_for_a_model_that_is_no_copy(copies):
    first = copies[0]
    for innocent in (owner(), stranger(0), stranger(1)):
        found = tracing.trace("innocent", loaded(innocent), first, MILLION, 0.01, CPU)
        assert found.named == ()
        assert len(found.closest) == 64


def test_innocent_users_have_the_p_of_coins(copies):
    """Each user's bits are independent coins: one p of a stranger for every user is a sample."""
    first = copies[0]
    method, model = first.reader, stranger(0)
    view = View(model, method.needs)
    users = 2000
    every = method.closest(first.secret, view, nothing_else(model, CPU), users, users)
    p_values = sorted(10 ** tracing.log10_p(evidence) for evidence in every.values())
    distance = max(abs(p - (i + 0.5) / users) for i, p in enumerate(p_values))
    assert distance < 1.63 / math.sqrt(users)  # Kolmogorov-Smirnov at 1 %
    scores = [evidence.score for evidence in every.values()]
    assert scores == sorted(scores, reverse=True)


def test_the_command_names_users_and_refuses_what_cannot_be(copies, tmp_path):
    first, _, models = copies
    key = tmp_path / "key.safetensors"
    write(key, first)
    save_file(averaged(models).state_dict(), tmp_path / "average.safetensors")
    save_file(owner().state_dict(), tmp_path / "clean.safetensors")
    more = ("--key", key, "--device", "cpu", "--users")
    said = bench("trace", tmp_path / "average.safetensors", *more, MILLION)
    assert said.status == 0, said.err
    for user in USERS:
        assert f"named      user {user}: 0." in said.out
    assert "(times 1000000 users)" in said.out
    said = bench("trace", tmp_path / "clean.safetensors", *more, 10)
    assert (said.status, said.out.splitlines()[-1]) == (
        1,
        "named      nobody, at alpha = 0.01 of all users together",
    )
    both = {"state_dict": owner().state_dict(), "state_dict_ema": averaged(models).state_dict()}
    torch.save(both, tmp_path / "both.pth")
    said = bench("trace", tmp_path / "both.pth", *more, 10)
    assert (
        "note       of state_dict and state_dict_ema it is state_dict_ema, the average" in said.out
    )
    given = ("protect", "mini", "--images", "photos", "-o", tmp_path / "out", "--copy-of", key)
    said = bench(*given, "--users", "alice")
    assert said.status == 2
    assert "--users: expected numbers such as 1,2, got 'alice'" in said.err
    said = bench(*given, "--users", "1", "--method", "ipguard")
    assert said.status == 2
    assert "--copy-of: expected no --method" in said.err


def test_a_method_without_copies_is_refused(copies, tmp_path):
    other = dataclasses.replace(copies[0], method=METHODS.spec("ipguard", {}))
    with pytest.raises(api.UserError, match=r"tells users apart \(.*committed_bits"):
        tracing.trace("a copy", loaded(owner()), other, 10, 0.01, CPU)
