"""A style that an owner's model has seen, told apart by gradients or by answers."""

from methods.move.method import Move as Move
from methods.move.method import MoveLogits as MoveLogits
