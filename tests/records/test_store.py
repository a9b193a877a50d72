import hashlib
import json

import numpy as np
import pytest
from made import ArrayStore

from bench.records.nouns import SCHEMA, canonical
from bench.records.store import Damaged, Store

KEY = "ab12cd34ef56ab78"
TENSORS = {"w": np.arange(6.0).reshape(2, 3), "half": np.ones(4, np.float16)}


@pytest.fixture
def store(tmp_path):
    made = ArrayStore(tmp_path)
    made.put(KEY, "attack", {"step": "x"}, ("parent",), {"cost": 1.5}, TENSORS)
    return made


def sidecar(store):
    return store.root / KEY[:2] / f"{KEY}.json"


def tensors(store):
    return store.root / KEY[:2] / f"{KEY}.safetensors"


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_what_is_put_is_found_again(store):
    found = store.find(KEY)
    assert (found.key, found.kind, found.recipe) == (KEY, "attack", {"step": "x"})
    assert (found.parents, found.payload) == (("parent",), {"cost": 1.5})
    assert found.bytes == tensors(store).stat().st_size
    assert store.verify(KEY)


def test_an_artefact_may_be_payload_alone(tmp_path):
    store = Store(tmp_path)
    store.put(KEY, "extract", {}, payload={"evidence": [1]})
    assert store.find(KEY).payload == {"evidence": [1]}
    assert store.verify(KEY)
    assert store.leftovers() == []


def test_a_write_killed_before_the_sidecar_is_not_seen(store):
    sidecar(store).unlink()
    (store.root / KEY[:2] / ".tmp-xyz").write_bytes(b"half")
    assert store.find(KEY) is None
    assert not store.verify(KEY)
    assert not store.damaged(KEY)
    assert list(store) == []
    assert {p.name for p in store.leftovers()} == {".tmp-xyz", f"{KEY}.safetensors"}


def test_every_flipped_byte_of_the_tensors_is_noticed(store):
    size = tensors(store).stat().st_size
    for position in range(0, size, 7):
        flip(tensors(store), position)
        assert not store.verify(KEY)
        assert store.damaged(KEY)
        with pytest.raises(Damaged, match=KEY):
            store.tensors(KEY)
        flip(tensors(store), position)
    assert store.verify(KEY)


def test_lost_tensors_are_noticed(store):
    tensors(store).unlink()
    assert store.find(KEY) is not None
    assert not store.verify(KEY)
    with pytest.raises(Damaged):
        store.tensors(KEY)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b"{}", b'{"artefact": {}, "sha256": ""}', b"\xff\xfe", b"NaN",
     b'{"artefact": {"payload": NaN}, "sha256": ""}', b'{"artefact": 3, "sha256": 4}'],
)  # fmt: skip
def test_a_damaged_sidecar_reads_as_no_artefact(store, text):
    sidecar(store).write_bytes(text)
    assert store.find(KEY) is None
    assert store.damaged(KEY)
    assert set(store.leftovers()) == {sidecar(store), tensors(store)}


def test_a_sidecar_changed_by_hand_reads_as_no_artefact(store):
    text = json.loads(sidecar(store).read_text())
    text["artefact"]["payload"]["cost"] = 0.1
    sidecar(store).write_text(json.dumps(text))
    assert store.find(KEY) is None


def test_an_artefact_of_another_schema_is_not_used(store, monkeypatch):
    monkeypatch.setattr("bench.records.store.SCHEMA", SCHEMA + 1)
    assert store.find(KEY) is None


def test_an_artefact_under_anothers_name_is_not_used(store):
    other = "ab" + "0" * 14
    sidecar(store).rename(sidecar(store).with_stem(other))
    assert store.find(other) is None


def test_dropped_tensors_are_gone_and_all_else_is_there(store):
    before = store.find(KEY)
    store.drop(KEY)
    store.drop(KEY)  # a second time is no mistake
    found = store.find(KEY)
    assert (found.payload, found.tensors, found.bytes) == (
        before.payload,
        before.tensors,
        before.bytes,
    )
    assert (before.on_disk, found.on_disk) == (before.bytes, 0)
    assert not tensors(store).exists()
    assert not store.verify(KEY)
    assert not store.damaged(KEY)
    assert store.leftovers() == []
    with pytest.raises(Damaged):
        store.tensors(KEY)
    store.put(KEY, "attack", {"step": "x"}, (), None, TENSORS)
    assert store.verify(KEY)
    assert store.find(KEY).on_disk == before.bytes


def test_a_drop_killed_before_the_file_was_gone_leaves_it_to_be_swept(store):
    whole = tensors(store).read_bytes()
    store.drop(KEY)
    tensors(store).write_bytes(whole)
    assert store.leftovers() == [tensors(store)]


def test_what_has_no_tensors_cannot_be_dropped(tmp_path):
    store = Store(tmp_path)
    store.put(KEY, "extract", {}, payload={"evidence": [1]})
    store.drop(KEY)
    store.drop("ab" + "0" * 14)
    assert store.verify(KEY)


def test_a_sidecar_from_before_drops_were_known_is_read(store):
    text = json.loads(sidecar(store).read_text())
    del text["artefact"]["dropped"]
    text["sha256"] = hashlib.sha256(canonical(text["artefact"]).encode()).hexdigest()
    sidecar(store).write_text(json.dumps(text))
    assert store.verify(KEY)


def test_putting_again_mends_what_was_damaged(store):
    flip(tensors(store), 0)
    store.put(KEY, "attack", {"step": "x"}, (), None, TENSORS)
    assert store.verify(KEY)


def test_removing_leaves_nothing(store):
    store.remove(KEY)
    store.remove(KEY)  # a second time is no mistake
    assert store.find(KEY) is None
    assert store.leftovers() == []
    assert not sidecar(store).exists()
    assert not tensors(store).exists()


def test_the_store_lists_artefacts_by_key(store):
    store.put("aa" + "0" * 14, "owner", {})
    assert [a.key for a in store] == ["aa" + "0" * 14, KEY]
