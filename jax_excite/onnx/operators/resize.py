"""Resize and Upsample: a matrix product along each axis that changes its size."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_excite.errors import NetworkError
from jax_excite.onnx.operators.operator import Operator
from jax_excite.onnx.operators.windows import cubic
from jax_excite.onnx.program import Node
from jax_excite.onnx.values import ChannelsLast, Value, known


def _resize(
    node: Node, x: Value, roi: Value = None, scales: Value = None, sizes: Value = None
) -> Value:
    rank = x.ndim
    axes = [axis % rank for axis in node.ints("axes", tuple(range(rank)))]
    lengths = [x.shape[axis] for axis in axes]
    if sizes is not None and np.size(sizes):
        wanted, factors = _fitted(node, lengths, known(node, sizes, "sizes").ravel())
    elif scales is not None and np.size(scales):
        factors = [float(s) for s in known(node, scales, "scales").ravel()]
        wanted = [math.floor(n * s) for n, s in zip(lengths, factors, strict=True)]
    else:
        raise NetworkError(f"{node} has neither scales nor sizes")
    regions = None if roi is None else known(node, roi, "roi").ravel()
    array = x.array if isinstance(x, ChannelsLast) else x
    for place, axis in enumerate(axes):
        region = (0.0, 1.0)
        if regions is not None and len(regions):
            region = float(regions[place]), float(regions[place + len(axes)])
        if wanted[place] == lengths[place] and factors[place] == 1 and region == (0.0, 1.0):
            continue
        weights, fill = _weights(node, lengths[place], wanted[place], factors[place], region)
        stored = x.axis(axis) if isinstance(x, ChannelsLast) else axis
        array = _along(array, stored, weights, fill, node.get("extrapolation_value", 0.0))
    result = array.astype(x.dtype)
    return ChannelsLast(result) if isinstance(x, ChannelsLast) else result


def _along(array: Any, axis: int, weights: np.ndarray, fill: np.ndarray, value: float) -> Any:
    """Apply a matrix along an axis; entries of the output in `fill` are a number instead."""
    picks = (weights == 1).sum(1) == 1
    if (picks & ((weights != 0).sum(1) == 1)).all():
        y = jnp.take(array, weights.argmax(1), axis)
    else:
        dtype = array.dtype if jnp.issubdtype(array.dtype, jnp.floating) else jnp.float32
        matrix = jnp.asarray(weights, dtype)
        y = jnp.moveaxis(jnp.tensordot(array.astype(dtype), matrix, ((axis,), (1,))), -1, axis)
    if not fill.any():
        return y
    shape = [1] * y.ndim
    shape[axis] = -1
    return jnp.where(fill.reshape(shape), jnp.asarray(value, y.dtype), y)


def _fitted(node: Node, lengths: Sequence[int], sizes: np.ndarray) -> tuple[list[int], list[float]]:
    """The sizes and scales, where a policy keeps the ratio of the sizes."""
    factors = [float(s) / n for s, n in zip(sizes, lengths, strict=True)]
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return [int(s) for s in sizes], factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [math.floor(n * factor + 0.5) for n in lengths], [factor] * len(lengths)


def _place(
    node: Node, n: int, m: int, factor: float, region: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each entry of the output lies in the input, and whether it lies outside."""
    at = np.arange(m, dtype=np.float64)
    mode = node.get("coordinate_transformation_mode", "half_pixel")
    outside = np.zeros(m, bool)
    if mode == "asymmetric":
        return at / factor, outside
    if mode == "align_corners":
        # The size of the output before it is rounded.
        return (at * (n - 1) / (factor * n - 1) if factor * n != 1 else 0 * at), outside
    if mode == "pytorch_half_pixel":
        return ((at + 0.5) / factor - 0.5 if m > 1 else 0 * at), outside
    if mode == "half_pixel_symmetric":
        shift = n / 2 * (1 - m / (factor * n))
        return shift + (at + 0.5) / factor - 0.5, outside
    if mode == "tf_crop_and_resize":
        start, end = region
        span = (end - start) * (n - 1)
        places = start * (n - 1) + (at * span / (m - 1) if m > 1 else 0 * at + span / 2)
        return places, (places < 0) | (places > n - 1)
    return (at + 0.5) / factor - 0.5, outside


_ROUND: dict[str, Callable[[Any], Any]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _weights(
    node: Node, n: int, m: int, factor: float, region: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The matrix `[m, n]` that resizes an axis, and the entries that lie outside of the input."""
    places, outside = _place(node, n, m, factor, region)
    mode = node.get("mode", "nearest")
    matrix = np.zeros((m, n))
    rows = np.arange(m)
    if mode == "nearest":
        rounded = _ROUND[node.get("nearest_mode", "round_prefer_floor")](places)
        matrix[rows, rounded.clip(0, n - 1).astype(int)] = 1
        return matrix, outside
    # Antialiasing widens the kernel where the output is smaller.
    shrink = min(factor, 1.0) if node.get("antialias", 0) else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / shrink)
    first = np.floor(places)
    for offset in range(-reach, reach + 2):
        cell = first + offset
        distance = abs(places - cell) * shrink
        if mode == "linear":
            weight = np.maximum(1 - distance, 0)
        else:
            weight = cubic(distance, node.get("cubic_coeff_a", -0.75))
        inside = (cell >= 0) & (cell < n)
        if node.get("exclude_outside", 0):
            weight = np.where(inside, weight, 0)
        np.add.at(matrix, (rows, cell.clip(0, n - 1).astype(int)), weight)
    return matrix / matrix.sum(1, keepdims=True), outside


def _upsample(node: Node, x: Value, scales: Value = None) -> Value:
    own = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    given = dict(node.attributes)
    if scales is None:
        scales = np.asarray(given["scales"], np.float32)
    older = Node(
        node.op, node.domain, node.version, node.name, node.inputs, node.outputs, {**given, **own}
    )
    return _resize(older, x, None, scales)


def _resize_by_version(node: Node, x: Value, *inputs: Value) -> Value:
    return _upsample(node, x, *inputs) if node.version < 11 else _resize(node, x, *inputs)


OPERATORS = {
    "Resize": Operator(_resize_by_version, known=(1, 2, 3), any_order=True),
    "Upsample": Operator(_upsample, known=(1,), any_order=True),
}
