import base64
import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from made import MARK, PRINT, UNTOUCHED, cell, key_of, lost, outline, record, stranger

from bench.records import ledger
from bench.records.nouns import Cost, Evidence, Rule, Spec, Utility
from bench.reports import notes, page, tables
from bench.reports.blocks import grouped, judged
from bench.reports.price import grid
from bench.verdicts.innocents import innocents

PRUNE = (Spec("prune.l1", {"amount": 0.4}),)
HOSTILE = "<script>alert('hole')</script>\"' onload=alert(1) --> </script><!-- <b>"

HOLES = ("hole", "failed", "skipped", "incompatible")


def lone(index, method=MARK):
    return cell(method, "owner", stranger(index))


def answer(asked, errors=1.0, **changes):
    defaults = {
        "costs": {"extract": Cost(1.5, 1.0, 20, 0, 500, "CPU")},
        "environment": {"torch": "2.6", "device": "CPU"},
        "notes": {"protect": {"block": 3}, "attack": {}},
    }
    return record(asked, errors, **defaults | changes)


def suite(records, holes=(), **changes):
    """Return the outline of records and holes, and the records by key."""
    return outline([*records, *holes], **changes), {r.key: r for r in records}


def written(*arguments, **changes):
    outline, records = suite(*arguments, **changes)
    return page.html(outline, records, tables.tables(outline, records))


def answers():
    marked = [answer(cell(attack=attack, seed=s)) for attack in (UNTOUCHED, PRUNE) for s in (0, 1)]
    twins = [answer(cell(base="owner", attack=PRUNE, seed=s), 9.0) for s in range(3)]
    strangers = [answer(lone(i), 12.0 + i % 5) for i in range(20)]
    printed = [answer(cell(PRINT, attack=PRUNE)), answer(lone(0, PRINT), 20.0)]
    return [*marked, *twins, *strangers, *printed]


