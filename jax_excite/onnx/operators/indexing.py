"""Operators that take, set, search or sort entries."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_excite.onnx.operators.operator import Operator
from jax_excite.onnx.program import Node
from jax_excite.onnx.values import Value, known, numpy_or_jax


def _from_start(index: Value, size: int) -> Value:
    """Indices in which negative numbers, which count from the end, are replaced."""
    return numpy_or_jax(index).where(index < 0, index + size, index)


def _gather(node: Node, x: Value, index: Value) -> Value:
    axis = node.get("axis", 0) % x.ndim
    if isinstance(index, np.ndarray) and index.ndim == 0 and not isinstance(x, np.ndarray):
        return jax.lax.index_in_dim(x, int(index), axis, keepdims=False)
    return numpy_or_jax(x, index).take(x, _from_start(index, x.shape[axis]), axis)


def _gather_elements(node: Node, x: Value, index: Value) -> Value:
    axis = node.get("axis", 0) % x.ndim
    return jnp.asarray(x)[_places(index, axis, x.shape[axis])]


def _gather_nd(node: Node, x: Value, index: Value) -> Value:
    def pick(x: Any, index: Any) -> Any:
        return x[tuple(jnp.moveaxis(index, -1, 0))]

    index = jnp.asarray(index)
    for _ in range(node.get("batch_dims", 0)):
        pick = jax.vmap(pick)
    return pick(jnp.asarray(x), index)


def _set(node: Node, x: jax.Array, place: tuple[Any, ...], updates: Value) -> jax.Array:
    reduction = node.get("reduction", "none")
    at = jnp.asarray(x).at[place]
    functions = {"none": at.set, "add": at.add, "mul": at.multiply, "max": at.max, "min": at.min}
    return functions[reduction](jnp.asarray(updates).astype(x.dtype))


def _scatter_elements(node: Node, x: Value, index: Value, updates: Value) -> Value:
    axis = node.get("axis", 0) % x.ndim
    return _set(node, x, _places(index, axis, x.shape[axis]), updates)


def _places(index: Value, axis: int, size: int) -> tuple[Any, ...]:
    """The entries that an array of indices along one axis names, as an index of the whole array."""
    places = [
        jnp.arange(n).reshape((-1,) + (1,) * (index.ndim - 1 - a))
        for a, n in enumerate(index.shape)
    ]
    places[axis] = _from_start(jnp.asarray(index), size)
    return tuple(places)


def _scatter_nd(node: Node, x: Value, index: Value, updates: Value) -> Value:
    return _set(node, x, tuple(jnp.moveaxis(jnp.asarray(index), -1, 0)), updates)


def _one_hot(node: Node, index: Value, depth: Value, values: Value) -> Value:
    size = int(known(node, depth, "depth").reshape(()))
    off, on = values[0], values[1]
    axis = node.get("axis", -1)
    rank = index.ndim + 1
    axis = axis + rank if axis < 0 else axis
    own = jnp.expand_dims(_from_start(jnp.asarray(index), size), axis)
    numbers = jnp.arange(size).reshape((-1,) + (1,) * (rank - 1 - axis))
    return jnp.where(own == numbers, on, off)


def _top_k(node: Node, x: Value, k: Value = None) -> Any:
    count = node.get("k") if k is None else int(known(node, k, "k").reshape(()))
    axis = node.get("axis", -1)
    order = jnp.argsort(jnp.asarray(x), axis, stable=True, descending=bool(node.get("largest", 1)))
    index = jax.lax.slice_in_dim(order, 0, count, axis=axis % x.ndim)
    return jnp.take_along_axis(jnp.asarray(x), index, axis), index.astype(_int64())


def _int64() -> Any:
    return jax.dtypes.canonicalize_dtype(np.int64)


def _arg(smallest: bool) -> Operator:
    def evaluate(node: Node, x: Value) -> Value:
        axis = node.get("axis", 0)
        find = jnp.argmin if smallest else jnp.argmax
        if node.get("select_last_index", 0):
            found = x.shape[axis] - 1 - find(jnp.flip(x, axis), axis)
        else:
            found = find(jnp.asarray(x), axis)
        return (jnp.expand_dims(found, axis) if node.get("keepdims", 1) else found).astype(_int64())

    return Operator(evaluate)


def _compress(node: Node, x: Value, condition: Value) -> Value:
    (index,) = np.nonzero(known(node, condition, "condition"))
    axis = node.get("axis")
    return jnp.take(x.ravel(), index) if axis is None else jnp.take(x, index, axis)


def _non_zero(node: Node, x: Value) -> Value:
    return np.stack(np.nonzero(known(node, x, "input"))).astype(np.int64)


OPERATORS = {
    "ArgMax": _arg(smallest=False),
    "ArgMin": _arg(smallest=True),
    "Compress": Operator(_compress, known=(1,)),
    "Gather": Operator(_gather),
    "GatherElements": Operator(_gather_elements),
    "GatherND": Operator(_gather_nd),
    "NonZero": Operator(_non_zero, known=(0,)),
    "OneHot": Operator(_one_hot, known=(1,)),
    "Scatter": Operator(_scatter_elements),
    "ScatterElements": Operator(_scatter_elements),
    "ScatterND": Operator(_scatter_nd),
    "TopK": Operator(_top_k, known=(1,)),
}
