import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from commands import bench
from documents import ROOT
from made import QUICK, suite
from PIL import Image
from safetensors.torch import save_file

from bench.models.vision import clone
from bench.records import ledger
from bench.records.leases import Leases
from bench.records.nouns import Access
from bench.records.store import Store
from bench.registry import ATTACKS

ALONE = ("strangers: 1", "strangers: 0")  # training them is the slow part
CELLS = 5  # two marked copies, two twins, a stranger


def write(folder, *edits):
    text = suite()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    (folder / "suite.yaml").write_text(text)
    return folder / "suite.yaml"


def run(folder, *more):
    return bench("run", folder / "suite.yaml", "--results", folder / "results",
                 "--data", folder, "--device", "cpu", "--workers", 1, "--verbose",
                 *more)  # fmt: skip


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def records(folder, name="tiny"):
    return list(ledger.latest(ledger.read(folder / "results" / name)).values())


ANSWER = "Who is still recognised after what"


def tables(said):
    return said.out[said.out.index("Table 2") :].partition(ANSWER)[0]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A suite that was run once: its folder and what the run said."""
    folder = tmp_path_factory.mktemp("first")
    write(folder)
    return folder, run(folder)


@pytest.fixture
def folder(first, tmp_path):
    """A copy of what that run left, to do with as a test pleases."""
    shutil.copytree(first[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_run_answers_every_cell_and_prints_its_tables(first):
    folder, said = first
    assert (said.status, said.err) == (0, "")
    assert f"{CELLS} of {CELLS} cells to answer" in said.out
    assert [r.status for r in records(folder)] == ["ok"] * CELLS
    assert "Table 2" in said.out
    assert (folder / "results" / "tiny" / "table-2.csv").is_file()


def test_a_run_ends_with_one_screen_and_says_where_the_rest_is(first, folder):
    home = folder / "results" / "tiny"
    said = bench("run", folder / "suite.yaml", "--results", folder / "results", "--data", folder)
    assert said.status == 0
    assert "Table 2" not in said.out
    screen = ANSWER + said.out.partition(ANSWER)[2]
    assert screen == ANSWER + first[1].out.partition(ANSWER)[2].replace(str(first[0]), str(folder))
    assert len(screen.splitlines()) <= 24
    assert "prune.l1" in screen
    assert "activemark (weights)" in screen
    assert f"bench report {home}" in screen.splitlines()[-1]


def test_a_run_that_is_interrupted_says_what_is_kept_and_how_to_go_on(folder, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    write(folder, ("amount: 0.4", "amount: 0.5"))
    monkeypatch.setattr("bench.runs.laboratory.Laboratory.carry_out", interrupted)
    said = run(folder)
    assert said.status == 130
    kept = f"{CELLS - 2} of {CELLS} cells answered and kept in {folder / 'results' / 'tiny'}"
    assert (
        said.err == f"bench: interrupted; {kept}, finished stages too; the same command goes on\n"
    )


def test_a_run_tells_machines_in_lines_of_json(folder):
    write(folder, ("amount: 0.4", "amount: 0.5"))
    said = run(folder, "--log-json")
    events = [json.loads(line) for line in said.out.splitlines()]
    assert [event["event"] for event in events] == ["start", "cell", "cell", "end"]
    assert (events[0]["todo"], events[0]["cells"], events[-1]["failed"]) == (2, CELLS, 0)


def test_the_second_run_does_no_work_and_prints_the_same(first, folder):
    before = snapshot(folder)
    said = run(folder)
    assert said.status == 0
    assert tables(said) == tables(first[1])
    assert snapshot(folder) == before


def test_what_a_run_wrote_holds_against_its_store(folder):
    said = bench("verify-results", folder / "results" / "tiny")
    assert said.status == 0
    held, recounted = said.out.splitlines()
    assert held == f"{CELLS} of {CELLS} rows hold, 0 do not"
    assert "printed tables follow from the records" in recounted


def test_a_killed_runs_last_half_line_is_asked_again(folder):
    (file,) = (folder / "results" / "tiny" / "records").iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    said = run(folder)
    assert said.status == 0
    assert f"1 of {CELLS} cells to answer" in said.out


def test_a_report_needs_the_records_alone(first, folder):
    home = folder / "results" / "tiny"
    for said in (
        bench("report", home),
        bench("report", folder / "suite.yaml", "--results", folder / "results"),
    ):
        assert (said.status, tables(said)) == (0, tables(first[1]))
    shutil.rmtree(folder / "results" / ".store")
    assert "Table 2" in bench("report", home).out
    assert (home / "table-2.csv").read_text().strip() in bench(
        "report", home, "--format", "csv"
    ).out
    assert "| " in bench("report", home, "--format", "markdown").out
    assert "Level and power" in bench("report", home, "--calibration").out
    assert (home / "level-and-power.csv").is_file()


def test_a_report_is_read_without_torch(folder):
    code = (
        "import sys; from bench.cli import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules)"
    )
    home = str(folder / "results" / "tiny")
    command = [sys.executable, "-c", code, "report", home]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_the_plan_says_what_is_done_and_what_is_not(folder):
    said = bench("plan", folder / "suite.yaml", "--results", folder / "results")
    assert (said.status, said.err) == (0, "")
    assert f"tiny: {CELLS} cells, {CELLS} answered" in said.out
    more = write(folder, ("amount: 0.4", "amount: 0.5"))
    said = bench("plan", more, "--results", folder / "results")
    assert f"tiny: {CELLS} cells, {CELLS - 2} answered" in said.out


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("methods", ("activemark", "vfm-ownership-bench")),
        ("attacks", ("control.identity", "control.stranger", "finetune.classify", "prune.l1")),
        ("models", ("mini", "timm", "open_clip")),
        ("data", ("digits", "1797", "photos", "folder")),
    ],
)
def test_everything_known_is_listed(what, words):
    said = bench("list", what)
    assert (said.status, said.err) == (0, "")
    assert all(word in said.out for word in words)


def test_the_store_is_listed_and_collected(folder):
    store = folder / "results" / ".store"
    (store / "ab").mkdir(exist_ok=True)
    (store / "ab" / ".tmp-torn").write_bytes(b"half")
    listed = bench("store", "--results", folder / "results")
    assert (listed.status, "protect" in listed.out, "fidelity" in listed.out) == (0, True, True)
    arguments = ("store", "--results", folder / "results", "--collect")
    assert "removed 0 artefacts" in bench(*arguments, folder / "suite.yaml").out
    assert not (store / "ab" / ".tmp-torn").exists()
    fewer = write(folder, ("  - {name: prune.l1, amount: 0.4}\n", ""))
    assert "removed 6 artefacts" in bench(*arguments, fewer).out  # of two suspects: 3 each
    assert run(folder).status == 0


def copies(folder):
    store = Store(folder / "results" / ".store")
    return [a.dropped for a in store if a.kind == "attack" and a.tensors]


def test_copies_are_dropped_on_request_and_by_no_run_while_another_is_there(folder):
    with Leases(folder / "results" / ".store" / "leases"):  # another run, which may need them
        assert run(folder, "--drop-copies").status == 0
        assert copies(folder)
        assert not any(copies(folder))
    before = tables(run(folder))
    said = run(folder, "--drop-copies")  # all is answered: what an earlier run kept goes, too
    assert (said.status, tables(said)) == (0, before)
    assert all(copies(folder))
    listed = bench("store", "--results", folder / "results").out
    (row,) = [line.split() for line in listed.splitlines() if " attack " in line]
    assert row[1::2] == ["attack", "5", str(len(copies(folder))), "0.0"]  # 2 of 5: left untouched


def test_what_is_made_side_by_side_is_dropped_as_well(folder):
    assert run(folder, "--drop-copies").status == 0
    before = len(copies(folder))
    write(folder, ("steps: 2", "steps: 1"))
    assert run(folder, "--drop-copies", "--workers", 2).status == 0
    assert len(copies(folder)) > before
    assert all(copies(folder))


def test_nothing_is_collected_while_a_run_is_there(folder):
    store = folder / "results" / ".store"
    (store / "ab").mkdir(exist_ok=True)
    (store / "ab" / ".tmp-torn").write_bytes(b"half")
    fewer = write(folder, ("  - {name: prune.l1, amount: 0.4}\n", ""))
    with Leases(store / "leases"):
        before = snapshot(folder)
        said = bench("store", "--results", folder / "results", "--collect", fewer)
        assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
        assert "expected no run on this store" in said.err
        assert snapshot(folder) == before


def test_a_dropped_copy_is_made_again_for_a_cell_that_is_new(folder):
    assert run(folder, "--drop-copies").status == 0
    write(folder, ("steps: 2", "steps: 1"))
    with Leases(folder / "results" / ".store" / "leases"):
        assert run(folder, "--drop-copies").status == 0
    assert sorted(set(copies(folder))) == [False, True]
    assert run(folder, "--drop-copies").status == 0
    assert all(copies(folder))


def test_a_check_says_line_by_line_what_is_there(folder):
    said = bench("check", folder / "suite.yaml")
    assert said.status == 0
    assert [line.split()[0] for line in said.out.splitlines()][:4] == ["ok"] * 4


MARK = "name: activemark,"
"""Where a mark's settings begin in a small suite."""

