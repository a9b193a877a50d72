import itertools
from xml.etree import ElementTree

import pytest
from made import matches, suspect
from sklearn import metrics

from bench.reports import drawings

MARKED, INNOCENT = [0.9, 0.8, 0.8, 0.4, 0.3], [0.8, 0.3, 0.3, 0.1]


RECORDS = [
    *(suspect(i, matches(score)) for i, score in enumerate(MARKED)),
    *(suspect(i, matches(score), "stranger") for i, score in enumerate(INNOCENT)),
]


def test_the_area_that_is_named_is_the_area_under_the_line_that_is_drawn():
    ((curve,),) = drawings.roc_curves([("mini", "print", RECORDS)]).values()
    rates = [(p.false_positive_rate, p.true_positive_rate) for p in curve.points]
    drawn = sum((x - a) * y for (a, _), (x, y) in itertools.pairwise(rates))  # rises, goes right
    truth = [1] * len(MARKED) + [0] * len(INNOCENT)
    area = metrics.roc_auc_score(truth, [*MARKED, *(score + 1e-6 for score in INNOCENT)])
    assert drawn == pytest.approx(area)
    assert curve.separation.area == area
    assert curve.text.startswith(f"print: AUC {area:.3f} [")
    caption = drawings.roc_picture([("mini", "print", RECORDS)]).caption
    assert "exact (Clopper-Pearson) where scores do not overlap, too narrow over fewer" in caption


def test_a_method_without_copies_or_innocents_has_no_curve():
    assert (
        drawings.roc_picture([("mini", "print", RECORDS[:5]), ("mini", "print", RECORDS[5:])])
        is None
    )


def test_every_owner_has_a_panel_that_names_its_methods_whatever_they_are_called():
    name = "<b>$x & y"
    groups = [("mini", "print", RECORDS), ("mini", name, RECORDS), ("large", "print", RECORDS)]
    drawn = drawings.roc_picture(groups)
    texts = ["".join(e.itertext()) for e in ElementTree.fromstring(drawn.svg).iter()]
    heads = [f"{owner}, copies against strangers" for owner in ("mini", "large")]
    assert [sum(text == head for text in texts) for head in heads] == [1, 1]
    assert sum(t.startswith("print: AUC ") for t in texts) == 2
    assert sum(t.startswith(f"{name}: AUC ") for t in texts) == 1
    assert drawn == drawings.roc_picture([(o, m, rs[::-1]) for o, m, rs in groups])
