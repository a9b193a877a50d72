"""A secret that does not follow from its key is found out by making it again, whoever does so."""

import dataclasses

import pytest
import torch
from commands import bench

from bench import testing
from bench.data import manifest
from bench.data.settings import DataSettings
from bench.models.weights import Loaded, headless, release, weights_digest
from bench.records.nouns import UserError
from bench.registry import METHODS
from bench.runs.claims import commitment, making, replaying
from bench.runs.claims.key import read, write
from bench.runs.claims.reading import extract
from bench.testing import CPU

FREE = ("--method", "uchida.free", "--set", "embedding=closed form", "--images", "digits")
"""A mark that takes no training, and whose key can be made to read anything."""

TRAINED = METHODS.spec("uchida", {"steps": 20, "batch": 8})

OWNED, REFUSED, MISTAKE, UNDECIDED = 0, 1, 2, 3


def protect(home, *more):
    made = bench("protect", "mini", *FREE, "--registry", home / "registry.jsonl",
                 "--holder", "alice", "--device", "cpu", "-o", home / "out", *more)  # fmt: skip
    assert made.status == 0, made.err
    return home / "out" / "key.safetensors"


def verify(home, suspect, *keys, images="digits", clean="hub"):
    return bench("verify", suspect, "--key", *keys, "--commitment", home / "registry.jsonl",
                 "--replay", images, "--clean", clean, "--device", "cpu")  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replayed")
    protect(folder)
    release(testing.stranger(), folder / "stranger.safetensors")
    return folder


def fitted(key, model):
    """Turn the bits round that a model does not hold: the key of one who looked at it before."""
    agrees = extract(key.reader, key.secret, model, CPU).agreement
    bits = key.secret["bits"]
    right = torch.tensor([one >= 0.5 for one in agrees])
    turned = torch.where(right.reshape(bits.shape), bits, 1 - bits)
    return dataclasses.replace(key, secret={**key.secret, "bits": turned.to(bits.dtype)})


def test_an_honest_secret_follows_bit_for_bit(home):
    found = verify(home, home / "out" / "model.safetensors", home / "out" / "key.safetensors")
    assert found.status == UNDECIDED, found.err
    assert "replay     replayed: the secret follows from the key, bit for bit" in found.out
    price, rest = found.out.split("\n", 1)
    assert price.startswith("replay     making the secret again takes ")
    assert price.endswith(" s as they pass here")
    assert "suspect" in rest.split("\n")[0]  # what it takes is said before anything is read


def test_a_secret_that_was_fitted_to_its_suspect_is_refused_though_it_was_registered(home):
    honest, suspect = read(home / "out" / "key.safetensors"), home / "stranger.safetensors"
    forged = fitted(honest, testing.stranger())
    assert extract(forged.reader, forged.secret, testing.stranger(), CPU).rate == 1.0
    commitment.register(home / "registry.jsonl", forged)
    write(home / "forged.safetensors", forged)
    found = verify(home, suspect, home / "forged.safetensors")
    assert found.status == REFUSED, found.err
    assert "does not follow: the suspect's agreement is 1.000, and " in found.out
    assert "verdict    refused: the key was not made as it says" in found.out
    both = verify(home, suspect, home / "forged.safetensors", home / "out" / "key.safetensors")
    assert both.status == UNDECIDED  # the other key still speaks
    assert ("replayed: " in both.out, "does not follow: " in both.out) == (True, True)


def test_other_images_or_another_clean_model_are_refused_by_name(home):
    key, suspect = home / "out" / "key.safetensors", home / "out" / "model.safetensors"
    others = verify(home, suspect, key, images="photos")
    assert (others.status, others.err.count("\n")) == (MISTAKE, 1)
    assert "--replay: expected the images that the key's intent binds" in others.err
    marked = verify(home, suspect, key, clean=suspect)
    assert (marked.status, marked.err.count("\n")) == (MISTAKE, 1)
    assert "--clean: expected the key's unmarked model" in marked.err


