"""White-box marks: bits read off a model's own weights, or activations, by secret projections."""

from methods.whitebox.deepsigns import DeepSigns as DeepSigns
from methods.whitebox.neuralmark import NeuralMark as NeuralMark
from methods.whitebox.uchida import FreeUchida as FreeUchida
from methods.whitebox.uchida import Uchida as Uchida
