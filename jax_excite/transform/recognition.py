"""Recognition: is a value of a graph the output of a gate, and of which pre-activation?"""

import collections
import dataclasses
from typing import Literal, get_args

import numpy as np

from jax_excite.gates.pool_forms import Chains, Pool, pool_of_axes, pool_of_window, shifts_or_scales
from jax_excite.graphs.consumers import Consumers
from jax_excite.graphs.facts import Facts
from jax_excite.graphs.graph import OWN, Constant, Graph, Node, Operand, of_package
from jax_excite.graphs.profiles import SAMPLES, Recognised, has_kink, recognise
from jax_excite.transform.guards import guards_variance

GateKind = Literal["relu", "clipped_relu", "leaky_relu", "max_pool"]
Kind = Literal[
    GateKind,
    "abs",
    "argmax",
    "branch",
    "clamp",
    "cumulative_max",
    "hard_sigmoid",
    "hard_swish",
    "max",
    "min",
    "remainder",
    "round",
    "select",
    "sign",
    "sort",
    "step",
]
GATES: tuple[str, ...] = get_args(GateKind)


@dataclasses.dataclass(eq=False)
class Found:
    """A place where a derivative jumps.

    Attributes:
        kind: what it is.
        node: that computes its output.
        z: its pre-activation, or the input of a max-pool.
        form: how it is written.
        obstacle: why it is left hard; empty for a gate that can be softened.
        bound: the upper bound of a clipped ReLU.
        slope: the derivative of a leaky ReLU below 0.
        negative: it is the negative of a gate of `-z`, as `min(z, 0)` is.
        pool: of a max-pool.
    """

    kind: Kind
    node: Node
    z: Operand
    form: str
    obstacle: str = ""
    bound: float | None = None
    slope: Operand | None = None
    negative: bool = False
    pool: Pool | None = None

    @property
    def is_gate(self) -> bool:
        """Whether it is of a kind that can be softened."""
        return self.kind in GATES


