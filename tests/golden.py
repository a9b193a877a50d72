"""Hold the numbers of every method, attack and stage still: what moves them needs a new version.

`python tests/golden.py` compares with `tests/golden.json`, on `mini` and short settings, and says
what moved; `--update` writes it anew, but for a plug-in whose numbers moved under the old version.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from bench import testing
from bench.models import Architecture, View, VisionModel, randomised
from bench.models.heads import Head
from bench.models.serving import answers
from bench.models.surgery import segmentation_head, with_head
from bench.records.nouns import canonical
from bench.registry import ATTACKS, METHODS, Registry
from bench.suite.innocents import Recipe
from bench.suite.owners import ClassifierSettings
from bench.training import pretraining, probe, readout
from bench.types import Access, Attack, Method

KEPT = Path(__file__).with_suffix(".json")

TOLERANCE = 1e-2
"""How far a number may be off, of its own size; a mean or a pattern, of how far values scatter.

Without vector instructions and oneDNN the farthest is off by 0.7 %, with other vectors by 0.06 %.
"""

LEAST_COSINE = 0.1
"""A cosine nearer to 0 is held to this size: what is left of two directions is rounding."""

TIMES = {"step_ratio_to_ideal"}
"""Notes that are another number each time."""

CPU = torch.device("cpu")

MARK = {
    **{"images": 8, "steps": 12, "batch": 4, "lr": 1e-3, "codec_lr": 1e-2, "warmup": 0.25},
    **{"encoder_hidden": 16, "decoder_hidden": 16},
}

BITS = {
    **{"images": 8, "bits": 4, "steps": 12, "batch": 4, "lr": 1e-3},
    **{"decoys": 16, "public": 48, "rank": 16},
}

GUARDED = {"images": 8, "steps": 4, "batch": 4, "code": 16, "decoder": 16}

WRITTEN = {
    **{"images": 8, "bits": 8, "steps": 8, "batch": 4, "lr": 1e-3, "transforms": 2},
    **{"encoder_hidden": 4, "decoder_hidden": 16},
}

TRIGGERS = {"images": 6, "epochs": 2, "batch": 16, "lr": 1e-3}
WHITEBOX = {"steps": 12, "batch": 4}

TRAINED = {"epochs": 2, "warmup": 0.25, "schedule": "cosine"}

MERGED = {"epochs": 1, "others": 1}

CASES: Mapping[str, tuple[dict[str, object], ...]] = {
    "activemark": (
        MARK,
        {**MARK, "variant": "paper", "weight": 10.0, "fidelity_under": "plain"},
        {**MARK, "axis": "channel", "index": "massive", "block": 2, "message_norm": "bce"},
    ),
    "adv_tra": (
        {"trajectories": 4, "classes": 3, "max_iterations": 16},
        {"trajectories": 4, "classes": 3, "max_iterations": 16, "mode": "fast", "length": 6},
    ),
    "akh": ({"queries": 24},),
    "cka": ({"images": 16}, {"images": 16, "source": "noise", "estimator": "biased"}),
    "cka.hidden": ({"images": 16},),
    "committed_bits": (BITS, {**BITS, "rehearsed": 0.5, "levels": 1}),
    "committed_bits.hidden": (BITS,),
    "deepjudge.jsd": ({"iterations": 4, "radius": 0.06},),
    "deepjudge.robd": ({"iterations": 4, "radius": 0.06, "projected": False},),
    "fitprint": ({"bits": 8, "steps": 4},),
    "fitprint.features": ({"bits": 8, "steps": 4, "copies": 1},),
    "dataset.inference": ({}, {"limit": 12, "components": 1}),
    "deeptracer": (
        {"queries": 6, "epochs": 2, "surrogate_epochs": 1},
        {"queries": 6, "epochs": 2, "surrogate": "none", "blocks": 6, "intra": 0.1},
    ),
    "holmes": (
        {"queries": 24, "epochs": 1, "meta_epochs": 20},
        {"queries": 24, "epochs": 1, "meta_epochs": 20, "benign": "owner", "scaled_by": "suspect"},
    ),
    "deepsigns": (
        {**WHITEBOX, "images": 16, "clusters": 3, "bits": 4},
        {**WHITEBOX, "images": 16, "clusters": 3, "bits": 4, "centred": False, "block": 2},
    ),
    "ipguard": (
        {"points": 12, "iterations": 16, "lr": 1e-2},
        {"points": 12, "iterations": 16, "initialisation": "noise", "k_unit": "median margin"}
        | {"target": "random", "k": 0.5, "adam_reset": True, "clamp": False},
    ),
    "ipguard.qurd": ({"points": 12, "iterations": 16},),
    "lineage.invariants": ({"rows": 32}, {"rows": 32, "term": "qk"}),
    "lineage.procrustes": ({},),
    "lineage.profile": ({},),
    "modeldiff": (
        {"pairs": 6, "steps": 4},
        {"pairs": 6, "steps": 4, "compared": "pairs", "radius": 0.03},
    ),
    "modeldiff.features": ({"pairs": 6, "steps": 4, "centred": False},),
    "move": (
        {"epochs": 2, "entries": 256, "meta_epochs": 20},
        {"epochs": 1, "entries": 256, "meta_epochs": 20, "decoys": 0, "gradients": "pooled"}
        | {"bands": 1, "strength": 0.5},
    ),
    "move.logits": (
        {"epochs": 2, "meta_epochs": 20},
        {"epochs": 1, "meta_epochs": 20, "against": "suspect", "views": 4},
    ),
    "neuralmark": (WHITEBOX, {**WHITEBOX, "tensor": "fc2", "rounds": 2}),
    "oracle.weights": ({"entries": 64},),
    "pautov2024": (
        {"queries": 8, "proxies": 3},
        {"queries": 4, "proxies": 3, "sigma": 0.1, "sigma_unit": "std of the weight"}
        | {"accuracy_gap": 0.2},
    ),
    "sac": ({"queries": 12},),
    "sac.features": ({"queries": 12, "cut": 0.5},),
    "sac.labels": ({"queries": 12},),
    "randmark": (
        WRITTEN,
        {**WRITTEN, "messages": "generic", "draws": 2, "message_norm": "l1", "contrast": 1.0},
    ),
    "sslguard": (GUARDED, {**GUARDED, "shadow": "copy"}, {**GUARDED, "shadow": "none"}),
    "sslwm": ({"images": 16, "epochs": 1, "batch": 16}, {"images": 16, "epochs": 1, "patch": 0.1}),
    "trigger.directions": (
        {**TRIGGERS, "directions": 3},
        {**TRIGGERS, "kind": "content", "directions": 1},
        {**TRIGGERS, "kind": "noise", "directions": 1},
    ),
    "trigger.labels": (
        TRIGGERS,
        {**TRIGGERS, "kind": "signed", "assigned": "shifted", "bits": 32},
        {**TRIGGERS, "kind": "content", "assigned": "one"},
    ),
    "sensitive": (
        {"queries": 4, "candidates": 6, "iterations": 8},
        {"queries": 4, "candidates": 6, "iterations": 4, "smoothness": 0.1}
        | {"layer": "block", "score": "log-probabilities"},
    ),
    "uchida": (
        WHITEBOX,
        {"embedding": "closed form", "tensor": "patch", "projection": "diff"},
        {"embedding": "closed form", "tensor": "fc2", "projection": "direct", "block": 1},
    ),
    "uchida.free": (WHITEBOX,),
    "control.identity": ({},),
    "collusion": ({}, {"copies": 3}),
    "control.stranger": ({"index": 1},),
    "disguise.embeddings": (TRAINED, {**TRAINED, "rotated": False}),
    "disguise.patch": ({},),
    "distill.cont_steal": ({"epochs": 2, "queries": 64},),
    "distill.features": (
        {**TRAINED},
        {**TRAINED, "loss": "mse", "queries": 32, "student": "mini-wide"},
    ),
    "distill.labels": ({**TRAINED, "queries": 32},),
    "distill.logits": ({**TRAINED},),
    "distill.rda": ({"epochs": 2, "queries": 80, "batch": 8},),
    "distill.stolen_encoder": ({"epochs": 2, "queries": 32},),
    "finetune.adversarial": ({"epochs": 1, "attack_steps": 2},),
    "finetune.classify": (
        TRAINED,
        {**TRAINED, "mode": "lora", "rank": 2, "lora_mlp": True},
        {**TRAINED, "mode": "retrain_last"},
        {**TRAINED, "layer_decay": 0.5},
        {**TRAINED, "label_smoothing": 0.5, "mixup": 0.2, "noise": 0.1, "sam": 0.05},
    ),
    "finetune.rear": (TRAINED,),
    "finetune.regularise": ({"epochs": 1, "decay_epochs": 2, "feature_decay": 0.1},),
    "finetune.segment": (TRAINED, {**TRAINED, "decoder": "dpt", "epochs": 1}),
    "finetune.surrogate_codec": (
        {"rounds": 2, "epochs": 1, "codec_epochs": 2, "refresh_epochs": 1, "bits": 4},
    ),
    "finetune.wild": ({"epochs": 2, "share": 0.5},),
    "finetune.wrk": ({"epochs": 2, "perturbed": 16},),
    "interpolate": ({},),
    "noise.shift": ({"sigma": 0.1},),
    "merge.arithmetic": (MERGED,),
    "merge.dare": (MERGED, {**MERGED, "rule": "ties", "keep": 0.5}),
    "merge.slerp": ({"epochs": 1}, {"epochs": 1, "per": "model"}),
    "merge.soup": (MERGED, {**MERGED, "rule": "greedy"}),
    "merge.ties": (MERGED,),
    "noise.weights": ({},),
    "prune.activations": ({},),
    "prune.l1": ({}, {"scope": "layer", "amount": 0.4}),
    "overwrite": ({"method": {"name": "activemark", **MARK}},),
    "prune.structured": ({}, {"what": "heads", "amount": 0.5}),
    "removalnet": ({"epochs": 1, "inner_steps": 2},),
    "reparam.internal": ({},),
    "reparam.permute": ({}, {"share": 0.5}),
    "reparam.rotate": ({}, {"angle": 0.5}),
    "reparam.scale": ({},),
    "reparam.shift": ({}, {"constant": 0.0, "sd": 1.0}),
    "serve.bits": ({},),
    "serve.blur": ({},),
    "serve.detect": ({"false_alarms": 0.5}, {"false_alarms": 0.5, "by": "jpeg"}),
    "serve.flip": ({},),
    "serve.jpeg": ({},),
    "serve.labelflip": ({"share": 1.0},),
    "serve.noise": ({},),
    "serve.perturb": ({},),
    "serve.resize": ({},),
    "serve.round": ({},),
    "serve.temperature": ({},),
    "serve.topk": ({},),
    "structure.heads": ({}, {"kind": "zero"}),
    "structure.identity": ({}, {"blocks": 2}),
    "structure.neurons": ({}, {"kind": "split"}, {"kind": "zero"}),
    "structure.widen": ({},),
    "quantize": ({}, {"format": "int4", "per": "tensor"}, {"format": "fp8"}),
}
"""Short settings of every plug-in, that between them go through most of it."""

Numbers = dict[str, float]


def built_in(registry: Registry) -> list[str]:
    ours = ("methods.", "attacks.")
    return [name for name in registry.names() if registry.origin(name).value.startswith(ours)]


@functools.cache
def stranger(index: int = 0) -> VisionModel:
    """A model of the owner's shape that nobody trained."""
    return randomised(Architecture("embedded", "mini"), index)


