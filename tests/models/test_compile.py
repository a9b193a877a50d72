"""Blocks sent through torch.compile: one graph for all that are alike, models as they were."""

import pytest
import torch
import torch._dynamo
from made import suite
from made_models import CPU

from bench import testing
from bench.models import vision
from bench.models.meter import measuring
from bench.models.surgery import dimensions, narrow
from bench.models.vision import Dimensions, _plain, clone, compiling, refuse_no_compiler
from bench.records.nouns import UserError
from bench.records.store import Store
from bench.runs.laboratory import Laboratory
from bench.suite.plan import make
from bench.suite.reader import load

# Dynamo looks at tensors that a block passes on.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture
def graphs(monkeypatch):
    """A compiler that takes no time, and the graphs it was given."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(_plain, backend=backend)
    monkeypatch.setattr(vision, "_compiled", lambda: compiled)
    yield found
    torch._dynamo.reset()


def images(count=3):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_one_graph_serves_all_blocks_of_a_model_and_of_its_copies(graphs):
    owner, other = testing.owner(), testing.stranger(1)
    with torch.no_grad(), compiling(True):
        for model in (owner, clone(owner), other):
            model.features(images())
    assert len(owner.blocks) == 6
    assert len(graphs) == 1


def test_outputs_gradients_and_counts_are_those_of_plain_blocks(graphs):
    def looked():
        model = testing.owner()
        with measuring(CPU) as meter:
            features = model.features(images())
            features.square().mean().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return features.detach(), gradients, (meter.forward_passes, meter.backward_passes)

    plain = looked()
    with compiling(True):
        compiled = looked()
    assert graphs
    assert plain[2] == compiled[2] == (3, 3)
    torch.testing.assert_close(compiled[0], plain[0])
    torch.testing.assert_close(compiled[1], plain[1])


def test_weights_keep_their_names_and_copies_work(graphs):
    model = testing.owner()
    names = list(model.state_dict())
    with torch.no_grad(), compiling(True):
        model.features(images())
        assert list(model.state_dict()) == list(clone(model).state_dict()) == names


def test_hooks_put_on_layers_later_are_called(graphs):
    model, seen = testing.owner(), []
    with torch.no_grad(), compiling(True):
        model.features(images())
        model.blocks[2].attn.register_forward_hook(lambda *_: seen.append(1))
        model.features(images())
        model.features(images())
    assert len(seen) == 2


def test_compiling_ends_with_the_block_even_on_an_error(graphs):
    with pytest.raises(KeyError), compiling(True):
        raise KeyError
    with torch.no_grad():
        testing.owner().features(images())
    assert not graphs


def test_a_model_is_cut_op_by_op(graphs):
    model = testing.owner()
    with compiling(True):
        narrow(model, "mlp", 24)
        assert dimensions(model) == Dimensions(24, 3, 48, 6)
        assert not graphs


SUITE = suite(
    methods=["{name: activemark, images: 8, steps: 2, batch: 4}"],
    attacks=["{name: control.identity}"],
    data="{photos: {crops: 4}, digits: {max_images: 16}}",
    innocents="{strangers: 0}",
)


@pytest.mark.parametrize("wanted", [True, False])
def test_records_say_where_blocks_were_compiled(graphs, tmp_path, wanted):
    (tmp_path / "tiny.yaml").write_text(SUITE)
    plan = make(load(tmp_path / "tiny.yaml"), None)
    laboratory = Laboratory(plan, Store(tmp_path / "store"), None, CPU, compile=wanted)
    stages = [laboratory.carry_out(stage) for stage in plan.stages.values()]
    assert bool(graphs) == wanted
    for made in stages:
        assert made.payload["environment"].get("compile") == ("yes" if wanted else None)


def test_a_missing_compiler_is_one_line_with_the_way_out(monkeypatch):
    def missing(*_):
        def call(_):
            raise RuntimeError("No working C++ compiler found\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(UserError, match=r"\(No working C\+\+ compiler found\); install g\+\+") as e:
        refuse_no_compiler(CPU)
    assert "\n" not in str(e.value)
