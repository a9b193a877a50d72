"""A leaderboard: rows from any number of folders, what tells them apart, and a site of files."""

import dataclasses
import json
import re

import numpy as np
import pytest
from commands import bench
from made import UNTOUCHED, cell, lost, matches, outline, record, stranger

from bench.records import ledger
from bench.records.nouns import Cost, Fidelity, Spec, StepFacts
from bench.reports.board import entries, ranks, site

PRUNE, DISTILL = (Spec("prune.l1", {"amount": 0.4}),), (Spec("distill.features"),)
FORGE = Spec("forge")
FACTS = tuple(
    (chain[0], StepFacts(kind, images=0))
    for chain, kind in ((PRUNE, "compression"), (DISTILL, "extraction"))
)
COSTS = {
    "protect": Cost(60.0),
    "attack": Cost(1.0, forward_passes=100.0),
    "extract": Cost(0.5),
}
PRICE = Fidelity((0.9,), 0.8, 0.75, 100, "digits")
PRINTS = [Spec("print", {"number": number}) for number in range(3)]


def read(asked, errors=1.0, **changes):
    return record(asked, errors, costs=COSTS, fidelity=PRICE, marks=False, **changes)


def study(keys=2, methods=2, forged=()):
    """Fingerprints that know pruned copies; all but the first lose distilled ones."""
    found = []
    for number, method in enumerate(PRINTS[:methods]):
        for seed in range(keys):
            asked = [(UNTOUCHED, 0.0), (PRUNE, 0.0), (DISTILL, 1.0 if number else 0.0)]
            found += [read(cell(method, attack=a, seed=seed), e) for a, e in asked]
            found += [
                read(cell(method, "owner", stranger(i, *chain), seed, lineage="stranger"), 16.0)
                for chain in ((), PRUNE, DISTILL)
                for i in range(19)
            ]
            found += [
                read(
                    cell(method, "owner", stranger(i), seed, accuser=FORGE, accused=0),
                    errors,
                    notes={"protect": {"stopped_by": "replay", "keys_tried": 1}},
                    suspect_digest=f"stranger {i}",
                )
                for i, errors in enumerate(forged)
            ]
    return [dataclasses.replace(one, evidence=_match(one)) for one in found]


def _match(one):
    """Agreement: 1 of a copy whose errors are 0, 0.2 of one whose errors are 1, else 0.5."""
    level = {0.0: 1.0, 1.0: 0.2}.get(one.evidence.statistic[0], 0.5)
    return matches(*[level] * 10)


def folder(path, records, name="demo", **changes):
    asked = outline(records, **{"steps": FACTS, "name": name, "title": f"About {name}"} | changes)
    ledger.write_outline(path / "suite.json", asked)
    for one in records:
        ledger.append(path / "records/one.jsonl", one)
    return path


def standings(path, records, **changes):
    entry, *_ = entries.read(folder(path, records, **changes))
    return {one.method: one for one in entry.standings}


def test_a_row_says_what_the_worst_attack_and_all_usable_copies_came_to(tmp_path):
    found = standings(tmp_path, study())
    first, second = found["print number=0"], found["print number=1"]
    assert first.score == {0: 1.0, 1: 1.0}
    assert first.evasion == {0: 0.0, 1: 0.0}
    assert second.evasion == {0: 0.5, 1: 0.5}  # the distilled copy of two
    assert 0 < second.score[0] < 1
    assert (first.copies, first.undecided, first.open) == (4, 0, 0.0)
    assert (first.cosine, first.embed_seconds, first.extract_seconds) == (0.9, 60.0, 0.5)
    assert first.seen == "labels"


