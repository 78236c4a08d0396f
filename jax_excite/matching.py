"""Finding the hard gates in a graph: every way to write ReLU, clipped ReLU and max-pooling."""

import dataclasses
from typing import Literal, TypeGuard

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_excite.graph import Constant, Graph, Node, Operand, can_enter, passed_on

GateKind = Literal["relu", "clipped_relu", "max_pool"]

# What a constant passes through and stays the same number everywhere.
_SPREADS = (
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "pcast",
    "pvary",
    "reshape",
    "reshard",
    "sharding_constraint",
    "squeeze",
    "stop_gradient",
    "transpose",
)
# Constants of more entries than this are taken for weights and not looked into.
_LARGEST_CONSTANT = 1 << 16
# Functions whose own derivative rules are those of the hard gates.
_PLAIN_RULES = ("relu", "relu6")
# Comparison with zero -> whether it holds on the positive side, for `z ? 0` and for `0 ? z`.
_COMPARISONS = {"gt": (True, False), "ge": (True, False), "lt": (False, True), "le": (False, True)}


@dataclasses.dataclass(eq=False)
class HardGate:
    """A hard gate of a graph, which `excite` can soften unless `obstacle` says why not."""

    kind: GateKind
    node: Node
    z: int
    form: str
    obstacle: str = ""


@dataclasses.dataclass(frozen=True)
class Softening:
    """What to do at a node that computes a gate's output: soften it as a function of `z`."""

    gate: HardGate
    z: int  # the gate's own, or what it stands for outside of a call
    bound: float | None = None


@dataclasses.dataclass(frozen=True)
class Matches:
    """The gates of a graph, in the order in which they run, and the nodes they sit on."""

    gates: list[HardGate]
    softenings: dict[Node, Softening]


def find_gates(graph: Graph) -> Matches:
    """Find every ReLU, clipped ReLU and max-pool of a graph and of its nested bodies.

    A maximum of two computed values is no gate and is not found.
    """
    matches = Matches([], {})
    _Matcher(graph, matches, softened=frozenset()).run()
    return matches


