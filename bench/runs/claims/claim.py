"""Mark or fingerprint a model for its owner, and say of a suspect whether it is that model.

Whatever the method, a claim is judged by rank among innocent models, given as files: strangers that
owe the owner nothing and, for a mark, descendants of the clean owner. A method whose evidence has
an exact null is judged by that, and needs none.

"User-specific binary signature" (A. Chistyakova, M. Pautov, "ActiveMark: on watermarking of visual
foundation models via massive activations", arXiv:2510.04966, section 3.2) is here a copy marked
anew for every user, with a secret of its own throughout. Sharing the encoder and the decoder
between users would not tell them apart: the message is an input at verification, and a channel
trained on fresh messages carries anybody's.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.data.images import Images, Preprocess, load
from bench.data.manifest import Manifest
from bench.models.symmetry import rewritten
from bench.models.vision import Architecture, VisionModel
from bench.models.weights import (
    headless,
    load_weights,
    release,
    secret_digest,
    sketch,
    weights_digest,
)
from bench.records import nouns
from bench.records.nouns import Access, Evidence, Incompatible, Spec, UserError
from bench.registry import METHODS
from bench.runs.claims import commitment
from bench.runs.claims.key import KEY, RELEASED, Key, aligning, is_key, write
from bench.runs.claims.reading import (
    AS_THEY_ARE,
    Bases,
    Reading,
    extract,
    fitted,
    is_released,
    near,
    read,
    read_file,
    said_of_bases,
    said_of_digests,
)
from bench.suite.owners import WEIGHT_FILES
from bench.types import Context
from bench.verdicts import copies
from bench.verdicts.verdict import Null, Verdict, decide, decide_exactly

HELD_OUT = 0.3
"""Share of the owner's source images that a method may test on but not train on."""


OUTCOMES = ("owned", "undecided", "not owned", "incompatible")
"""What keys may say; of several keys the first of these that one of them came to counts."""


@dataclass(frozen=True, slots=True, eq=False)
class ProtectedCopy:
    """A protected model with its key, and what the key reads off it and off the clean owner."""

    model: VisionModel
    key: Key
    released: Evidence
    clean: Evidence


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """What an owner is left with: a key, where it and its copy lie, and what the key reads.

    `released` is read off the protected copy, `clean` off the owner as it was. A fingerprint leaves
    the model as it is: there is no file of a copy.
    """

    key: Key
    released: Evidence
    clean: Evidence
    key_file: Path
    model_file: Path | None


Model = Sequence[Reading]
"""The readings of one model, which may lie in several files."""


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """What one key says of the suspect: evidence and verdict, or why it could not be read.

    `verdict` is at the level alpha / `keys`: with many keys, one fits by chance more easily.
    """

    key: Key
    evidence: Evidence | str
    verdict: Verdict | None
    known: float  # highest agreement of a model known to be innocent of this key
    keys: int

    @property
    def p_value(self) -> float | None:
        """Return the p-value corrected for the number of keys (Bonferroni)."""
        p = self.verdict.p_value if self.verdict else None
        return None if p is None else min(1.0, p * self.keys)

    @property
    def log10_p(self) -> float | None:
        """Return log10 of the corrected p-value of an exact null, None without one."""
        p = self.verdict.log10_p if self.verdict else None
        return None if p is None else min(0.0, p + math.log10(self.keys))

    @property
    def rarity(self) -> tuple[float, float]:
        """Return what orders findings by p, those too small for a float among themselves."""
        p = self.p_value
        return (1.0 if p is None else p, 0.0 if self.log10_p is None else self.log10_p)

    @property
    def outcome(self) -> str:
        """Return the verdict in a word or two."""
        return self.verdict.outcome if self.verdict else "incompatible"


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """What every key says of one suspect at the level `alpha`, and what it was read as."""

    suspect: str
    architecture: str
    ignored: Mapping[str, int]  # tensors that are no part of the backbone, by part
    alpha: float
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()  # what was understood of the suspect's file
    bases: tuple[str, ...] = ()  # in what basis it was read with the keys, and innocents with it

    @property
    def outcome(self) -> str:
        """Return the verdict of all keys together: owned where one of them says so."""
        said = {finding.outcome for finding in self.findings}
        return next(outcome for outcome in OUTCOMES if outcome in said)

    @property
    def named(self) -> Finding | None:
        """Return the finding of the key that fits best, None if none does."""
        owned = [found for found in self.findings if found.outcome == "owned"]
        return min(owned, key=lambda found: (*found.rarity, -_score(found)), default=None)


