"""Methods, attacks, probes and readouts leave no tensor on the CPU where a GPU would want it.

The device is that of `elsewhere.py`, so no GPU is needed, and steps that depend on data are taken.
"""

import dataclasses
from dataclasses import dataclass

import golden
import pytest
import torch
import torch.nn.functional as F
from elsewhere import Elsewhere, WrongDevice, elsewhere

from bench import testing
from bench.models import View
from bench.models.surgery import segmentation_head, with_head
from bench.models.vision import clone
from bench.registry import ATTACKS, METHODS
from bench.training import activations, probe, readout
from bench.training.activations import activation_profile
from bench.types import Protected


@pytest.fixture
def device():
    testing._pools()  # images are read on the CPU
    testing.owner()
    with elsewhere() as found:
        yield found


def there(model, device):
    return clone(model).to(device)


def context(plugin, device, seed, party):
    def stranger(index):
        return there(golden.stranger(index), device)

    return dataclasses.replace(
        testing.context(seed, party),
        device=device,
        stranger=stranger,
        base=stranger(2) if getattr(plugin, "uses_base", False) else None,
        copies=(lambda i: stranger(3 + i)) if hasattr(plugin, "copies") else None,
    )


def protected(method, device):
    """Protect the owner's model, and read it with the secret as it is, and as a file has it."""
    owner = there(golden.party(method.needs, own=True), device)
    made = method.protect(owner, context(method, device, 0, "owner"))
    stored = {name: value.cpu().contiguous() for name, value in made.secret.items()}
    view = View(made.model.to(device), method.needs)
    read = [
        method.extract(secret, view, context(method, device, 1, "owner"))
        for secret in (made.secret, stored)
    ]
    return made, read


def attacked(attack, device):
    whole = getattr(attack, "uses_head", False)
    victim = there(golden._answering(True) if whole else testing.owner(), device)
    return attack.run(victim, context(attack, device, 3, "thief"))


@pytest.mark.parametrize("name", golden.built_in(METHODS))
def test_a_method_protects_and_reads_on_a_device(device, name):
    made, (now, later) = protected(METHODS.build(name, golden.CASES[name][0]), device)
    assert {value.device.type for value in made.model.state_dict().values()} == {"cuda"}
    assert now.rate == later.rate


@pytest.mark.parametrize("name", golden.built_in(ATTACKS))
def test_an_attack_keeps_to_the_device_of_its_victim(device, name):
    made = attacked(ATTACKS.build(name, golden.CASES[name][0]), device)
    assert {value.device.type for value in made.state_dict().values()} == {"cuda"}
    images = testing.context().images.batch(slice(0, 2), device)
    assert made.eval()(images).device == device


def test_probes_and_readouts_keep_to_the_device(device):
    owner, answering = there(testing.owner(), device), there(golden._answering(True), device)
    images, held_out = testing._pools()["owner"]
    near = testing.owner()
    found = probe.probe_accuracy(owner, images, held_out, device)
    assert found == pytest.approx(probe.probe_accuracy(near, images, held_out, testing.CPU))
    assert probe.head_accuracy(answering, held_out, device) > 0.5
    cosines = probe.feature_cosines(owner, owner, held_out, device)
    assert cosines == pytest.approx([1.0] * len(held_out), abs=1e-5)
    for kind in ("graft", "relinear"):
        head = readout.head_for(kind, owner, answering, images, device)
        with torch.no_grad():
            scores = head(owner.forward_features(images.batch(slice(0, 4), device)))
        assert scores.device == device
    how = golden.ClassifierSettings("digits", "finetuned", epochs=1)
    rng = torch.Generator().manual_seed(0)
    made = readout.with_classifier(owner, images, how, rng, device)
    assert {value.device.type for value in made.state_dict().values()} == {"cuda"}
    rows = activation_profile(owner, images, device)
    assert rows == activations.activation_profile(near, images, testing.CPU)


@pytest.mark.parametrize("kind", ["linear", "dpt"])
def test_masks_are_probed_on_the_device(device, kind):
    masked = testing._pools()["thief"][0]
    head = segmentation_head(testing.owner(), kind, masked.classes)
    model = with_head(there(testing.owner(), device), head, torch.Generator().manual_seed(0))
    assert 0 <= probe.mean_iou(model, masked, device) <= 1


