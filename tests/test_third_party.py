"""A package that is not ours brings a method, a library and an attack; no line changes here."""

from pathlib import Path

import pytest
from documents import ROOT, blocks, code
from made import QUICK, suite
from packages import install, program

from bench.records import ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ENTRY_POINT = next(text for _, text in code(ROOT / "README.md") if "my_package" in text)
"""What the README puts into a pyproject.toml."""

BENCH = ROOT / "bench/README.md"

LIBRARY_POINT = next(text for language, text in code(BENCH) if language == "toml")

FILES = {
    "pyproject.toml": f"""
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-ownership"
version = "1.0"

[project.entry-points."bench.methods"]
"acme.signs" = "acme.signs:Signs"

[project.entry-points."bench.attacks"]
{ENTRY_POINT}

{LIBRARY_POINT.replace("acme:ACME", "acme.library:ACME")}

[tool.setuptools]
packages = ["acme", "my_package"]
""",
    "acme/__init__.py": "",
    "acme/signs.py": '''
"""Write the owner's signs into the last linear layer.

Source: https://example.org/signs
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.models import VisionModel, clone
from bench.registry import method
from bench.types import Access, Context, Evidence, Protected, Rule, Suspect


@method("acme.signs")
@dataclass(frozen=True)
class Signs:
    """Give `count` secret weights secret signs, and a size later changes leave alone."""

    count: int = 64

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = True

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        released = clone(owner)
        weights = last_weights(released)
        places = torch.randperm(weights.numel(), generator=ctx.rng)[: self.count]
        signs = torch.randint(0, 2, places.shape, generator=ctx.rng).float() * 2 - 1
        with torch.no_grad():
            weights[places] = signs.to(weights) * weights[places].abs().clamp_min(weights.std())
        return Protected(released, {"places": places, "signs": signs})

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        found = last_weights(suspect.network)[secret["places"]].sign().cpu()
        agreement = tuple((found == secret["signs"]).float().tolist())
        return Evidence(agreement, agreement, Rule("sign matches", ">=", 1), "weight", 0.5)


def last_weights(model: VisionModel) -> Tensor:
    layers = [m for m in model.trunk.modules() if isinstance(m, nn.Linear)]
    return layers[-1].weight.view(-1)
''',
    "acme/library.py": blocks(BENCH, "python")[0],
    "my_package/__init__.py": "",
    "my_package/forget.py": blocks(ROOT / "README.md", "python")[0],
}

SUITE = suite(
    name="crossed",
    methods=["{name: acme.signs}", QUICK],
    attacks=["{name: forget.weights}", "{name: prune.l1, amount: 0.2}"],
    innocents="{strangers: 1, twin_seeds: 1, attacked_strangers: 1, pretraining_steps: 1}",
)

OWNERS = """
name: of-acme
owners:
  - {acme: tiny, weights: random, seed: 1}
  - {acme: tiny, weights: tiny.safetensors, image_size: 64}
methods:
  - {name: acme.signs}
  - {name: activemark, index: 3, steps: 2, batch: 4, images: 4, encoder_hidden: 32}
attacks:
  - {name: control.identity}
  - {name: prune.l1, amount: 0.2}
data: {digits: {max_images: 16}}
owner_images: digits
probe: digits
innocents: {strangers: 0, twin_seeds: 1}
"""

DRAWN = """
import sys
from safetensors.torch import save_file
from bench.models import Architecture, randomised

model = randomised(Architecture("acme", "tiny", 64), 2)
save_file(model.trunk.state_dict(), sys.argv[1])
"""

CONTRACT = """
import warnings

warnings.simplefilter("error")

from acme.signs import Signs
from bench.testing import check_attack, check_method
from my_package.forget import ForgetWeights

check_attack(ForgetWeights())
check_method(Signs())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(FILES, tmp_path_factory.mktemp("acme"))


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (
            "methods",
            "acme.signs",
            [
                "Give count secret weights secret signs, and a size later changes leave alone.",
                "count = 64 (a whole number)",
                "Source: https://example.org/signs",
                "From acme.signs:Signs, acme-ownership.",
            ],
        ),
        (
            "attacks",
            "forget.weights",
            [
                "Zero a random share of the weights.",
                "share = 0.05 (0 to 1)",
                "From my_package.forget:ForgetWeights, acme-ownership.",
            ],
        ),
    ],
)
def test_an_installed_plug_in_is_listed_with_its_distribution(installed, kind, name, said):
    listing = program(installed, "bench", "list", kind)
    found = f"\n{listing}".partition(f"\n{name}\n")[2].partition("\n\n")[0]
    assert [line.strip() for line in found.splitlines()] == said


def test_an_installed_method_and_attack_cross_with_the_built_in_ones(installed, tmp_path):
    suite = tmp_path / "crossed.yaml"
    suite.write_text(SUITE)
    program(installed, "bench", "run", suite, "--results", tmp_path, "--device", "cpu")
    records = ledger.latest(ledger.read(tmp_path / "crossed")).values()
    crossed = {(r.cell.method.name, r.cell.attack[-1].name) for r in records if r.status == "ok"}
    assert crossed == {
        (method, attack)
        for method in ("acme.signs", "activemark")
        for attack in ("forget.weights", "prune.l1")
    }
    for record in records:
        if record.cell.method.name == "acme.signs":
            marked = record.cell.lineage == "released"
            assert (record.evidence.rate > 0.8) == marked, (
                record.cell
            )  # forgotten weights have no sign


def test_an_installed_plug_in_passes_the_contract(installed, tmp_path):
    (tmp_path / "contract.py").write_text(CONTRACT)
    program(installed, tmp_path / "contract.py")


def test_an_installed_library_is_listed(installed):
    listing = program(installed, "bench", "list", "models")
    assert listing.splitlines()[-1].split("  ")[0] == "acme: tiny"


def test_models_of_an_installed_library_are_owners_drawn_or_from_a_file(installed, tmp_path):
    suite = tmp_path / "of-acme.yaml"
    suite.write_text(OWNERS)
    (tmp_path / "drawn.py").write_text(DRAWN)
    program(installed, tmp_path / "drawn.py", tmp_path / "tiny.safetensors")
    where = ("--data", tmp_path, "--results", tmp_path)
    program(installed, "bench", "check", suite, "--data", tmp_path)
    assert "protect" in program(installed, "bench", "plan", suite, *where)
    program(installed, "bench", "run", suite, *where, "--device", "cpu", "--workers", 1)
    records = list(ledger.latest(ledger.read(tmp_path / "of-acme")).values())
    assert {r.status for r in records} == {"ok"}
    assert {r.cell.owner.args["image_size"] for r in records} == {None, 64}
    assert len({r.owner_digest for r in records}) == 2
