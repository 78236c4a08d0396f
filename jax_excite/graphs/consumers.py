"""The nodes of a graph that consume each value."""

import collections

from jax_excite.graphs.graph import Graph, Node, Operand


class Consumers:
    """The nodes of a graph that consume each value; None stands for the graph's outputs."""

    def __init__(self, graph: Graph):
        self._of: dict[Operand, list[Node | None]] = collections.defaultdict(list)
        for node in graph.nodes:
            for operand in node.inputs:
                self._of[operand].append(node)
        for operand in graph.outputs:
            self._of[operand].append(None)

    def of(self, number: int) -> list[Node | None]:
        """The nodes that consume a value, with one entry per use."""
        return self._of.get(number, [])

    def only(self, number: int) -> Node | None:
        """The only consumer of a value, if there is exactly one use of it; else None."""
        consumers = self.of(number)
        return consumers[0] if len(consumers) == 1 else None
