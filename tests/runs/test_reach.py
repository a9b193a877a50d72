"""Whom a method can read is said before a run, and is whom it then reads."""

import contextlib

import pytest
import torch
from made import suite

from bench.models.building import randomised
from bench.models.suspect import View
from bench.models.vision import Architecture
from bench.records.nouns import Access, Incompatible
from bench.runs.foresight import reach
from bench.runs.owners import unweighted
from bench.suite import plan, reader
from bench.testing import context, owner
from methods.activemark import ActiveMark
from methods.oracle import WeightOracle

STRANGERS = {
    "owners": ["{embedded: mini, classifier: {data: digits, epochs: 1}}"],
    "methods": [
        "{name: activemark, block: 2, images: 6}",
        "{name: activemark, block: 2, images: 6, width_match: pad}",
        "{name: akh, queries: 5, readout: graft}",
        "{name: akh, queries: 5, readout: relinear}",
        "{name: oracle.weights}",
    ],
    "attacks": ["{name: control.identity}"],
    "alpha": "0.15",
    "innocents": "{strangers: 3, other_shapes: 1, models: [{timm: test_vit}, "
    "{timm: test_vit2}, {timm: test_convnext}]}",
}
"""Eight strangers: four and five blocks of the owner's width, 48, two transformers of timm's and a
convolutional model, all three one family, 'timm test'. At alpha = 0.15 it takes six."""


def planned(folder, **parts):
    (folder / "suite.yaml").write_text(suite(**STRANGERS | parts))
    return plan.make(reader.load(folder / "suite.yaml"), None)


def test_strangers_are_counted_method_by_method_by_what_each_must_find_in_them(tmp_path):
    made = planned(tmp_path)
    counts = [(r.method.name, r.listed, r.readable, r.draws) for r in reach.reaches(made)]
    assert counts == [
        ("activemark", 8, 4, 4),  # of width 48: three strangers, and a deeper one
        ("activemark", 8, 7, 6),  # of any width, but no transformer is no sequence of blocks
        ("akh", 8, 4, 4),  # of width 48, into which the owner's head fits
        ("akh", 8, 8, 6),  # three are of one family
        ("oracle.weights", 8, 4, 4),  # no matrix of another width has a shape of the owner's
    ]
    assert reach.said_of(made) == [
        "mini: activemark incompatible, akh graft, oracle.weights: 4 of 8 strangers can be read; "
        "6 are needed at alpha = 0.15: verdicts stay undecided",
        "mini: activemark pad: 7 of 8 strangers can be read, counted as 6 at most",
        "mini: akh relinear: 8 of 8 strangers can be read, counted as 6 at most",
    ]


def test_strangers_of_a_fingerprint_are_counted_after_an_attack_too(tmp_path):
    methods = ["{name: akh, queries: 5, readout: graft}"]
    attacks = ["{name: control.identity}", "{name: finetune.classify}", "{name: prune.l1}"]
    innocents = STRANGERS["innocents"].replace("{strangers: 3", "{strangers: 3, "
                                               "attacked_strangers: 5")  # fmt: skip
    made = planned(tmp_path, methods=methods, attacks=attacks, innocents=innocents)
    short = "; 6 are needed at alpha = 0.15: verdicts stay undecided"
    assert reach.said_of(made) == [
        f"mini: akh: 4 of 8 strangers can be read{short}",
        f"mini: akh: 3 of 5 strangers attacked alike can be read{short}",
    ]


def test_of_strangers_in_the_owners_own_shape_nothing_is_said(tmp_path):
    assert reach.said_of(planned(tmp_path, innocents="{strangers: 3}")) == []


SHAPES = [
    *(Architecture("embedded", name) for name in ("mini", "mini-deep", "mini-wide")),
    *(Architecture("timm", name, side) for name, side in (("test_vit", 32), ("test_vit2", 160))),
    Architecture("timm", "test_convnext"),
]
"""As wide or not, as deep or not, with as many tokens or fewer; no transformer."""

QUICK = {"images": 2, "steps": 1, "batch": 2}

METHODS = [
    *(ActiveMark(block=block, **QUICK) for block in (2, "auto")),
    ActiveMark(block=3, width_match="pad", index=2, **QUICK),
    ActiveMark("paper", block=3, width_match="pad", index=46, **QUICK),
    ActiveMark("paper", block=4, depth_match="from_end", token_match="relative", **QUICK),
    ActiveMark(block=1, axis="channel", index=3, **QUICK),
    WeightOracle(entries=8),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_what_is_said_of_shapes_is_what_becomes_of_weights(method):
    ctx = context(0, "owner")
    made = method.protect(owner(), ctx)
    said, became = {}, {}
    for shape in SHAPES:
        with torch.device("meta"), torch.no_grad(), refused(said, shape):
            said[shape] = method.unreadable(unweighted(owner().architecture), unweighted(shape))
        with refused(became, shape):
            method.extract(made.secret, View(randomised(shape, 0), Access.WEIGHTS), ctx)
            became[shape] = ""
    assert said == became
    assert became[SHAPES[0]] == ""
    assert any(became.values())


@contextlib.contextmanager
def refused(reasons, shape):
    try:
        yield
    except Incompatible as error:
        reasons[shape] = str(error)
