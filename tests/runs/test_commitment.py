"""A registry shows since when a key is there, whose it is, and that nobody chose it."""

import dataclasses
import json

import pytest
import torch
from commands import bench

from bench import testing
from bench.data import manifest
from bench.data.settings import DataSettings
from bench.models.vision import Architecture
from bench.records.nouns import Spec, UserError
from bench.runs.claims import commitment
from bench.runs.claims.key import Key, read

METHOD = Spec("oracle.weights", {"threshold": 0.9})


def a_key(path, holder="alice", method=METHOD, clean="clean", registered=True):
    """Make a key the way `bench protect` does, of a secret that is nothing but its randomness."""
    intent = commitment.intend(path, holder, method, clean)
    rng = commitment.generator(intent, method, clean)
    made = Key(
        *({"bits": torch.rand(4, generator=rng)}, method, Architecture("embedded", "mini")),
        *(clean, "released", 0.1, 0.9),
        bound=commitment.bound(intent, "cosine >= 0.9", 0.05),
    )
    if registered:
        commitment.register(path, made)
    return made


@pytest.fixture
def registry(tmp_path):
    return tmp_path / "registry.jsonl"


def complaint(registry, key, **more):
    with pytest.raises(UserError) as caught:
        commitment.standing(commitment.read(registry), key, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_registered_key_stands_with_its_date_and_its_holder(registry):
    key = a_key(registry)
    found = commitment.standing(commitment.read(registry), key, seen="2999-01-01")
    assert (found.line, found.holder, found.intents) == (2, "alice", 1)
    intent, kept = (json.loads(line) for line in registry.read_text().splitlines())
    assert (intent["kind"], kept["kind"], kept["value"]) == ("intent", "key", key.commitment)
    assert key.bound["salt"] not in registry.read_text()


def test_the_key_follows_from_name_method_model_nonce_and_salt(registry):
    key = a_key(registry)
    again = torch.rand(4, generator=commitment.generator_of(key))
    assert torch.equal(again, key.secret["bits"])
    others = [{"holder": "bob"}, {"nonce": "0" * 64}, {"salt": "0" * 64}]
    moved = [dataclasses.replace(key, bound={**key.bound, **other}) for other in others]
    moved += [dataclasses.replace(key, clean="other"), dataclasses.replace(key, method=Spec("x"))]
    for one in moved:
        drawn = torch.rand(4, generator=commitment.generator_of(one))
        assert not torch.equal(drawn, key.secret["bits"])


def test_what_is_missing_or_does_not_fit_is_said_in_one_line(registry):
    key, other = a_key(registry), a_key(registry, "bob")
    unbound = dataclasses.replace(key, bound=None)
    assert "bound to no holder" in complaint(registry, unbound)
    fitted = dataclasses.replace(key, secret={"bits": torch.ones(4)})
    assert "is not in the registry" in complaint(registry, fitted)
    assert "the suspect was there on 2020-02-02" in complaint(registry, key, seen="2020-02-02")
    assert "expected a date" in complaint(registry, key, seen="yesterday")
    assert commitment.standing(commitment.read(registry), other).line == 4


def test_a_key_disclosed_in_one_dispute_is_no_use_in_the_next(registry):
    """Bound to another name it is another key; registered as it is, it is the first holder's."""
    key = a_key(registry)
    taken = dataclasses.replace(key, bound={**key.bound, "holder": "mallory"})
    assert "is not in the registry" in complaint(registry, taken)
    commitment.register(registry, taken)
    assert "of another holder, method, align, clean model or images" in complaint(registry, taken)
    intent = commitment.intend(registry, "mallory", METHOD, "clean")
    opened = commitment.bound(intent, "cosine >= 0.9", 0.05)
    again = dataclasses.replace(key, bound=opened)  # the old secret, under an intent of his own
    commitment.register(registry, again)
    assert commitment.standing(commitment.read(registry), again).intents == 2
    drawn = torch.rand(4, generator=commitment.generator_of(again))
    assert not torch.equal(drawn, again.secret["bits"])  # which a replay refuses


def test_another_rule_clean_model_or_nonce_than_the_intents_is_refused(registry):
    key = a_key(registry)
    for change in (
        {"method": Spec("oracle.weights", {"threshold": 0.1})},
        {"clean": "another"},
        {"bound": {**key.bound, "nonce": "0" * 64}},
        {"bound": {**key.bound, "line": 2}},
    ):
        moved = dataclasses.replace(key, **change)
        commitment.register(registry, moved)
        assert complaint(registry, moved)


def test_every_key_that_was_meant_shares_the_level(registry):
    keys = [a_key(registry, registered=number == 7) for number in range(10)]
    found = commitment.standing(commitment.read(registry), keys[7])
    assert found.intents == 10
    assert commitment.level(0.05, [found], 1) == pytest.approx(0.005)
    assert commitment.level(0.05, [found, found], 2) == pytest.approx(0.01)
    assert commitment.level(0.05, [], 3) == 0.05


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [lines[0].replace("alice", "malice"), *lines[1:]],
        lambda lines: [*lines[:2], "{}", *lines[2:]],
        lambda lines: ["no JSON"],
    ],
)
def test_a_registry_that_was_changed_is_refused(registry, change):
    a_key(registry), a_key(registry)
    lines = change(registry.read_text().splitlines())
    registry.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(UserError, match=r"registry\.jsonl:\d+: expected"):
        commitment.read(registry)


def test_protect_registers_and_verify_holds_a_key_to_its_registry(tmp_path, registry):
    made = bench(
        *("protect", "mini", "--method", "oracle.weights", "--images", "photos"),
        *("--registry", registry, "--holder", "alice", "--device", "cpu", "-o", tmp_path / "key"),
    )
    assert made.status == 0, made.err
    file = tmp_path / "key" / "key.safetensors"
    owner, images = testing.owner(), manifest.read("images", DataSettings("photos"), None)
    key = read(file)
    assert (key.bound["rule"], key.bound["images"]) == ("cosine >= 0.9", images.digest)
    from bench.models.weights import release

    release(owner, tmp_path / "suspect.safetensors")
    asked = ("verify", tmp_path / "suspect.safetensors", "--key", file, "--device", "cpu")
    found = bench(*asked, "--commitment", registry, "--seen", "2999-01-01")
    assert "registered by alice on" in found.out
    assert f"its intent binds the owner's images {images.digest}" in found.out
    assert found.status == 3
    late = bench(*asked, "--commitment", registry, "--seen", "2020-01-01")
    assert (late.status, late.err.count("\n")) == (2, 1)
    assert "the suspect was there on 2020-01-01" in late.err
    other = bench(*asked, "--commitment", registry, "--alpha", "0.1")
    assert "--alpha: expected 0.05, as the key is bound to" in other.err
