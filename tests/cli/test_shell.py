import json
import shutil
import subprocess

import pytest
from commands import bench
from PIL import Image

from bench.cli.program import main
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
    said = bench("explain", "ipgaurd")
    assert said.status == 2
    assert "did you mean 'ipguard'?" in said.err


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
    assert (amount["type"], amount["exclusiveMaximum"]) == ("number", 1)


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
