"""Tensors in the store: what is loaded is what was put, and is the file that was written."""

import os
from unittest.mock import Mock

import pytest
import torch

from bench.models.weights import secret_digest
from bench.records.files import file_digest
from bench.records.store import Store

KEY = "ab12cd34ef56ab78"
TENSORS = {"w": torch.arange(6.0).reshape(2, 3), "half": torch.ones(4, dtype=torch.float16)}


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    made.put(KEY, "attack", {"step": "x"}, ("parent",), {"cost": 1.5}, TENSORS)
    return made


def test_tensors_are_loaded_as_they_were_put(store):
    loaded = store.tensors(KEY)
    assert loaded.keys() == TENSORS.keys()
    assert all(
        torch.equal(v, TENSORS[k]) and v.dtype == TENSORS[k].dtype for k, v in loaded.items()
    )


def test_views_of_one_tensor_are_kept_one_by_one(tmp_path):
    store, rows = Store(tmp_path), torch.arange(4.0).reshape(2, 2)
    store.put(KEY, "protect", {}, tensors={"first": rows[0], "column": rows[:, 1]})
    assert store.tensors(KEY)["column"].tolist() == [1.0, 3.0]


def test_two_names_of_one_tensor_are_kept_both(tmp_path):
    store, shared = Store(tmp_path), torch.ones(3)
    store.put(KEY, "owner", {}, tensors={"embedding": shared, "head": shared})
    assert torch.equal(store.tensors(KEY)["head"], shared)


def test_a_file_is_read_once_and_again_when_it_has_changed(store, monkeypatch):
    monkeypatch.setattr("bench.records.store.file_digest", reads := Mock(side_effect=file_digest))
    file = store.root / KEY[:2] / f"{KEY}.safetensors"
    store.verify(KEY)
    store.verify(KEY)  # written a moment ago: a change might not show yet
    assert reads.call_count == 2
    os.utime(file, (0, 0))
    store.verify(KEY)
    store.tensors(KEY)
    assert reads.call_count == 3
    file.write_bytes(file.read_bytes()[:-1])
    assert not store.verify(KEY)
    assert reads.call_count == 4
    assert not Store(store.root).verify(KEY)


def test_a_secret_is_named_by_its_content_in_whatever_order_its_queries_come():
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (5, 3, 2, 2), generator=rng, dtype=torch.uint8)
    secret = {"pixels": pixels, "labels": torch.tensor([1, 2, 0, 2, 1]), "block": torch.tensor(3)}
    order = torch.tensor([4, 2, 0, 1, 3])
    name = secret_digest(secret)
    assert len(name) == 16
    moved = {"pixels": pixels[order], "labels": secret["labels"][order]}
    assert secret_digest(secret | moved) == name
    assert secret_digest(dict(reversed(secret.items()))) == name
    other = pixels.clone()
    other[3, 0, 0, 0] ^= 1
    for changed in ({"pixels": other}, {"pixels": pixels[:4]}, {"labels": secret["labels"] + 1},
                    {"block": torch.tensor(4)}, {"pixels": pixels.float()}):  # fmt: skip
        assert secret_digest(secret | changed) != name
