"""The paper's suite where nothing is there: what it needs and costs, and samples of its data."""

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench.cli import main, sampling
from bench.records import ledger
from bench.records.nouns import UNTOUCHED
from bench.suite import plan, reader

SUITES = Path(__file__).parents[2] / "suites"


def test_the_suites_of_the_paper_load_and_the_small_one_has_its_kinds_of_cells():
    def kinds(name):
        made = reader.load(SUITES / name)
        found = set()
        for part in made.parts:
            for method, chain in itertools.product(part.methods, part.attacks):
                words = [method.args.get(word) for word in ("variant", "readout")]
                steps = [(s.name, s.args.get("data"), s.args.get("schedule")) for s in chain]
                found.add((method.name, *words, *steps))
        return found, {(o.library, o.name, bool(o.classifier)) for o in made.owners}

    (cells, owners), (small_cells, small_owners) = kinds("paper.yaml"), kinds("paper-smoke.yaml")
    assert small_cells == cells
    assert small_owners == owners


def test_the_papers_suite_says_what_it_needs_on_a_machine_that_has_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["check", str(SUITES / "paper.yaml"), "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().out.splitlines()
    marks = Counter(line.split()[0] for line in said if not line.startswith(" "))
    assert marks == {"fetch": 22, "missing": 4}
    assert any("hf download timm/vit_large_patch14_dinov2.lvd142m" in line for line in said)
    for words in ("image-net.org", "robots.ox.ac.uk", "FoodSeg103.zip", "kaggle datasets download"):
        assert sum(words in line for line in said) == 1


def test_the_papers_suite_can_be_priced_for_a_device_that_is_not_here(tmp_path, capsys):
    arguments = ["plan", str(SUITES / "paper.yaml"), "--results", str(tmp_path)]
    assert main([*arguments, "--data", str(tmp_path), "--device", "a100-80gb"]) == 0
    said = capsys.readouterr().out
    assert "GPU time is an estimate" in said
    assert "data imagenet is not there" in said
    assert "?" not in said
    assert not list(tmp_path.iterdir())


PETS = """
name: pets
owners: [{embedded: mini}]
methods: [{name: oracle.weights}]
attacks: [{name: control.identity}]
data: {pets: {loader: oxford-pets, path: PATH}}
owner_images: pets
probe: pets
"""


@pytest.fixture
def torchvision(monkeypatch):
    """A torchvision that has the pets at hand, and a list of where it was told to put them."""
    asked = []

    def download(folder, download):
        assert download
        asked.append(folder)
        sampling.pets(folder / "oxford-iiit-pet", sampling._pictures())

    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet", download)
    return asked


def test_pets_are_downloaded_when_asked_for_and_never_otherwise(tmp_path, torchvision, capsys):
    suite = tmp_path / "suite.yaml"
    suite.write_text(PETS.replace("PATH", "sets/oxford-iiit-pet"))
    check = ["check", str(suite), "--data", str(tmp_path)]
    assert (main(check), torchvision) == (2, [])
    assert "missing  data pets" in capsys.readouterr().out
    assert (main([*check, "--download"]), torchvision) == (0, [tmp_path / "sets"])
    said = capsys.readouterr().out
    assert "ok       data pets: 48 images, 4 classes" in said
    assert "published with 7349 images and 37 classes" in said
    assert (main([*check, "--download"]), len(torchvision)) == (0, 1)


def test_pets_are_not_downloaded_to_where_torchvision_would_not_put_them(
    tmp_path, torchvision, capsys
):
    suite = tmp_path / "suite.yaml"
    suite.write_text(PETS.replace("PATH", "pets"))
    assert main(["check", str(suite), "--data", str(tmp_path), "--download"]) == 2
    said = capsys.readouterr().err
    assert "expected a path that ends in oxford-iiit-pet" in said
    assert (said.count("\n"), torchvision) == (1, [])


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch, capsys):
    def refuse(folder, download):
        raise OSError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet", refuse)
    suite = tmp_path / "suite.yaml"
    suite.write_text(PETS.replace("PATH", "oxford-iiit-pet"))
    assert main(["check", str(suite), "--data", str(tmp_path), "--download"]) == 2
    assert capsys.readouterr().err == (
        "bench: data 'pets': --download: torchvision could not (no route)\n"
    )


def test_samples_are_laid_out_as_the_loaders_expect(tmp_path):
    from bench.data import manifest

    pictures = sampling._pictures()
    sampling.imagenet(tmp_path / "imagenet-val", pictures)
    sampling.products(tmp_path / "ECOMMERCE_PRODUCT_IMAGES", pictures)
    sampling.pets(tmp_path / "oxford-iiit-pet", pictures)
    sampling.foodseg(tmp_path / "FoodSeg103", pictures)
    asked = reader.load(SUITES / "paper-smoke.yaml").data
    full = reader.load(SUITES / "paper.yaml").data
    assert {n: (d.loader, d.path) for n, d in asked.items()} == {
        n: (d.loader, d.path) for n, d in full.items()
    }
    for name, settings in asked.items():
        listed = manifest.read(name, settings, tmp_path)
        assert len({item.source for item in listed.items}) == len(listed.items)
        assert all(map(len, (manifest.split(listed).owner_images, listed.classes)))


