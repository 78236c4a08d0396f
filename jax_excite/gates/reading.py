"""Recognition of the gates in a graph, from facts, consumers and the gates found so far."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jax_excite.gates.gate import SOFT_ALREADY, Found, Gate
from jax_excite.gates.surrogates import marked_kind
from jax_excite.graphs.consumers import Consumers
from jax_excite.graphs.facts import Facts
from jax_excite.graphs.graph import Graph, Node
from jax_excite.graphs.profiles import has_kink

T = TypeVar("T")


class Reading:
    """Recognises gates of given kinds in a graph, and stores the results.

    Args:
        graph: the graph.
        facts: the facts about its values.
        kinds: the kinds of gates to look for, in this order.
    """

    def __init__(self, graph: Graph, facts: Facts, kinds: Sequence[type[Gate]]):
        self.graph = graph
        self.facts = facts
        self._kinds = kinds
        self._gates: dict[int, Found | None] = {}
        self._made: dict[tuple[Any, Graph], Any] = {}

    def gate(self, value: int) -> Found | None:
        """The gate whose output is `value`, or an activation that is left as it is, or None."""
        if value not in self._gates:
            self._gates[value] = self._find(value)
        return self._gates[value]

    def _find(self, value: int) -> Found | None:
        node = self.facts.producers.get(value)
        if node is None or not self.facts.is_float(value):
            return None
        if (kind := marked_kind(node)) is not None:
            z = node.inputs[node.params["num_consts"] + 1]
            return Found(kind, node, z, kind, SOFT_ALREADY)
        if len(node.outputs) != 1:
            return None
        found = (kind.find(self, value, node) for kind in self._kinds)
        return next((one for one in found if one is not None), None)

    def is_guard(self, value: int) -> bool:
        """Whether a value looks like a gate but is not a site at all."""
        return any(kind.is_guard(self, value) for kind in self._kinds)

    def refusal(self, node: Node) -> str:
        """Why a node that looks like a gate is not one; empty for other nodes."""
        reasons = (kind.refusal(self, node) for kind in self._kinds)
        return next(filter(None, reasons), "")

    def consumers(self, node: Node) -> Consumers:
        """The consumers of the values of the graph that contains a node."""
        return self.once(Consumers, self.facts.homes[node.outputs[0]])

    def once(self, make: Callable[..., T], graph: Graph, *more: Any) -> T:
        """`make(graph, *more)`, computed once per graph."""
        if (make, graph) not in self._made:
            self._made[make, graph] = make(graph, *more)
        return self._made[make, graph]

    def base(self, value: int) -> int | None:
        """The latest other value of which `value` is an elementwise function, or None."""
        return max((b for b in self.facts.views.get(value, {}) if b != value), default=None)

    def below(self, value: int) -> int | None:
        """The base of a value that is part of an activation; None for any other value."""
        node = self.facts.producers.get(value)
        if node is None or not has_kink(node.name, node.params) or self.gate(value) is not None:
            return None
        return self.base(value)