def owners_images(listed: Manifest, preprocess: Preprocess) -> tuple[Images, Images]:
    """Decode all images of a data set, in those to work with and those held out, by source."""
    sources = sorted({item.source for item in listed.items}, key=nouns.digest)
    first = round((1 - HELD_OUT) * len(sources))
    if not 0 < first < len(sources):
        raise UserError(f"--images: expected two different images at least, got {len(sources)}")
    kept = set(sources[:first])
    pools: tuple[list[int], list[int]] = ([], [])
    for position, item in enumerate(listed.items):
        pools[item.source not in kept].append(position)
    images, held_out = (load(listed, pool, preprocess) for pool in pools)
    return images, held_out


def generator(seed: int | None, user: str) -> torch.Generator:
    """Return the randomness of one key: fixed by a seed and the user's name, or unpredictable."""
    rng = torch.Generator()
    if seed is not None:
        return rng.manual_seed(int(nouns.digest("key", seed, user), 16) >> 1)
    # PyTorch's CPU generator keeps 32 bits of a seed, few enough to try them all: starting
    # somewhere in the sequence instead of at its beginning adds 24.
    rng.manual_seed(secrets.randbits(32))
    torch.rand(secrets.randbits(24), generator=rng)
    return rng


def protect_copies(
    owner: VisionModel,
    spec: Spec,
    pools: tuple[Images, Images],
    homes: Mapping[str, Path],
    seed: int | None,
    device: torch.device,
    watch: Callable[[Claim], object],
    registrar: Registrar | None = None,
) -> tuple[Claim, ...]:
    """Protect a copy for every user, and write it with its key to the user's home.

    Keys are written once all copies are made, for each says what it reads off the others. `watch`
    is told of every copy as it is made. With a `registrar` each key is drawn from an intent that
    was registered before, and registered in turn.
    """
    claims = []
    for user, home in homes.items():
        if registrar is None:
            made = protect(owner, spec, pools, generator(seed, user), device, user)
        else:
            made = registrar.protect(owner, spec, pools, device, user)
        file = home / RELEASED if METHODS.get(spec.name).marks else None
        if file is not None:
            release(made.model, file)
        claims.append(Claim(made.key, made.released, made.clean, home / KEY, file))
        watch(claims[-1])
    copies = {claim.model_file for claim in claims if claim.model_file}
    kept = [_kept(claim, sorted(copies - {claim.model_file}), device) for claim in claims]
    if registrar is not None:
        for claim in kept:
            commitment.register(registrar.path, claim.key)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class Registrar:
    """Where an owner registers his keys, in whose name, and at which level they will be judged."""

    path: Path
    holder: str
    alpha: float

    def protect(
        self,
        owner: VisionModel,
        spec: Spec,
        pools: tuple[Images, Images],
        device: torch.device,
        user: str,
    ) -> ProtectedCopy:
        """Register an intent, and protect a copy with the randomness that follows from it."""
        clean = weights_digest(headless(owner))
        intent = commitment.intend(self.path, self.holder, spec, clean)
        made = protect(owner, spec, pools, commitment.generator(intent, spec, clean), device, user)
        bound = commitment.bound(intent, made.released.rule.text, self.alpha)
        return dataclasses.replace(made, key=dataclasses.replace(made.key, bound=bound))


def replays(
    key: Key, owner: VisionModel, pools: tuple[Images, Images], device: torch.device
) -> bool:
    """Say whether the committed method, clean model and nonce make the secret of a key again.

    So a judge refuses a secret that was fitted to its suspect. It takes a whole protection, on a
    machine such as the key was made on, and the owner's images.

    Raises:
        UserError: the key is bound to nothing.

    """
    made = protect(owner, key.method, pools, commitment.generator_of(key), device, key.user)
    return secret_digest(made.key.secret) == secret_digest(key.secret)


def _kept(claim: Claim, others: Sequence[Path], device: torch.device) -> Claim:
    """Write a key that knows what it reads off the other users' copies."""
    bases = AS_THEY_ARE
    if others and claim.model_file and claim.key.align != "none":
        bases = Bases({claim.key: load_weights(claim.model_file, claim.key.owner).model})
    key = read_others(claim.key, others, device, bases)
    write(claim.key_file, key)
    return dataclasses.replace(claim, key=key)


