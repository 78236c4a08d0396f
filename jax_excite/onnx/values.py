"""Values during the evaluation of a graph: known, in logical order, or with channels last."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_excite.errors import NetworkError
from jax_excite.onnx.program import Node

# The largest array that is computed ahead from constants.
_LARGEST_KNOWN = 1 << 26


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChannelsLast:
    """A value of rank 3 or more whose axis 1 is stored last, such as NCHW stored as NHWC.

    The convolutions of a CPU are fastest in this order (docs/performance.md).
    """

    array: jax.Array

    @property
    def ndim(self) -> int:
        """The rank."""
        return self.array.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes in logical order."""
        first, *middle, last = self.array.shape
        return (first, last, *middle)

    @property
    def dtype(self) -> Any:
        """The dtype."""
        return self.array.dtype

    def axis(self, logical: int) -> int:
        """Where a logical axis is stored."""
        logical %= self.ndim
        return logical if logical == 0 else (logical - 1 if logical > 1 else self.ndim - 1)


Value = Any  # np.ndarray for what is known, jax.Array, ChannelsLast, or None for what is absent


def logical(value: Value) -> Value:
    """A value in logical order."""
    return jnp.moveaxis(value.array, -1, 1) if isinstance(value, ChannelsLast) else value


def channels_last(value: Value) -> jax.Array:
    """The array of a value of rank 3 or more, with axis 1 last."""
    return value.array if isinstance(value, ChannelsLast) else jnp.moveaxis(value, 1, -1)


def numpy_or_jax(*values: Value) -> Any:
    """The namespace in which to compute: NumPy if all values are known."""
    return np if all(v is None or is_known(v) for v in values) else jnp


def is_known(value: Value) -> bool:
    """Whether a value is computed ahead, when the graph is traced."""
    return isinstance(value, (np.ndarray, np.generic))


def known(node: Node, value: Value, what: str) -> np.ndarray:
    """A value that has to be known when the graph is traced."""
    value = logical(value)
    if isinstance(value, Tracer):
        raise NetworkError(f"{node}: its {what} depends on the input; it has to be a constant")
    return np.asarray(value)


def bounded(node: Node, shape: Any, *values: Value) -> tuple[int, ...]:
    """The shape of a result as a tuple of integers.

    Raises:
        NetworkError: a size is negative, or all values that the result is computed from are known,
            and it is too large to be computed ahead.
    """
    sizes = tuple(int(n) for n in np.ravel(shape))
    if min(sizes, default=0) < 0:
        raise NetworkError(f"{node}: the shape {sizes} has a negative size")
    if all(map(is_known, values)) and math.prod(sizes) > _LARGEST_KNOWN:
        raise NetworkError(f"{node}: an array of shape {sizes} is too large for a constant")
    return sizes


def dtype_of(kind: int) -> Any:
    """The dtype of a number of ONNX's `TensorProto.DataType`."""
    import onnx

    return onnx.helper.tensor_dtype_to_np_dtype(kind)


def lowest(dtype: Any) -> Any:
    """The lowest number of a dtype; -inf for floats."""
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf
    return False if dtype == np.bool_ else jnp.iinfo(dtype).min


def elementwise(fn: Callable[..., Any], *values: Value) -> Value:
    """Apply a function that broadcasts, in channels-last order if an operand has it."""
    rank = max((v.ndim for v in values if v is not None), default=0)
    if not any(isinstance(v, ChannelsLast) and v.ndim == rank for v in values):
        return fn(*(logical(v) for v in values))

    def stored(value: Value) -> Value:
        if isinstance(value, ChannelsLast) and value.ndim == rank:
            return value.array
        if value is None or value.ndim == 0:
            return value
        value = logical(value)
        xp = numpy_or_jax(value)
        return xp.moveaxis(value.reshape((1,) * (rank - value.ndim) + value.shape), 1, -1)

    return ChannelsLast(fn(*map(stored, values)))
