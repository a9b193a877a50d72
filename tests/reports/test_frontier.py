import dataclasses
import os
import random
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from made import MARK, QUERIES, UNTOUCHED, bit_errors, cell, key_of, lost, outline, record, stranger

from bench.cli import main
from bench.records import ledger
from bench.records.nouns import Spec, UserError, Utility, packed
from bench.records.table import NOTHING
from bench.reports import blocks, drawings, frontier
from bench.verdicts.verdict import Null, decide

PRINT = Spec("ipguard")
N = 10
PROBE = ("probe accuracy", "digits, owner's held-out images")
THIEVES = ("accuracy", "digits, thief's test images")
SCENES = ("mIoU", "scenes, thief's test images")


def prune(amount, **more):
    return (Spec("prune.l1", {"amount": amount, "scope": "global", **more}),)


def tune(lr, **more):
    return (Spec("finetune.classify", {"lr": lr, "schedule": "constant", **more}),)


def answer(asked, seen, utility=None, task=PROBE, **changes):
    """Record a cell whose rule holds on a share `seen` of the queries; the score grows with it."""
    good = round(seen * QUERIES)
    clean = asked.base == "owner" and asked.attack == UNTOUCHED
    defaults = {
        "suspect_digest": "clean" if clean else key_of(asked),
        "evidence": bit_errors(*[1.0] * good, *[16.0] * (QUERIES - good)),
        "utility": None if utility is None else Utility(task[0], utility, task[1], N),
    }
    return record(asked, **defaults | changes)


def innocents(method=MARK, seed=0, count=20):
    """Nothing is read off these: a copy is owned when anything at all is read off it.

    A fingerprint's strangers went through its copies' attacks, a mark's twins each through another.
    """
    tried = [(), *map(tune, (1, 2, 3))] if method == PRINT else [()]
    strangers = [stranger(i, *chain) for i in range(count) for chain in tried]
    elsewhere = [(Spec("elsewhere", {"to": i}),) for i in range(count) if method == MARK]
    return [
        *(answer(cell(method, "owner", s, seed, lineage="stranger"), 0.0) for s in strangers),
        *(answer(cell(method, "owner", chain, seed), 0.0) for chain in elsewhere),
    ]


def untouched(method=MARK, seed=0, seen=1.0, utility=0.9):
    """The model before any attack, and for a mark the clean owner."""
    clean = answer(cell(method, "owner", seed=seed), 0.0, 0.8)
    return [answer(cell(method, seed=seed), seen, utility), *([clean] if method == MARK else [])]


def copies(attack, points, method=MARK, task=PROBE, seed=0):
    """The marked copies of a sweep, from {strength: (share seen, utility)}."""
    return [
        answer(cell(method, attack=attack(s), seed=seed, attack_seed=seed), seen, utility, task)
        for s, (seen, utility) in points.items()
    ]


def twins(attack, points, task=PROBE):
    """Their twins, from {strength: utilities, one per attack seed}."""
    return [
        answer(cell(base="owner", attack=attack(s), attack_seed=i), 0.0, utility, task)
        for s, utilities in points.items()
        for i, utility in enumerate(utilities)
    ]


def made(*groups):
    records = [record for group in groups for record in group]
    return frontier.tables(outline(records, name="tiny"), {r.key: r for r in records})


