"""Affine channel maps, such as BatchNorm with stored statistics, folded into a convolution."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_excite.graphs.consumers import Consumers
from jax_excite.graphs.graph import Constant, Graph, Node, Operand

Value = Callable[[Operand | None], Any]  # the value of an operand, or None if unknown

# The primitives computed ahead if their inputs are known: those that compute channel maps from
# statistics.
_ELEMENTWISE = {
    "add",
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "div",
    "max",
    "mul",
    "neg",
    "reshape",
    "rsqrt",
    "sqrt",
    "squeeze",
    "sub",
}
# Values with more entries than this are not per channel.
_LARGEST = 1 << 16


def known_values(graph: Graph, inputs: dict[int, Any]) -> Value:
    """The known values of a graph's operands: constants, and small values computed from them.

    Args:
        graph: the graph.
        inputs: the known values of its inputs.
    """
    known = dict(inputs)

    def value(operand: Operand | None) -> Any:
        if isinstance(operand, Constant):
            return operand.value
        return None if operand is None else known.get(operand)

    for node in graph.nodes:
        # A kernel stored in another order of axes is brought into ours once, whatever its size.
        if node.name != "transpose" and (
            node.name not in _ELEMENTWISE or graph.types[node.outputs[0]].size > _LARGEST
        ):
            continue
        values = [value(operand) for operand in node.inputs]
        if all(v is not None for v in values):
            params = node.primitive.get_bind_params(node.params)
            known[node.outputs[0]] = node.primitive.bind(*values, **params)
    return value


@dataclasses.dataclass(frozen=True)
class ChannelMap:
    """The map `y * scale + shift` per channel, where `y` is the output of a convolution.

    Attributes:
        scale: `[O]`, or None for 1.
        shift: `[O]`, or None for 0.
        absorbed: the nodes that compute it, by number, each with the position of its input that
            comes from the convolution.
    """

    scale: jax.Array | None
    shift: jax.Array | None
    absorbed: dict[int, int]


def following_map(graph: Graph, node: Node, value: Value, consumers: Consumers) -> ChannelMap:
    """The channel map that follows a node, as far as nothing else consumes the values between."""
    output = graph.types[node.outputs[0]]
    scale = shift = None
    absorbed: dict[int, int] = {}
    current = node.outputs[0]
    while (consumer := consumers.only(current)) is not None:
        if consumer.name not in ("add", "div", "mul", "sub"):
            break
        place = consumer.inputs.index(current)
        operand = _by_channel(value(consumer.inputs[1 - place]), output)
        if operand is None or graph.types[consumer.outputs[0]].dtype != output.dtype:
            break
        if place == 1 and consumer.name in ("div", "sub"):
            break
        if consumer.name in ("mul", "div"):
            factor = operand if consumer.name == "mul" else 1 / operand
            scale = factor if scale is None else scale * factor
            shift = None if shift is None else shift * factor
        else:
            term = operand if consumer.name == "add" else -operand
            shift = term if shift is None else shift + term
        absorbed[consumer.number] = place
        current = consumer.outputs[0]
    return ChannelMap(scale, shift, absorbed)


def _by_channel(operand: Any, output: Any) -> jax.Array | None:
    """An operand as `[O]`, if it holds one number or one number per channel; else None."""
    if operand is None or np.ndim(operand) not in (0, output.ndim):
        return None
    shape = np.shape(operand)
    if any(n != 1 for n in shape[:-1]) or shape[-1:] not in ((), (1,), output.shape[-1:]):
        return None
    return jnp.broadcast_to(jnp.reshape(operand, shape[-1:]), output.shape[-1:])
