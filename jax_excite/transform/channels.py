"""The channel axis of an inner layer, found in the graph from the nodes that compute the layer."""

import math
from collections.abc import Callable, Iterator

from jax_excite.graphs.graph import Constant, Graph, Node, Operand, is_call, passed_on
from jax_excite.graphs.profiles import elementwise

_SAME_AXIS = (
    "concatenate",
    "pad",
    "reduce_window",
    "reduce_window_max",
    "reduce_window_sum",
    "rev",
    "slice",
    "stop_gradient",
)


def channel_axis(graph: Graph, node: Node) -> int | None:
    """The axis of a node's output that holds channels, or None if it cannot be determined.

    A convolution specifies the channel axis. For a matrix product it is the axis of the weights'
    columns. For the images themselves it is the last axis.

    Args:
        graph: the whole graph of a function of images `[N, H, W, C]`.
        node: a node of the graph, or of a graph nested in it.
    """
    return _Channels(graph).of(node.outputs[0])


class _Channels:
    def __init__(self, graph: Graph):
        self._types = graph.types
        self._producers: dict[int, Node] = {}
        self._outer: dict[int, Operand] = {}
        for node in _nodes(graph):
            self._producers.update(dict.fromkeys(node.outputs, node))
            for body, operands in zip(node.bodies, passed_on(node, carried=True), strict=True):
                for number, operand in zip(body.inputs, operands, strict=True):
                    if operand is not None:
                        self._outer[number] = operand

    def _rank(self, operand: Operand) -> int:
        return 0 if isinstance(operand, Constant) else len(self._types[operand].shape)

    def of(self, operand: Operand) -> int | None:
        if isinstance(operand, Constant):
            return None
        node = self._producers.get(operand)
        if node is None:
            if operand in self._outer:
                outer = self.of(self._outer[operand])
                fewer = self._rank(self._outer[operand]) - self._rank(operand)
                return None if outer is None else outer - fewer
            return 3 if self._rank(operand) == 4 else None
        if node.bodies and node.name != "reduce_window":
            return self._of_call(operand, node)
        if node.name in _RULES:
            return _RULES[node.name](self, node)
        if node.name in _SAME_AXIS or elementwise(node.name, node.params) is not None:
            return self._of_alike(operand, node)
        return None

    def _of_call(self, operand: int, node: Node) -> int | None:
        result = node.bodies[-1].outputs[node.outputs.index(operand)]
        axis = self.of(result)
        if axis is None or is_call(node):
            return axis
        return axis + self._rank(operand) - self._rank(result)

    def _of_alike(self, operand: int, node: Node) -> int | None:
        """The channel axis of an operand of the same rank."""
        alike = (o for o in node.inputs if self._rank(o) == self._rank(operand))
        return next((axis for o in alike if (axis := self.of(o)) is not None), None)

    def convolution(self, node: Node) -> int | None:
        return node.params["dimension_numbers"].out_spec[1]

    def product(self, node: Node) -> int | None:
        (_, _), (batch, _) = node.params["dimension_numbers"]
        left, right = map(self._rank, node.inputs)
        if right == 2 < left:
            return self._rank(node.outputs[0]) - 1
        return len(batch) if left == 2 < right else None

    def transpose(self, node: Node) -> int | None:
        axis = self.of(node.inputs[0])
        return None if axis is None else tuple(node.params["permutation"]).index(axis)

    def reshape(self, node: Node) -> int | None:
        axis, new = self.of(node.inputs[0]), self._types[node.outputs[0]].shape
        if axis is None or isinstance(node.inputs[0], Constant):
            return None
        old = self._types[node.inputs[0]].shape
        before = math.prod(old[:axis])
        places = (p for p, n in enumerate(new) if n == old[axis] and math.prod(new[:p]) == before)
        return next(places, None)

    def broadcast(self, node: Node) -> int | None:
        axis = self.of(node.inputs[0])
        return None if axis is None else node.params["broadcast_dimensions"][axis]


_RULES: dict[str, Callable[[_Channels, Node], int | None]] = {
    "broadcast_in_dim": _Channels.broadcast,
    "conv_general_dilated": _Channels.convolution,
    "dot_general": _Channels.product,
    "expand_dims": _Channels.reshape,
    "reshape": _Channels.reshape,
    "squeeze": _Channels.reshape,
    "transpose": _Channels.transpose,
}


def _nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        yield node
        for body in node.bodies:
            yield from _nodes(body)
