"""Fingerprints of descent that need no training and no image: weights alone are compared.

They name the model that a suspect's weights were trained on from, and not the copy. Twins, other
keys' copies and a public base read high, as they should. So who finetuned a public base cannot
claim by them what another made of it; of a private base, nothing else has such weights.
A student that learnt from a model's answers has other weights, and is not seen.

Departures from what was written for language models: images enter by filters and positions where
texts have tokens, and norms are folded first, so that a permuted, rotated or scaled copy reads as
the model it was made of.
"""

from methods.lineage.invariants import WeightInvariants as WeightInvariants
from methods.lineage.procrustes import ProcrustesResidual as ProcrustesResidual
from methods.lineage.profile import WeightProfile as WeightProfile
