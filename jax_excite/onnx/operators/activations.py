"""Activations, written so that `sites` recognises them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_excite.onnx.operators.operator import Operator
from jax_excite.onnx.program import Node
from jax_excite.onnx.values import ChannelsLast, Value, elementwise, logical, numpy_or_jax


def _of(function: Callable[..., Any]) -> Operator:
    """An operator of one array: a function of the node and the array."""

    def evaluate(node: Node, *values: Value) -> Value:
        return elementwise(functools.partial(function, node), *values)

    return Operator(evaluate, any_order=True)


def _relu(node: Node, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x)


def _clip(node: Node, x: Value, low: Value = None, high: Value = None) -> Value:
    low = low if low is not None else node.get("min")  # attributes until version 10
    high = high if high is not None else node.get("max")
    xp = numpy_or_jax(x, *(v for v in (low, high) if not isinstance(v, float)))
    if low is not None:
        x = xp.maximum(x, _like(x, low))
    return x if high is None else xp.minimum(x, _like(x, high))


def _like(x: Value, bound: Any) -> Any:
    """A number in the dtype of an array; a known one stays known."""
    return bound.astype(x.dtype) if hasattr(bound, "astype") else np.asarray(bound, x.dtype)


def _leaky_relu(node: Node, x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x, node.get("alpha", 0.01))


def _prelu(node: Node, x: jax.Array, slope: jax.Array) -> jax.Array:
    return jnp.where(x >= 0, x, slope * x)


def _elu(node: Node, x: jax.Array) -> jax.Array:
    return jax.nn.elu(x, node.get("alpha", 1.0))


def _celu(node: Node, x: jax.Array) -> jax.Array:
    return jax.nn.celu(x, node.get("alpha", 1.0))


def _selu(node: Node, x: jax.Array) -> jax.Array:
    alpha = node.get("alpha", 1.6732631921768188)
    return node.get("gamma", 1.0507010221481323) * jax.nn.elu(x, alpha)


def _thresholded_relu(node: Node, x: jax.Array) -> jax.Array:
    return jnp.where(x > node.get("alpha", 1.0), x, jnp.zeros_like(x))


def _shrink(node: Node, x: jax.Array) -> jax.Array:
    bias, bound = node.get("bias", 0.0), node.get("lambd", 0.5)
    shrunk = jnp.where(x > bound, x - bias, jnp.zeros_like(x))
    return jnp.where(x < -bound, x + bias, shrunk).astype(x.dtype)


def _sigmoid(node: Node, x: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(x)


def _hard_sigmoid(node: Node, x: jax.Array) -> jax.Array:
    return jnp.clip(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)


def _hard_swish(node: Node, x: jax.Array) -> jax.Array:
    return jax.nn.hard_swish(x)


def _softplus(node: Node, x: jax.Array) -> jax.Array:
    return jax.nn.softplus(x)


def _softsign(node: Node, x: jax.Array) -> jax.Array:
    return jax.nn.soft_sign(x)


def _gelu(node: Node, x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=node.get("approximate", "none") == "tanh")


def _mish(node: Node, x: jax.Array) -> jax.Array:
    return x * jnp.tanh(jax.nn.softplus(x))


def _swish(node: Node, x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(node.get("alpha", 1.0) * x)


def _along_axis(function: Callable[..., jax.Array]) -> Operator:
    """A function along an axis; until version 12, over all axes from that one on, flattened."""

    def evaluate(node: Node, x: Value) -> Value:
        if node.version >= 13:
            axis = node.get("axis", -1)
            if isinstance(x, ChannelsLast):
                return ChannelsLast(function(x.array, axis=x.axis(axis)))
            return function(x, axis=axis)
        x = logical(x)
        axis = node.get("axis", 1) % max(x.ndim, 1)
        flat = x.reshape(math.prod(x.shape[:axis]), -1)
        return function(flat, axis=1).reshape(x.shape)

    return Operator(evaluate, any_order=True)


def _hardmax(x: jax.Array, axis: int) -> jax.Array:
    return jax.nn.one_hot(jnp.argmax(x, axis), x.shape[axis], dtype=x.dtype, axis=axis)


OPERATORS = {
    "Celu": _of(_celu),
    "Clip": _of(_clip),
    "Elu": _of(_elu),
    "Gelu": _of(_gelu),
    "HardSigmoid": _of(_hard_sigmoid),
    "HardSwish": _of(_hard_swish),
    "Hardmax": _along_axis(_hardmax),
    "LeakyRelu": _of(_leaky_relu),
    "LogSoftmax": _along_axis(jax.nn.log_softmax),
    "Mish": _of(_mish),
    "PRelu": _of(_prelu),
    "Relu": _of(_relu),
    "Selu": _of(_selu),
    "Shrink": _of(_shrink),
    "Sigmoid": _of(_sigmoid),
    "Softmax": _along_axis(jax.nn.softmax),
    "Softplus": _of(_softplus),
    "Softsign": _of(_softsign),
    "Swish": _of(_swish),
    "ThresholdedRelu": _of(_thresholded_relu),
}