TRIGGERS = "wrong method trigger.directions for mini: images: expected 9999 images to make"

TOO_MANY = "expected at most 5,000,000 cells, it asks for "


@pytest.mark.parametrize(
    ("edits", "status", "words"),
    [
        ([(MARK, f"{MARK} block: 99,")], 2, "wrong method activemark for mini: block: expected"),
        ([("images: 4", "images: 99999")], 2, "images: expected 99999 trigger images, the owner's"),
        ([(QUICK, "{name: ipguard}")], 0, "note mini: ipguard: nothing can be read, every cell"),
        ([(QUICK, "{name: trigger.directions, kind: noise, images: 9999}")], 2, TRIGGERS),
        ([("probe: digits", f"probe: digits\nseeds: {[*range(3000)]}")], 2, TOO_MANY),
    ],
)
def test_a_check_finds_what_a_run_would_stumble_over(edits, status, words, tmp_path):
    write(tmp_path, *edits)
    said = bench("check", tmp_path / "suite.yaml")
    assert (said.status, words in " ".join((said.out + said.err).split())) == (status, True)
    assert said.err.count("\n") == (words == TOO_MANY)


def test_a_check_says_what_a_file_lists_twice(tmp_path):
    said = bench("check", write(tmp_path, ("probe: digits", "probe: digits\nseeds: [0, 3, 0]")))
    assert "note     seeds: 0 stands there 2 times, and is asked once\n" in said.out


