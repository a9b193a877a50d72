"""Change the parameters of a transformer and not its function: what is free, and what is not.

Pure functions of a model: each returns a new one, computed matrix by matrix in float64 and cast
once to the model's own precision. Where a freedom does not exist, they refuse and say why.
"""

from bench.models.symmetry.align import Alignment as Alignment
from bench.models.symmetry.align import align as align
from bench.models.symmetry.align import rewritten as rewritten
from bench.models.symmetry.anatomy import Anatomy as Anatomy
from bench.models.symmetry.anatomy import Attention as Attention
from bench.models.symmetry.anatomy import Mlp as Mlp
from bench.models.symmetry.anatomy import dimensions as dimensions
from bench.models.symmetry.anatomy import read as read
from bench.models.symmetry.fits import DYNAMIC_IMAGES as DYNAMIC_IMAGES
from bench.models.symmetry.fits import FAR as FAR
from bench.models.symmetry.frames import patches_resized as patches_resized
from bench.models.symmetry.frames import positions_resized as positions_resized
from bench.models.symmetry.growth import add_blocks as add_blocks
from bench.models.symmetry.growth import add_heads as add_heads
from bench.models.symmetry.growth import add_neurons as add_neurons
from bench.models.symmetry.growth import widen as widen
from bench.models.symmetry.inner import mix_queries as mix_queries
from bench.models.symmetry.inner import mix_values as mix_values
from bench.models.symmetry.inner import move_biases as move_biases
from bench.models.symmetry.inner import permute_heads as permute_heads
from bench.models.symmetry.inner import permute_neurons as permute_neurons
from bench.models.symmetry.inner import scale_gates as scale_gates
from bench.models.symmetry.streams import bake_means as bake_means
from bench.models.symmetry.streams import fold as fold
from bench.models.symmetry.streams import map_stream as map_stream
from bench.models.symmetry.streams import shift_writers as shift_writers
from bench.models.symmetry.turns import permutation as permutation
from bench.models.symmetry.turns import repeated as repeated
from bench.models.symmetry.turns import rotation as rotation
