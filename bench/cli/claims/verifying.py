"""Carry out `bench verify`, which reads a suspect, and `bench trace`, which names a user."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import bench
from bench.cli import progress
from bench.cli.parser import (
    OK,
    Command,
    a_device,
    data_root,
    owners_labels,
    pin,
    positive,
    print_lines,
    taken,
    threads,
    which_weights,
)
from bench.records.nouns import Align, Evidence, how_many
from bench.records.table import wide_console
from bench.verdicts.exact.coins import least_log10_p, p_text
from bench.verdicts.verdict import innocents_needed

if TYPE_CHECKING:
    from bench.runs.claims.claim import Finding, Verification
    from bench.runs.claims.key import Key
    from bench.runs.claims.replaying import Replay
    from bench.verdicts.verdict import Kind, Rank, Verdict

STATUSES = {"owned": 0, "undecided": 3, "not owned": 1, "incompatible": 4}
"""Exit statuses of `verify`, by the verdict of all keys together."""


OF_BOTH = ("model", "pretrained", "entry", "image_size", "alpha", "device")
"""What a line of `verify`, and of `trace`, says of a suspect and of how it is judged."""


def _verify_arguments(command: argparse.ArgumentParser) -> None:
    command.epilog = (
        "Exit status: 0 owned (with several keys: by one of them), 1 not owned, or every key was "
        "refused by --replay, 2 something to put right, 3 undecided, 4 incompatible: no key can "
        "read this suspect."
    )
    command.add_argument("suspect", type=Path, help="its weights: safetensors, or a state dict")
    command.add_argument(
        "--key", type=Path, nargs="+", required=True, metavar="FILE", help="one for each user"
    )
    command.add_argument(
        "--commitment",
        nargs="+",
        metavar="HEX",
        help="what was published, of every key, or the registry that they are in, a file",
    )
    command.add_argument(
        "--seen", metavar="DATE", help="with a registry: when the suspect was there, as 2026-05-31"
    )
    command.add_argument("--model", help="the suspect's architecture (default: the owner's)")
    which_weights(command)
    command.add_argument("--image-size", type=positive, help="its side, where not the library's")
    command.add_argument(
        "--strangers", type=Path, metavar="DIR", help="models that never met the owner's"
    )
    command.add_argument(
        "--descendants",
        type=Path,
        metavar="DIR",
        help="for a mark: finetuned copies of the clean owner, and the clean owner itself",
    )
    command.add_argument("--alpha", type=float, default=0.05, help="level of the verdict (0.05)")
    command.add_argument(
        "--align",
        choices=get_args(Align),
        help="how suspect and innocents are written in the released model's basis before they are "
        "read (default: as the key says)",
    )
    command.add_argument(
        "--reference",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="the released model of each key (default: model.safetensors beside it)",
    )
    _replay_arguments(command)
    a_device(command)
    threads(command)


def _replay_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--replay",
        metavar="IMAGES",
        help="make the secret of every registered key again, of its owner's images as `protect` "
        "was given them; a secret that does not follow from its key speaks for nothing",
    )
    command.add_argument(
        "--clean",
        default="hub",
        metavar="FILE",
        help="with --replay: the owner's unmarked weights (default: the library's)",
    )
    owners_labels(command)
    data_root(command)


def verify_suspect(arguments: argparse.Namespace) -> int:
    """Read a suspect and the innocents given with every key; the status is the verdict."""
    pin(arguments)
    replaying = "" if arguments.replay is None else " and making secrets again"
    with progress.working(f"reading {arguments.suspect}{replaying}", wide_console()):
        found = bench.verify(
            arguments.suspect,
            arguments.key,
            commitments=arguments.commitment,
            replay=_origin(arguments),
            **taken(arguments, "strangers", "descendants", "align", "seen", "reference", *OF_BOTH),
        )
    print_lines([("suspect", description(found)), *(("basis", said) for said in found.bases)])
    print_lines([("note", note) for note in found.notes])
    if arguments.commitment is None:
        late = "without --commitment nothing shows that a key is older than the suspect"
        print_lines([("note", late)])
    replays = {replay.key: replay for replay in found.replays}
    for finding in found.findings:
        print_lines(sentences(finding, found.alpha, replays.get(finding.key)))
    if found.copy_of is not None:
        who = found.copy_of.user or found.copy_of.commitment
        print_lines([("named", f"{who}, whose copy it is bit for bit, whatever the verdict")])
    elif len(found.findings) > 1:
        best = found.named
        who = "nobody" if best is None else best.key.user or best.key.commitment
        print_lines([("named", who)])
    return STATUSES[found.outcome]


def _origin(arguments: argparse.Namespace) -> bench.Origin | None:
    """Return what keys are to be made again of, None where no replay was asked for."""
    if arguments.replay is None:
        return None
    return bench.Origin(
        images=arguments.replay,
        **taken(arguments, "labels", "clean", "data"),
        note=lambda told: print_lines([("replay", told)]),
    )


def _trace_arguments(command: argparse.ArgumentParser) -> None:
    command.epilog = (
        "Exit status: 0 somebody is named, 1 nobody, 2 something to put right, 4 incompatible."
    )
    command.add_argument("suspect", type=Path, help="its weights: safetensors, or a state dict")
    command.add_argument("--key", type=Path, required=True, metavar="FILE", help="any copy's")
    command.add_argument(
        "--users", type=positive, required=True, metavar="N", help="they are numbered 0 to N - 1"
    )
    command.add_argument(
        "--alpha",
        type=float,
        default=0.01,
        help="chance that anybody innocent is named, of all users together (0.01)",
    )
    command.add_argument("--model", help="the suspect's architecture (default: the owner's)")
    which_weights(command)
    command.add_argument("--image-size", type=positive, help="its side, where not the library's")
    a_device(command)


def trace_suspect(arguments: argparse.Namespace) -> int:
    """Name the users whose copies a suspect was made from, or say who came nearest."""
    try:
        found = bench.trace(
            arguments.suspect,
            arguments.key,
            **taken(arguments, "users", *OF_BOTH),
        )
    except bench.Incompatible as error:
        print_lines([("trace", f"incompatible: {error}; this speaks for nobody")])
        return STATUSES["incompatible"]
    print_lines([("note", note) for note in found.notes])
    times = f"times {how_many(found.users, 'user')}"
    for one in found.named or found.closest[:1]:
        label = "named" if found.named else "nearest"
        rate = f"{one.evidence.rate:.3f} of {len(one.evidence.agreement)} bits agree"
        print_lines([(label, f"user {one.user}: {rate}, p = {p_text(one.log10_p)} ({times})")])
    if not found.named:
        print_lines([("named", f"nobody, at alpha = {found.alpha:g} of all users together")])
    return OK if found.named else STATUSES["not owned"]


def description(found: Verification) -> str:
    """Say what a suspect was read as, and what in its file was not read."""
    parts = ", ".join(
        f"{part} ({how_many(count, 'tensor')})" for part, count in found.ignored.items()
    )
    left_out = f"; ignored, as no part of the backbone: {parts}" if parts else ""
    return f"{found.suspect}, read as {found.architecture}{left_out}"


def sentences(found: Finding, alpha: float, replay: Replay | None = None) -> list[tuple[str, str]]:
    """Say what one key found, and what came of its replay, in lines of a label and a text."""
    lines = _found(found, alpha)
    if replay is None:
        return lines
    if replay.follows is None and found.outcome == "owned":
        lines[-1] = ("verdict", "undecided: it cannot be told here whether the secret was fitted")
    if replay.follows is False:
        lines[-1] = ("verdict", "refused: the key was not made as it says, and speaks for nothing")
    return [*lines[:-1], ("replay", replay.text), lines[-1]]


def _found(found: Finding, alpha: float) -> list[tuple[str, str]]:
    key, evidence, verdict = found.key, found.evidence, found.verdict
    whose = f", the copy released to {key.user}" if key.user else ""
    lines = [("key", f"{key.method.name}{whose}, commitment {key.commitment}")]
    if isinstance(evidence, str) or verdict is None:
        why = f"{evidence}; this speaks neither for nor against the claim"
        return [*lines, ("verdict", f"incompatible: {why}")]
    queries = f"{how_many(len(evidence.agreement), 'query', 'queries')} ({evidence.unit})"
    lines += [
        ("rate", f"{evidence.rate:.3f} of {queries} by the paper's own rule, {evidence.rule.text}"),
        (
            "agreement",
            f"{evidence.score:.3f}; the released copy had {key.released_score:.3f}"
            + (f", {_innocents_known(key)} {found.known:.3f}" if key.reader.marks else ""),
        ),
        ("p-value", _ranks(found, verdict)),
        ("possible", _possible(found, verdict, alpha)),
    ]
    decided = verdict.outcome != "undecided"
    together = f", for {found.keys} keys together" if found.keys > 1 else ""
    level = f" at alpha = {alpha:g}{together}" if decided else ""
    reservation = f"; {verdict.reservation}" if verdict.reservation else ""
    return [*lines, ("verdict", f"{verdict.outcome}{level}{reservation}")]


def _innocents_known(key: Key) -> str:
    others = "" if key.others_score is None else " or another user's copy at most"
    return f"the clean owner{others}"


def _ranks(found: Finding, verdict: Verdict) -> str:
    """Return the p-value and where it comes from, population by population."""
    parts = [
        f"{rank.p:.4g} among {how_many(rank.n, *WHO[rank.kind])}"
        if rank.p is not None
        else f"no {WHO[rank.kind][1]} given"
        for rank in _given(verdict)
    ]
    if found.log10_p is not None and isinstance(found.evidence, Evidence) and found.evidence.null:
        queries = f"{found.evidence.null.text}, exact by design"
        return f"{p_text(found.log10_p)}: {queries}, no innocents needed{_corrected(found)}"
    if found.p_value is None:
        return f"none: {'; '.join(parts)}"
    return f"{found.p_value:.4g}: {'; '.join(parts)}{_corrected(found)}"


def _corrected(found: Finding) -> str:
    return f", times {found.keys} keys" if found.keys > 1 else ""


def _given(verdict: Verdict) -> list[Rank]:
    """Return the ranks among innocents given as files."""
    return [rank for rank in verdict.ranks if rank.kind in WHO]


def _possible(found: Finding, verdict: Verdict, alpha: float) -> str:
    """Say how small p could have been, and what it would take to get below alpha, or further."""
    if verdict.log10_p is not None and isinstance(found.evidence, Evidence):
        read = f"all queries that were read ({found.evidence.unit}) agreed"
        return f"at best {p_text(least_log10_p(found.evidence))}, if {read}"
    ranks = _given(verdict)
    given = " and ".join(f"{how_many(rank.n, rank.kind[:-1])} given" for rank in ranks)
    each = " of each" if len(ranks) > 1 else ""
    smallest = f"at best {min(1.0, found.keys * verdict.attainable):.4g}"
    if verdict.outcome == "undecided":
        return f"{smallest}: {verdict.needed}{each} needed at alpha = {alpha:g}, {given}"
    stronger = innocents_needed(alpha / 5 / found.keys)
    return f"{smallest}, {given}; {stronger}{each} are needed for {alpha / 5:g}"


WHO: Mapping[Kind, tuple[str, str]] = {
    "strangers": ("stranger", "strangers"),
    "descendants": ("descendant of the clean owner", "descendants of the clean owner"),
}
"""The innocents that are given as files, one and many; a key remembers other users' copies."""

VERIFY = Command(
    "verify",
    "say whether a suspect is the model a key was made for",
    _verify_arguments,
    verify_suspect,
)
TRACE = Command(
    "trace",
    "say whose copy a suspect was made from, of a million users",
    _trace_arguments,
    trace_suspect,
)
