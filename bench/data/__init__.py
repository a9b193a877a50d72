"""Images: which there are, whose they are, and their pixels.

What plug-ins use of it is found here. It is imported when it is asked for: listing images and
reading records need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.data.images import Images as Images
    from bench.data.images import Preprocess as Preprocess
    from bench.data.images import sent as sent
    from bench.data.item import IGNORE as IGNORE

_HOMES = {"IGNORE": "item", "Images": "images", "Preprocess": "images", "sent": "images"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
