"""What leaves a model's function as it is, and how an owner undoes it."""

from bench.symmetry.align import Alignment as Alignment
from bench.symmetry.align import align as align
from bench.symmetry.align import rewritten as rewritten
