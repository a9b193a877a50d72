import pytest
from made import BITS, OWNER, UNTOUCHED, cell, outline, record, stranger

from bench.records.nouns import Cost, Evidence, Spec
from bench.records.table import NOTHING
from bench.reports import printed

CLIP = Spec("ViT-L-14", {"library": "open_clip"})
TUNE = {"schedule": "constant", "mode": "retrain_all", "lr": 0.3}


def answer(owner, method, attack, errors=1.0, lineage="released", block=3):
    base = "released" if lineage == "released" else "owner"
    return record(
        cell(Spec(method), base, attack, lineage=lineage, owner=owner),
        evidence=Evidence((0.9,) * 4, (errors,) * 4, BITS, "image", 0.5),
        notes={"protect": {"block": block}},
        costs={"protect": Cost(120.0), "extract": Cost(0.5)},
    )


def made(*records):
    tables = printed.tables(outline(records), {r.key: r for r in records})
    return {table.name: [row[2:] for row in table.rows] for table in tables}


def printed_rate(method, *attack, lineage="released"):
    rows = made(answer(OWNER, method, attack, lineage=lineage)).get("Paper's Table 2", [])
    return [row[-1] for row in rows]


# Read off Table 2 of arXiv:2510.04966v1, the columns ActiveMark, ADV-TRA and IPGuard.
@pytest.mark.parametrize(
    ("attack", "rates"),
    [
        (Spec("finetune.classify", TUNE), ("1.000", "0.703", "0.200")),
        (Spec("finetune.classify", TUNE | {"mode": "all"}), ("1.000", "0.703", "0.200")),
        (Spec("finetune.classify", TUNE | {"schedule": "linear"}), ("0.842", "0.021", "0.000")),
        (Spec("finetune.classify", TUNE | {"schedule": "cosine"}), ("0.998", "0.123", "0.000")),
        (Spec("finetune.segment", {"schedule": "constant"}), ("0.990", "0.000", "0.000")),
        (Spec("prune.l1", {"amount": 0.2}), ("1.000", "1.000", "0.530")),
        (Spec("prune.l1", {"amount": 0.4}), ("0.495", "0.086", "0.000")),
    ],
)
def test_an_attack_of_the_paper_has_its_figures(attack, rates):
    methods = ("activemark", "adv_tra", "ipguard")
    assert tuple(printed_rate(method, attack) for method in methods) == tuple([r] for r in rates)


@pytest.mark.parametrize(
    "chain",
    [
        UNTOUCHED,
        (Spec("finetune.classify", TUNE | {"mode": "last"}),),  # the paper trains all layers
        (Spec("finetune.classify", {"schedule": "constant"}),),  # nobody says which layers
        (Spec("finetune.classify.mine", TUNE),),
        (Spec("prune.l1", {"amount": 0.3}),),
        (Spec("prune.l1", {"amount": 0.2}), Spec("quantize", {"bits": 8})),
    ],
)
def test_what_is_not_in_the_paper_has_none(chain):
    assert printed_rate("activemark", *chain) == []


def test_a_method_that_the_paper_does_not_have_has_none():
    assert made(answer(OWNER, "activemark.mine", (Spec("prune.l1", {"amount": 0.2}),))) == {}


def test_untouched_strangers_stand_beside_the_papers_independent_models():
    both = ["0.012 (DINOv2 with registers), 0.000 (CLIP)"]
    assert printed_rate("adv_tra", *stranger(), lineage="stranger") == both
    pruned = stranger(0, Spec("prune.l1", {"amount": 0.2}))
    assert printed_rate("adv_tra", *pruned, lineage="stranger") == []


def test_times_stand_beside_the_papers_in_the_units_each_prints():
    rows = made(answer(OWNER, "ipguard", UNTOUCHED))["Paper's Table 3"]
    assert rows == [("2.00 min", "1868.54 min", "0.50 s", "11.62 min")]


def test_a_block_has_the_papers_figures_in_the_papers_network_only():
    cut = (Spec("finetune.segment", {"schedule": "constant"}),)
    twelfth = [
        answer(CLIP, "activemark", UNTOUCHED, 0.0, block=11),
        answer(CLIP, "activemark", cut, 4.0, block=11),
    ]
    figures = ("12", "1.000", "0.938", "0.000", "0.143", "1.000", "0.983")
    assert made(*twelfth)["Paper's Table 1"] == [figures]
    (alone,) = made(twelfth[0])["Paper's Table 1"]
    assert alone[5:] == (NOTHING, "0.983")
    assert "Paper's Table 1" not in made(answer(CLIP, "activemark", UNTOUCHED, block=5))
    assert "Paper's Table 1" not in made(answer(OWNER, "activemark", UNTOUCHED, block=11))


def test_every_table_names_the_paper_and_says_that_it_is_no_target():
    one = answer(OWNER, "activemark", (Spec("prune.l1", {"amount": 0.2}),))
    tables = printed.tables(outline([one]), {one.key: one})
    assert [table.name for table in tables] == ["Paper's Table 2", "Paper's Table 3"]
    for table in tables:
        assert "arXiv:2510.04966v1" in table.notes[0]
        assert "no target" in table.notes[1]