class _Matcher:
    """One pass over the nodes of one graph, which remembers what its values are."""

    def __init__(self, graph: Graph, matches: Matches, softened: frozenset[Operand]):
        self.graph = graph
        self.matches = matches
        self.constants: dict[Operand, float] = {}
        self.comparisons: dict[Operand, tuple[int, bool]] = {}  # z, holds where z > 0
        self.masks: dict[Operand, int] = {}  # z > 0 as a number -> z
        self.clipped: dict[Operand, tuple[int, float]] = {}  # min(z, bound) -> z, bound
        self.relus: dict[Operand, tuple[HardGate, int]] = {}  # relu(z) -> its gate, z
        self.softened = softened | {
            node.inputs[0] for node in graph.nodes if node.function_name.startswith("soften_")
        }

    def run(self) -> None:
        for node in self.graph.nodes:
            if node.bodies:
                self._nested(node)
            elif match := getattr(self, f"_on_{node.name}", None):
                match(node)
            elif node.name in _SPREADS:
                self._spread(node)

    def _constant(self, operand: Operand) -> float | None:
        """The number that an operand holds in every entry, if that is known."""
        if not isinstance(operand, Constant):
            return self.constants.get(operand)
        value = operand.value
        if isinstance(value, Tracer) or not 0 < np.size(value) <= _LARGEST_CONSTANT:
            return None
        if not jnp.issubdtype(jnp.result_type(value), np.number):
            return None
        entries = np.unique(np.asarray(value))
        return float(entries[0]) if entries.size == 1 else None

    def _is_float(self, operand: Operand) -> TypeGuard[int]:
        return not isinstance(operand, Constant) and jnp.issubdtype(
            self.graph.types[operand].dtype, jnp.floating
        )

    def _gate(
        self, kind: GateKind, node: Node, z: int, form: str, bound: float | None = None
    ) -> None:
        gate = HardGate(kind, node, z, form)
        if node.outputs[0] in self.softened:
            gate.obstacle = "its gradient is soft already"
        self.matches.gates.append(gate)
        self.matches.softenings[node] = Softening(gate, z, bound)
        if bound is None:
            self.relus[node.outputs[0]] = gate, z

    def _with_constant(self, node: Node) -> tuple[int, float] | None:
        """The computed float operand and the constant one of a node with one of each."""
        a, b = node.inputs
        for operand, other in ((a, b), (b, a)):
            constant = self._constant(other)
            if constant is not None and self._constant(operand) is None:
                return (operand, constant) if self._is_float(operand) else None
        return None

    def _on_max(self, node: Node) -> None:
        match self._with_constant(node):
            case (operand, 0.0) if operand in self.clipped:
                z, bound = self.clipped[operand]
                self._gate("clipped_relu", node, z, f"max(min(z, {bound:g}), 0)", bound)
            case (z, 0.0):
                self._gate("relu", node, z, "max(z, 0)")

    def _on_min(self, node: Node) -> None:
        match self._with_constant(node):
            case (operand, bound) if bound > 0 and np.isfinite(bound):
                if operand in self.relus:
                    gate, z = self.relus[operand]
                    gate.kind, gate.form = "clipped_relu", f"min({gate.form}, {bound:g})"
                    self.matches.softenings[node] = Softening(gate, z, bound)
                else:
                    self.clipped[node.outputs[0]] = operand, bound

    def _on_clamp(self, node: Node) -> None:
        low, z, high = node.inputs
        bound = self._constant(high)
        if self._constant(low) != 0 or bound is None or bound <= 0 or not self._is_float(z):
            return
        if np.isfinite(bound):
            self._gate("clipped_relu", node, z, f"clamp(0, z, {bound:g})", bound)
        else:
            self._gate("relu", node, z, "clamp(0, z, inf)")

    def _compare(self, node: Node) -> None:
        a, b = node.inputs
        left, right = _COMPARISONS[node.name]
        if self._constant(b) == 0 and self._is_float(a):
            self.comparisons[node.outputs[0]] = a, left
        elif self._constant(a) == 0 and self._is_float(b):
            self.comparisons[node.outputs[0]] = b, right

    _on_gt = _on_ge = _on_lt = _on_le = _compare

    def _on_not(self, node: Node) -> None:
        if node.inputs[0] in self.comparisons:
            z, positive = self.comparisons[node.inputs[0]]
            self.comparisons[node.outputs[0]] = z, not positive

    def _on_select_n(self, node: Node) -> None:
        if node.inputs[0] not in self.comparisons:
            return
        z, positive = self.comparisons[node.inputs[0]]
        below, above = node.inputs[1:] if positive else reversed(node.inputs[1:])
        if above == z and self._constant(below) == 0:
            self._gate("relu", node, z, "where(z > 0, z, 0)")

    def _on_mul(self, node: Node) -> None:
        a, b = node.inputs
        for operand, mask in ((a, b), (b, a)):
            if mask in self.masks and self.masks[mask] == operand:
                self._gate("relu", node, self.masks[mask], "z * (z > 0)")
                return

    def _on_reduce_window_max(self, node: Node) -> None:
        if not self._is_float(node.inputs[0]):
            return
        self._gate("max_pool", node, node.inputs[0], "reduce_window(max)")
        if any(d != 1 for d in node.params["base_dilation"]):
            self.matches.gates[-1].obstacle = "its input is dilated, which no pooling layer does"

    def _spread(self, node: Node) -> None:
        operand, output = node.inputs[0], node.outputs[0]
        constant = self._constant(operand)
        if constant is not None:
            self.constants[output] = constant
        elif node.name == "convert_element_type" and operand in self.comparisons:
            z, positive = self.comparisons[operand]
            if positive:
                self.masks[output] = z

    def _nested(self, node: Node) -> None:
        softened = frozenset()
        if node.has_derivative_rule and self.softened & set(node.outputs):
            softened = frozenset(node.bodies[0].outputs)
        first = len(self.matches.gates)
        for body, operands in zip(node.bodies, passed_on(node), strict=True):
            matcher = _Matcher(body, self.matches, softened)
            for operand, number in zip(operands, body.inputs, strict=True):
                constant = None if operand is None else self._constant(operand)
                if constant is not None:
                    matcher.constants[number] = constant
            matcher.run()
            if node.has_derivative_rule:
                self._relus_of(node, body, matcher)
        for gate in self.matches.gates[first:]:
            if node.has_derivative_rule and node.function_name not in _PLAIN_RULES:
                gate.form += f", instead of the derivative rule of `{node.function_name}`"
            if not can_enter(node):
                gate.obstacle = f"it is inside `{node.name}`, which excite does not enter"

    def _relus_of(self, node: Node, body: Graph, inner: "_Matcher") -> None:
        """ReLUs of its inputs that a call returns, such as `jax.nn.relu`, clipped afterwards."""
        for output, result in zip(node.outputs, body.outputs, strict=True):
            if result in inner.relus and inner.relus[result][1] in body.inputs:
                gate, z = inner.relus[result]
                given = node.inputs[body.inputs.index(z)]
                if self._is_float(given):
                    self.relus[output] = gate, given
