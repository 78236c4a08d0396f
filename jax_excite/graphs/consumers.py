"""Which nodes of a graph take a value."""

import collections

from jax_excite.graphs.graph import Graph, Node, Operand


class Consumers:
    """Which nodes of a graph take a value; None stands for the graph's outputs."""

    def __init__(self, graph: Graph):
        self._of: dict[Operand, list[Node | None]] = collections.defaultdict(list)
        for node in graph.nodes:
            for operand in node.inputs:
                self._of[operand].append(node)
        for operand in graph.outputs:
            self._of[operand].append(None)

    def of(self, number: int) -> list[Node | None]:
        """The nodes that take a value, one entry for each time."""
        return self._of.get(number, [])

    def only(self, number: int) -> Node | None:
        """The only node that takes a value, and takes it once; else None."""
        consumers = self.of(number)
        return consumers[0] if len(consumers) == 1 else None
