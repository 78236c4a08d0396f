"""The theory of the paper as functions: induced networks and the path kernel of any network.

`jax_excite.theory.path_space` provides the path space of small perceptrons, path by path.
"""

from jax_excite.theory.induced_networks import (
    Gates,
    gates,
    induced,
    induced_matrix,
    induced_pullback,
    induced_value,
    preactivations,
)
from jax_excite.theory.path_kernel import Gram, gram

__all__ = [
    "Gates",
    "Gram",
    "gates",
    "gram",
    "induced",
    "induced_matrix",
    "induced_pullback",
    "induced_value",
    "preactivations",
]
