"""Reductions, cumulative sums and matrix products."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_excite.onnx.operators.operator import Operator
from jax_excite.onnx.program import Node
from jax_excite.onnx.values import ChannelsLast, Value, known, logical, lowest, numpy_or_jax


def _reduction(function: Callable[[Any, Any, tuple[int, ...], bool], Any]) -> Operator:
    """A reduction over axes: `function(namespace, x, axes, keepdims)`."""

    def evaluate(node: Node, x: Value, axes: Value = None) -> Value:
        given = node.ints("axes") if axes is None else known(node, axes, "axes").ravel()
        if given is None or not len(given):
            if node.get("noop_with_empty_axes", 0):
                # The function of each entry, such as its absolute value, still applies.
                return function(jnp, logical(x), (), True)
            given = range(x.ndim)
        places = tuple(int(axis) % max(x.ndim, 1) for axis in given)
        keep = bool(node.get("keepdims", 1))
        if isinstance(x, ChannelsLast):
            stored = tuple(x.axis(axis) for axis in places)
            if keep:
                return ChannelsLast(function(jnp, x.array, stored, True))
            if set(range(2, x.ndim)) <= set(places):  # what is left is in logical order
                return function(jnp, x.array, stored, False)
        x = logical(x)
        return function(numpy_or_jax(x), x, places, keep)

    return Operator(evaluate, known=(1,), any_order=True)


def _named(name: str) -> Operator:
    def function(xp: Any, x: Any, axes: Any, keep: bool) -> Any:
        options = {} if x.size or name not in _FIRST else {"initial": _FIRST[name](x.dtype)}
        return getattr(xp, name)(x, axis=axes, keepdims=keep, **options).astype(x.dtype)

    return _reduction(function)


def _highest(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.inf
    return True if dtype == np.bool_ else jnp.iinfo(dtype).max


# What the reduction of no entries is.
_FIRST = {"max": lowest, "min": _highest}


def _total(before: Callable[[Any, Any], Any], after: Callable[[Any, Any], Any]) -> Operator:
    """A sum of a function of the entries, and a function of the sum."""

    def function(xp: Any, x: Any, axes: Any, keep: bool) -> Any:
        return after(xp, before(xp, x).sum(axis=axes, keepdims=keep).astype(x.dtype))

    return _reduction(function)


def _log_sum_exp(xp: Any, x: Any, axes: Any, keep: bool) -> Any:
    return jax.scipy.special.logsumexp(jnp.asarray(x), axis=axes, keepdims=keep)


def _cumulative(name: str) -> Operator:
    def evaluate(node: Node, x: Value, axis: Value) -> Value:
        place = int(known(node, axis, "axis").reshape(())) % x.ndim
        x = jnp.flip(x, place) if node.get("reverse", 0) else x
        first = 1 if name == "cumprod" else 0
        if node.get("exclusive", 0):
            widths = [(0, 0)] * x.ndim
            widths[place] = (1, 0)
            cut = (slice(None),) * place + (slice(0, x.shape[place]),)
            x = jnp.pad(x, widths, constant_values=first)[cut]
        x = getattr(jnp, name)(x, place).astype(x.dtype)
        return jnp.flip(x, place) if node.get("reverse", 0) else x

    return Operator(evaluate, known=(1,))


def _matmul(node: Node, a: Value, b: Value) -> Value:
    return numpy_or_jax(a, b).matmul(a, b)


def _gemm(node: Node, a: Value, b: Value, c: Value = None) -> Value:
    left, right = node.get("transA", 0), node.get("transB", 0)
    y = jax.lax.dot_general(
        jnp.asarray(a), jnp.asarray(b), (((0 if left else 1,), (1 if right else 0,)), ((), ()))
    )
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    y = y if alpha == 1 else (alpha * y).astype(y.dtype)
    if c is None:
        return y
    return y + (c if beta == 1 else (beta * c).astype(c.dtype))


def _einsum(node: Node, *values: Value) -> Value:
    return jnp.einsum(node.get("equation"), *values)


def _det(node: Node, x: Value) -> Value:
    return jnp.linalg.det(x)


OPERATORS = {
    "CumProd": _cumulative("cumprod"),
    "CumSum": _cumulative("cumsum"),
    "Det": Operator(_det),
    "Einsum": Operator(_einsum),
    "Gemm": Operator(_gemm),
    "MatMul": Operator(_matmul),
    "ReduceL1": _total(lambda xp, x: xp.abs(x), lambda xp, s: s),
    "ReduceL2": _total(lambda xp, x: x * x, lambda xp, s: xp.sqrt(s).astype(s.dtype)),
    "ReduceLogSum": _total(lambda xp, x: x, lambda xp, s: xp.log(s)),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ReduceMax": _named("max"),
    "ReduceMean": _named("mean"),
    "ReduceMin": _named("min"),
    "ReduceProd": _named("prod"),
    "ReduceSum": _named("sum"),
    "ReduceSumSquare": _total(lambda xp, x: x * x, lambda xp, s: s),
}
