"""The operators of ONNX, by name; each file of this folder holds those of one kind."""

from jax_excite.onnx.operators import (
    activations,
    elementwise,
    indexing,
    normalisation,
    quantisation,
    reductions,
    resize,
    shapes,
    windows,
)
from jax_excite.onnx.operators.operator import Operator

OPERATORS: dict[str, Operator] = {
    **activations.OPERATORS,
    **elementwise.OPERATORS,
    **indexing.OPERATORS,
    **normalisation.OPERATORS,
    **quantisation.OPERATORS,
    **reductions.OPERATORS,
    **resize.OPERATORS,
    **shapes.OPERATORS,
    **windows.OPERATORS,
}
