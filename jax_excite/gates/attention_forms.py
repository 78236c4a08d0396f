"""Recognition of attention in a graph: `softmax(logits) v`, with logits from queries and keys."""

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence

import jax
import jax.numpy as jnp

from jax_excite.gates.reading import Reading
from jax_excite.graphs.facts import Facts
from jax_excite.graphs.graph import ARRANGES, Constant, Graph, Node, Operand
from jax_excite.graphs.parts import Part

# Primitives that leave a value what it is, but for its arrangement.
_PASSES = (*ARRANGES, "optimization_barrier")
# Primitives that are affine in the operands that depend on the input, if a product has one of them.
_AFFINE = (
    *_PASSES,
    "add",
    "concatenate",
    "dynamic_slice",
    "gather",
    "neg",
    "pad",
    "rev",
    "slice",
    "split",
    "sub",
)
_PRODUCTS = ("conv_general_dilated", "dot_general")


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """How queries, or keys, follow from the product that projects their input.

    Attributes:
        part: the affine nodes between; None if there is no such product in the graph.
        shape: the shape and the dtype of the product.
    """

    part: Part | None = None
    shape: jax.ShapeDtypeStruct | None = None

    @property
    def others(self) -> tuple[int, ...]:
        """The other values that its nodes use."""
        return () if self.part is None else self.part.others

    def at_zero(self, others: Sequence[jax.Array]) -> jax.Array | float:
        """What queries or keys are if their input is 0: their bias, in any arrangement."""
        if self.part is None or self.shape is None:
            return 0.0
        return self.part([jnp.zeros(self.shape.shape, self.shape.dtype)], others)


@dataclasses.dataclass(frozen=True, eq=False)
class Attended:
    """Attention: a product of weights, which are a softmax of logits, with values.

    Attributes:
        query: the queries.
        key: the keys.
        value: the values.
        logits: the operand of the softmax.
        axis: the axis of the softmax.
        weights: the result of the softmax.
        operand: which operand of the product the weights are, 0 or 1.
        of_scores: the nodes from the queries and keys to the weights.
        of_weights: the nodes from the weights to that operand.
        projections: those of the queries and of the keys.
    """

    query: Operand
    key: Operand
    value: Operand
    logits: int
    axis: int
    weights: int
    operand: int
    of_scores: Part
    of_weights: Part
    projections: tuple[Projection, Projection]


@dataclasses.dataclass(frozen=True)
class Broken:
    """A product of a softmax and of values that is no attention of queries and keys."""

    logits: int
    reason: str


@dataclasses.dataclass(frozen=True)
class _Softmax:
    logits: int
    axis: int
    weights: int


def find_attention(reading: Reading, node: Node) -> Attended | Broken | None:
    """The attention whose output a node computes, or why a softmax times values is none, or None.

    Args:
        reading: the reading of the graph.
        node: a node.
    """
    facts = reading.facts
    if node.name != "dot_general":
        return None
    home = facts.homes[node.outputs[0]]
    search = _Search(facts, home)
    for place in (0, 1):
        softmax = search.softmax(node, place)
        if softmax is not None:
            return search.attention(node, place, softmax)
    return None