def test_a_check_lays_no_large_suite_out_and_asks_no_model_twice(tmp_path, monkeypatch):
    shutil.copy(ROOT / "bench/data/weights/mini.safetensors", tmp_path / "a.safetensors")
    shutil.copy(ROOT / "bench/data/weights/mini.safetensors", tmp_path / "b.safetensors")
    owners = "\n  - ".join(f"{{embedded: mini, weights: {n}.safetensors}}" for n in "ab")
    file = write(tmp_path, ("{embedded: mini}", owners))
    said = bench("check", file, "--data", tmp_path)
    assert said.status == 0
    assert "owners with weights a.safetensors, b.safetensors: equal weights" in said.out
    monkeypatch.setattr("bench.cli.checking.LAID_OUT", 1)
    said = bench("check", file, "--data", tmp_path)
    assert (said.status, "more than 1 cells: `bench plan`" in said.out) == (0, True)


@pytest.mark.parametrize(
    "words",
    [
        ("protect", "mini", "--method", "nosuch", "--images", "digits", "-o", "out"),
        ("verify", "nosuch.pth", "--key", "nosuch"),
        ("profile", "mini", "--images", "nosuch"),
    ],
)
def test_what_serves_an_owner_works_with_as_many_threads_as_it_is_given(words, monkeypatch):
    pinned = []
    monkeypatch.setattr("bench.runs.machine.pin_threads", pinned.append)
    assert bench(*words, "--threads", 3).status == 2
    assert pinned == [3]


