"""A word that is mistyped leads back to the one that was meant."""

import pytest
from commands import bench

from bench.records.ledger import read_results, results_near
from bench.records.nouns import UserError
from bench.records.settings import nearest

NAMES = ["ipguard", "prune.l1", "reparam.permute", "posthoc.search", "cka.hidden"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("ipgard", "ipguard"),
        ("IPGuard", "ipguard"),
        ("l1", "prune.l1"),
        ("Permute", "reparam.permute"),
        ("prune_l1", "prune.l1"),
        ("hiden", "cka.hidden"),
        ("zebra", None),
    ],
)
def test_the_nearest_name_is_asked_for_whatever_its_capitals_and_family(word, meant):
    assert nearest(word, NAMES) == (f"; did you mean '{meant}'?" if meant else "")


@pytest.fixture
def results(tmp_path, monkeypatch):
    for name in ("demo", "published/demo", "published/attacks", "deit-tiny"):
        (tmp_path / "results" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / name / "suite.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("results/pubished/demo", "results/published/demo"),
        ("result/published/demo", "results/published/demo"),
        ("results/published/attack", "results/published/attacks"),
        ("results/deit-tny", "results/deit-tiny"),
        ("attacks", "results/published/attacks"),
    ],
)
@pytest.mark.parametrize("command", ["report", "compare", "verify-results", "leaderboard"])
def test_a_misspelt_folder_of_results_leads_to_the_nearest(given, meant, command, results):
    more = [given] if command == "compare" else []
    said = bench(command, given, *more)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert f"did you mean '{meant}'?" in said.err


def test_a_whole_path_is_asked_for_as_it_was_given(results):
    meant = results / "published" / "demo"
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        read_results(results / "pubished" / "demo")


def test_nobody_searches_a_whole_disk(tmp_path):
    assert results_near(tmp_path.__class__("/there-is-none/of-that-name")) == ""


def test_a_report_finds_results_by_the_name_that_a_run_gave_them(results):
    said = bench("report", "demo")
    assert said.status == 2  # what lies there is none, and is named
    assert said.err.startswith("bench: results/demo/suite.json: ")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("IPGuard", "ipguard"),
        ("l1", "prune.l1"),
        ("activmark", "activemark"),
        ("forge", "post_hoc.forge"),
    ],
)
def test_explain_asks_for_the_nearest_method_attack_or_accuser(word, meant):
    said = bench("explain", word)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert f"did you mean '{meant}" in said.err