def protect(
    owner: VisionModel,
    spec: Spec,
    pools: tuple[Images, Images],
    rng: torch.Generator,
    device: torch.device,
    user: str = "",
) -> ProtectedCopy:
    """Protect a model and read the new key off the result and off the clean owner.

    Raises:
        Incompatible: the method cannot work with this model.

    """
    method = METHODS.build(spec.name, spec.args)
    if method.needs & Access.BLACK_BOX and owner.classes == 0:
        raise Incompatible(
            f"{spec.name} asks for {method.needs.text}, and {owner.architecture.name} has no "
            "classifier; choose a method that reads weights"
        )
    # A suspect is read without its head, where the method does not ask for labels.
    whole = method.marks or bool(method.needs & Access.BLACK_BOX)
    given = (owner if whole else headless(owner)).to(device)
    made = method.protect(given, Context(device, rng, *pools))
    secret = {name: value.detach().cpu() for name, value in made.secret.items()}
    released = extract(method, secret, made.model, device)
    how = aligning(spec)
    if how != "none" and method.marks:  # as any innocent is read
        given = rewritten(given, fitted(given, made.model, how, device))
    clean = extract(method, secret, given, device)
    key = Key(
        secret=secret,
        method=spec,
        owner=owner.architecture,
        clean=weights_digest(headless(owner.cpu())),
        released=weights_digest(headless(made.model.cpu())),
        clean_score=clean.score,
        released_score=released.score,
        user=user,
        clean_sketch=sketch(owner),
        released_sketch=sketch(made.model),
    )
    return ProtectedCopy(made.model, key, released, clean)


def read_others(key: Key, copies: Sequence[Path], device: torch.device, bases: Bases) -> Key:
    """Read a key off the other users' copies, and return it with the highest agreement found."""
    found = [read_file(copy, [key], device, bases).found[key] for copy in copies]
    scores = [evidence.score for evidence in found if isinstance(evidence, Evidence)]
    return dataclasses.replace(key, others_score=max(scores, default=None))


def weight_files(folder: str | Path | None) -> list[Path]:
    """List the files of weights in a folder and below it; keys among them are passed over.

    Raises:
        UserError: there is no such folder, or there are none in it.

    """
    if folder is None:
        return []
    folder = Path(folder)
    found = [
        p for p in sorted(folder.rglob("*")) if p.name.endswith(WEIGHT_FILES) and not is_key(p)
    ]
    if not found:
        what = "none in it" if folder.is_dir() else "no such folder"
        what = "a file: name the folder it lies in" if folder.is_file() else what
        raise UserError(f"expected files of weights in {folder}, found {what}")
    return found


def verify(
    file: Path,
    architecture: Architecture,
    keys: Sequence[Key],
    innocents: tuple[Sequence[Path], Sequence[Path]],
    alpha: float,
    device: torch.device,
    entry: str | None = None,
    bases: Bases = AS_THEY_ARE,
) -> Verification:
    """Read a suspect and the innocents, strangers and descendants, with every key, and judge.

    All are read alike: what aligns the suspect aligns each innocent.
    """
    if is_key(file):
        raise UserError(f"{file.name}: expected a suspect's weights, got a key of `bench protect`")
    loaded = load_weights(file, architecture, entry)
    suspect = read(file.name, loaded, keys, device, bases)
    strangers, descendants = (
        [read_file(f, keys, device, bases) for f in files] for files in innocents
    )
    findings = judge(keys, suspect, strangers, descendants, alpha)
    name, said = (
        loaded.model.architecture.name,
        _said_of_copies(keys, suspect, strangers, descendants),
    )
    return Verification(
        *(file.name, name, loaded.ignored, alpha, tuple(findings), (*loaded.notes, *said)),
        bases=said_of_bases(keys, bases, suspect),
    )


def judge(
    keys: Sequence[Key],
    suspect: Reading,
    strangers: Sequence[Reading],
    descendants: Sequence[Reading],
    alpha: float,
) -> list[Finding]:
    """Return what every key says of the suspect, each at alpha over the number of keys.

    Innocents count as models: equal weights count once, in whatever precision, and so do strangers
    that are nearly equal (see `bench.verdicts.copies`), with their highest score. A key's own
    released copy among the descendants is left out for this key, and stays one for the others. The
    clean owner and other users' copies are known models, of which chance decides nothing: a suspect
    must score above them whatever its rank (see `bench.verdicts`).

    Raises:
        UserError: a stranger is the owner's model, or a fingerprint was given descendants.

    """
    _refuse_the_owners_own(keys, strangers)
    models = _models(strangers, copies.NEAR), _models(descendants, copies.ROUNDED)
    return [_finding(key, keys, suspect, *models, alpha) for key in keys]


