"""Cells, records, outlines and suites as a run leaves them: a test names what it is about."""

import dataclasses

import numpy as np
from safetensors.numpy import save_file

from bench.records.files import file_digest, written_whole
from bench.records.nouns import (
    Cell,
    Evidence,
    Fidelity,
    Outline,
    Record,
    Rule,
    Spec,
    Utility,
    digest,
)
from bench.records.store import Store
from bench.verdicts.verdict import Null

OWNER = Spec("mini", {"library": "embedded"})
MARK, PRINT = Spec("activemark", {"bits": 32}), Spec("adv_tra", {"n": 20})
UNTOUCHED = (Spec("control.identity"),)
BITS, MUTATION, MATCH = (
    Rule("bit errors", "<=", 5),
    Rule("mutation", "<", 0.5),
    Rule("match", ">=", 1),
)
TASK = Utility("accuracy", 0.9, "digits", 360)
QUERIES = 20

LINEAGE = {"other key": "owner", "other model": "stranger"}
"""What a copy descends from where its base does not say so itself."""


def stranger(index=0, *attack):
    """The chain that makes a stranger, and what is then done to it."""
    return (Spec("control.stranger", {"index": index}), *attack)


def cell(
    method=MARK,
    base="released",
    attack=UNTOUCHED,
    seed=0,
    attack_seed=None,
    lineage=None,
    owner=OWNER,
    **other,
):
    """Ask about a copy; a chain that starts with a stranger makes one, and twins say their base."""
    if lineage is None:
        lone = attack[0].name == "control.stranger"
        lineage = "stranger" if lone else LINEAGE.get(base, base)
    attack_seed = seed if attack_seed is None else attack_seed
    return Cell(owner, method, seed, base, attack, attack_seed, lineage, **other)


def key_of(asked):
    return digest(dataclasses.asdict(asked))


def bit_errors(*errors, rule=BITS):
    """Evidence of a mark: so many bits of 32 are wrong, image by image."""
    errors = tuple(map(float, errors))
    return Evidence(tuple(1 - e / 32 for e in errors), errors, rule, "image", 0.5)


def matches(*agreement):
    """Evidence of a fingerprint: how far each of its points matches."""
    return Evidence(agreement, agreement, MATCH, "point", None)


def record(asked, errors=1.0, **parts):
    """Answer a cell: every image shows the same number of bit errors out of 32."""
    marks = asked.method.name == MARK.name
    defaults = {
        "key": key_of(asked),
        "suite": "demo",
        "status": "ok",
        "access": "features, weights" if marks else "labels",
        "marks": marks,
        "suspect_digest": key_of(asked),
        "owner_digest": "clean",
        "evidence": bit_errors(*[errors] * QUERIES, rule=BITS if marks else MUTATION),
        "utility": TASK,
    }
    return Record(cell=asked, **(defaults | parts))


def suspect(number, read, lineage="released", seed=0, method=PRINT, tried=None, **parts):
    """Record what was read off one model: a copy of what a key marked, a twin or a stranger.

    Unless it is told what was tried, a stranger is untouched and everybody else pruned by number.
    """
    if lineage == "stranger":
        attack = stranger(number, *(tried or ()))
    else:
        attack = tried or (Spec("prune.l1", {"amount": number / 1000}),)
    base = "released" if lineage == "released" else "owner"
    weights = digest(lineage, number, seed if lineage == "released" else 0, repr(tried))
    asked = cell(method, base, attack, seed, 0)
    return record(asked, **{"evidence": read, "suspect_digest": weights} | parts)


def with_secret(record, digest="one"):
    """Have a record say which secret its key gave."""
    notes = {**record.notes, "protect": {"secret_digest": digest}}
    return dataclasses.replace(record, notes=notes)


def nulls(strangers, descendants=None, other_keys=None, known=None):
    """The innocents that one suspect meets; of a fingerprint only strangers."""
    met = [Null("strangers", strangers, "untouched")]
    if descendants is not None:
        met.append(Null("descendants", descendants, "within the attack", known))
    if other_keys is not None:
        met.append(Null("other keys", other_keys, "attacked alike"))
    return met


def lost(record, status="failed", reason="no reason"):
    """The record of the same cell, had nothing come of it."""
    return dataclasses.replace(record, status=status, reason=reason, evidence=None, utility=None)


def outline(asked=(), **changes):
    """What was asked, given cells or their records."""
    pairs = [(a.key, a.cell) if isinstance(a, Record) else (key_of(a), a) for a in asked]
    return dataclasses.replace(Outline("demo", "Demo", 0.05, tuple(pairs)), **changes)


QUICK = "{name: activemark, steps: 2, batch: 4, images: 4, encoder_hidden: 16, decoder_hidden: 16}"
"""A mark that is made in no time, and worth as little."""

PARTS = {
    "name": "tiny",
    "owners": ["{embedded: mini}"],
    "methods": [QUICK],
    "attacks": ["{name: control.identity}", "{name: prune.l1, amount: 0.4}"],
    "data": "{digits: {max_images: 40}, photos: {max_images: 24}}",
    "owner_images": "photos",
    "probe": "digits",
    "innocents": "{strangers: 1, twin_seeds: 1, pretraining_steps: 1}",
}


def suite(**parts):
    """The text of a suite small enough to be run for real, but for the parts that are given.

    A part is YAML, or a list of entries in YAML, one on each line.
    """
    return "".join(
        f"{key}: {part}\n" if isinstance(part, str) else "\n  - ".join([f"{key}:", *part]) + "\n"
        for key, part in (PARTS | parts).items()
    )


TENSORS = {"w": np.ones(3, np.float32)}


def carried_out(plan, store):
    """Leave in a store what a run of a plan leaves, with numbers of its own; return its records."""
    read, paid = {}, Fidelity((0.99,) * 4, 0.9, 0.89, 100, "digits")
    for number, (key, stage) in enumerate(plan.stages.items()):
        read[key] = bit_errors(*[number] * 4)
        results = {"evidence": read[key], "utility": TASK, "fidelity": paid}
        payload = {name: dataclasses.asdict(result) for name, result in results.items()}
        payload.get("evidence", {}).pop("notes", None)  # kept beside it, and there are none
        payload |= {"digest": key, "cost": {"seconds": 2.0}}
        store.put(key, stage.kind, stage.recipe, stage.parents, payload, TENSORS)
    return [
        record(
            question.cell,
            key=question.key,
            access=question.access,
            marks=question.marks,
            suspect_digest=question.suspect,
            owner_digest=question.owner,
            evidence=read[question.extract],
            fidelity=paid if question.fidelity else None,
        )
        for question in plan.questions
    ]


class ArrayStore(Store):
    """A store for numpy's arrays: torch has no part in how its files are named, sealed and lost."""

    def _write_tensors(self, key, tensors):
        with written_whole(self._tensors(key)) as temporary:
            save_file(tensors, temporary)
            return file_digest(temporary), temporary.stat().st_size
