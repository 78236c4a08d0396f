"""A part of a graph as a function: from some of its values to a later one."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax_excite.graphs.graph import Graph, Node, Operand, bind


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The nodes of one graph that compute a value from others.

    Attributes:
        inputs: the operands that it is a function of.
        nodes: its nodes, in the order in which they run.
        output: the value that it computes.
        others: the values that its nodes use besides.
    """

    inputs: tuple[Operand, ...]
    nodes: tuple[Node, ...]
    output: int
    others: tuple[int, ...]

    @staticmethod
    def between(graph: Graph, inputs: Sequence[Operand], output: int) -> "Part":
        """The part of a graph from operands to a later value that depends on them."""
        producers = {number: node for node in graph.nodes for number in node.outputs}
        reached = set(inputs)
        inside: list[Node] = []
        for node in graph.nodes:
            if not reached.isdisjoint(node.inputs) and reached.isdisjoint(node.outputs):
                reached.update(node.outputs)
                inside.append(node)
        needed, left = set(), [output]
        while left:
            number = left.pop()
            node = producers.get(number)
            if number in needed or number in inputs or number not in reached or node is None:
                continue
            needed.update(node.outputs)
            left += [operand for operand in node.inputs if isinstance(operand, int)]
        nodes = tuple(node for node in inside if not needed.isdisjoint(node.outputs))
        own = {number for node in nodes for number in node.outputs}
        used = dict.fromkeys(o for node in nodes for o in node.inputs if isinstance(o, int))
        others = tuple(o for o in used if o not in own and o not in inputs)
        return Part(tuple(inputs), nodes, output, others)

    def __call__(self, inputs: Sequence[Any], others: Sequence[Any]) -> Any:
        """The output, for values of `inputs` and `others`."""
        values: dict[Operand, Any] = dict(
            zip((*self.inputs, *self.others), (*inputs, *others), strict=True)
        )

        def read(operand: Operand) -> Any:
            if operand in values:
                return values[operand]
            return operand.value  # type: ignore[union-attr]

        for node in self.nodes:
            results = bind(node, [read(operand) for operand in node.inputs])
            values |= zip(node.outputs, results, strict=True)
        return values[self.output]
