"""Normalisations."""

from typing import Any

import jax.numpy as jnp

from jax_excite.errors import NetworkError
from jax_excite.onnx.operators.operator import Operator
from jax_excite.onnx.program import Node
from jax_excite.onnx.values import ChannelsLast, Value, channels_last, logical


def _batch(node: Node, x: Value, scale: Value, b: Value, mean: Value, var: Value) -> Any:
    epsilon = node.get("epsilon", 1e-5)
    flat = x.ndim == 2
    array = x if flat else channels_last(x)
    outputs: tuple[Any, ...] = ()
    if node.get("training_mode", 0):
        axes, rest = tuple(range(array.ndim - 1)), node.get("momentum", 0.9)
        own, spread = array.mean(axes), array.var(axes)
        outputs = (mean * rest + own * (1 - rest), var * rest + spread * (1 - rest))
        mean, var = own, spread
    factor = scale / jnp.sqrt(var + epsilon)
    y = ((array - mean) * factor + b).astype(x.dtype)
    result = y if flat else ChannelsLast(y)
    return (result, *outputs) if outputs else result


def _instance(node: Node, x: Value, scale: Value, b: Value) -> Value:
    array = channels_last(x)
    axes = tuple(range(1, array.ndim - 1))
    return ChannelsLast(_centred(array, axes, node.get("epsilon", 1e-5)) * scale + b)


def _centred(x: Any, axes: tuple[int, ...], epsilon: float) -> Any:
    """An array minus its mean over axes, divided by its standard deviation."""
    centred = x - x.mean(axes, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(axes, keepdims=True) + epsilon)


def _stash(node: Node, x: Any) -> Any:
    """The input in the dtype in which statistics are computed: float32, if it has fewer bits."""
    wide = node.get("stash_type", 1) == 1 and jnp.finfo(x.dtype).bits < 32
    return x.astype(jnp.float32) if wide else x


def _layer(node: Node, x: Value, scale: Value, b: Value = None) -> Any:
    first = node.get("axis", -1) % x.ndim
    axes = tuple(range(first, x.ndim))
    wide = _stash(node, x)
    mean = wide.mean(axes, keepdims=True)
    centred = wide - mean
    inverse = 1 / jnp.sqrt((centred**2).mean(axes, keepdims=True) + node.get("epsilon", 1e-5))
    y = (centred * inverse).astype(x.dtype) * scale
    y = y if b is None else y + b
    return (y, mean, inverse)[: len(node.outputs)]


def _rms(node: Node, x: Value, scale: Value) -> Value:
    axes = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    wide = _stash(node, x)
    mean = (wide**2).mean(axes, keepdims=True)
    return (wide / jnp.sqrt(mean + node.get("epsilon", 1e-5))).astype(x.dtype) * scale


def _group(node: Node, x: Value, scale: Value, b: Value) -> Value:
    array, groups = channels_last(_stash(node, logical(x))), node.get("num_groups")
    channels = array.shape[-1]
    if channels % groups:
        raise NetworkError(f"{node}: {channels} channels do not form {groups} groups")
    parts = array.reshape(array.shape[0], -1, groups, channels // groups)
    parts = _centred(parts, (1, 3), node.get("epsilon", 1e-5))
    if node.version < 21:  # a scale per group
        parts = parts * scale[:, None] + b[:, None]
        return ChannelsLast(parts.reshape(array.shape).astype(x.dtype))
    return ChannelsLast(parts.reshape(array.shape).astype(x.dtype) * scale + b)


def _mean_variance(node: Node, x: Value) -> Value:
    axes = tuple(axis % x.ndim for axis in node.ints("axes", (0, 2, 3)))
    centred = x - x.mean(axes, keepdims=True)
    return centred / (jnp.sqrt((centred**2).mean(axes, keepdims=True)) + 1e-9)


def _lp(node: Node, x: Value) -> Value:
    axis = node.get("axis", -1)
    if node.get("p", 2) == 1:
        norm = jnp.abs(x).sum(axis, keepdims=True)
    else:
        norm = jnp.sqrt((x**2).sum(axis, keepdims=True))
    return jnp.where(norm == 0, 0, x / jnp.where(norm == 0, 1, norm))


def _dropout(node: Node, x: Value, ratio: Value = None, training: Value = None) -> Any:
    if training is not None and bool(training):
        raise NetworkError(f"{node} is in training mode: export the network in evaluation mode")
    mask = jnp.ones(x.shape, bool)
    return (x, mask)[: len(node.outputs)]


OPERATORS = {
    "BatchNormalization": Operator(_batch, any_order=True),
    "Dropout": Operator(_dropout, known=(1, 2), any_order=True),
    "GroupNormalization": Operator(_group, any_order=True),
    "InstanceNormalization": Operator(_instance, any_order=True),
    "LayerNormalization": Operator(_layer),
    "LpNormalization": Operator(_lp),
    "MeanVarianceNormalization": Operator(_mean_variance),
    "RMSNormalization": Operator(_rms),
}
