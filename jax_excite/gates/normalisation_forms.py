"""Recognition of normalisation in a graph: by its statistics, and by how they meet the input.

A normalisation divides a value by the root of its variance, or of its mean square, after it
subtracts its mean, if it does. Libraries write this in many orders of sums and products. All of
them have the root of a variance, from which every path leads to one value: the normalised one.
"""

import dataclasses
import math

import numpy as np

from jax_excite.gates.reading import Reading
from jax_excite.graphs.consumers import Consumers
from jax_excite.graphs.facts import Facts
from jax_excite.graphs.graph import ARRANGES, Constant, Graph, Node, Operand, is_call
from jax_excite.graphs.parts import Part

# Primitives of which a normalisation consists, apart from its statistics.
_AFFINE = (*ARRANGES, "add", "div", "mul", "neg", "sub")


@dataclasses.dataclass(frozen=True, eq=False)
class Normalised:
    """A normalisation.

    Attributes:
        x: the value that is normalised.
        root: the root of its variance, or the inverse of that.
        is_inverse: whether `root` is the inverse.
        sums: the sums, or means, from which its mean is computed; empty for RMS normalisation.
        counts: by how much each of `sums` is larger than the mean.
        part: its nodes, as a function of `x`, `root` and `sums`.
    """

    x: int
    root: int
    is_inverse: bool
    sums: tuple[int, ...]
    counts: tuple[float, ...]
    part: Part

    @property
    def statistics(self) -> tuple[int, ...]:
        """The root and the sums."""
        return self.root, *self.sums


@dataclasses.dataclass(frozen=True)
class _Root:
    """The root of the variance of `x`, or the inverse of the root."""

    value: int
    is_inverse: bool
    x: int


class Normalisations:
    """The normalisations of a graph, by the value that they compute.

    Args:
        graph: the graph, or one that is nested in the graph that was read.
        reading: the reading.
    """

    def __init__(self, graph: Graph, reading: Reading):
        self.whole: dict[int, Normalised] = {}
        self.broken: dict[int, int] = {}  # roots that do not only normalise -> their `x`
        self._graph = graph
        self._facts = reading.facts
        self._consumers = reading.once(Consumers, graph)
        self._statistics = _Statistics(self._facts, graph)
        for node in graph.nodes:
            root = self._root(node)
            if root is None or (root.value in graph.outputs and graph is not reading.graph):
                continue  # a root that a call returns is judged where the call is
            found = self._whole(root, node)
            if found is None:
                self.broken[root.value] = root.x
            else:
                self.whole[found.part.output] = found

    def _root(self, node: Node) -> _Root | None:
        if len(node.outputs) != 1 or node.outputs[0] not in self._facts.depends:
            return None
        # A call may compute the root, as jnp.std does.
        inner = self._facts.producer(node.outputs[0], within=self._graph)
        if inner is None:
            return None
        power = {"rsqrt": -0.5, "sqrt": 0.5}.get(inner.name)
        if inner.name == "pow":
            power = self._facts.constant(inner.inputs[1])
        if power not in (-0.5, 0.5):
            return None
        x = self._statistics.x_of_variance(inner.inputs[0])
        return None if x is None else _Root(node.outputs[0], power == -0.5, x)

    def _whole(self, root: _Root, node: Node) -> Normalised | None:
        """The normalisation that a root belongs to; None if the root serves other purposes."""
        output = self._meeting(root, node)
        if output is None:
            return None
        inner = Part.between(self._graph, [root.x, root.value], output)
        counts = {one.outputs[0]: self._statistics.summed(one, root.x) for one in inner.nodes}
        sums = {value: count for value, count in counts.items() if count}
        part = Part.between(self._graph, [root.x, root.value, *sums], output)
        found = Normalised(
            root.x, root.value, root.is_inverse, tuple(sums), tuple(sums.values()), part
        )
        return found if self._is_affine(found) else None

    def _meeting(self, root: _Root, node: Node) -> int | None:
        """The first value through which every path from the root goes, and that depends on x."""
        from_x = {root.x}
        left: dict[int, int] = {root.value: len(self._consumers.of(root.value))}
        after = self._graph.nodes.index(node) + 1
        for number, one in enumerate(self._graph.nodes):
            if not from_x.isdisjoint(one.inputs) and one.name in _AFFINE:
                from_x.update(one.outputs)
            if number < after or left.keys().isdisjoint(one.inputs):
                continue
            if one.name not in _AFFINE:
                return None
            for operand in one.inputs:
                if operand in left:
                    left[operand] -= 1  # type: ignore[index]
            left = {value: uses for value, uses in left.items() if uses}
            (output,) = one.outputs
            left[output] = len(self._consumers.of(output))
            if len(left) == 1 and output in from_x:
                return output
        return None

    def _is_affine(self, found: Normalised) -> bool:
        """Whether a normalisation is affine in `x` and divides it by the root."""
        powers = {found.x: 0.0, found.root: -1.0 if found.is_inverse else 1.0}
        of_x = {found.x}
        scaled = False
        for node in found.part.nodes:
            if node.name not in _AFFINE:
                return False
            (output,) = node.outputs
            own = [o for o in node.inputs if o in of_x]
            if own:
                of_x.add(output)
            power = [powers.get(o, 0.0) for o in node.inputs]  # type: ignore[arg-type]
            if node.name == "mul":
                powers[output] = sum(power)
            elif node.name == "div":
                powers[output] = power[0] - power[1]
            else:
                powers[output] = max(power, key=abs)
            if node.name in ("mul", "div") and own:
                if len(own) > 1 or (node.name == "div" and node.inputs[1] in own):
                    return False
                scaled = scaled or powers[output] == -1.0
        return scaled and found.part.output in of_x and powers[found.part.output] == -1.0