class Elements(HTMLParser):
    """Every element of a page with its attributes and the text right inside it."""

    def __init__(self, text):
        super().__init__()
        self.all, self.inside = [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.all.append((tag, dict(attributes), []))
        self.inside = True

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.all[-1][2].append(data)

    def of(self, tag, **wanted):
        wanted = {name.replace("_", "-"): value for name, value in wanted.items()}
        return [
            (attributes, "".join(text))
            for kind, attributes, text in self.all
            if kind == tag and wanted.items() <= attributes.items()
        ]


def details(text):
    ((_, data),) = Elements(text).of("script", id="details")
    return json.loads(data)


def record_of(text, key):
    """Return what the page tells of a cell when its key is clicked, line by line."""
    ((button, _),) = [
        (attributes, label)
        for attributes, label in Elements(text).of("button", type="button")
        if label == key
    ]
    told = details(text)
    return [tuple(told["lines"][i]) for i in told["cells"][int(button["data-cell"])]]


def test_the_same_records_give_the_same_bytes_in_whatever_order():
    records = answers()
    outline, by_key = suite(records)
    shuffled = list(by_key.items())
    random.Random(1).shuffle(shuffled)
    one, two = (page.html(outline, r, tables.tables(outline, r)) for r in (by_key, dict(shuffled)))
    assert one == two


def test_another_process_with_other_hashes_writes_the_same_bytes(tmp_path):
    outline, records = suite(answers())
    ledger.write_outline(tmp_path / "suite.json", outline)
    for one in records.values():
        ledger.append(tmp_path / "run.jsonl", one)
    command = [sys.executable, "-m", "bench", "report", str(tmp_path), "--format", "html"]
    pages = {
        subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    made = (*grid.tables(outline, records), *tables.tables(outline, records))
    assert pages == {page.html(outline, records, made).encode()}


def test_every_cell_is_there_with_its_record_and_where_it_comes_from():
    records = answers()
    hole = cell(attack=PRUNE, seed=7)
    text = written(records, [hole])
    told = dict(record_of(text, records[0].key))
    assert told["key"] == told["suspect digest"] == records[0].key
    assert told["environment"] == "device CPU, torch 2.6"
    assert told["cost of extract"].startswith("1.5 s (ideal 1), passes: 20 forward")
    assert told["notes of protect"] == "block 3"
    assert told["method"] == "activemark: bits 32"
    assert "rate 1.0000 [0.839, 1.000] by bit errors <= 5" in told["evidence"]  # Wilson, 20 of 20
    assert dict(record_of(text, key_of(hole)))["status"] == "not run yet"
    keys = [label for a, label in Elements(text).of("button", **{"class": "key"})]
    assert sorted(keys) == sorted([*(r.key for r in records), key_of(hole)])


def test_the_verdict_of_a_cell_is_the_tables():
    text = written(answers())
    rows = re.findall(r'<tr id="k-(\w+)".*?</tr>', text, re.DOTALL)
    first = re.search(rf'<tr id="k-{rows[0]}".*?</tr>', text, re.DOTALL)[0]
    cells = [*re.findall(r"<td[^>]*>([^<]*)</td>", first)]
    outline, records = suite(answers())
    blocks, _ = grouped(outline, records)
    (verdict, *_) = judged(blocks[0].rows[0], innocents(blocks[0].records), 0.05)
    found = ("1.000", "0.9688", notes.largest_p([verdict]), verdict.outcome, "0.900")
    assert cells == ["control.identity", "marked", "0/0", "answered", *found]


def test_the_overview_counts_verdicts_on_attacked_copies_alone():
    unread = lost(answer(cell(attack=PRUNE, seed=2)), "incompatible")
    whole = lost(answer(cell(attack=UNTOUCHED, seed=2)), "incompatible")
    told = Elements(written([*answers(), unread, whole])).all
    facts = [
        "".join(dd) for (tag, _, dt), (_, _, dd) in itertools.pairwise(told)
        if tag == "dt" and "".join(dt) == "verdicts on attacked copies"
    ]  # fmt: skip
    assert facts == ["incompatible 1/3, undecided 2/3", "undecided 1/1"]


def test_what_is_missing_shows_as_what_it_is():
    statuses = {"failed": PRUNE, "skipped": (Spec("noise"),), "incompatible": (Spec("distill"),)}
    gone = [lost(answer(cell(attack=attack)), status) for status, attack in statuses.items()]
    text = written([*answers()[4:], *gone], [cell(attack=(Spec("quantize"),))])
    states = {a["data-state"] for a, _ in Elements(text).of("td") if "data-state" in a}
    assert states == set(HOLES)
    counted = dict(re.findall(r'<span class="mark (\w+)"></span>[^<]*</dt><dd>(\d+)</dd>', text))
    assert counted == {"ok": "25", "hole": "1", "failed": "1", "skipped": "1", "incompatible": "1"}


def test_a_number_that_lacks_some_answers_stays_a_number():
    records = [*answers()[1:], lost(answers()[0])]
    text = written(records)
    part = [text for a, text in Elements(text).of("td", data_state="part")]
    assert part == ["1.000 [0.839, 1.000] (n=1) + failed: no reason"]


def test_text_from_records_stays_text():
    """A hostile record: every string that reaches the page is hostile."""
    rule = Rule(HOSTILE, "<=", 5)
    evidence = Evidence((0.5,) * 20, (16.0,) * 20, rule, HOSTILE, None)
    counted = Evidence((0.5,) * 20, (16.0,) * 20, Rule("bit errors", "<=", 5), HOSTILE, None)
    method, attack = Spec(HOSTILE, {HOSTILE: HOSTILE}), (Spec(HOSTILE, {HOSTILE: [HOSTILE]}),)
    hostile = {
        "notes": {"protect": {HOSTILE: HOSTILE}, HOSTILE: {HOSTILE: 1}},
        "environment": {HOSTILE: HOSTILE},
        "access": HOSTILE,
        "costs": {"extract": Cost(1.0, device=HOSTILE)},
        "utility": Utility(HOSTILE, 0.5, HOSTILE, 3),
    }
    asked = [cell(method, attack=attack, seed=seed) for seed in range(3)]
    records = [
        answer(asked[0], evidence=evidence, **hostile),
        answer(asked[1], evidence=counted, **hostile),
        lost(answer(asked[2]), "failed", HOSTILE),
    ]
    changes = dict.fromkeys(("name", "title"), HOSTILE)
    lists = dict.fromkeys(("reductions", "warnings"), (HOSTILE,))
    found = Elements(written(records, **changes, **lists))
    ordinary = Elements(written(answers()))
    assert {tag for tag, *_ in found.all} <= {tag for tag, *_ in ordinary.all}
    assert len(found.of("script")) == 2  # the records and the one script
    named = {name for _, attributes, _ in found.all for name in attributes}
    assert not [name for name in named if name.startswith("on")]
    told = record_of(written(records, **changes, **lists), key_of(asked[2]))
    assert ("status", f"failed: {HOSTILE}") in told


def test_the_page_asks_for_nothing_from_anywhere():
    text = written(answers())
    elements = Elements(text)
    for _, attributes, _ in elements.all:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), attributes
    assert not re.search(r"@import|url\((?!#)", text)
    ((policy, _),) = elements.of("meta", http_equiv="Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    (_, (_, script)) = elements.of("script")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}';" in policy["content"]


def test_tables_have_captions_scopes_and_buttons_to_sort_by():
    text = written(answers())
    elements = Elements(text)
    assert len(elements.of("caption")) == len(elements.of("table")) >= 4
    scopes = {attributes.get("scope") for attributes, _ in elements.of("th")}
    assert scopes == {"col", "row", "colgroup", "rowgroup"}
    heads = re.findall(r'<th scope="col">(.*?)</th>', text)
    assert heads
    assert all(head.startswith('<button type="button">') for head in heads)
    assert elements.of("html", lang="en")
    assert all(a.get("aria-label") for a, _ in elements.of("svg", role="img"))


def test_ids_are_unique_and_references_lead_somewhere():
    text = written(answers())
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^")]*)\)|href="#([^"]+)"', text)) <= {
        pair for i in ids for pair in ((i, ""), ("", i))
    }


def test_methods_that_count_bit_errors_show_fig_3_others_a_histogram():
    text = written(answers())
    marked, printed = text.split("<article")[1:]
    labels = re.findall(r"<figure><figcaption>([^<]*)</figcaption>", marked)
    assert labels == ["control.identity", "prune.l1", "control.stranger"]
    assert marked.count('<figure class="wide">') == 1
    assert "<figure><figcaption>" not in printed
    assert printed.count('<figure class="wide">') == 1


def test_a_suite_nobody_ran_is_a_page_of_holes():
    text = written([], [cell(), cell(attack=PRUNE), lone(0)])
    assert "<figure" not in text
    listed, shown = text.split('<section id="cells">')[::-1]
    assert len(Elements(listed).of("td", data_state="hole")) == 3
    # The stranger stands beside the untouched model, and in a row of its own.
    assert len(Elements(shown).of("td", data_state="hole")) == 4


@pytest.mark.parametrize("kind", ["reductions", "warnings"])
def test_what_the_overview_says_is_not_said_again_below(kind):
    assert written(answers(), **{kind: ("Reduced: to the bone",)}).count("to the bone") == 1


def test_thousands_of_cells_cost_little_each():
    few, many = (
        written([*answers(), *(answer(lone(i), 14.0) for i in range(20, n))]) for n in (520, 1520)
    )
    assert (len(many) - len(few)) / 1000 < 1000  # bytes: a row, and what no other record says


def test_cells_of_accusers_are_listed_by_themselves_with_their_records_and_verdicts():
    forge = Spec("forge", {"draws": 3})
    accused = [
        answer(
            cell(PRINT, "owner", stranger(i), accuser=forge, accused=1),
            0.0 if i == 1 else 20.0,
            suspect_digest=f"stranger {i}",
        )
        for i in range(20)
    ]
    shown = answer(
        cell(PRINT, "accuser", UNTOUCHED, accuser=forge, lineage="released", other_seed=0)
    )
    honest = answers()
    plain, text = written(honest), written([*honest, *accused, shown])
    for one in (*honest, *accused, shown):
        assert record_of(text, one.key)[0] == ("key", one.key)
    told = record_of(text, accused[0].key)
    assert ("claim", "forged, made up with innocent 1 in hand") in told
    assert dict(told)["accuser"].startswith("forge")
    assert ("claim", "dispute") in record_of(text, shown.key)
    groups = [a["data-name"] for a, _ in Elements(text).of("details") if "data-name" in a]
    before = [a["data-name"] for a, _ in Elements(plain).of("details") if "data-name" in a]
    assert groups == [*before, "mini adv_tra forged forge"]
    rows = text.partition("mini, adv_tra, forged by forge: all cells")[2]
    assert rows.count("<td>shown as his</td>") == 1
    assert rows.count("<td>owned") == 1
    assert f"<dd>{len(honest) + 21}</dd>" in text  # cells asked
