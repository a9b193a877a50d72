"""A claim with an exact null: judged without innocents, its bits checked when it is read."""

import dataclasses
import re

import pytest
import torch

from bench.cli.claims.protecting import advice
from bench.cli.claims.verifying import sentences
from bench.models.weights import Loaded, headless, weights_digest
from bench.records.nouns import UserError
from bench.registry import METHODS
from bench.runs.claims import claim, key, making
from bench.runs.claims.reading import read
from bench.testing import CPU, context, owner
from methods.committed_bits import CommittedBits

SETTINGS = {
    **{"images": 16, "bits": 8, "steps": 100, "batch": 16, "lr": 5e-3, "decoys": 64, "public": 192},
    **{"rehearsed": 0.0, "holder": "Ada"},
}


ALPHA = 1e-3
"""One innocent of twenty would be owned at 0.05, and this key's clean owner is: by chance."""


@pytest.fixture(scope="module")
def made():
    ctx = context(0, "owner")
    spec = METHODS.spec("committed_bits", SETTINGS)
    pools = ctx.images, ctx.held_out
    return making.protect(owner(), spec, pools, making.generator(0, ""), CPU)


def finding(made, model, keys=1):
    loaded = Loaded(headless(model), {}, weights_digest(headless(model)), ())
    given = [made.key, *(dataclasses.replace(made.key, user=f"u{i}") for i in range(1, keys))]
    suspect = read("suspect", loaded, given, CPU)
    return claim.judge(given, suspect, [], [], ALPHA)[0]


def test_a_copy_is_owned_and_the_clean_owner_is_not_without_one_innocent(made):
    assert isinstance(made.key.reader, CommittedBits)
    released, clean = finding(made, made.model), finding(made, owner())
    assert (released.outcome, clean.outcome) == ("owned", "not owned")
    assert released.log10_p < -6
    told = dict(sentences(released, ALPHA))
    assert re.fullmatch(
        r"\d\.\de-\d+: sign flips at 15 levels, exact by design, no innocents needed",
        told["p-value"],
    )
    best = r"at best \d\.\de-3\d, if all queries that were read \(bit\) agreed"
    assert re.fullmatch(best, told["possible"])
    assert told["verdict"] == "owned at alpha = 0.001"


def test_no_suspect_is_aligned_to_a_model_that_knows_the_bits():
    for name in ("committed_bits", "committed_bits.hidden"):
        assert key.aligning(METHODS.spec(name, {})) == "none"
    assert key.aligning(METHODS.spec("activemark", {})) == "auto"


def test_with_several_keys_p_is_multiplied(made):
    one, two = finding(made, made.model), finding(made, made.model, keys=2)
    assert two.log10_p == pytest.approx(one.log10_p + torch.tensor(2.0).log10().item(), abs=1e-5)
    assert "times 2 keys" in dict(sentences(two, 0.05))["p-value"]


def test_protect_says_p_of_both_models(made, tmp_path):
    file = tmp_path / key.RELEASED
    lines = advice(making.Claim(made.key, made.released, made.clean, tmp_path / key.KEY, file))
    assert "of the released copy" in dict(lines)["p-value"]


def test_a_key_keeps_the_commitment_and_reading_it_checks_the_bits(made, tmp_path):
    path = tmp_path / "key.safetensors"
    key.write(path, made.key)
    kept = key.read(path)
    assert kept.commitment == made.key.commitment
    assert torch.equal(kept.secret["bits"], made.key.secret["bits"])
    secret = {**kept.secret, "nonce": kept.secret["nonce"] ^ 1}
    forged = dataclasses.replace(kept, secret=secret)  # a new commitment would fit it
    with pytest.raises(UserError, match="expected the bits that the secret commits to"):
        finding(dataclasses.replace(made, key=forged), made.model)
