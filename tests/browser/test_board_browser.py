"""The leaderboard in a real browser."""

from pathlib import Path

import pytest
from commands import bench
from tab import CHROMIUM, contrast, luminance

PUBLISHED = Path(__file__).parents[2] / "results" / "published"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    home = tmp_path_factory.mktemp("board")
    said = bench("leaderboard", PUBLISHED / "fingerprints", "-o", home)
    assert said.status == 0, said.err
    return home


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_the_board_fits_its_window_and_says_nothing_to_console_or_network(
    browser, site, width, scheme
):
    url = (site / "index.html").as_uri()
    browser.open(url, width, scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert not browser.seen("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    asked = {sent["request"]["url"] for sent in browser.seen("Network.requestWillBeSent")}
    assert asked <= {url, "data:,"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_the_board_stands_out_from_what_is_behind_it(browser, site, scheme):
    browser.open((site / "index.html").as_uri(), scheme=scheme)
    ink, paper = browser.run(
        "['color', 'backgroundColor'].map(name =>"
        "  getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3).map(Number))"
    )
    assert contrast(luminance(ink), luminance(paper)) >= 4.5  # WCAG 2.2, 1.4.3


def test_every_method_has_a_row_and_every_link_of_the_board_leads_to_a_file(browser, site):
    browser.open((site / "index.html").as_uri())
    rows = browser.run("[...document.querySelectorAll('tbody tr')].map(row => row.textContent)")
    for method in ("adv_tra relinear", "akh", "ipguard"):
        assert any(method in row for row in rows), method
    links = browser.run(
        "[...document.querySelectorAll('a')].map(link => link.getAttribute('href'))"
    )
    ours = [link.partition("#")[0] for link in links if "://" not in link]
    assert any(ours)
    assert [link for link in ours if link and not (site / link.partition("?")[0]).exists()] == []


def test_whatever_can_be_pressed_on_the_board_has_a_name(browser, site):
    browser.open((site / "index.html").as_uri())
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = {}
    for node in nodes:
        if not node["ignored"]:
            roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value"))
    assert {"main", "table", "columnheader"} <= roles.keys()
    for role in ("button", "link", "image", "table"):
        assert all(roles.get(role, [])), role
