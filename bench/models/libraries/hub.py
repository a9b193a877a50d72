"""Ask the hub that libraries publish weights on, and know what its client raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 10.0
"""Seconds the hub has to answer at all."""


def failures() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises where a file is not to be had.

    Those are its own errors and those of what it is made of: a name that cannot be is a ValueError,
    a full disk an OSError, its transfer's own a RuntimeError. Weights that are another model's are
    a RuntimeError or a LookupError of the library that asked for them. Its transport is another
    library from version to version: what its own errors derive from tells which.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    transport = (kind for kind in HfHubHTTPError.__mro__ if kind not in (BaseException, object))
    known = (kind for kind in transport if kind is not Exception)
    return (OSError, ValueError, RuntimeError, LookupError, EntryNotFoundError, *known)


def answers() -> bool:
    """Say whether the hub answers: its client would go on trying for most of a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except failures():
        return False
    return True


@contextmanager
def cache_only(offline: bool) -> Iterator[None]:
    """Send the hub's client straight to its cache."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
