"""Change the parameters of a transformer and not its function: what is free, and what is not.

Pure functions of a model: each returns a new one, computed matrix by matrix in float64 and cast
once to the model's own precision. Where a freedom does not exist, they refuse and say why.
"""

from bench.symmetry.align import FAR as FAR
from bench.symmetry.align import Alignment as Alignment
from bench.symmetry.align import align as align
from bench.symmetry.align import rewritten as rewritten
from bench.symmetry.anatomy import Anatomy as Anatomy
from bench.symmetry.anatomy import Attention as Attention
from bench.symmetry.anatomy import Mlp as Mlp
from bench.symmetry.anatomy import dimensions as dimensions
from bench.symmetry.anatomy import read as read
from bench.symmetry.fits import DYNAMIC_IMAGES as DYNAMIC_IMAGES
from bench.symmetry.growth import add_blocks as add_blocks
from bench.symmetry.growth import add_heads as add_heads
from bench.symmetry.growth import add_neurons as add_neurons
from bench.symmetry.growth import widen as widen
from bench.symmetry.inner import mix_queries as mix_queries
from bench.symmetry.inner import mix_values as mix_values
from bench.symmetry.inner import move_biases as move_biases
from bench.symmetry.inner import permute_heads as permute_heads
from bench.symmetry.inner import permute_neurons as permute_neurons
from bench.symmetry.inner import scale_gates as scale_gates
from bench.symmetry.streams import bake_means as bake_means
from bench.symmetry.streams import fold as fold
from bench.symmetry.streams import map_stream as map_stream
from bench.symmetry.streams import shift_writers as shift_writers
from bench.symmetry.turns import permutation as permutation
from bench.symmetry.turns import repeated as repeated
from bench.symmetry.turns import rotation as rotation