# The device itself: what PyTorch refuses on a GPU is refused here, and nothing else.


def sent(device, *shape):
    return torch.rand(*shape).to(device)


REFUSED = {
    "add": lambda x, y: x + y,
    "matmul": lambda x, y: x @ y.T,
    "cat": lambda x, y: torch.cat([x, y]),
    "where": lambda x, y: torch.where(x > 0.5, x, y),
    "in place": lambda x, y: x.mul_(y),
    "gather": lambda x, y: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
    "index of the device": lambda x, y: y[x > 0.5],
    "layer": lambda x, y: F.linear(x, y),
    "equal": lambda x, y: torch.equal(x, y),
    "numpy": lambda x, y: x.numpy(),
    "generator": lambda x, y: x.normal_(generator=torch.Generator()),
    "drawn": lambda x, y: torch.rand(2, device=x.device, generator=torch.Generator()),
    "pinned": lambda x, y: x.pin_memory(),
}

TAKEN = {
    "a number": lambda x, y: x * torch.tensor(2.0),
    "an index": lambda x, y: x[torch.tensor([0, 1])],
    "a mask": lambda x, y: x[y > 0.5],
    "copied": lambda x, y: torch.zeros_like(x).copy_(y),
    "assigned": lambda x, y: x.clone().__setitem__(slice(0, 2), y[:2]) or x,
    "made like it": lambda x, y: x + x.new_zeros(4) + torch.ones(4, device=x.device),
    "sent": lambda x, y: x + y.to(x.device) + y.to(x) + y.cuda(),
    "put": lambda x, y: x.index_put((torch.tensor([0]),), x[0]),
    "from a list": lambda x, y: x + x.new_tensor([1.0, 2.0, 3.0, 4.0]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_device_refuses_what_a_gpu_would(device, what):
    with pytest.raises(RuntimeError) as found:
        REFUSED[what](sent(device, 3, 4), torch.rand(3, 4))
    assert isinstance(found.value, WrongDevice)


@pytest.mark.parametrize("what", TAKEN)
def test_the_device_takes_what_a_gpu_would(device, what):
    found = TAKEN[what](sent(device, 3, 4), torch.rand(3, 4))
    assert isinstance(found, Elsewhere)
    assert found.device == device


def test_values_and_gradients_on_the_device_are_those_of_the_cpu(device):
    near = testing.owner()
    far, pixels = there(near, device), torch.rand(2, 3, 32, 32)
    ours, theirs = near.features(pixels), far.features(pixels.to(device))
    assert torch.allclose(theirs.cpu(), ours, atol=1e-5)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for (name, mine), its in zip(near.named_parameters(), far.parameters(), strict=True):
        if mine.grad is not None:
            assert its.grad.device == device, name
            assert torch.allclose(its.grad.cpu(), mine.grad, atol=1e-3, rtol=1e-3), name


# Planted faults: what a test like those above has to find.


@dataclass(frozen=True)
class LeavesNoise:
    """An attack that forgets where the weights are."""

    def run(self, victim, ctx):
        made = clone(victim)
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(torch.randn(weight.shape, generator=ctx.rng) * 1e-3)
        return made


def reads_a_secret_as_it_is_stored():
    method = METHODS.build("cka", golden.CASES["cka"][0])

    class Forgets(type(method)):
        def protect(self, model, ctx):
            made = super().protect(model, ctx)
            return Protected(made.model, {**made.secret, "mask": torch.ones(3)})

        def extract(self, secret, suspect, ctx):
            _ = secret["mask"] * torch.zeros(3, device=ctx.device)
            return super().extract(secret, suspect, ctx)

    made = object.__new__(Forgets)
    for field in dataclasses.fields(method):
        object.__setattr__(made, field.name, getattr(method, field.name))
    return made


def test_noise_that_is_left_on_the_cpu_is_found(device):
    with pytest.raises(WrongDevice, match=r"add_: a tensor .* was left on the CPU"):
        attacked(LeavesNoise(), device)


def test_a_secret_that_nobody_sends_to_the_device_is_found(device):
    with pytest.raises(WrongDevice, match=r"mul: a tensor \(3,\) was left on the CPU"):
        protected(reads_a_secret_as_it_is_stored(), device)
