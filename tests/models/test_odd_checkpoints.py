"""Files that are called weights and are none: one line each, with what is there instead."""

import json
import os
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file

from bench.data.embedded import WEIGHTS
from bench.models.checkpoints import read_weights
from bench.models.libraries import hub
from bench.models.vision import Architecture
from bench.models.weights import load_weights
from bench.records.nouns import UserError

MINI = Architecture("embedded", "mini")

OWN = (WEIGHTS / "mini.safetensors").read_bytes()


def header(change):
    """Change what a safetensors file says of its tensors."""
    length = struct.unpack("<Q", OWN[:8])[0]
    said = json.loads(OWN[8 : 8 + length])
    first = next(name for name in said if name != "__metadata__")
    text = json.dumps(said | {first: said[first] | change}).encode()
    return struct.pack("<Q", len(text)) + text + OWN[8 + length :]


DAMAGED = "expected a safetensors file, got a damaged one"

FILES = {
    "nothing": (b"", "expected weights, got an empty file; copy it again"),
    "a byte": (b"\x80", "got a damaged one"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(90), "got a picture .PNG.; name the file"),
    "a photograph": (b"\xff\xd8\xff\xe0" + bytes(90), "got a picture .JPEG."),
    "a text": (b"{}", "got a text"),
    "a page": (b"<html>", "got a web page; fetch it again"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "fetch it with `git lfs pull`"),
}


@pytest.mark.parametrize(("content", "words"), FILES.values(), ids=FILES)
@pytest.mark.parametrize("name", ["x.pth", "x.bin"])
def test_what_lies_in_the_place_of_weights_is_named(content, words, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    one_line(tmp_path / name, words)


TORN = {
    "in its header": OWN[:100],
    "in its tensors": OWN[: len(OWN) // 2],
    "with a header of 4 EB": struct.pack("<Q", 2**62) + OWN[8:],
    "with no header": struct.pack("<Q", 0) + OWN[8:],
    "with a header past its end": struct.pack("<Q", len(OWN)) + OWN[8:],
    "with a list for a header": struct.pack("<Q", 2) + b"[]",
    "with bytes to spare": OWN + b"more",
    "with an offset past its end": header({"data_offsets": [0, 10**12]}),
    "with offsets turned round": header({"data_offsets": [8, 0]}),
    "with a shape below nought": header({"shape": [-1]}),
    "with a shape beyond all numbers": header({"shape": [2**40, 2**40]}),
    "with a type that there is not": header({"dtype": "X9"}),
}


@pytest.mark.parametrize("content", TORN.values(), ids=TORN)
def test_a_torn_safetensors_file_is_said_to_be_damaged(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    one_line(tmp_path / "x.safetensors", f"{DAMAGED} .*copy it again")


def one_line(file, words):
    with pytest.raises(UserError, match=words) as said:
        load_weights(file, MINI)
    assert "\n" not in str(said.value)


def empty_archive(folder):
    with zipfile.ZipFile(folder / "x.pth", "w"):
        pass
    return folder / "x.pth"


def pipe(folder):
    os.mkfifo(folder / "x.pth")
    return folder / "x.pth"


def to_itself(folder):
    (folder / "x.pth").symlink_to("x.pth")
    return folder / "x.pth"


def misspelt(folder):
    (folder / "model.safetensors").write_bytes(OWN)
    return folder / "modle.safetensors"


def settings(folder):
    (folder / "config.json").write_text("{}")
    return folder / "config.json"


PLACES = {
    "an empty archive": (empty_archive, "got an empty archive"),
    "a pipe": (pipe, "found what is no file"),
    "a link to itself": (to_itself, "found what is no file"),
    "a misspelt name": (misspelt, "found no such file; did you mean 'model.safetensors'"),
    "settings": (settings, "expected weights, got a text"),
}


@pytest.mark.parametrize(("made", "words"), PLACES.values(), ids=PLACES)
def test_a_place_that_holds_no_weights_is_named(made, words, tmp_path):
    one_line(made(tmp_path), words)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    file = tmp_path_factory.mktemp("own") / "mini.safetensors"
    file.write_bytes(OWN)
    return dict(read_weights(file).state)


TENSORS = {
    "whole numbers": (lambda v: v.to(torch.int8), "in float32, got int8"),
    "yes and no": (lambda v: v > 0, "in float32, got bool"),
    "imaginary numbers": (lambda v: v.to(torch.complex64), "in float32, got complex64"),
    "no numbers at all": (lambda v: v.new_zeros(0), "another architecture's"),
    "no values": (lambda v: v.to("meta"), "sparse, quantised or without values"),
}


@pytest.mark.parametrize(("change", "words"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_no_weights_are_refused(change, words, own, tmp_path):
    torch.save({name: change(value) for name, value in own.items()}, tmp_path / "x.pth")
    one_line(tmp_path / "x.pth", words)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_fewer_bits_are_read_and_that_is_said(dtype, own, tmp_path):
    save_file({n: v.to(dtype) for n, v in own.items()}, tmp_path / "x.safetensors")
    said = load_weights(tmp_path / "x.safetensors", MINI).notes
    assert said == (f"weights in {str(dtype).removeprefix('torch.')} are read in float32",)


def test_what_says_more_than_weights_is_read(own, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(
        save({**own, "head.spare": torch.zeros(0)}, {"format": "tf", "note": "a\n" * 99})
    )
    assert load_weights(tmp_path / "x.safetensors", MINI).notes == ()


@pytest.mark.parametrize(
    "error", [ConnectionResetError(), ValueError("a name"), RuntimeError("transfer"), KeyError("n")]
)
def test_what_the_hubs_client_raises_is_known(error):
    from huggingface_hub import errors

    assert isinstance(error, hub.failures())
    for kind in (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.HFValidationError):
        assert issubclass(kind, hub.failures())
    assert Exception not in hub.failures()


def test_a_hub_that_nobody_answers_for_does_not_answer(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert not hub.answers()