class _Search:
    """Looks for the parts of attention in one graph."""

    def __init__(self, facts: Facts, graph: Graph):
        self._facts = facts
        self._graph = graph

    def _producer(self, operand: Operand) -> Node | None:
        if isinstance(operand, Constant) or self._facts.homes[operand] is not self._graph:
            return None
        return self._facts.producers.get(operand)

    def _on_input(self, node: Node) -> list[int]:
        return [o for o in node.inputs if isinstance(o, int) and o in self._facts.depends]

    # Softmax, as exponentials divided by their sum.

    def softmax(self, node: Node, place: int) -> _Softmax | None:
        """The softmax of which an operand of a product is an arrangement, over the summed axis."""
        (contracted, _) = node.params["dimension_numbers"]
        if len(contracted[place]) != 1:
            return None
        axis: int | None = contracted[place][0]
        operand = node.inputs[place]
        step = self._producer(operand)
        while step is not None and step.name in _PASSES and axis is not None:
            axis = self._axis_before(step, axis)
            operand = step.inputs[0]
            step = self._producer(operand)
        if step is None or axis is None or step.name != "div":
            return None
        return self._of_division(step, axis)

    def _of_division(self, division: Node, axis: int) -> _Softmax | None:
        exponentials, total = division.inputs
        step = self._producer(total)
        while step is not None and step.name in (*_PASSES, "add", "max"):
            total = next(filter(self._producer, step.inputs), step.inputs[0])
            step = self._producer(total)
        if step is None or step.name != "reduce_sum" or step.inputs[0] != exponentials:
            return None
        if tuple(step.params["axes"]) != (axis,):
            return None
        step = self._producer(exponentials)
        if step is not None and step.name == "select_n":  # jax.nn.softmax with `where`
            step = next(
                (s for s in map(self._producer, step.inputs) if s and s.name == "exp"), None
            )
        if step is None or step.name != "exp":
            return None
        logits = step.inputs[0]
        shift = self._producer(logits)
        if shift is not None and shift.name == "sub" and self._is_maximum(shift.inputs[1]):
            logits = shift.inputs[0]
        if not isinstance(logits, int):
            return None
        return _Softmax(logits, axis, division.outputs[0])

    def _is_maximum(self, operand: Operand) -> bool:
        step = self._producer(operand)
        while step is not None and step.name in (*_PASSES, "max", "stop_gradient", "select_n"):
            inner = [o for o in step.inputs if self._producer(o) is not None]
            step = self._producer(inner[-1]) if inner else None
        return step is not None and step.name == "reduce_max"

    def _axis_before(self, node: Node, axis: int) -> int | None:
        """The axis of a node's operand that becomes an axis of its output, or None."""
        before, after = (self._facts.shape(o) for o in (node.inputs[0], node.outputs[0]))
        if node.name == "transpose":
            return int(node.params["permutation"][axis])
        if node.name == "broadcast_in_dim":
            places = [int(d) for d in node.params["broadcast_dimensions"]]
            return places.index(axis) if axis in places else None
        if before == after:
            return axis
        ahead = math.prod(after[:axis])
        fits = (
            place
            for place, size in enumerate(before)
            if size == after[axis] and math.prod(before[:place]) == ahead
        )
        return next(fits, None)

    # Queries and keys.

    def attention(self, node: Node, place: int, softmax: _Softmax) -> Attended | Broken:
        """The attention that a product of a softmax is, or why it is none."""
        scores = self._scores(softmax.logits)
        if isinstance(scores, str):
            return Broken(softmax.logits, scores)
        query, key = scores.inputs
        operand, value = node.inputs[place], node.inputs[1 - place]
        return Attended(
            query,
            key,
            value,
            softmax.logits,
            softmax.axis,
            softmax.weights,
            place,
            Part.between(self._graph, [query, key], softmax.weights),
            Part.between(self._graph, [softmax.weights], operand),  # type: ignore[arg-type]
            (self._projection(query), self._projection(key)),
        )

    def _scores(self, logits: int) -> Node | str:
        """The product of queries and keys from which logits are computed, or why there is none."""
        found: set[Node] = set()
        for node in self._before(logits, _PRODUCTS):
            if node is None or node.name in ("conv_general_dilated", "reduce_sum", "reduce_max"):
                return "its logits are no product of queries and keys"
            if node.name in _PRODUCTS:
                found.add(node)
        if len(found) != 1:
            return "its logits are not one product of queries and keys"
        return found.pop()

    def _projection(self, operand: Operand) -> Projection:
        """The nodes from the product that projects an input, if they are affine."""
        source: int | None = None
        for node in self._before(operand, _PRODUCTS):
            if node is None:
                return Projection()
            if node.name in _PRODUCTS and source is None:
                (source,) = node.outputs
            elif node.name in _PRODUCTS or not self._is_affine(node):
                return Projection()
        if source is None or isinstance(operand, Constant):
            return Projection()
        kind = self._graph.types[source]
        part = Part.between(self._graph, [source], operand)
        return Projection(part, jax.ShapeDtypeStruct(kind.shape, kind.dtype))

    def _is_affine(self, node: Node) -> bool:
        """Whether a node is affine in what depends on the input."""
        if node.name in ("mul", "div"):
            on_input = self._on_input(node)
            return len(on_input) < 2 and (node.name == "mul" or node.inputs[1] not in on_input)
        return node.name in _AFFINE

    def _before(self, operand: Operand, until: Collection[str]) -> Iterator[Node | None]:
        """The nodes that compute an operand, back to those of some names; None for an input.

        Operands that do not depend on the input are followed only where none does, and inputs of
        the graph count only where they depend on the input.
        """
        seen: set[Operand] = set()
        left = [operand]
        while left:
            one = left.pop()
            if one in seen:
                continue
            seen.add(one)
            node = self._producer(one)
            if node is not None:
                yield node
                if node.name not in until:
                    left += self._on_input(node) or node.inputs
            elif one in self._facts.depends:
                yield None
