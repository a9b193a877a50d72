"""Keys and reports stay as they are kept in `unmoved.json`; where they should not, update it."""

import json
import os
from pathlib import Path

import pytest
import unmoved

KEPT = json.loads(unmoved.KEPT.read_text())

DATA = Path(os.environ.get("BENCH_DATA", "/nowhere"))


@pytest.mark.parametrize("suite", unmoved.suites(), ids=unmoved.name)
def test_a_suite_asks_for_the_stages_and_cells_that_it_asked_for(suite):
    assert unmoved.planned(suite, None) == KEPT["plans"].get(unmoved.name(suite))


@pytest.mark.shared_data
@pytest.mark.skipif("BENCH_DATA" not in os.environ, reason="set BENCH_DATA")
@pytest.mark.parametrize("suite", unmoved.suites(), ids=unmoved.name)
def test_it_does_so_on_data_that_are_there(suite):
    assert unmoved.planned(suite, DATA) == KEPT["plans with data"].get(unmoved.name(suite))


@pytest.mark.parametrize("folder", unmoved.folders(), ids=unmoved.name)
def test_a_folder_of_results_says_what_it_said(folder):
    for style in ("terminal", "html"):
        assert unmoved.report(folder, style) == KEPT["reports"][f"{unmoved.name(folder)} {style}"]
