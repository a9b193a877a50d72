"""The page in a real browser, driven over Chromium's debugging pipe."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from tab import CHROMIUM, contrast, luminance

from bench.records import ledger
from bench.reports import page, tables

DEMO = Path(__file__).parents[2] / "results" / "published" / "demo"
README = (Path(__file__).parents[2] / "README.md").read_text()

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    outline, records = ledger.read_outline(DEMO / "suite.json"), ledger.latest(ledger.read(DEMO))
    path.write_text(page.html(outline, records, tables.tables(outline, records)), "utf-8")
    return path.as_uri()


def column(tab, table, number):
    rows = f"[...document.querySelectorAll('{table} tbody')[0].rows]"
    return tab.run(f"{rows}.map(row => row.cells[{number}].textContent)")


def click(tab, selector):
    tab.run(f"document.querySelector({json.dumps(selector)}).click()")


def sorted_by(tab, table, number):
    header = f"{table} th:nth-child({number + 1})"
    return header, lambda: tab.run(f"document.querySelector('{header}').ariaSort")


def test_a_click_on_a_header_sorts_by_number_and_a_third_restores(browser, url):
    browser.open(url)
    header, order = sorted_by(browser, "#t1", 1)
    before = column(browser, "#t1", 1)
    assert order() is None

    click(browser, f"{header} button")
    assert order() == "ascending"
    up = [text for text in column(browser, "#t1", 1) if text != "—"]
    assert [float(text.split()[0]) for text in up] == sorted(float(t.split()[0]) for t in up)
    assert up != [text for text in before if text != "—"]

    click(browser, f"{header} button")
    assert order() == "descending"
    down = [float(text.split()[0]) for text in column(browser, "#t1", 1) if text != "—"]
    assert down == sorted(down, reverse=True)
    assert column(browser, "#t1", 1)[-1] == "—"  # what is missing stays at the end

    click(browser, f"{header} button")
    assert order() is None
    assert column(browser, "#t1", 1) == before


def test_a_key_opens_the_record_and_closes_it(browser, url):
    browser.open(url)
    assert browser.run("document.querySelectorAll('tr.record').length") == 0
    click(browser, "#cells .key")
    text = browser.run("document.querySelector('tr.record').textContent")
    assert browser.run("document.querySelector('#cells .key').textContent") in text
    for word in ("suspect digest", "environment", "cost of protect", "notes of protect", "timm"):
        assert word in text
    click(browser, "#cells .key")
    assert browser.run("document.querySelectorAll('tr.record').length") == 0


def test_an_address_with_a_key_leads_to_its_record(browser, url):
    outline = ledger.read_outline(DEMO / "suite.json")
    key = outline.cells[-1][0]
    browser.open("about:blank")
    browser.open(f"{url}#k-{key}")
    assert key in browser.run("document.querySelector('tr.record').textContent")


def test_the_filter_leaves_the_cells_that_match(browser, url):
    browser.open(url)
    browser.run(
        "const f = document.getElementById('filter'); f.value = 'paper prune twin';"
        "f.dispatchEvent(new Event('input'))"
    )
    shown = "[...document.querySelectorAll('#cells tbody tr')].filter(r => !r.hidden)"
    texts = browser.run(f"{shown}.map(r => r.textContent)")
    assert texts
    assert all("prune" in text and "twin" in text for text in texts)
    assert browser.run("document.getElementById('shown').textContent") == f"{len(texts)} shown"


MAP = "#answers .heat"


def test_the_page_of_the_demo_is_small_enough_to_send(url):
    assert Path(url.removeprefix("file://")).stat().st_size < 3_000_000


def test_a_cell_of_the_map_opens_its_records_and_the_address_keeps_it(browser, url):
    browser.open("about:blank")
    browser.open(url)
    click(browser, f"{MAP} button[data-place]")
    assert browser.run("record.open")
    numbers = browser.run(f"document.querySelector('{MAP} [data-place]').dataset.cells").split()
    assert browser.run("document.querySelectorAll('#record .key').length") == len(numbers)
    click(browser, "#record .key")
    assert "suspect digest" in browser.run("document.querySelector('#record dl').textContent")
    address = browser.run("location.href")
    assert address.endswith("#cell=0.0")
    # The dialog says that it has closed a moment later.
    closed = "new Promise(done => record.addEventListener('close', () => setTimeout(done)))"
    press = "document.querySelector('#record .close').click()"
    both = f"Promise.all([{closed}, {press}])"
    browser.call("Runtime.evaluate", expression=both, awaitPromise=True)
    assert browser.run("location.hash") == ""
    browser.open("about:blank")
    browser.open(address)
    assert browser.run("record.open")


def test_methods_kinds_and_access_are_filtered_together_with_all_that_is_theirs(browser, url):
    browser.open("about:blank")
    browser.open(url)
    shown = f"all('{MAP} th.method').filter(h => !h.hidden).map(h => h.dataset.method)"
    click(browser, "[data-of=access] input[value=weights]")
    methods = browser.run(shown)
    assert methods == ["committed_bits", "adv_tra", "ipguard", "akh", "pautov2024"]
    rows = f"all('{MAP} tbody[data-kind] tr:not(.kind)')"
    cells = f"{rows}.map(r => [...r.cells].filter(c => !c.hidden).length)"
    assert set(browser.run(cells)) == {1 + len(methods)}
    for part in (".budget", ".findings li"):
        assert browser.run(f"all('{part}').filter(p => !p.hidden).length") == len(methods)
    click(browser, "[data-of=kind] input[value=untouched]")
    assert browser.run(f"document.querySelector('{MAP} [data-kind=untouched]').hidden")
    address = browser.run("location.href")
    browser.open("about:blank")
    browser.open(address)
    assert browser.run(shown) == methods


def test_two_methods_are_compared_attack_by_attack(browser, url):
    browser.open("about:blank")
    browser.open(url)
    assert browser.run("compared.hidden")
    browser.run(f"all('{MAP} .method button').slice(0, 2).forEach(b => b.click())")
    heads = browser.run("all('#compare thead th').map(h => h.textContent)")
    names = browser.run(f"all('{MAP} th.method').map(h => h.dataset.method)")
    assert heads[1:3] == names[:2] == ["activemark expressprint", "activemark expressprint aligned"]
    (row, *_) = browser.run(
        "all('#compare tbody tr').map(r => [...r.cells].map(c => c.textContent))"
        ".filter(r => r[0] === 'reparam.permute')"
    )
    assert [text.split(",")[0].split(";")[0] for text in row[1:3]] == ["not owned 1/1", "owned 1/1"]
    shown = re.search(r"\| reparam.permute \| (\d.\d+) / \S+ owned 0/1 \| (\d.\d+) /", README)
    raw, aligned = (round(float(rate), 2) for rate in shown.groups())
    assert row[3] == f"\N{MINUS SIGN}{aligned - raw:.2f}"  # of numbers as the map rounds them


def test_arrows_move_in_the_map_and_one_cell_is_in_the_order_of_tabs(browser, url):
    browser.open("about:blank")
    browser.open(url)
    assert browser.run(f"all('{MAP} .hot > button').filter(b => b.tabIndex === 0).length") == 1
    browser.run(f"document.querySelector('{MAP} .hot > button').focus()")
    for key in ("ArrowRight", "ArrowDown"):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
    here = "document.activeElement"
    second = "activemark expressprint aligned after reparam.permute"  # of the second row, too
    assert browser.run(f"{here}.title").startswith(second)
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r")
    assert browser.run("record.open")


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900), (1920, 1080)])
def test_the_first_screen_is_the_whole_map(browser, url, width, height):
    browser.open("about:blank")
    browser.open(url, width, height)
    box = f"document.querySelector('{MAP}').getBoundingClientRect()"
    assert browser.run(f"{box}.bottom") <= height
    assert browser.run(f"{box}.right") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_stand_out_from_the_colours_of_verdicts(browser, url, scheme):
    browser.open(url, scheme=scheme)
    ink, *colours = (
        luminance(rgb)
        for rgb in browser.run(
            "['--ink', '--owned', '--not-owned', '--undecided', '--incompatible'].map(name => {"
            "  document.body.style.color = `var(${name})`;"
            "  return getComputedStyle(document.body).color.match(/\\d+/g).map(Number) })"
        )
    )
    assert min(contrast(ink, colour) for colour in colours) >= 4.5


def test_whatever_can_be_pressed_or_entered_has_a_name_and_landmarks_are_there(browser, url):
    browser.open(url)
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = {}
    for node in tree:
        if not node["ignored"]:
            name = node.get("name", {}).get("value", "")
            roles.setdefault(node["role"]["value"], []).append(name)
    assert {"main", "navigation", "banner", "table", "columnheader", "rowheader"} <= roles.keys()
    for role in ("button", "checkbox", "link", "image", "region", "dialog", "table"):
        assert all(roles.get(role, [])), role


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_the_page_fits_its_window_and_says_nothing_to_console_or_network(
    browser, url, width, scheme, tmp_path
):
    browser.open(url, width, scheme=scheme)
    click(browser, "#cells .key")
    click(browser, "#t1 th button")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    assert not browser.seen("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    asked = {sent["request"]["url"] for sent in browser.seen("Network.requestWillBeSent")}
    assert asked <= {url, "data:,"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, url, scheme):
    browser.open(url, scheme=scheme)
    colours = browser.run(
        "['--paper', '--raised', '--ink', '--muted', '--accent'].map(name => {"
        "  document.body.style.color = `var(${name})`;"
        "  return getComputedStyle(document.body).color.match(/\\d+/g).map(Number) })"
    )
    paper, raised, *inks = map(luminance, colours)
    ratios = [contrast(ink, behind) for ink in inks for behind in (paper, raised)]
    assert min(ratios) >= 4.5  # WCAG 2.2, 1.4.3


def test_the_picture_of_the_first_screen_says_what_the_page_says(browser, url):
    import screen

    browser.open(url, *screen.SIZE)
    with Image.open(screen.PICTURE) as picture:
        assert picture.size == screen.SIZE
        assert picture.info["shows"] == screen.shows(browser), "python tests/browser/screen.py"
    assert screen.PICTURE.stat().st_size < 150_000
