"""What an operator of ONNX is to the interpreter."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from jax_excite.onnx.program import Node
from jax_excite.onnx.values import Value, elementwise


@dataclasses.dataclass(frozen=True)
class Operator:
    """How the nodes of an operator are evaluated.

    Attributes:
        evaluate: computes the output, or a tuple of outputs, from the node and its inputs. Absent
            inputs are None.
        known: the positions of inputs that have to be known when a network is traced, such as
            shapes. Constants in these positions are no weights.
        any_order: whether inputs may be `ChannelsLast`; otherwise they are in logical order.
    """

    evaluate: Callable[..., Any]
    known: tuple[int, ...] = ()
    any_order: bool = False


def of_arrays(function: Callable[..., Any]) -> Operator:
    """An operator that is a function of arrays, entry by entry."""
    return Operator(lambda node, *values: elementwise(function, *values), any_order=True)


def of_node(function: Callable[..., Any]) -> Operator:
    """An operator with attributes: a function of the node and of arrays, entry by entry."""

    def evaluate(node: Node, *values: Value) -> Value:
        return elementwise(functools.partial(function, node), *values)

    return Operator(evaluate, any_order=True)