@functools.cache
def _answering(own: bool) -> VisionModel:
    return testing._with_digits_head(testing.owner() if own else stranger())


def party(needs: Access, own: bool) -> VisionModel:
    """Return the owner or a stranger, with a head where a method asks for its answers."""
    if needs & Access.BLACK_BOX:
        return _answering(own)
    return testing.owner() if own else stranger()


def of_method(method: Method) -> Numbers:
    """Protect a model, and read it and a stranger's."""
    owner = party(method.needs, own=True)
    made = method.protect(owner, testing.context(0, "owner"))
    found = {**_model("released", made.model, owner), **_noted(made.notes), **_secret(made.secret)}
    for who, model in (("own", made.model), ("stranger", party(method.needs, own=False))):
        view = View(model, method.needs)
        read = method.extract(made.secret, view, testing.context(1, "owner"))
        spread = torch.tensor(read.statistic, dtype=torch.float64)
        found |= _spread(f"{who}: agreement", torch.tensor(read.agreement, dtype=torch.float64))
        found |= _spread(f"{who}: {read.rule.text}", spread) | {f"{who}: rate": read.rate}
    return found | {"chance": -1.0 if read.chance is None else read.chance}


def of_attack(attack: Attack) -> Numbers:
    """Attack the owner's model."""
    victim = _answering(True) if getattr(attack, "uses_head", False) else testing.owner()
    base = stranger(2) if getattr(attack, "uses_base", False) else None
    copies = (lambda i: stranger(3 + i)) if hasattr(attack, "copies") else None
    ctx = dataclasses.replace(testing.context(3), stranger=stranger, base=base, copies=copies)
    made = attack.run(victim, ctx)
    return {**_model("suspect", made, victim), **_noted(made.notes)}


