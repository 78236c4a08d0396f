"""Casts, and quantised numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from jax_excite.onnx.operators.operator import Operator
from jax_excite.onnx.program import Node
from jax_excite.onnx.values import Value, dtype_of, elementwise, is_known, numpy_or_jax


def _cast(node: Node, x: Value) -> Value:
    return _to(node, x, dtype_of(node.get("to")))


def _cast_like(node: Node, x: Value, like: Value) -> Value:
    return _to(node, x, like.dtype)


def _to(node: Node, x: Value, dtype: Any) -> Value:
    if dtype == ml_dtypes.float8_e8m0fnu and not is_known(x):
        return elementwise(lambda array: _power_of_two(array, node.get("round_mode", "up")), x)
    return elementwise(lambda array: converted(array, dtype, bool(node.get("saturate", 1))), x)


def _power_of_two(x: jax.Array, mode: str) -> jax.Array:
    """Floats as powers of two, which have eight bits of exponent and nothing else."""
    mantissa, exponent = jnp.frexp(x.astype(jnp.float32))
    least = {"up": 0.5000001, "down": 1.0, "nearest": 0.75}[mode]
    biased = exponent + 126 + (mantissa >= least)
    bits = jnp.where(x == 0, 0, jnp.where(jnp.isnan(x), 255, jnp.clip(biased, 0, 254)))
    return lax.bitcast_convert_type(bits.astype(jnp.uint8), jnp.float8_e8m0fnu)


def converted(array: Any, dtype: Any, saturate: bool = True) -> Any:
    """An array in another dtype; narrow floats are clipped to their range if `saturate`."""
    if is_known(array):
        return np.asarray(array).astype(dtype)
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    is_float = jnp.issubdtype(dtype, jnp.floating)
    if is_float and jnp.finfo(dtype).bits <= 8 and saturate:
        limits = ml_dtypes.finfo(dtype)
        clipped = jnp.clip(array.astype(jnp.float32), float(limits.min), float(limits.max))
        array = jnp.where(jnp.isnan(array), jnp.nan, clipped)
    elif jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8:
        array = array.astype(jnp.int32)  # of which the lowest bits are kept
    return array.astype(dtype)


def _spread(x: Value, parameter: Value, axis: int, block: int) -> Value:
    """A scale or zero point as an array that broadcasts: one number, or per channel, or block."""
    xp = numpy_or_jax(parameter)
    if parameter.ndim == 0 or parameter.size == 1:
        return parameter.reshape(())
    axis %= x.ndim
    if block:
        whole = xp.repeat(parameter, block, axis)
        return whole[(slice(None),) * axis + (slice(x.shape[axis]),)]
    return parameter.reshape((-1,) + (1,) * (x.ndim - 1 - axis))


def _quantize(node: Node, x: Value, scale: Value, zero: Value = None) -> Value:
    kind = node.get("output_dtype", 0)
    dtype = dtype_of(kind) if kind else (np.dtype(np.uint8) if zero is None else zero.dtype)
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    wide = jnp.float32 if jnp.finfo(scale.dtype).bits < 32 else scale.dtype
    y = x.astype(wide) / _spread(x, scale, axis, block).astype(wide)
    if jnp.issubdtype(dtype, jnp.floating):
        return converted(y.astype(x.dtype), dtype, bool(node.get("saturate", 1)))
    offset = 0 if zero is None else _spread(x, zero, axis, block).astype(wide)
    limits = ml_dtypes.iinfo(dtype)
    return jnp.clip(jnp.round(y) + offset, int(limits.min), int(limits.max)).astype(dtype)


def _dequantize(node: Node, x: Value, scale: Value, zero: Value = None) -> Value:
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    wide = jnp.float32 if jnp.finfo(scale.dtype).bits < 32 else scale.dtype
    y = jnp.asarray(x).astype(wide)
    if zero is not None:
        y = y - _spread(x, zero, axis, block).astype(wide)
    y = y * _spread(x, scale, axis, block).astype(wide)
    kind = node.get("output_dtype", 0)
    return y.astype(dtype_of(kind) if kind else scale.dtype)


OPERATORS = {
    "Cast": Operator(_cast, any_order=True),
    "CastLike": Operator(_cast_like),
    "DequantizeLinear": Operator(_dequantize),
    "QuantizeLinear": Operator(_quantize),
}