class Recognition:
    """Recognises the gates of a graph, and remembers what it found."""

    def __init__(self, graph: Graph, facts: Facts):
        self._graph = graph
        self._facts = facts
        self._gates: dict[int, Found | None] = {}
        self._chains: dict[Graph, Chains] = {}
        self._consumers: dict[Graph, Consumers] = {}

    def gate(self, value: int) -> Found | None:
        """The gate that a value is the output of, or a hard sigmoid."""
        if value not in self._gates:
            self._gates[value] = self._find_gate(value)
        return self._gates[value]

    def _find_gate(self, value: int) -> Found | None:
        node = self._facts.producers.get(value)
        if node is None or not self._facts.is_float(value):
            return None
        if (name := _own_surrogate(node)) is not None:
            z = node.inputs[node.params["num_consts"] + 1]
            return Found(name, node, z, name, "its gradient is soft already")
        if len(node.outputs) != 1:
            return None
        return self._relu(value, node) or self._max_pool(value, node)

    def _relu(self, value: int, node: Node) -> Found | None:
        views = self._facts.inner_views.get(value) or self._facts.views.get(value, {})
        graph = self._facts.homes[value]
        nearest: Found | None = None
        between: list[str] = []  # gates on the way from a base: of a ReLU only a clip goes on
        own = self._facts.views.get(value, {})
        if any(base != value and view.is_identity() for base, view in own.items()):
            return None  # it passes on what may be a gate
        for base in sorted(views, reverse=True):
            found = recognise(views[base]) if views[base].kinked else Recognised("other")
            clips = found.shape == "clipped_relu" and all(kind == "relu" for kind in between)
            if found.shape == "other" or (between and not clips):
                gate = None if views[base].is_identity() else self.gate(base)
                between += [gate.kind] if gate is not None and gate.is_gate else []
                continue
            if base not in self._facts.views[value]:
                return nearest  # a gate inside of what is called
            z = self._facts.local(base, graph)
            if z is None:
                continue
            gate = self._found_relu(node, z, found)
            if gate is None:
                return nearest  # its slope is known only inside of what is called
            if self._guards_square_root(graph, gate):
                gate = dataclasses.replace(
                    gate, kind="max", obstacle="it keeps a square root from negative numbers"
                )
            if guards_variance(self._facts, node, z):
                continue
            if nearest is None and self.below(base) is None:
                return gate
            # The ReLU of a minimum: both together are a clipped one.
            if nearest is not None and gate.bound is not None:
                clip = self._facts.views[nearest.z].get(base)  # type: ignore[index]
                if clip is not None and np.allclose(clip.samples, np.minimum(SAMPLES, gate.bound)):
                    return gate
            nearest = nearest or gate
        return nearest

    def _found_relu(self, node: Node, z: int, found: Recognised) -> Found | None:
        form = node.params.get("name") or node.function[0] or node.name
        if found.shape == "clipped_relu" and self._is_centred(z, found.bound or 0):
            reason = "a hard sigmoid, as a whole: left with its own derivative"
            return Found("hard_sigmoid", node, z, form, reason)
        if found.shape == "negative_relu":
            return Found("relu", node, z, form, negative=True)
        slope: Operand | None = None
        if found.shape == "leaky_relu":
            slope = self._slope(node, z, found)
            if slope is None:
                return None
        if found.shape in ("relu", "clipped_relu", "leaky_relu"):
            return Found(found.shape, node, z, form, bound=found.bound, slope=slope)
        return None

    def _slope(self, node: Node, z: int, found: Recognised) -> Operand | None:
        if isinstance(found.slope, float):
            return Constant(np.float64(found.slope))
        shape = self._graph.types[z].shape
        number = self._facts.spelled(found.slope, self._facts.homes[node.outputs[0]], shape)
        return number if number is not None else self._constant_of(node, found.slope)

    def _constant_of(self, node: Node, key: int) -> Constant | None:
        """The array that a graph holds as a constant under a symbol's key."""
        for inner in self._facts.homes[node.outputs[0]].nodes:
            for operand in inner.inputs:
                if isinstance(operand, Constant) and id(operand.value) == key:
                    return operand
        return None

    def _max_pool(self, value: int, node: Node) -> Found | None:
        graph = self._facts.homes[value]
        pool = pool_of_window(node)
        if pool is None and node.name == "reduce_max" and not self.shifts(node):
            stacked = self._facts.as_elementwise(node)
            chains = self._chains_of(graph)
            pool = chains.pool_of(stacked[1]) if stacked else pool_of_axes(graph, node)
        if pool is None and node.name == "max":
            pool = self._chains_of(graph).pool(value)
        if pool is None or not self._facts.is_float(pool.x):
            return None
        return Found("max_pool", node, pool.x, pool.form, pool.obstacle, pool=pool)

    def _chains_of(self, graph: Graph) -> Chains:
        if graph not in self._chains:
            self._chains[graph] = Chains(graph, self._facts.producers)
        return self._chains[graph]

    def _consumers_of(self, graph: Graph) -> Consumers:
        if graph not in self._consumers:
            self._consumers[graph] = Consumers(graph)
        return self._consumers[graph]

    def shifts(self, node: Node) -> bool:
        """Whether a maximum over axes shifts or scales what it is the maximum of."""
        if node.name != "reduce_max" or isinstance(node.inputs[0], Constant):
            return False
        sources = {node.inputs[0], *self._facts.views.get(node.inputs[0], {})}
        home = self._facts.homes[node.outputs[0]]
        return shifts_or_scales(node, sources, self._consumers_of(home))

    def _is_centred(self, z: int, bound: float) -> bool:
        """Whether a clipped ReLU is a hard sigmoid: half of its bound was added to its input."""
        node = self._facts.producers.get(z)
        if node is None or node.name not in ("add", "sub"):
            return False
        numbers = [self._facts.constant(operand) for operand in node.inputs]
        offset = next((number for number in numbers if number is not None), 0)
        return bool(bound) and bool(np.isclose(abs(offset), bound / 2, rtol=1e-5))

    def is_guard(self, value: int) -> bool:
        """Whether a value is a variance, kept from falling below 0 by rounding."""
        views = self._facts.views.get(value, {})
        for base in sorted(views, reverse=True):
            if views[base].kinked:
                is_relu = recognise(views[base]).shape == "relu"
                return is_relu and guards_variance(self._facts, self._facts.producers[value], base)
        return False

    def _guards_square_root(self, graph: Graph, gate: Found) -> bool:
        """Whether all that a maximum goes to is a square root, of itself or more."""
        if gate.node.name not in ("max", "clamp") or gate.kind != "relu":
            return False
        consumers = self._consumers_of(graph)
        left = collections.deque(gate.node.outputs)
        roots = 0
        while left:
            for consumer in consumers.of(left.popleft()):
                if consumer is None or consumer.bodies:
                    return False
                if consumer.name in ("sqrt", "rsqrt"):
                    roots += 1
                elif consumer.name in ("add", "broadcast_in_dim", "convert_element_type", "mul"):
                    if sum(o in self._facts.depends for o in consumer.inputs) > 1:
                        return False
                    left += consumer.outputs
                else:
                    return False
        return roots > 0

    def below(self, value: int) -> int | None:
        """The base of a value that is itself a part of an activation, else None."""
        node = self._facts.producers.get(value)
        if node is None or not has_kink(node.name, node.params) or self.gate(value) is not None:
            return None
        return self.base(value)

    def base(self, value: int) -> int | None:
        """The last value that all of a node is an elementwise function of."""
        return max((b for b in self._facts.views.get(value, {}) if b != value), default=None)


def _own_surrogate(node: Node) -> GateKind | None:
    """The kind of gate that is soft already, by a function of this library."""
    own: dict[str, GateKind] = {"soften_relu": "relu", "soften_max_pool": "max_pool"}
    return own.get(node.function[0]) if of_package(node, OWN) else None
