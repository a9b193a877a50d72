"""Tune every method by one budget, on the owner's data alone, before any suspect is read."""