def test_weights_of_samples_are_fixed_and_differ_from_each_other(tmp_path):
    sampling.weights(tmp_path / "a", 64, ["test_vit", "test_vit2"])
    sampling.weights(tmp_path / "b", 64, ["test_vit"])
    from safetensors.torch import load_file

    first, again = (load_file(tmp_path / d / "test_vit.safetensors") for d in "ab")
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    assert {v.dtype for v in first.values()} == {torch.float16}


@pytest.mark.parametrize(("side", "name"), [(224, "vit-large-cuda"), (518, "vit-large-518-cuda")])
def test_table_3_at_the_size_of_one_gpu_can_be_priced(side, name, tmp_path, capsys):

    made = reader.load(SUITES / f"{name}.yaml")
    assert [owner.image_size for owner in made.owners] == [side]
    pictures = sampling._pictures(16, images=1500)
    sampling.imagenet(tmp_path / "imagenet-val", pictures, images=125)
    given = ["--data", str(tmp_path), "--results", str(tmp_path / "results")]
    assert main(["check", str(SUITES / f"{name}.yaml"), *given]) == 0
    assert "data imagenet: 1500 images, 12 classes" in capsys.readouterr().out
    assert main(["plan", str(SUITES / f"{name}.yaml"), *given, "--device", "h200"]) == 0
    assert "?" not in capsys.readouterr().out


def test_a_mask_is_as_large_as_its_picture_whatever_that_is():
    assert sampling._patches(104, seed=0, side=66).shape == (66, 66)


# A run's kind does not hang on its size, nor on what `prune.l1` had no setting for at that time.
SIZES = ("epochs", "batch", "what")


def kind(cell):
    """What is asked in a cell, whatever the block and the number of steps and images."""
    owner = (cell.owner.name, cell.owner.args["library"], "classifier" in cell.owner.args)
    settings = [cell.method.args.get(name) for name in ("variant", "readout", "precision")]
    steps = [
        (step.name, *sorted((k, v) for k, v in step.args.items() if k not in SIZES))
        for step in cell.attack
    ]
    return (owner, cell.method.name, *settings, cell.lineage, cell.base, *steps)


def architectures(cells):
    return {cell.other_model.name.partition(".")[0] for cell in cells if cell.other_model}


def asked_of(suite):
    return [q.cell for q in plan.make(reader.load(SUITES / suite), None, assume=True).questions]


def came_later(cell):
    """Say whether a cell is of the one kind that the committed run is older than."""
    return cell.base == "other key" and cell.attack[0].name != UNTOUCHED


def test_the_committed_small_run_answered_every_kind_of_cell_but_attacked_copies_of_other_keys():
    home = SUITES.parent / "results" / "paper-smoke"
    outline, records = ledger.read_outline(home / "suite.json"), ledger.answers(home)
    assert Counter(records[key].status for key, _ in outline.cells) == {
        "ok": 185,
        "incompatible": 1,  # weights are compared with those of a model that has others
    }
    full, small = asked_of("paper.yaml"), [cell for _, cell in outline.cells]
    assert set(map(kind, small)) == {kind(cell) for cell in full if not came_later(cell)}
    assert architectures(small) == architectures(full)


def occupied(folder):
    sizes = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # written under another name meanwhile
            sizes.append(path.stat().st_size)
    return sum(sizes)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif("BENCH_PAPER_SMOKE" not in os.environ, reason="half an hour, 50 GB of disk: "
                    "set BENCH_PAPER_SMOKE=1")  # fmt: skip
def test_the_small_suite_runs_whole_within_45_minutes_16_gib_and_60_gb(tmp_path):
    sampling.write(tmp_path / "sample")
    given = ["--data", tmp_path / "sample", "--results", tmp_path / "results", "--drop-copies"]
    command = [sys.executable, "-m", "bench", "run", SUITES / "paper-smoke.yaml", *given]
    began, most = time.monotonic(), 0
    with subprocess.Popen([*map(str, command), "--workers", "1", "--threads", "2"]) as run:
        while run.poll() is None:
            most = max(most, occupied(tmp_path))
            time.sleep(2)
    assert run.returncode == 0
    assert time.monotonic() - began < 45 * 60
    assert most < 60e9
    answers = ledger.answers(tmp_path / "results" / "paper-smoke").values()
    peaks = [cost.peak_memory_mb for record in answers for cost in record.costs.values()]
    assert max(peaks) < 16 * 1024
