import json
import shutil
import subprocess
from pathlib import Path

import pytest
import timm
import torch
import yaml
from commands import bench
from documents import ROOT
from made import suite
from PIL import Image
from safetensors.torch import save_file

from bench.cli.parser import parser
from bench.cli.program import COMMANDS, main
from bench.cli.shell.schema import suite_schema
from bench.registry import ATTACKS, METHODS
from bench.suite import reader


def refused(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main([*words])
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    return said.err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("rn", "x.yaml"), "did you mean 'run'?"),
        (("list", "methodz"), "did you mean 'methods'?"),
        (("run", "x.yaml", "--thread", "2"), "did you mean '--threads'?"),
        (("run", "x.yaml", "--engine", "rai"), "did you mean 'ray'?"),
        (("run", "dmeo"), "did you mean 'demo'?"),
        (("run", "x.yaml", "--threads", "x"), "expected a whole number, got 'x'"),
        (("report",), "see `bench report --help`"),
    ],
)
def test_a_word_that_is_none_is_refused_in_a_line_with_the_nearest(capsys, words, meant):
    assert meant in refused(capsys, *words)


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("bench ")


@pytest.mark.parametrize("name", ["ipguard", "prune.l1"])
def test_a_plug_in_is_explained(name):
    said = bench("explain", name)
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith(f"{name}\n")
    assert "Source:" in said.out


def test_a_misspelt_plug_in_is_told_the_nearest():
    for word, meant in (("ipgaurd", "ipguard"), ("post_hoc.serch", "post_hoc.search")):
        said = bench("explain", word)
        assert said.status == 2
        assert f"did you mean '{meant}'?" in said.err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [(("bench", "li"), "list"), (("bench", "list", "a"), "attacks"),
     (("bench", "run", "x", "--eng"), "--engine"), (("bench", "run", "--engine", "r"), "ray"),
     (("bench", "explain", "ipg"), "ipguard")],
)  # fmt: skip
def test_bash_completes(words, wanted, tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    script = tmp_path / "bench.bash"
    script.write_text(bench("completion", "bash").out)
    quoted = " ".join(map(repr, words))
    asked = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _bench; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    told = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert wanted in told.stdout.split()
    assert told.stderr == ""


def test_zsh_and_fish_get_every_command():
    for shell in ("zsh", "fish"):
        text = bench("completion", shell).out
        assert all(word in text for word in ("protect", "verify-results", "ipguard"))


def test_the_schema_knows_every_plug_in_and_its_settings():
    made = json.loads(bench("schema").out)
    assert {f"method.{name}" for name in METHODS.names()} <= made["$defs"].keys()
    assert {f"attack.{name}" for name in ATTACKS.names()} <= made["$defs"].keys()
    amount = made["$defs"]["attack.prune.l1"]["properties"]["amount"]
    assert (amount["type"], amount["minimum"], amount["exclusiveMaximum"]) == ("number", 0, 1)


def test_every_suite_of_ours_is_as_the_schema_has_it_and_a_misspelt_setting_is_not():
    validator = pytest.importorskip("jsonschema").Draft202012Validator(suite_schema())
    files = [f for f in sorted((ROOT / "suites").rglob("*.yaml")) if "\nname:" in f.read_text()]
    assert any("accusers" in reader.plain(reader.tree(file)) for file in files)
    for file in files:
        value = reader.plain(reader.tree(file))
        assert [error.message for error in validator.iter_errors(value)] == [], file.name
    small = yaml.safe_load(suite(accusers=["{name: post_hoc.search, draws: 2}"], accused="2"))
    small["methods"][0]["precision"] = "auto"
    assert [error.message for error in validator.iter_errors(small)] == []
    for wrong in (
        {"attacks": [{"name": "prune.l1", "amuont": 0.2}]},
        {"accusers": [{"name": "post_hoc.serch"}]},
        {"accusers": [{"name": "post_hoc.search", "drawz": 2}]},
        {"methods": [{"name": "activemark", "precision": "auot"}]},
        {"acused": 2},
        {"accused": "2"},
        {"owners": [{"embedded": "mini", "wieghts": "random"}]},
        {"owners": [{"weights": "random"}]},
        {"owners": [{"embedded": "mini", "timm": "vit"}]},
        {"data": {"digits": {"crop": 3}}},
        {"data": {"mine": {"loader": "fodler"}}},
        {"innocents": {"stranger": 3}},
        {"innocents": {"descendants": [{"name": "prune.l2"}]}},
    ):
        assert not validator.is_valid(small | wrong), wrong


def test_a_suite_that_comes_with_it_is_called_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parser(COMMANDS).parse_args(["run", "demo"]).suite == ROOT / "suites/demo.yaml"
    Path("demo").touch()  # what lies here comes first
    assert parser(COMMANDS).parse_args(["run", "demo"]).suite == Path("demo")


def test_a_first_suite_is_one_that_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my pets").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "my pets" / "a.png")
    said = bench("init", "mini", "my pets")
    assert (said.status, said.out) == (0, "my_pets.yaml: next, bench check my_pets.yaml\n")
    found = reader.load(tmp_path / "my_pets.yaml")
    assert found.data["mine"].path == str(tmp_path / "my pets")
    again = bench("init", "mini", "my pets")
    assert again.status == 2
    assert "expected no file yet at my_pets.yaml" in again.err


def test_a_first_suite_has_images_as_large_as_the_file_was_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, size in (("own", {}), ("at112", {"img_size": 112})):
        model = timm.create_model("test_vit", num_classes=0, **size)
        save_file(model.state_dict(), f"{name}.safetensors")
    made = bench("init", "timm:test_vit", "photos", "--weights", "at112.safetensors")
    assert "at112.safetensors: its positions are of images of 112 pixels" in made.out
    assert reader.load(Path("photos.yaml")).owners[0].image_size == 112
    for output, more in (("own.yaml", "own"), ("told.yaml", "at112")):
        said = ("--image-size", "96") if output == "told.yaml" else ()
        asked = "timm:test_vit", "photos", "--weights", f"{more}.safetensors", "-o", output, *said
        assert "positions" not in bench("init", *asked).out
        assert reader.load(Path(output)).owners[0].image_size == (96 if said else None)


def test_a_first_suite_is_not_written_for_weights_of_another_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"weight": torch.ones(1)}, "other.safetensors")
    said = bench("init", "timm:test_vit", "photos", "--weights", "other.safetensors")
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "expected weights of test_vit" in said.err
    assert not Path("photos.yaml").exists()


def test_a_first_suite_may_be_on_embedded_images_unless_a_folder_has_the_name(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert bench("init", "mini", "photos").status == 0  # as README writes it
    assert reader.load(tmp_path / "photos.yaml").data["mine"].loader == "photos"
    (tmp_path / "digits").mkdir()
    assert bench("init", "mini", "digits").status == 0
    assert reader.load(tmp_path / "digits.yaml").data["mine"].path == str(tmp_path / "digits")
    said = bench("init", "mini", "phots")
    assert (said.status, "did you mean 'photos'" in said.err) == (2, True)
