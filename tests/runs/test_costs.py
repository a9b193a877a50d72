"""What an attack cost stands in its record: the last step, and all before it together."""

import pytest
from made import ArrayStore, carried_out, suite

from bench.records.nouns import EARLIER
from bench.runs import session
from bench.suite import plan, reader

pytestmark = pytest.mark.usefixtures("stand_ins")

PRUNE, TUNE = "{name: prune.l1, amount: 0.2}", "{name: finetune.classify, data: digits, epochs: 1}"


def test_a_chains_steps_are_paid_for_even_where_their_copy_is_gone(tmp_path):
    chain = f"[{PRUNE}, {TUNE}]"
    text = suite(
        attacks=["{name: control.identity}", chain], innocents="{strangers: 0, twin_seeds: 1}"
    )
    (tmp_path / "suite.yaml").write_text(text)
    made = plan.make(reader.load(tmp_path / "suite.yaml"), None)
    store = ArrayStore(tmp_path / "store")
    carried_out(made, store)
    question = next(q for q in made.questions if len(q.cell.attack) == 2)
    first = made.stages[question.suspect].parents[0]
    store.drop(first)
    costs = session._attack_costs(made, store, question)
    assert {stage: cost.seconds for stage, cost in costs.items()} == {"attack": 2.0, EARLIER: 2.0}
    untouched = next(q for q in made.questions if q.cell.attack[0].name == "control.identity")
    assert [*session._attack_costs(made, store, untouched)] == ["attack"]