def of_stages() -> Iterator[tuple[str, Numbers]]:
    """Do what stages do beside plug-ins: train heads and strangers, fit, probe."""
    owner, images, held_out = testing.owner(), *testing._pools()["owner"]
    fitted = probe.fit_linear(owner, images, CPU)(_pooled(owner))
    yield "extract, relinear", _spread("scores", fitted) | _spread("largest", fitted.amax(1))
    for backbone in ("frozen", "finetuned"):
        how = ClassifierSettings("digits", backbone, epochs=2)
        rng = torch.Generator().manual_seed(0)
        made = readout.with_classifier(owner, images, how, rng, CPU)
        yield f"classifier, {backbone}", _model("model", made, owner) | _noted(made.notes)
    state = pretraining.cohort(0, 1, Recipe(steps=2))[0]
    weights = torch.cat([value.flatten().double() for _, value in sorted(state.items())])
    yield "cohort", _spread("weights", weights) | {"sum of squares": float(weights.square().sum())}
    grafted = readout.head_for("graft", stranger(), _answering(True), images, CPU)
    with torch.no_grad():
        tokens = stranger().forward_features(images.batch(slice(0, 8), CPU))
        yield "extract, graft", _spread("scores", grafted(tokens))
    accuracy = probe.probe_accuracy(owner, images, held_out, CPU)
    found = probe.utility(_answering(True), held_out, "own", images, held_out, "probe", CPU)
    yield "utility", {"probe accuracy": accuracy, found.metric: found.value}
    masked = testing._pools()["thief"][0]
    maps = with_head(
        owner, segmentation_head(owner, "linear", masked.classes), torch.Generator().manual_seed(0)
    )
    yield "utility, mIoU", {"mIoU": probe.mean_iou(maps, masked, CPU)}
    cosines = torch.tensor(probe.feature_cosines(owner, stranger(), held_out, CPU))
    yield "fidelity", _spread("feature cosine", cosines)