def test_a_key_that_is_bound_to_nothing_cannot_be_replayed(tmp_path):
    made = bench("protect", "mini", *FREE, "--seed", 0, "--device", "cpu", "-o", tmp_path)
    assert made.status == 0, made.err
    key, suspect = tmp_path / "key.safetensors", tmp_path / "model.safetensors"
    found = bench("verify", suspect, "--key", key, "--replay", "digits", "--device", "cpu")
    assert (found.status, found.err.count("\n")) == (MISTAKE, 1)
    assert "bound to no holder" in found.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return what a registered key was made of, and the protection: one that takes training."""
    owner = testing.owner()
    listed = manifest.read("images", DataSettings("digits"), None)
    pools = making.owners_images(listed, owner.preprocess)
    given = making.Material(owner, pools, listed.digest)
    path = tmp_path_factory.mktemp("trained") / "registry.jsonl"
    registrar = making.Registrar(path, "alice", 0.05, listed.digest)
    return given, registrar.protect(owner, TRAINED, pools, CPU, "")


def replayed(key, model, given):
    found = extract(key.reader, key.secret, headless(model), CPU)
    return again(key, found, model, given)


def again(key, found, model, given):
    loaded = Loaded(headless(model), {}, weights_digest(headless(model)), ())
    return replaying.replay(key, found, loaded, given, CPU)


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
def test_a_secret_that_was_made_by_sums_in_another_order_follows_by_what_it_reads(trained):
    given, made = trained
    with torch.backends.mkldnn.flags(enabled=False):
        found = replayed(made.key, made.model, given)
    assert found.follows
    assert "but for the order of sums" in found.text
    assert replayed(made.key, made.model, given).text.endswith("bit for bit")


def test_what_no_order_of_sums_explains_does_not_follow(trained):
    given, made = trained
    secret, key = made.key.secret, made.key
    released = extract(key.reader, secret, headless(made.model), CPU)
    for change, said in (
        ({"secret": {**secret, "more": torch.ones(1)}}, "makes no such tensors as more"),
        ({"clean_score": key.clean_score - 0.1}, "the clean model has an agreement of"),
        ({"bound": {**key.bound, "rule": "bit agrees >= 0"}}, "its rule is"),
        (
            {"released": "another", "released_sketch": [-x for x in key.released_sketch]},
            "its rule makes another released model",
        ),
    ):
        found = again(dataclasses.replace(key, **change), released, made.model, given)
        assert (found.follows, said in found.text) == (False, True), found.text


def test_tensors_and_rows_are_held_to_their_order(trained):
    given, made = trained
    released = extract(made.key.reader, made.key.secret, headless(made.model), CPU)
    bits = made.key.secret["bits"]
    assert not torch.equal(bits, bits.flip(0))
    turned = dataclasses.replace(made.key, secret={**made.key.secret, "bits": bits.flip(0)})
    found = again(
        turned, dataclasses.replace(released, agreement=(0.0,) * len(bits)), made.model, given
    )
    assert found.follows is False


BITS = {
    **{"images": 16, "bits": 8, "steps": 1, "batch": 16, "decoys": 64, "public": 192},
    **{"rehearsed": 0.0},
}


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
def test_bits_that_hash_what_is_rounded_otherwise_are_told_on_such_a_machine_alone(
    trained, tmp_path
):
    given, _ = trained
    registrar = making.Registrar(tmp_path / "registry.jsonl", "alice", 0.05, given.images)
    spec = METHODS.spec("committed_bits", BITS)
    made = registrar.protect(given.owner, spec, given.pools, CPU, "")
    with torch.backends.mkldnn.flags(enabled=False):
        found = replayed(made.key, made.model, given)
    assert (found.follows, found.text.partition(":")[0]) == (None, "cannot be told here")
    assert replayed(made.key, made.model, given).follows


def test_an_intent_that_binds_no_images_still_verifies_and_says_so(home):
    """Keys from before images were bound: hashed, and drawn, without."""
    registry, honest = home / "old.jsonl", read(home / "out" / "key.safetensors")
    intent = commitment.intend(registry, "alice", honest.method, honest.clean)
    rng = commitment.generator(intent, honest.method, honest.clean)
    owner, listed = testing.owner(), manifest.read("images", DataSettings("digits"), None)
    pools = making.owners_images(listed, owner.preprocess)
    made = making.protect(owner, honest.method, pools, rng, CPU)
    opened = commitment.bound(intent, made.released.rule.text, 0.05)
    assert "images" not in opened
    key = dataclasses.replace(made.key, bound=opened)
    commitment.register(registry, key)
    standing = commitment.standing(commitment.read(registry), key)
    assert "its intent binds none of the owner's images" in [*commitment.said([standing], 1, 1)]
    found = replayed(key, made.model, making.Material(owner, pools, listed.digest))
    assert found.follows
    assert found.text.endswith("bit for bit; its intent binds no images: others may fit")
    added = dataclasses.replace(key, bound={**key.bound, "images": listed.digest})
    commitment.register(registry, added)
    with pytest.raises(UserError, match="align, clean model or images"):
        commitment.standing(commitment.read(registry), added)