def test_what_nobody_can_decide_or_read_is_a_claim_lost_as_what_is_not_owned(tmp_path):
    records = study(keys=1, methods=1)
    pruned = [one for one in records if one.cell.attack[-1] == PRUNE[0]]
    strangers = [one for one in pruned if one.cell.lineage == "stranger"]
    few = [one for one in records if one not in strangers]
    assert standings(tmp_path / "all", records)["print"].evasion == {0: 0.0}
    undecided = standings(tmp_path / "few", few)["print"]
    assert (undecided.evasion, undecided.copies, undecided.undecided) == ({0: 0.5}, 2, 1)
    unread = [lost(one, "incompatible", "no") if one in pruned else one for one in records]
    gone = standings(tmp_path / "gone", unread)["print"]
    assert (gone.evasion, gone.copies, gone.undecided) == ({0: 0.5}, 2, 0)


def test_methods_of_one_name_and_other_settings_are_rows_of_their_own(tmp_path):
    # Numbered for being long, the second `print` is called what another method is called.
    methods = [Spec("print #2"), *(Spec("print", {"note": letter * 99}) for letter in "ab")]
    records = [
        dataclasses.replace(
            one,
            key=f"{number} {one.key}",
            cell=dataclasses.replace(one.cell, method=method),
        )
        for number, method in enumerate(methods)
        for one in study(keys=1, methods=1, forged=(0.0, *[16.0] * 19) if number == 0 else ())
    ]
    entry, *_ = entries.read(folder(tmp_path, records))
    assert [one.method for one in entry.standings] == ["print #2", "print #1", "print #2"]
    assert [one.settings for one in entry.standings] == [method.text for method in methods]
    assert [one.forgery == "not tried" for one in entry.standings] == [False, True, True]


def test_what_nobody_forged_is_not_tried_and_forged_evidence_is_counted(tmp_path):
    assert standings(tmp_path / "a", study())["print number=0"].forgery == "not tried"
    forged = standings(tmp_path / "b", study(1, 2, forged=(0.0, *[16.0] * 19)))
    told = "1.000 (forge); 0.000 with a commitment"  # the accused outscores 19 strangers
    assert forged["print number=0"].forgery == told


def test_the_critical_difference_is_nemenyis():
    # Demsar 2006, Table 5: q at 0.05 is 2.343 for 3 classifiers, 2.949 for 7.
    for methods, q in ((3, 2.343), (7, 2.949)):
        expected = q * (methods * (methods + 1) / (6 * 14)) ** 0.5
        assert ranks.critical_difference(methods, 14) == pytest.approx(expected, abs=1e-3)
    assert ranks.critical_difference(3, 1) is None
    assert ranks.critical_difference(1, 14) is None


def test_methods_that_always_come_in_one_order_are_told_apart_once_keys_are_many():
    def scores(keys):
        return {name: [level] * keys for name, level in (("c", 0.1), ("a", 0.9), ("b", 0.5))}

    few, many = ranks.order(scores(2)), ranks.order(scores(30))
    assert [*many.ranks] == ["a", "b", "c"]
    assert few.groups == [["a", "b", "c"]]
    assert many.groups == [["a"], ["b"], ["c"]]


def test_neighbours_share_a_group_where_only_the_ends_are_told_apart():
    keys = 12
    levels = {"a": [3, 2] * 6, "b": [2, 3] * 5 + [2, 1], "c": [1] * 11 + [3]}
    found = ranks.order({name: list(map(float, each)) for name, each in levels.items()})
    assert found.keys == keys
    assert found.groups == [["a", "b"], ["c"]]


def test_ties_throughout_and_single_keys_order_nothing():
    tied = ranks.order({name: [1.0] * 20 for name in "abc"})
    assert (tied.p_value, tied.groups) == (1.0, [["a", "b", "c"]])
    assert ranks.order({"a": [1.0], "b": [0.0], "c": [0.5]}).groups == [["a", "c", "b"]]
    assert ranks.order({}).ranks == {}


def test_methods_that_are_alike_are_seldom_told_apart():
    """The level: of 200 boards of equal methods about 5 % may tell any two apart."""
    rng = np.random.default_rng(0)
    boards = (
        ranks.order(dict(zip("abcd", rng.random((4, 12)).tolist(), strict=True)))
        for _ in range(200)
    )
    assert sum(len(found.groups) > 1 for found in boards) <= 20


