"""Images: which there are, whose they are, and their pixels.

What plug-ins use of it is found here. It is imported when it is asked for: listing images and
reading records need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.data.folders import masks_digest as masks_digest
    from bench.data.folders import sources as sources
    from bench.data.images import Images as Images
    from bench.data.images import Preprocess as Preprocess
    from bench.data.images import open_image as open_image
    from bench.data.images import sent as sent
    from bench.data.item import IGNORE as IGNORE
    from bench.data.item import Item as Item
    from bench.data.item import Listing as Listing
    from bench.data.item import Picture as Picture
    from bench.data.manifest import Manifest as Manifest
    from bench.data.published import DataSet as DataSet
    from bench.data.settings import DataSettings as DataSettings
    from bench.data.settings import Loader as Loader

_HOMES = {
    **dict.fromkeys(("masks_digest", "sources"), "folders"),
    **dict.fromkeys(("Images", "Preprocess", "open_image", "sent"), "images"),
    **dict.fromkeys(("IGNORE", "Item", "Listing", "Picture"), "item"),
    **dict.fromkeys(("DataSettings", "Loader"), "settings"),
    "Manifest": "manifest",
    "DataSet": "published",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