def rows(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def losses(*groups):
    return {row["strength"]: row["utility loss"] for row in rows(made(*groups)[0])}


def price(*groups):
    (row,) = rows(made(*groups)[1])
    return row


def brief(text):
    """Leave out the spreads: "> +0.200 [...] (n=1) at lr=0.4" becomes "> +0.200 at lr=0.4"."""
    return re.sub(r" \[.*\)", "", text)


@pytest.mark.parametrize(
    ("chains", "expected"),
    [
        ([prune(0.4), prune(0.2)], {"prune.l1 amount": ["0.2", "0.4"]}),
        ([prune(0.2), prune(0.4), prune(0.4, scope="layer")], {"prune.l1 amount": ["0.2", "0.4"]}),
        ([tune(1e-5), tune(0.001), prune(0.2)], {"finetune.classify lr": ["1e-05", "0.001"]}),
        (
            [tune(1, schedule=s) for s in ("linear", "cosine")]
            + [tune(2, schedule=s) for s in ("linear", "cosine")],
            {"finetune.classify lr linear": ["1", "2"], "finetune.classify lr cosine": ["1", "2"]},
        ),
        (
            [tune(1, epochs=5), tune(2, epochs=5), tune(2, epochs=9)],
            {"finetune.classify lr": ["1", "2"], "finetune.classify epochs": ["5", "9"]},
        ),
        (
            [prune(0.2) + tune(1), prune(0.2) + tune(2), tune(1)],
            {"prune.l1 > finetune.classify lr": ["1", "2"]},
        ),
        (
            [prune(0.2) + UNTOUCHED + prune(0.4), prune(0.2) + prune(0.6)],
            {"prune.l1 > prune.l1 amount": ["0.4", "0.6"]},
        ),
    ],
)
def test_a_sweep_is_chains_that_differ_in_one_number(chains, expected):
    table, prices = made([answer(cell(attack=chain), 1.0) for chain in chains])
    found = {}
    for row in rows(table):
        found.setdefault(row["sweep"], []).append(row["strength"])
    assert found == expected
    assert [row["sweep"] for row in rows(prices)] == list(expected)
    assert [row["points"] for row in rows(prices)] == ["2 of 2"] * len(expected)


@pytest.mark.parametrize(
    "chains",
    [
        [prune(0.2)],
        [prune(0.2), prune(0.4, scope="layer")],
        [tune(1, epochs=5), tune(2, epochs=9)],
        [prune(0.2), tune(1)],
        [tune(1, lora=False), tune(1, lora=True)],
        [tune(1, width=None), tune(1, width=32)],
        [(Spec("prune.l1", {"amount": 1}),), (Spec("prune.l1", {"amount": 2}, version=2),)],
    ],
)
def test_chains_that_differ_otherwise_are_no_sweep_and_it_says_what_is(chains):
    with pytest.raises(UserError, match=r"^tiny: expected a sweep, .* one number changed") as error:
        made([answer(cell(attack=chain), 1.0) for chain in chains])
    assert "\n" not in str(error.value)


def test_what_only_innocents_went_through_is_no_sweep():
    with pytest.raises(UserError, match="expected a sweep"):
        made(untouched(), twins(prune, {0.2: [0.9], 0.4: [0.8]}))


def test_on_the_same_task_the_loss_is_counted_from_before_the_attack():
    points = copies(prune, {0.2: (1.0, 0.9), 0.8: (1.0, 0.3)})
    found = losses(points, untouched(), innocents())
    # R. G. Newcombe, Stat. Med. 17 (1998), table II, method 10: 9/10 against 3/10.
    assert found["0.8"] == "+0.600 [+0.171, +0.809] (n=1)"
    assert found["0.2"].startswith("+0.000 [-")
    assert price(points, untouched(), innocents())["against"] == "before the attack"


def test_where_it_is_known_which_images_were_right_the_loss_is_paired():
    known = [True] * 36 + [False] * 12 + [True] * 2
    before = Utility("probe accuracy", 0.96, PROBE[1], 50, packed([True] * 48 + [False] * 2))
    after = Utility("probe accuracy", 0.76, PROBE[1], 50, packed(known))
    swept = [answer(cell(attack=prune(s)), 1.0, utility=None) for s in (0.2, 0.4)]
    swept = [dataclasses.replace(r, utility=after) for r in swept]
    whole = [dataclasses.replace(r, utility=before) for r in untouched()]
    # R. G. Newcombe, Stat. Med. 17 (1998) 2635-2650, table III, method 10: 36 both, 12 and 2 alone.
    assert losses(swept, whole)["0.4"] == "+0.200 [+0.057, +0.340] (n=1)"


def test_each_copy_is_held_against_the_model_released_under_its_own_key():
    points = [
        copies(prune, {0.2: (1.0, u), 0.4: (1.0, u)}, seed=s) for s, u in ((0, 0.8), (1, 0.4))
    ]
    found = losses(*points, untouched(), untouched(seed=1, utility=0.7))
    assert brief(found["0.2"]) == "+0.200"  # 0.9 - 0.8 and 0.7 - 0.4
    assert found["0.2"].endswith("(n=2: +0.100 to +0.300)")


def test_on_a_task_of_its_own_a_suspect_is_held_against_the_best_twin():
    points = copies(tune, {1e-5: (1.0, 0.2), 1e-3: (1.0, 0.9), 1e-1: (1.0, 0.3)}, task=THIEVES)
    honest = twins(tune, {1e-5: [0.3, 0.1], 1e-3: [0.7, 0.9], 1e-1: [0.9, 0.5]}, THIEVES)
    found = losses(points, honest, untouched(), innocents())
    # The best mean over two attack seeds is 0.8, though single twins reach 0.9.
    assert {s: brief(text) for s, text in found.items()} == {
        "1e-05": "+0.600",
        "0.001": "-0.100",
        "0.1": "+0.500",
    }
    assert price(points, honest, untouched())["against"] == "best twin"


def unreadable(attack, strength, utility):
    gone = lost(answer(cell(attack=attack(strength)), 1.0, utility), "incompatible", "width")
    return dataclasses.replace(gone, utility=Utility(*(PROBE[0], utility, PROBE[1]), N))


def test_a_copy_that_cannot_be_read_is_a_claim_lost_at_the_loss_it_took():
    points = copies(prune, {0.2: (1.0, 0.8)})
    groups = ([*points, unreadable(prune, 0.4, 0.7)], untouched(), innocents())
    said = price(*groups)
    # 0.9 before, 0.7 after: neither our verdict nor the paper's rule finds anything there.
    assert brief(said["price (verdict)"]) == "+0.200 at amount=0.4"
    assert brief(said[f"price (paper's rule, R < {frontier.R_HIGH:g})"]) == "+0.200 at amount=0.4"
    assert said["points"] == "2 of 2"
    assert rows(made(*groups)[0])[1]["verdict"] == "incompatible 1/1"


def test_undecided_is_a_claim_lost_only_where_the_untouched_copy_is_decided():
    few = innocents(count=3)
    said = price(copies(prune, {0.2: (1.0, 0.8), 0.3: (1.0, 0.8)}), untouched(), few)
    assert said["price (verdict)"] == "undecided"
    row = blocks.Row("prune", {"released": [], "owner": [], "stranger": []})
    undecided = decide(0.9, [Null("strangers", (0.5,) * 3, "untouched")], 0.05)
    assert frontier.Point(0.2, row, [undecided], {}, decidable=False).owned is None
    assert frontier.Point(0.2, row, [undecided], {}, decidable=True).owned is False


def test_innocents_with_rows_of_their_own_change_no_loss():
    deep = (Spec("control.stranger", {"index": 0, "shape": "deep"}), *prune(0.2))
    others = [
        answer(cell(base="other key", lineage="owner", other_seed=7), 0.0, 0.1),
        answer(cell(base="owner", attack=deep, lineage="stranger"), 0.0, 0.1),
    ]
    points = copies(prune, {0.2: (1.0, 0.9), 0.4: (1.0, 0.9)})
    plain = twins(prune, {0.2: [0.8], 0.4: [0.7]})
    groups = (points, plain, untouched())
    assert losses(*groups, others) == losses(*groups)
    assert drawing(*groups, others) == drawing(*groups)


def test_a_twin_is_held_against_the_clean_owner():
    records = [*copies(prune, {1: (1.0, 0.8), 2: (1.0, 0.7)}), *twins(prune, {1: [0.8], 2: [0.5]})]
    records += untouched()
    (sweep,), _ = frontier.sweeps_of(outline(records, name="tiny"), {r.key: r for r in records})
    assert [p.losses["owner"].value for p in sweep.points] == pytest.approx([0.0, 0.3])
    assert [p.losses["released"].value for p in sweep.points] == pytest.approx([0.1, 0.2])


def test_a_mark_that_left_the_model_as_it_was_still_has_a_yardstick():
    same = [dataclasses.replace(r, suspect_digest="clean") for r in untouched()]
    points = copies(prune, {0.2: (1.0, 0.8), 0.4: (1.0, 0.6)})
    assert brief(losses(points, same)["0.4"]) == "+0.300"


def test_a_fingerprint_has_no_twins_so_the_best_copy_stands_for_honest_work():
    points = copies(tune, {1: (1.0, 0.4), 2: (1.0, 0.9), 3: (0.5, 0.6)}, PRINT, THIEVES)
    groups = (points, untouched(PRINT), innocents(PRINT))
    found = losses(*groups)
    assert (brief(found["1"]), brief(found["3"])) == ("+0.500", "+0.300")
    assert found["2"] == f"+0.000 [{NOTHING}] (n=1)"  # against itself
    said = price(*groups)
    assert (said["against"], brief(said["price (verdict)"])) == ("best copy", "> +0.300 at lr=3")
    assert {row["twin"] for row in rows(made(*groups)[0])} == {NOTHING}


def test_a_mean_of_ious_has_a_range_over_models_and_no_interval():
    honest = twins(tune, {1: [0.5], 2: [0.4]}, SCENES)
    one = copies(tune, {1: (1.0, 0.45), 2: (1.0, 0.2)}, task=SCENES)
    two = copies(tune, {1: (1.0, 0.35), 2: (1.0, 0.3)}, task=SCENES, seed=1)
    assert losses(one, honest, untouched())["2"] == f"+0.300 [{NOTHING}] (n=1)"
    both = losses(one, two, honest, untouched(), untouched(seed=1))
    assert both["2"] == f"+0.250 [{NOTHING}] (n=2: +0.200 to +0.300)"


def test_without_the_untouched_model_there_is_no_loss_but_there_is_detection():
    groups = (copies(prune, {0.2: (1.0, 0.9), 0.4: (0.0, 0.9)}), innocents())
    table, _ = made(*groups)
    assert [(r["utility loss"], r["verdict"]) for r in rows(table)] == [
        (NOTHING, "owned 1/1; other keys not read"),
        (NOTHING, "not owned 1/1"),
    ]
    assert price(*groups)["price (verdict)"] == NOTHING


PRICES = {
    "gone in the middle, back after it": (
        {0.2: (1.0, 0.8), 0.4: (0.0, 0.6), 0.6: (0.9, 0.5), 0.8: (0.0, 0.3)},
        (
            *("+0.300 at amount=0.4", "+0.300 at amount=0.4"),
            *("+0.600 at amount=0.8, no usable theft", "4 of 4"),  # the owner has 0.8, half is 0.4
        ),
    ),
    "gone at the first": (
        {0.2: (0.0, 1.0), 0.4: (0.0, 0.5)},
        ("-0.100 at amount=0.2", "-0.100 at amount=0.2", "+0.400 at amount=0.4", "2 of 2"),
    ),
    "cheaper at the stronger end": (
        {0.2: (0.0, 0.4), 0.4: (0.0, 0.7)},
        ("+0.200 at amount=0.4", "+0.200 at amount=0.4", "+0.500 at amount=0.2", "2 of 2"),
    ),
    "never gone": (
        {0.2: (1.0, 0.8), 0.4: (0.8, 0.4)},
        ("> +0.500 at amount=0.4", "> +0.500 at amount=0.4", "+0.500 at amount=0.4", "2 of 2"),
    ),
    "owned, though the paper's threshold calls it missed": (
        {0.2: (0.75, 0.8), 0.4: (0.7, 0.4)},
        ("> +0.500 at amount=0.4", "+0.500 at amount=0.4", "+0.500 at amount=0.4", "2 of 2"),
    ),
}


@pytest.mark.parametrize(("points", "expected"), PRICES.values(), ids=PRICES)
def test_the_price_is_the_smallest_loss_at_which_the_claim_is_gone(points, expected):
    said = price(copies(prune, points), untouched(), innocents())
    texts = list(said.values())[3:6]
    assert (*map(brief, texts), said["points"]) == expected
    for text in texts:  # each with the interval of its own strength
        assert re.search(r"\[[+-]0\.\d{3}, [+-]0\.\d{3}\] \(n=1\) at ", text)


def test_with_too_few_innocents_the_verdict_has_no_price_but_the_papers_rule_has():
    points = {0.2: (1.0, 0.8), 0.4: (0.0, 0.6)}
    said = price(copies(prune, points), untouched(), innocents(count=18))
    assert said["price (verdict)"] == "undecided"
    assert brief(said["price (paper's rule, R < 0.75)"]) == "+0.300 at amount=0.4"


def test_a_claim_that_never_held_has_no_price():
    points = copies(prune, {0.2: (0.0, 0.8), 0.4: (0.0, 0.6)})
    said = price(points, untouched(seen=0.0), innocents())
    assert list(said.values())[3:5] == ["gone unattacked"] * 2


def test_having_learnt_too_little_is_not_a_loss_that_was_tried():
    points = {1: (1.0, 0.1), 2: (1.0, 0.8), 3: (1.0, 0.7)}
    honest = twins(tune, {1: [0.1], 2: [0.9], 3: [0.8]}, THIEVES)
    said = price(copies(tune, points, task=THIEVES), honest, untouched(), innocents())
    assert brief(said["price (verdict)"]) == "> +0.200 at lr=3"  # not +0.800 at lr=1


@pytest.mark.parametrize(
    ("read", "verdict", "expected"),
    [
        ((1.0, 0.0), "not owned 1/2, owned 1/2", "> +0.100 at amount=0.4"),
        ((1.0, 0.0, 0.0), "not owned 2/3, owned 1/3", "+0.100 at amount=0.4"),
    ],
)
def test_a_claim_is_gone_when_fewer_than_half_of_the_copies_are_owned(read, verdict, expected):
    groups = [
        [
            *copies(prune, {0.2: (1.0, 0.9), 0.4: (seen, 0.8)}, seed=seed),
            *untouched(seed=seed),
            *innocents(seed=seed),
        ]
        for seed, seen in enumerate(read)
    ]
    assert rows(made(*groups)[0])[1]["verdict"] == f"{verdict}; other keys not read"
    assert brief(price(*groups)["price (verdict)"]) == expected


def test_a_strength_without_evidence_is_shown_and_not_counted():
    first, last = copies(prune, {0.2: (1.0, 0.8), 0.4: (0.0, 0.4)})
    groups = ([first, lost(last, reason="no luck")], untouched(), innocents())
    assert rows(made(*groups)[0])[1]["marked"] == "failed: no luck"
    said = price(*groups)
    assert (brief(said["price (verdict)"]), said["points"]) == ("> +0.100 at amount=0.2", "1 of 2")


def test_nothing_run_yet_is_a_table_of_holes():
    asked = outline(copies(prune, {0.2: (1.0, 0.8), 0.4: (0.0, 0.4)}), name="tiny")
    table, prices = frontier.tables(asked, {})
    assert [row["marked"] for row in rows(table)] == ["hole", "hole"]
    assert [row["price (verdict)"] for row in rows(prices)] == [NOTHING]
    ElementTree.fromstring(drawings.frontier_svg(asked, {}))


def drawing(*groups):
    records = [record for group in groups for record in group]
    return drawings.frontier_svg(outline(records, name="tiny"), {r.key: r for r in records})


def whole_study():
    """Two sweeps under two keys, a fingerprint's, and twins: something of everything."""
    return [
        *(r for s in (0, 1) for r in copies(prune, {0.2: (1.0, 0.9), 0.4: (0.5, 0.7)}, seed=s)),
        *copies(tune, {1e-3: (0.9, 0.9), 1e-2: (0.0, 0.6)}, task=THIEVES),
        *copies(prune, {0.2: (1.0, 0.8), 0.4: (1.0, 0.7)}, PRINT),
        *twins(prune, {0.2: [0.9], 0.4: [0.8]}),
        *twins(tune, {1e-3: [0.9, 0.8], 1e-2: [0.7, 0.7]}, THIEVES),
        *(r for s in (0, 1) for r in (*untouched(seed=s), *innocents(seed=s))),
        *(*untouched(PRINT), *innocents(PRINT)),
    ]


def test_whatever_order_the_records_come_in_the_frontier_is_the_same():
    records = whole_study()
    asked = outline(records, name="tiny")
    expected = (
        frontier.tables(asked, ledger.latest(records)),
        drawings.frontier_svg(asked, ledger.latest(records)),
    )
    for seed in range(3):
        random.Random(seed).shuffle(records)
        mapped = {r.key: r for r in records}
        assert (frontier.tables(asked, mapped), drawings.frontier_svg(asked, mapped)) == expected


def test_the_picture_shows_every_sweep_with_its_twins_and_says_what_is_not_owned():
    picture = drawing(whole_study())
    root = ElementTree.fromstring(picture)
    words = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"mini, activemark", "mini, ipguard", "utility loss", "detection rate"} <= set(words)
    assert words.count("prune.l1 amount") == 2  # one panel each
    assert words.count("finetune.classify lr") == 1
    assert {"0.2", "0.4", "0.001", "0.01", "twin, unmarked", "not owned"} <= set(words)
    assert b"<dc:date>" not in picture


