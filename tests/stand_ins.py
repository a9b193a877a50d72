"""Stand-ins for the built-in plug-ins that a plan asks about, for theirs need torch.

`tests/test_stand_ins.py` holds them to what they stand for.
"""

import contextlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from bench import registry
from bench.records.nouns import Access, Readout, Shape


class Method:
    def protect(self, owner, ctx): ...
    def extract(self, secret, suspect, ctx): ...


@dataclass(frozen=True)
class ActiveMark(Method):
    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = True

    variant: Literal["expressprint", "paper"] = "expressprint"
    images: int = 1000
    steps: int = 2500
    batch: int = 16
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    encoder_hidden: int = 1024
    decoder_hidden: int = 512


@dataclass(frozen=True)
class AnnaKarenina(Method):
    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False

    queries: int = 100
    readout: Readout = "graft"


class Attack:
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False

    def run(self, victim, ctx): ...


@dataclass(frozen=True)
class Identity(Attack):
    pass


@dataclass(frozen=True)
class Stranger(Attack):
    derived: ClassVar[bool] = False

    index: int = 0
    shape: Shape = "mini"


@dataclass(frozen=True)
class Collusion(Attack):
    copies: int = 2


@dataclass(frozen=True)
class FinetuneClassify(Attack):
    offers: ClassVar[Access] = Access.ENCODER
    random: ClassVar[bool] = True
    labelled: ClassVar[bool] = True

    data: str = "digits"
    epochs: int = 10
    schedule: Literal["constant", "cosine", "linear"] = "constant"


@dataclass(frozen=True)
class Interpolate(Attack):
    uses_base: ClassVar[bool] = True

    share: float = 0.5


@dataclass(frozen=True)
class L1Prune(Attack):
    amount: float = 0.2


METHODS = {"activemark": ActiveMark, "akh": AnnaKarenina}

ATTACKS = {
    "collusion": Collusion,
    "control.identity": Identity,
    "control.stranger": Stranger,
    "finetune.classify": FinetuneClassify,
    "interpolate": Interpolate,
    "prune.l1": L1Prune,
}

VERSIONS = {"prune.l1": 2}
"""Of those that are not the first."""


@contextlib.contextmanager
def standing_in():
    """Have the bench know these plug-ins and no other."""
    with pytest.MonkeyPatch.context() as patch:
        for known, plugins in ((registry.METHODS, METHODS), (registry.ATTACKS, ATTACKS)):
            patch.setattr(known, "_announced", {})
            found = {name: (cls, VERSIONS.get(name, 1)) for name, cls in plugins.items()}
            patch.setattr(known, "_plugins", found)
        yield