def _pooled(model: VisionModel) -> Tensor:
    return probe.pooled_features(model, testing._pools()["owner"][1], CPU)


def _model(name: str, made: VisionModel, before: VisionModel) -> Numbers:
    """Describe weights, how far they are from those before, and what the model says of images."""
    were = before.trunk.state_dict()
    now = {n: v.double() for n, v in made.trunk.state_dict().items() if v.is_floating_point()}
    size = math.sqrt(sum(float(v.square().sum()) for v in now.values()))
    alike = [n for n in now if n in were and were[n].shape == now[n].shape]
    moved = math.sqrt(sum(float((now[n] - were[n]).square().sum()) for n in alike))
    held = [p.double().flatten() for p in made.head.parameters()] if made.head else []
    images = testing._pools()["thief"][0].batch(slice(0, 8), CPU)
    with torch.no_grad():
        seen = made.eval().forward_features(images)
        said = made.segment(images) if _masks(made) else answers(made, images)
    return {
        **{f"{name}: weights": size, f"{name}: moved": moved / size},
        **(_spread(f"{name}: head", torch.cat(held).detach()) if held else {}),
        **_spread(f"{name}: tokens", seen),
        **_spread(f"{name}: answers", said),
    }


def _masks(model: VisionModel) -> bool:
    return model.head is not None and not isinstance(model.architecture.head, Head)


def _spread(name: str, values: Tensor) -> Numbers:
    """Say where numbers lie, in what pattern, and how far they scatter."""
    values = values.double().flatten()
    waves = torch.cos(torch.arange(len(values), dtype=torch.float64))  # as good as random
    return {
        f"{name}, mean": float(values.mean()),
        f"{name}, pattern": float((values * waves).sum() / len(values) ** 0.5),
        f"{name}, scatter": float(values.std(correction=0)),
    }


def _secret(secret: Mapping[str, Tensor]) -> Numbers:
    """Describe what is kept, all of one kind together."""
    kinds: dict[str, list[Tensor]] = {}
    for name, value in sorted(secret.items()):
        kinds.setdefault(name.rpartition(".")[2], []).append(value.double().flatten())
    found: Numbers = {}
    for kind, values in kinds.items():
        found |= _spread(f"secret {kind}", torch.cat(values))
    return found


