"""Vision models of any library in one vocabulary; every pass is counted.

What plug-ins use of it is found here. It is imported when it is asked for: reading a suite needs
the names of libraries, and no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.models.backbones import Backbone as Backbone
    from bench.models.backbones import OpenClipViT as OpenClipViT
    from bench.models.backbones import OtherTrunk as OtherTrunk
    from bench.models.backbones import TimmViT as TimmViT
    from bench.models.building import build as build
    from bench.models.building import randomised as randomised
    from bench.models.heads import ClassifierHead as ClassifierHead
    from bench.models.heads import Head as Head
    from bench.models.heads import SegmentationHead as SegmentationHead
    from bench.models.libraries import Library as Library
    from bench.models.libraries import Place as Place
    from bench.models.meter import Ideal as Ideal
    from bench.models.meter import aside as aside
    from bench.models.meter import measuring as measuring
    from bench.models.meter import timed as timed
    from bench.models.serving import Service as Service
    from bench.models.surgery import dimensions as dimensions
    from bench.models.surgery import narrow as narrow
    from bench.models.surgery import reshape as reshape
    from bench.models.surgery import segmentation_head as segmentation_head
    from bench.models.surgery import with_head as with_head
    from bench.models.suspect import View as View
    from bench.models.vision import Architecture as Architecture
    from bench.models.vision import Dimensions as Dimensions
    from bench.models.vision import Part as Part
    from bench.models.vision import Served as Served
    from bench.models.vision import VisionModel as VisionModel
    from bench.models.vision import clone as clone

_SHOWN = {
    "backbones": ("Backbone", "OpenClipViT", "OtherTrunk", "TimmViT"),
    "building": ("build", "randomised"),
    "heads": ("ClassifierHead", "Head", "SegmentationHead"),
    "libraries": ("Library", "Place"),
    "meter": ("Ideal", "aside", "measuring", "timed"),
    "surgery": ("dimensions", "narrow", "reshape", "segmentation_head", "with_head"),
    "serving": ("Service",),
    "suspect": ("View",),
    "vision": ("Architecture", "Dimensions", "Part", "Served", "VisionModel", "clone"),
}

_HOMES = {name: home for home, shown in _SHOWN.items() for name in shown}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