def test_rows_of_two_folders_compare_where_owner_and_attacks_are_one(tmp_path):
    one, *_ = entries.read(folder(tmp_path / "a", study(methods=1), "one"))
    second = [one for one in study() if one.cell.method == PRINTS[1]]
    two, *_ = entries.read(folder(tmp_path / "b", second, "two"))
    other, *_ = entries.read(folder(tmp_path / "c", study(methods=1), "other", alpha=0.1))
    text = site.board([one, two, other])
    tracks = text.split('<section data-owner="mini"')[1:]
    assert [track.count("<tr data-seen") for track in tracks] in ([2, 1], [1, 2])
    assert "Nemenyi" in max(tracks, key=len)


def test_a_method_whose_budgets_are_undecided_is_not_ranked(tmp_path):
    lone = [one for one in study() if one.cell.lineage != "stranger"]
    entry, *_ = entries.read(folder(tmp_path, lone))
    assert all(one.open for one in entry.standings)
    text = site.board([entry])
    assert "Not ranked, for budgets are undecided: 2 methods." in text
    assert "1.000 of 4, 4 undecided<" in text  # of all four copies no claim is left


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("board")
    folder(home / "results/demo", study())
    said = bench("leaderboard", home / "results/demo", "-o", home / "site")
    return home, said


def test_the_command_writes_pages_that_ask_for_nothing_and_lead_to_each_other(made):
    home, said = made
    assert (said.status, said.err) == (0, "")
    text = (home / "site/index.html").read_text()
    for address in re.findall(r'(?:href|src)="([^"]*)"', text):
        if not address.startswith(("#", "data:")):
            assert (home / "site" / address.partition("#")[0]).is_file(), address
    assert not re.search(r"https?:", text)
    assert len(re.findall(r'href="[^"]*at=', text)) == 6 * 2  # every number of both rows


def test_an_entry_says_digest_versions_and_rows_and_is_checked_beside_its_records(made):
    home, _ = made
    (path,) = home.glob("site/*/entry.json")
    told = json.loads(path.read_text())
    assert told["files"].keys() == {"suite.json", "records/one.jsonl"}
    assert told["cells"] == {"ok": 240}
    assert [one["method"] for one in told["standings"]] == ["print number=0", "print number=1"]
    records = home / "results/demo"
    (records / "entry.json").write_text(path.read_text())
    assert bench("verify-results", records).status == 0
    with (records / "records/one.jsonl").open("a") as file:
        file.write("\n")
    said = bench("verify-results", records)
    assert said.status == 3
    assert "it is of other files than lie here" in said.out
    (records / "entry.json").write_text("{}")
    assert "it is no entry of a leaderboard" in bench("verify-results", records).out
    (records / "entry.json").unlink()


def test_a_folder_whose_records_do_not_hold_or_comes_twice_is_refused(tmp_path):
    records = study(1, 1)
    good = folder(tmp_path / "good", records)
    said = bench("leaderboard", good, good, "-o", tmp_path / "site")
    assert (said.status, said.out.count("row")) == (2, 2)
    assert "expected every folder once" in said.err
    swapped = dataclasses.replace(records[0], cell=records[1].cell)
    ledger.append(good / "records/one.jsonl", swapped)
    said = bench("leaderboard", good, "-o", tmp_path / "site")
    assert said.status == 2
    assert "expected records that hold, 1 do not" in said.err
    assert not (tmp_path / "site").exists()


def test_a_hostile_name_leaves_the_site_in_its_folder_and_stays_text(tmp_path):
    hostile = '../../<script>alert("x")</script>'
    entry, *_ = entries.read(folder(tmp_path, study(1, 1), hostile))
    assert re.fullmatch(r"script-alert-x-script-[0-9a-f]{8}", entry.slug)
    assert "<script>alert" not in site.board([entry])
