"""Recognition of max-pooling in a graph, however it is written: the input and the windows."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import numpy as np

from jax_excite.gates.pool_windows import Window
from jax_excite.gates.reading import Reading
from jax_excite.graphs.graph import Constant, Graph, Node, Operand, producers_of

# The primitives through which a maximum may pass before it shifts or scales a value.
_PASSES = ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze", "expand_dims")


@dataclasses.dataclass(frozen=True)
class Pool:
    """A max-pool.

    Attributes:
        x: the value that is pooled.
        window: the window, along all axes of `x`.
        form: how it is written.
        obstacle: why it cannot be softened; empty if it can be.
    """

    x: int
    window: Window
    form: str
    obstacle: str = ""


def _pool_of_window(node: Node) -> Pool | None:
    """The max-pool that a `reduce_window` computes, with any initial value, or None."""
    if node.name == "reduce_window":
        if [inner.name for inner in node.bodies[0].nodes] != ["max"] or len(node.outputs) != 1:
            return None
    elif node.name != "reduce_window_max":
        return None
    x = node.inputs[0]
    if isinstance(x, Constant):
        return None
    names = ("window_dimensions", "window_strides", "padding", "window_dilation")
    floor, obstacle = -math.inf, ""
    if node.name == "reduce_window":
        initial = node.inputs[1]
        if isinstance(initial, Constant):
            floor = float(np.asarray(initial.value))
        else:
            obstacle = "its initial value is computed"
    window = Window(*(tuple(node.params[name]) for name in names), floor=floor)
    if any(d != 1 for d in node.params["base_dilation"]):
        obstacle = "its input is dilated, which no pooling layer does"
    return Pool(x, window, "reduce_window(max)", obstacle)


def _pool_of_axes(graph: Graph, node: Node) -> Pool | None:
    """The max-pool that a maximum over whole axes computes, or None."""
    x = node.inputs[0]
    if node.name != "reduce_max" or isinstance(x, Constant):
        return None
    shape, axes = graph.types[x].shape, node.params["axes"]
    ones = (1,) * len(shape)
    dimensions = tuple(n if axis in axes else 1 for axis, n in enumerate(shape))
    window = Window(dimensions, ones, ((0, 0),) * len(shape), ones)
    return Pool(x, window, f"max(axis={tuple(axes)})")


def find_pool(reading: Reading, value: int, node: Node) -> Pool | None:
    """The max-pool whose output is `value`, or None.

    Args:
        reading: the reading of the graph.
        value: the value.
        node: the node that computes it.
    """
    home = reading.facts.homes[value]
    if node.name == "max":
        return reading.once(_Chains, home).pool(value)
    if node.name != "reduce_max":
        return _pool_of_window(node)
    if shifts_or_scales(reading, node):
        return None
    if (stacked := reading.facts.as_elementwise(node)) is not None:
        return reading.once(_Chains, home).pool_of(stacked[1])
    return _pool_of_axes(home, node)


def shifts_or_scales(reading: Reading, node: Node) -> bool:
    """Whether a maximum over axes is subtracted from its own input, or divides it.

    A stable softmax does the former and a normalisation by the largest entry does the latter;
    neither is pooling.
    """
    if node.name != "reduce_max" or isinstance(node.inputs[0], Constant):
        return False
    # The input of the maximum, and the values of which that input is an elementwise function.
    sources = {node.inputs[0], *reading.facts.views.get(node.inputs[0], {})}
    consumers = reading.consumers(node)
    left = [node.outputs[0]]
    while left:
        value = left.pop()
        for consumer in consumers.of(value):
            if consumer is None:
                continue
            meets = consumer.name in ("sub", "div") and consumer.inputs[1] == value
            if meets and consumer.inputs[0] in sources:
                return True
            if consumer.name in _PASSES or (
                consumer.name in ("add", "max", "mul")
                and any(isinstance(operand, Constant) for operand in consumer.inputs)
            ):
                left += consumer.outputs
    return False


@dataclasses.dataclass(frozen=True)
class _Slice:
    """A strided slice of a value, as an operand of a chain of maxima."""

    source: int
    starts: tuple[int, ...]
    strides: tuple[int, ...]
    sizes: tuple[int, ...]
    squeezed: tuple[int, ...] = ()


class _Chains:
    """Chains of maxima over slices of one value."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._producers = producers_of(graph)
        self._leaves: dict[int, frozenset[_Slice] | None] = {}

    def pool(self, value: int) -> Pool | None:
        """The max-pool that a maximum of slices computes, if they are the cells of a window."""
        leaves = self._of(value)
        return None if leaves is None or len(leaves) < 2 else self._window(leaves)

    def pool_of(self, parts: Iterable[Operand]) -> Pool | None:
        """The max-pool that the maximum of several values computes, as for `pool`."""
        found: set[_Slice] = set()
        for part in parts:
            leaves = None if isinstance(part, Constant) else self._of(part)
            if leaves is None:
                return None
            found |= leaves
        return self._window(frozenset(found)) if len(found) > 1 else None

    def _of(self, value: int) -> frozenset[_Slice] | None:
        if value not in self._leaves:
            self._leaves[value] = self._find(value)
        return self._leaves[value]

    def _find(self, value: int) -> frozenset[_Slice] | None:
        node = self._producers.get(value)
        if node is None or any(isinstance(operand, Constant) for operand in node.inputs):
            return None
        operands = [operand for operand in node.inputs if not isinstance(operand, Constant)]
        if node.name == "slice":
            sizes = self._graph.types[value].shape
            starts = node.params["start_indices"]
            strides = node.params["strides"] or (1,) * len(starts)
            strides = tuple(s if n > 1 else 1 for s, n in zip(strides, sizes, strict=True))
            return frozenset([_Slice(operands[0], tuple(starts), strides, sizes)])
        if node.name == "squeeze":
            inner = self._of(operands[0])
            if inner is None or len(inner) != 1:
                return None
            (leaf,) = inner
            if leaf.squeezed:
                return None
            return frozenset([dataclasses.replace(leaf, squeezed=node.params["dimensions"])])
        if node.name == "max":
            a, b = (self._of(operand) for operand in operands)
            return None if a is None or b is None else a | b
        return None

    def _window(self, leaves: frozenset[_Slice]) -> Pool | None:
        first = next(iter(leaves))
        alike = {(leaf.source, leaf.strides, leaf.sizes, leaf.squeezed) for leaf in leaves}
        if len(alike) > 1:
            return None
        starts = {leaf.starts for leaf in leaves}
        along = [sorted(set(axis)) for axis in zip(*starts, strict=True)]
        steps = [set(np.diff(axis).tolist()) for axis in along]
        if starts != set(itertools.product(*along)) or any(len(step) > 1 for step in steps):
            return None
        dimensions = tuple(map(len, along))
        dilation = tuple(min(step, default=1) for step in steps)
        shape = self._graph.types[first.source].shape
        padding = tuple(
            (-axis[0], (n - 1) * stride + (d - 1) * gap + 1 + axis[0] - size)
            for axis, n, stride, d, gap, size in zip(
                along, first.sizes, first.strides, dimensions, dilation, shape, strict=True
            )
        )
        window = Window(dimensions, first.strides, padding, dilation)
        return Pool(first.source, window, f"max of {len(leaves)} slices")
