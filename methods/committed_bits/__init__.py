"""Committed bits: a mark whose verdict rests on the coins of its own secret, and on no innocent."""

from methods.committed_bits.method import CommittedBits as CommittedBits
from methods.committed_bits.method import HiddenCommittedBits as HiddenCommittedBits