def test_a_check_names_the_path_of_what_is_missing(tmp_path):
    suite = write(
        tmp_path,
        ("{embedded: mini}", "{timm: test_vit, weights: gone.pth}"),
        ("photos: {max_images: 24}", "photos: {loader: folder, path: nowhere}"),
    )
    said = bench("check", suite, "--data", tmp_path)
    assert said.status == 2
    missing = [line for line in said.out.splitlines() if line.startswith("missing")]
    assert len(missing) == 2
    assert str(tmp_path / "gone.pth") in missing[0]
    assert str(tmp_path / "nowhere") in missing[1]


def lay_out_classes(folder):
    """Leave 24 images of the classes 2 and 10, with what is none beside them."""
    for i in range(24):
        path = folder / ("2", "10")[i % 2] / f"{i}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(path)
    (folder / ".cache").mkdir()
    (folder / "list.csv").write_text("a")


@pytest.mark.parametrize(
    "command",
    [
        ("profile", "mini", "--count", "4"),
        ("protect", "mini", "--method", "oracle.weights", "-o", "out"),
    ],
)
def test_an_owner_is_told_what_was_understood_of_a_folder(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    lay_out_classes(tmp_path / "set")
    said = bench(*command, "--images", "set", "--data", tmp_path, "--device", "cpu")
    assert said.status == 0
    told = [line for line in said.out.splitlines() if line.startswith("images: ")]
    assert told == [
        "images: passed over .cache: hidden, or left by an archiver",
        "images: passed over what is no image: 1 .csv",
        "images: classes 2 .. 10 are in the order of numbers, not of letters",
        "images: class 2 is label 0 and class 10 is label 1",
    ]


def test_a_check_says_once_what_was_understood_of_folders_and_heads(tmp_path):
    lay_out_classes(tmp_path / "set")
    suite = write(
        tmp_path,
        ("{embedded: mini}", "{timm: test_vit, weights: random}"),
        ("photos: {max_images: 24}", "photos: {loader: folder, path: set}"),
    )
    said = bench("check", suite, "--data", tmp_path)
    assert said.status == 0
    notes = [line.removeprefix("note").strip() for line in said.out.splitlines() if "note" in line]
    assert "ok       data photos: 24 images, 2 classes: 2 12, 10 12" in said.out
    assert "weights random 0, reads 160 x 160 (center, crop 0.95, bicubic)" in said.out
    assert ", mean 0.5/0.5/0.5, std 0.5/0.5/0.5, no tag\n" in said.out
    for note in (
        "data photos: passed over .cache: hidden, or left by an archiver",
        "data photos: passed over what is no image: 1 .csv",
        "data photos: classes 2 .. 10 are in the order of numbers, not of letters",
        "data photos: class 2 is label 0 and class 10 is label 1",
        "owner test_vit tells 1000 classes apart and data photos has 2: its label i need not be "
        "the model's class i",
    ):
        assert notes.count(note) == 1


@pytest.mark.parametrize(
    ("extra", "status", "expected"),
    [
        ("", 2, "missing  data photos: data 'photos': masks/0.png: expected ids 0..1, got 255;"),
        (
            ", ignore_index: 255",
            0,
            "ok       data photos: 12 images, 2 classes; masks of 12 looked at show 1 of them, "
            "25% of pixels ignored",
        ),
    ],
)
def test_a_check_looks_into_masks(extra, status, expected, tmp_path):
    ids = np.zeros((64, 64), np.uint8)
    ids[:, :16] = 255
    for i in range(12):
        for part, pixels in (("images", ids // 255 * i), ("masks", ids)):
            (tmp_path / part).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / part / f"{i}.png")
    masks = f"photos: {{loader: masks, path: ., classes: 2{extra}}}"
    suite = write(tmp_path, ("photos: {max_images: 24}", masks), ("images: 4", "images: 1"))
    said = bench("check", suite, "--data", tmp_path)
    assert said.status == status
    assert expected in said.out


def test_a_check_names_the_file_that_cannot_be_decoded(tmp_path):
    for i in range(12):
        path = tmp_path / f"{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), i).save(path)
    (tmp_path / "a/4.png").write_bytes(b"<html>404</html>")
    edit = ("photos: {max_images: 24}", "photos: {loader: folder, path: .}")
    said = bench("check", write(tmp_path, edit), "--data", tmp_path)
    assert said.status == 2
    assert "missing  data photos: data 'photos': a/4.png: expected an image" in said.out


def test_a_check_names_a_size_of_which_pixels_would_be_lost(tmp_path):
    timms = "{timm: test_vit, weights: random, image_size: 125}"
    said = bench("check", write(tmp_path, ("{embedded: mini}", timms)), "--data", tmp_path)
    assert said.status == 2
    assert "missing  owner test_vit 125: timm model test_vit: image_size: expected" in said.out


def test_a_check_refuses_to_probe_on_one_class(tmp_path):
    for i in range(12):
        path = tmp_path / "set" / "only" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(path)
    suite = write(
        tmp_path,
        ("probe: digits", "probe: few"),
        ("photos: {max_images: 24}", "photos: {max_images: 24}, few: {loader: folder, path: set}"),
    )
    said = bench("check", suite, "--data", tmp_path)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "probe: expected labelled images, got 'few'; put them in two class folders" in said.err


def test_a_profile_has_a_row_a_block_and_both_rules(tmp_path):
    said = bench("profile", "mini", "--count", "4", "--device", "cpu", "-o", tmp_path)
    assert (said.status, said.err) == (0, "")
    assert "first_massive: block " in said.out
    assert "largest_jump: block " in said.out
    rows = (tmp_path / "figure-2.csv").read_text().splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == [str(block) for block in range(6)]


# Bad input: one line, nothing lost.


def weights(folder):
    """Write down weights nobody can use."""
    whole = folder / "whole.safetensors"
    save_file({"w": torch.ones(64)}, whole)
    (folder / "torn.safetensors").write_bytes(whole.read_bytes()[:-40])
    (folder / "evil.pth").write_bytes(pickle.dumps(Bomb(folder / "trace")))
    torch.save({"w": torch.ones(4)}, folder / "other.pth")


class Bomb:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def owner(text):
    return ("{embedded: mini}", text)


BAD = {
    "an unknown method": (("activemark", "activemrk"), "did you mean 'activemark'"),
    "an unknown attack": (("prune.l1", "prune.l2"), "did you mean 'prune.l1'"),
    "a misspelt setting": (("steps: 2", "stpes: 2"), "no setting 'stpes'; did you mean 'steps'"),
    "a setting of the wrong type": (("steps: 2", "steps: two"), "steps: expected a whole number"),
    "a share beyond one": (("amount: 0.4", "amount: 1.4"), "amount: expected a number less than 1"),
    "a key given twice": (("probe: digits", "probe: digits\nprobe: photos"), "already stands on"),
    "no YAML": (("data:", "data: ]"), "this is not YAML"),
    "missing weights": (owner("{timm: test_vit, weights: gone.pth}"), "gone.pth, found no such"),
    "torn weights": (owner("{timm: test_vit, weights: torn.safetensors}"), "got a damaged one"),
    "pickled code": (owner("{timm: test_vit, weights: evil.pth}"), "expected a PyTorch checkpoint"),
    "other weights": (owner("{timm: test_vit, weights: other.pth}"), "another architecture"),
    "an unknown model": (owner("{timm: test_vitt}"), "did you mean 'test_vit'"),
    "timm's hub down": (owner("{timm: test_vit}"), "the hub does not answer"),
    "open_clip's hub down": (
        owner("{open_clip: ViT-B-32-quickgelu, pretrained: openai}"), "the hub does not answer"),
    "a missing folder": (("photos: {max_images: 24}", "photos: {loader: folder, path: nowhere}"),
                         "expected a folder, found none at"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_nothing_is_lost(folder, no_hub, edit, words):
    weights(folder)
    before = snapshot(folder / "results")
    write(folder, edit)
    said = run(folder)
    assert said.status == 2
    assert said.err.count("\n") == 1
    assert said.err.startswith("bench: ")
    assert words in said.err
    assert snapshot(folder / "results") == before
    assert not (folder / "trace").exists()
    write(folder)
    assert run(folder).status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "no.yaml"], "no.yaml: No such file"),
        (["report", "nowhere"], "`bench run` writes it"),
        (["profile", "maxi"], "no embedded model 'maxi'"),
        (["profile", "timm:test_resnet", "--weights", "random"], "transformer blocks"),
        (["profile", "mini", "--count", "0"], "--count: expected at least 1, got 0"),
        (["profile", "mini", "--device", "tpu"], "--device: expected auto, cpu or"),
        (["profile", "mini", "--device", "meta"], "--device: expected auto, cpu or"),
        (["profile", "mini", "--images", "/nowhere"], "expected a folder, found none"),
        (["profile", "open_clip:ViT-B-32"], "expected open_clip's tag"),
        (["store", "--collect", "no.yaml"], "no.yaml: No such file"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, words):
    said = bench(*arguments)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert words in said.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_nobody_may_write_to_is_one_line(tmp_path):
    write(tmp_path, ALONE)
    (tmp_path / "results").mkdir(mode=0o500)
    said = run(tmp_path)
    assert (said.status, said.err.count("\n")) == (2, 1)


def test_results_that_are_a_file_are_one_line(tmp_path):
    write(tmp_path, ALONE)
    (tmp_path / "results").write_text("")
    said = run(tmp_path)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "results" in said.err


SCRIPT = Path(sys.executable).with_name("bench")


@pytest.mark.skipif(not SCRIPT.exists(), reason="the command is not beside this Python")
@pytest.mark.parametrize("mistake", ["an unknown method", "pickled code", "timm's hub down"])
def test_the_command_itself_says_one_line_and_exits_with_2(tmp_path, mistake):
    weights(tmp_path)
    suite = write(tmp_path, BAD[mistake][0], ALONE)
    arguments = [SCRIPT, "run", suite, "--results", tmp_path / "results", "--device", "cpu"]
    done = subprocess.run(
        [*map(str, arguments), "--data", str(tmp_path)],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert BAD[mistake][1] in done.stderr


def pictures(folder, count=12):
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "pics" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return sorted((folder / "pics").rglob("*.jpg"))


def test_a_broken_picture_fails_the_cells_that_need_it_and_no_other(tmp_path):
    for file in pictures(tmp_path):
        file.write_bytes(file.read_bytes()[:150] + file.name.encode())  # no two alike
    write(tmp_path, ALONE,
          ("  - {name: prune.l1, amount: 0.4}", "  - {name: finetune.classify, data: pics}"),
          ("photos: {", "pics: {loader: folder, path: pics}, photos: {"))  # fmt: skip
    said = run(tmp_path)
    assert said.status == 1
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.out
    found = records(tmp_path)
    failed = [r for r in found if r.status == "failed"]
    assert {r.cell.attack[0].name for r in failed} == {"finetune.classify"}
    assert all("expected an image, cannot decode it" in r.reason for r in failed)
    assert {r.cell.attack[0].name for r in found if r.status == "ok"} == {"control.identity"}


def test_a_diverging_learning_rate_is_a_record_and_the_others_go_on(tmp_path):
    diverging = "  - {name: finetune.classify, lr: 1e20}"
    write(tmp_path, ALONE, ("  - {name: prune.l1, amount: 0.4}", diverging))
    said = run(tmp_path)
    assert said.status == 1
    found = records(tmp_path)
    failed = [r for r in found if r.status == "failed"]
    assert {r.cell.attack[0].name for r in failed} == {"finetune.classify"}
    assert all(r.reason.startswith("diverged: loss is not finite at epoch") for r in failed)
    assert all(r.reason.endswith("lower lr") for r in failed)
    assert {r.cell.attack[0].name for r in found if r.status == "ok"} == {"control.identity"}


@dataclass(frozen=True)
class Fragile:
    """Break, or prune nothing."""

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    broken: ClassVar[bool] = True

    def run(self, victim, ctx):
        if self.broken:
            raise RuntimeError("out of\nluck")
        return clone(victim)


def test_a_failing_attack_costs_its_own_cells_and_a_rerun_retries_them_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(ATTACKS._plugins, "test.fragile", (Fragile, 1))
    write(tmp_path, ALONE, ("prune.l1, amount: 0.4", "test.fragile"))
    said = run(tmp_path)
    assert said.status == 1
    assert said.err.count("\n") == 1
    assert "2 of 4 cells failed, first: RuntimeError: out of luck" in said.err
    assert sorted(r.status for r in records(tmp_path)) == ["failed", "failed", "ok", "ok"]
    assert {r.reason for r in records(tmp_path)} == {"", "RuntimeError: out of luck"}
    plan = bench("plan", tmp_path / "suite.yaml", "--results", tmp_path / "results")
    assert "4 cells, 2 answered" in plan.out

    known = snapshot(tmp_path / "results" / "tiny" / "records")
    monkeypatch.setattr(Fragile, "broken", False)
    said = run(tmp_path)
    assert (said.status, said.err) == (0, "")
    assert "2 of 4 cells to answer" in said.out
    files = snapshot(tmp_path / "results" / "tiny" / "records")
    (new,) = files.keys() - known.keys()
    assert {json.loads(line)["cell"]["attack"][0]["name"] for line in files[new].splitlines()} == {
        "test.fragile"
    }
    assert {r.status for r in records(tmp_path)} == {"ok"}


def test_a_suite_renamed_in_its_file_reports_under_its_own_name(tmp_path):
    write(tmp_path, ("name: tiny", "name: other"))
    said = bench("report", tmp_path / "suite.yaml", "--results", tmp_path / "results")
    assert said.status == 2
    assert str(tmp_path / "results" / "other") in said.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00", "this is not text in UTF-8"),
        (b"name: [", "this is not YAML"),
        (b"3", "expected a mapping that begins like 'name: demo'"),
        (b"title: x", "expected a suite file with a name"),
    ],
)
def test_a_report_on_what_is_no_suite_is_one_line(tmp_path, content, words):
    (tmp_path / "odd.yaml").write_bytes(content)
    said = bench("report", tmp_path / "odd.yaml")
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert words in said.err


def test_a_report_on_a_mistyped_suite_leads_back(folder):
    said = bench("report", folder / "siute.yaml")
    assert (said.status, "did you mean 'suite.yaml'?" in said.err) == (2, True)


def test_signs_that_a_terminal_lacks_are_written_by_those_that_look_alike():
    assert "0.5 \u2014 \u2264 3 \u00fc".encode("ascii", "bench.plain") == b"0.5 - < 3 \\xfc"
