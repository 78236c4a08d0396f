"""Activations, written so that `sites` recognises them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_excite.onnx.operators.operator import Operator, of_arrays, of_node
from jax_excite.onnx.program import Node
from jax_excite.onnx.values import ChannelsLast, Value, logical, numpy_or_jax


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


def _hard_sigmoid(node: Node, x: jax.Array) -> jax.Array:
    return jnp.clip(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)


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
    "Celu": of_node(_celu),
    "Clip": of_node(_clip),
    "Elu": of_node(_elu),
    "Gelu": of_node(_gelu),
    "HardSigmoid": of_node(_hard_sigmoid),
    "HardSwish": of_arrays(jax.nn.hard_swish),
    "Hardmax": _along_axis(_hardmax),
    "LeakyRelu": of_node(_leaky_relu),
    "LogSoftmax": _along_axis(jax.nn.log_softmax),
    "Mish": of_node(_mish),
    "PRelu": of_node(_prelu),
    "Relu": of_arrays(jax.nn.relu),
    "Selu": of_node(_selu),
    "Shrink": of_node(_shrink),
    "Sigmoid": of_arrays(jax.nn.sigmoid),
    "Softmax": _along_axis(jax.nn.softmax),
    "Softplus": of_arrays(jax.nn.softplus),
    "Softsign": of_arrays(jax.nn.soft_sign),
    "Swish": of_node(_swish),
    "ThresholdedRelu": of_node(_thresholded_relu),
}
