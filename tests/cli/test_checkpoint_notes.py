"""What was understood of a checkpoint is said: by check, run, protect and verify, and recorded."""

import math

import pytest
import torch
from commands import bench
from made import suite
from safetensors.torch import save_file

import bench as program
from bench import testing

CHOSEN = (
    "of state_dict and state_dict_ema it is state_dict_ema, the average, that is read; or say "
    "`entry: state_dict`"
)

TINY = ("variant=paper", "index=0", "block=2", "images=4", "steps=2", "batch=4")


@pytest.fixture
def folder(tmp_path):
    """A suite whose owner is a checkpoint with an average, under a prefix, with a head."""
    averaged = {f"module.{k}": v for k, v in testing.owner().trunk.vit.state_dict().items()}
    averaged["module.head.weight"] = torch.ones(7, 48)
    raw = {name: value + 1 for name, value in averaged.items()}
    torch.save({"state_dict": raw, "state_dict_ema": averaged, "epoch": 3}, tmp_path / "last.pth")
    text = suite(innocents="{strangers: 0, twin_seeds: 1, pretraining_steps: 1}")
    text = text.replace("  - {name: prune.l1, amount: 0.4}\n", "")
    owner = "{embedded: mini, weights: last.pth}"
    (tmp_path / "tiny.yaml").write_text(text.replace("{embedded: mini}", owner))
    return tmp_path


def check(folder):
    return bench("check", folder / "tiny.yaml", "--data", folder)


def test_check_says_once_what_was_understood_of_a_checkpoint(folder):
    said = check(folder)
    assert (said.status, said.err) == (0, "")
    notes = [line for line in said.out.splitlines() if line.startswith("note     owner mini: ")]
    assert [line.removeprefix("note     owner mini: ") for line in notes] == [
        CHOSEN,
        "names are read after module.",
        "left out, as no part of the backbone: head (1 tensor)",
    ]


@pytest.mark.parametrize("form", ["nan", "folder", "torn"])
def test_check_finds_a_file_that_no_run_could_read(folder, form):
    file = folder / "last.pth"
    if form == "nan":
        state = testing.owner().state_dict()
        state["trunk.vit.norm.bias"][0] = math.nan
        torch.save(state, file)
    elif form == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(file.read_bytes()[:-400])
    said = check(folder)
    words = {"nan": "NaN or infinity in 'trunk.vit.norm.bias'", "folder": "got a folder",
             "torn": "got a damaged one"}  # fmt: skip
    missing = [line for line in said.out.splitlines() if line.startswith("missing")]
    assert said.status == 2
    assert len(missing) == 1
    assert words[form] in missing[0]


def test_a_run_says_it_once_and_keeps_it_in_every_record(folder):
    given = folder / "tiny.yaml", folder / "results", folder
    said: list[str] = []
    found = program.run(*given, device="cpu", note=said.append)
    assert [line for line in said if line == f"mini: {CHOSEN}"] == [f"mini: {CHOSEN}"]
    assert found.failed == ()
    assert {record.notes["owner"][0] for record in found.records.values()} == {CHOSEN}
    again: list[str] = []
    program.run(*given, device="cpu", note=again.append)
    assert not [line for line in again if CHOSEN in line]


def test_protect_and_verify_say_it_too(folder):
    key = folder / "out" / "key.safetensors"
    given = ("mini", "--weights", folder / "last.pth", "--method", "activemark", "--set", *TINY,
             "--images", "photos", "--device", "cpu", "-o", folder / "out")  # fmt: skip
    said = bench("protect", *given)
    assert said.status == 0, said.err
    assert f"mini: {CHOSEN}" in said.out
    read = bench("verify", folder / "last.pth", "--key", key, "--device", "cpu")
    assert f"note       {CHOSEN}" in read.out
    asked = bench("verify", folder / "last.pth", "--key", key, "--device", "cpu",
                  "--entry", "state_dict")  # fmt: skip
    assert "it is state_dict, as asked, that is read" in asked.out


def test_verify_refuses_innocents_that_are_no_numbers(folder):
    bench("protect", "mini", "--method", "activemark", "--set", *TINY, "--images", "photos",
          "--device", "cpu", "-o", folder / "out")  # fmt: skip
    state = testing.owner().state_dict()
    state["trunk.vit.blocks.0.attn.qkv.weight"][0, 0] = math.inf
    (folder / "strangers").mkdir()
    save_file(state, folder / "strangers" / "diverged.safetensors")
    said = bench("verify", folder / "last.pth", "--key", folder / "out/key.safetensors",
                 "--device", "cpu", "--strangers", folder / "strangers")  # fmt: skip
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "diverged.safetensors: expected finite weights, got NaN or infinity in" in said.err


def test_verify_says_it_of_innocents_too(folder):
    bench("protect", "mini", "--method", "activemark", "--set", *TINY, "--images", "photos",
          "--device", "cpu", "-o", folder / "out")  # fmt: skip
    (folder / "strangers").mkdir()
    raw, mean = (testing.stranger(i).state_dict() for i in (0, 1))
    torch.save({"state_dict": raw, "state_dict_ema": mean}, folder / "strangers" / "two.pth")
    said = bench("verify", folder / "last.pth", "--key", folder / "out/key.safetensors",
                 "--device", "cpu", "--strangers", folder / "strangers")  # fmt: skip
    assert f"'two.pth': {CHOSEN}" in said.out