def _noted(notes: Mapping[str, object]) -> Numbers:
    told = {k: v for k, v in notes.items() if k not in TIMES}
    numbers = {k: v for k, v in told.items() if isinstance(v, int | float)}
    return {f"noted {name}": float(value) for name, value in sorted(numbers.items())}


def entry(registry: Registry, name: str) -> dict[str, object]:
    """Return a plug-in's version, its defaults, and its numbers by settings."""
    usual = registry.spec(name, {})
    count: Callable = of_method if registry is METHODS else of_attack
    # A hash over features makes bits of their last digits, which are each processor's own.
    committed = "methods.committed_bits.coins.committed"
    with mock.patch(committed, return_value=b"these bits"):
        numbers = {
            canonical(args): _rounded(count(registry.build(name, args))) for args in CASES[name]
        }
    return {"version": usual.version, "defaults": dict(usual.args), "numbers": numbers}


def _rounded(numbers: Numbers) -> Numbers:
    return {name: float(f"{value:.6g}") for name, value in numbers.items()}


def everything(names: Collection[str] = ()) -> dict[str, dict[str, object]]:
    """Count the numbers of all, or of the plug-ins named alone."""
    asked = {
        part: [name for name in built_in(registry) if not names or name in names]
        for part, registry in (("methods", METHODS), ("attacks", ATTACKS))
    }
    return {
        "methods": {name: entry(METHODS, name) for name in asked["methods"]},
        "attacks": {name: entry(ATTACKS, name) for name in asked["attacks"]},
        "stages": {} if names else {name: _rounded(found) for name, found in of_stages()},
    }


def moved(before: Numbers, now: Numbers) -> Iterator[str]:
    """Say which numbers are not what they were."""
    for name in sorted(before.keys() | now.keys()):
        was, found = before.get(name, math.nan), now.get(name, math.nan)
        scatter = before.get(f"{name.rpartition(',')[0]}, scatter", 0.0)
        size = max(abs(was), scatter, LEAST_COSINE if name.endswith("cosine") else 0.0)
        if not abs(found - was) <= TOLERANCE * size + 1e-9:
            yield f"{name} {was:g} -> {found:g}"


def changes(before: dict, now: dict) -> list[str]:
    """Say in what a plug-in's entry is not what it was, its version apart."""
    old, new = before["defaults"], now["defaults"]
    said = [
        f"default of {name} {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    for args in sorted(before["numbers"].keys() | now["numbers"].keys()):
        found = list(moved(before["numbers"].get(args, {}), now["numbers"].get(args, {})))
        said += [f"{args}: {'; '.join(found[:3])} ({len(found)} in all)"] if found else []
    return said


def complaint(name: str, before: dict | None, now: dict) -> str:
    """Say in a line what is wrong with a plug-in's entry, and what to do; empty if nothing is."""
    if before is None:
        return f"{name}: no golden numbers; run python tests/golden.py --update"
    found = changes(before, now)
    if before["version"] == now["version"]:
        what = f"{name}: numbers moved under version {now['version']}: {' | '.join(found)}"
        return f"{what}; raise its version=, or undo what moved them" if found else ""
    return f"{name}: version {now['version']} is new; run python tests/golden.py --update"


def complaints(before: dict, now: dict) -> Iterator[tuple[str, str, str]]:
    """Yield part, name and complaint of every entry that is not as it was kept."""
    for part in ("methods", "attacks"):
        for name in now[part]:
            if said := complaint(name, before[part].get(name), now[part][name]):
                yield part, name, said
    for name, numbers in now["stages"].items():
        found = list(moved(before["stages"].get(name, {}), numbers))
        if found:
            said = f"the stage {name}: {'; '.join(found)}; --update, and say so in the commit"
            yield "stages", name, said


def main(asked: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    before = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    before = {part: before.get(part, {}) for part in ("methods", "attacks", "stages")}
    now = everything(asked.names)
    wrong = list(complaints(before, now))
    if asked.update:
        refused = [one for one in wrong if "under version" in one[2]]
        for part, name, _ in refused:
            now[part][name] = before[part][name]
        if asked.names:
            now = {part: before[part] | now[part] for part in before}
        KEPT.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
        wrong = refused
    print(*([said for *_, said in wrong] or ["no number moved"]), sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="plug-ins, where not all and the stages")
    parser.add_argument("--update", action="store_true")
    sys.exit(main(parser.parse_args()))