def _score(found: Finding) -> float:
    return found.evidence.score if isinstance(found.evidence, Evidence) else 0.0


def _finding(
    key: Key,
    keys: Sequence[Key],
    suspect: Reading,
    strangers: Sequence[Model],
    descendants: Sequence[Model],
    alpha: float,
) -> Finding:
    evidence, marks = suspect.found[key], key.reader.marks
    if descendants and not marks:
        raise UserError(
            f"--descendants: expected none with the fingerprint {key.method.name}, for which "
            "descendants of the owner's model are guilty; give --strangers alone"
        )
    innocent = [model for model in descendants if not any(is_released(r, key) for r in model)]
    ours = {digest for k in keys for digest in (k.clean, k.released)}
    recorded = [key.clean_score, *([] if key.others_score is None else [key.others_score])]
    known = max(recorded + _scores([m for m in innocent if any(r.digest in ours for r in m)], key))
    if isinstance(evidence, str):
        return Finding(key, evidence, None, known, len(keys))
    if evidence.null is not None:
        verdict = decide_exactly(evidence, alpha / len(keys))
        return Finding(key, evidence, verdict, known, len(keys))
    nulls = [Null("strangers", _scores(strangers, key), "one by one")]
    if marks:
        others = () if key.others_score is None else (key.others_score,)  # the highest of them all
        nulls += [
            Null("descendants", _scores(innocent, key), "one by one", known),
            Null("other keys", others, "one by one"),
        ]
    verdict = decide(evidence.score, nulls, alpha / len(keys))
    return Finding(key, evidence, verdict, known, len(keys))


def _scores(models: Sequence[Model], key: Key) -> list[float]:
    """Return one score per model that this key can read: the others are no innocents."""
    found = [[r.found[key] for r in model] for model in models]
    read = [[e.score for e in model if isinstance(e, Evidence)] for model in found]
    return [max(scores) for scores in read if scores]


def _models(readings: Sequence[Reading], least: float) -> list[Model]:
    """Put readings of one model together, nearer to each other than a cosine of `least`."""
    first = copies.one_model([reading.sketch for reading in readings], least)
    return [
        [r for r, name in zip(readings, first, strict=True) if name == model]
        for model in dict.fromkeys(first)
    ]


def _said_of_copies(
    keys: Sequence[Key],
    suspect: Reading,
    strangers: Sequence[Reading],
    descendants: Sequence[Reading],
) -> list[str]:
    """Say which innocents were one model, and which are nearly the suspect or the owner."""
    said = [*said_of_digests(keys, suspect)]
    for who, given, least in (
        ("strangers", strangers, copies.NEAR),
        ("descendants", descendants, copies.ROUNDED),
    ):
        models = _models(given, least)
        for names in ([r.name for r in model] for model in models if len(model) > 1):
            said.append(f"{' and '.join(names)} are one model among the {who}, and count once")
        for reading in given:
            if near(reading, suspect.sketch, least):
                said.append(f"{reading.name}, among the {who}, is nearly or wholly the suspect")
    for reading in strangers:
        if any(near(reading, key.clean_sketch, copies.NEAR) for key in keys):
            said.append(
                f"{reading.name}, among the strangers, is nearly the owner's model: if it was made "
                "from it, it is none"
            )
    return said


def _refuse_the_owners_own(keys: Sequence[Key], strangers: Sequence[Reading]) -> None:
    own = {key.clean: "the owner's unmarked model" for key in keys}
    own |= {key.released: "a released copy" for key in keys}
    sketches = [(own[k.clean], k.clean_sketch) for k in keys]
    sketches += [(own[k.released], k.released_sketch) for k in keys]
    for reading in strangers:
        rounded = (what for what, known in sketches if near(reading, known, copies.ROUNDED))
        what = own.get(reading.digest) or next(rounded, None)
        if what is not None:
            raise UserError(
                f"{reading.name}: expected a stranger, got {what}; "
                "strangers never met the owner's weights"
            )