@pytest.fixture
def home(tmp_path):
    """The results of a suite, as a run leaves them."""
    return written(tmp_path / "tiny", whole_study())


def written(home, records):
    for one in records:
        ledger.append(home / "records" / "one.jsonl", one)
    ledger.write_outline(home / "suite.json", outline(records, name="tiny"))
    return home


WRITTEN = (
    "frontier.csv",
    "frontier.md",
    "frontier.svg",
    "price-of-removal.csv",
    "price-of-removal.md",
)


def test_the_command_prints_both_tables_and_writes_them_with_the_picture(home, capsys):
    for style, words in (
        ("terminal", "Price of removal: the smallest"),
        ("markdown", "# Price of removal: the smallest"),
        ("csv", "owner,method,sweep,price (verdict)"),
    ):
        assert main(["report", str(home), "--frontier", "--format", style]) == 0
        said = capsys.readouterr()
        assert words in said.out
        assert "Table 2" not in said.out
        assert said.err == ""
    assert sorted(p.name for p in home.iterdir() if p.is_file()) == sorted((*WRITTEN, "suite.json"))
    ElementTree.parse(home / "frontier.svg")


def test_every_process_writes_the_same_bytes_without_torch(home):
    code = (
        "import sys; from bench.cli import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules)"
    )
    written = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, "report", str(home), "--frontier"]
        done = subprocess.run(
            command, capture_output=True, check=False, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        assert (done.returncode, done.stderr) == (0, b"")
        written.append([(home / name).read_bytes() for name in WRITTEN])
    assert written[0] == written[1]


def test_a_suite_without_a_sweep_is_one_line_and_writes_nothing(tmp_path, capsys):
    home = written(tmp_path / "tiny", [*untouched(), *copies(prune, {0.2: (1.0, 0.9)})])
    assert main(["report", str(home), "--frontier"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("bench: tiny: expected a sweep, got none; a sweep is one attack")
    assert not (home / "frontier.md").exists()