class _Statistics:
    """Recognises means and variances of values of a graph, also inside of calls."""

    def __init__(self, facts: Facts, graph: Graph):
        self._facts = facts
        self._graph = graph

    def x_of_variance(self, operand: Operand) -> int | None:
        """The value whose variance or mean square this is, plus a constant; None for others."""
        node = self._producer(operand)
        while node is not None:
            on_input = [o for o in node.inputs if o in self._facts.depends]
            if node.name == "sub" and len(on_input) == 2:
                return self._x_of_difference(*on_input)
            if node.name in ("add", "max", "min", "clamp", "select_n") and len(on_input) == 1:
                operand = on_input[0]
            elif node.name in ARRANGES:
                operand = node.inputs[0]
            else:
                break
            node = self._producer(operand)
        of = self._meant(operand)
        square = None if of is None else self._squared(of)
        return None if square is None else self._x_of_square(square)

    def _x_of_square(self, square: Operand) -> int | None:
        """The value x of a squared `x`, or of a squared `x - mean(x)`."""
        node = self._producer(square)
        if node is not None and node.name == "sub":
            x, mean = node.inputs
            of = self._meant(mean)
            if of is not None and self._base(of) == self._base(x):
                return self._base(x)
        return self._base(square)

    def _x_of_difference(self, squares: Operand, square: Operand) -> int | None:
        """The value x of `mean(x^2) - mean(x)^2`."""
        of, mean = self._meant(squares), self._squared(square)
        x = None if of is None else self._squared(of)
        other = None if mean is None else self._meant(mean)
        if x is None or other is None or self._base(x) != self._base(other):
            return None
        return self._base(x)

    def summed(self, node: Node, x: int) -> float:
        """By how much the output of a node is larger than a mean of `x` over axes; 0 if it is none.

        A sum over axes is a multiple of the mean. A call may return the mean itself.
        """
        if node.name == "reduce_sum":
            shape = self._facts.shape(node.inputs[0])
            count = math.prod(shape[axis] for axis in node.params["axes"])
            return float(count) if self._base(node.inputs[0]) == x else 0.0
        if not (node.bodies and is_call(node) and len(node.outputs) == 1):
            return 0.0
        of = self._meant(node.outputs[0])
        return 1.0 if of is not None and self._base(of) == x else 0.0

    def _meant(self, operand: Operand) -> Operand | None:
        """The value whose mean over axes this is, or None."""
        scale = 1.0
        node = self._producer(operand)
        while node is not None and node.name != "reduce_sum":
            if node.name not in (*ARRANGES, "div", "mul", "select_n"):
                return None
            on_input = [o for o in node.inputs if o in self._facts.depends]
            if len(on_input) != 1:
                return None
            (operand,) = on_input
            if node.name in ("div", "mul"):
                other = node.inputs[0] if node.inputs[1] == operand else node.inputs[1]
                number = self._facts.constant(other)
                if not number or (node.name == "div" and other is node.inputs[0]):
                    return None
                scale *= number if node.name == "mul" else 1 / number
            node = self._producer(operand)
        if node is None:
            return None
        shape = self._facts.shape(node.inputs[0])
        count = math.prod(shape[axis] for axis in node.params["axes"])
        fits = any(np.isclose(scale * n, 1, rtol=1e-2 / n) for n in (count, count - 1) if n > 0)
        return node.inputs[0] if fits else None

    def _squared(self, operand: Operand) -> Operand | None:
        """The value whose square this is, or None."""
        node = self._producer(operand)
        while node is not None and node.name in ARRANGES:
            node = self._producer(node.inputs[0])
        if node is None:
            return None
        if node.name == "square" or (node.name == "integer_pow" and node.params["y"] == 2):
            return node.inputs[0]
        if node.name == "mul" and node.inputs[0] == node.inputs[1]:
            return node.inputs[0]
        if node.name == "pow" and self._facts.constant(node.inputs[1]) == 2:
            return node.inputs[0]
        return None

    def _base(self, operand: Operand) -> int | None:
        """The value of the graph of which this has the entries, in any arrangement."""
        while not isinstance(operand, Constant):
            node = self._facts.producers.get(operand)
            if node is not None and node.name in ARRANGES:
                before, after = (self._facts.shape(o) for o in (node.inputs[0], operand))
                if math.prod(before) != math.prod(after):
                    break
                operand = node.inputs[0]
            elif node is None and self._facts.homes[operand] is not self._graph:
                operand = self._facts.outer.get(operand, Constant(None))
            else:
                break
        if isinstance(operand, Constant) or self._facts.homes[operand] is not self._graph:
            return None
        return operand

    def _producer(self, operand: Operand) -> Node | None:
        return self._facts.producer(operand, within=self._graph)
