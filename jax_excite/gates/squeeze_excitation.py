"""Squeeze-and-excitation: a map times a gate that is computed from its own means.

The gates of a map, one per channel, are a sigmoid or a hard sigmoid of a function of the means of
the map over its places (Hu et al., 2018, arXiv 1709.01507). The published recipes leave their
derivative; `Gating(squeeze_excitation="constant")` holds them constant in the backward pass, as the
gate of a ReLU is.
"""

import dataclasses
from typing import ClassVar

import jax
from jax import lax

from jax_excite.gates.gate import AtSite, Found, Gate
from jax_excite.gates.reading import Reading
from jax_excite.gates.surrogates import with_derivative_of
from jax_excite.gating import Gating
from jax_excite.graphs.facts import Facts
from jax_excite.graphs.graph import ARRANGES, Constant, Graph, Node, Operand, is_call
from jax_excite.graphs.profiles import name_of_whole


@dataclasses.dataclass(frozen=True)
class _Held:
    """The map times constant gates."""

    kind: ClassVar[str] = "squeeze_excitation"

    def __call__(self, z: jax.Array, gates: jax.Array) -> jax.Array:
        """The product."""
        return z * lax.stop_gradient(gates)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SqueezeExcitation(Gate):
    """A map times gates of its channels that are computed from its means.

    Attributes:
        gates: the gates; repeated over the places of the map, or with axes of length 1 for them.
    """

    gates: Operand
    kinds: ClassVar[tuple[str, ...]] = ("squeeze_excitation",)
    setting: ClassVar[str] = ""
    is_calibrated: ClassVar[bool] = False

    @classmethod
    def find(cls, reading: Reading, value: int, node: Node) -> Found | None:
        """See `Gate.find`."""
        if node.name != "mul":
            return None
        search = _Search(reading.facts, reading.facts.homes[value])
        for z, gates in (node.inputs, node.inputs[::-1]):
            if search.computes(gates, z):
                return cls("squeeze_excitation", node, z, "z * gate(mean(z))", gates=gates)
        return None

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The gates, in the shape of the map."""
        return (self.gates,)

    def is_left(self, gating: Gating, *, named: bool = False) -> bool:
        """Whether the gating leaves the gates their own derivative."""
        return gating.squeeze_excitation == "own"

    def soften(self, at: AtSite, gating: Gating) -> jax.Array:
        """The output with the derivative for constant gates."""
        return with_derivative_of(_Held(), at.hard, at.z, *at.operands)

    def value(self, at: AtSite, gating: Gating) -> tuple[jax.Array, jax.Array | None]:
        """The gates."""
        return at.operands[0], None

    def value_shape(self, at: AtSite) -> tuple[int, ...]:
        """The shape of the gates."""
        return at.operands[0].shape

    def held(self, at: AtSite, value: jax.Array, stopped: jax.Array | None) -> jax.Array:
        """The map times the given gates."""
        return at.z * value


class _Search:
    """Searches a graph for the means from which gates are computed."""

    def __init__(self, facts: Facts, graph: Graph):
        self._facts = facts
        self._graph = graph

    def computes(self, gates: Operand, z: Operand) -> bool:
        """Whether operands are gates of `z`, spread out over its places."""
        if isinstance(z, Constant) or not {z, gates} <= self._facts.depends:
            return False
        small = self._arranged(gates)
        return small is not None and self._is_gate(small) and self._is_of_means(small, z)

    def _is_gate(self, value: int) -> bool:
        """Whether a value is a sigmoid or a hard sigmoid."""
        node = self._facts.producer(value, within=self._graph)
        if node is not None and node.name == "logistic":
            return True
        profiles = self._facts.views.get(value, {}).values()
        return any(name_of_whole(profile) == "hard_sigmoid" for profile in profiles)

    def _is_of_means(self, value: int, z: int) -> bool:
        """Whether a value depends on the input through sums or maxima of `z` over axes only."""
        start = self._arranged(z)
        left, seen = [value], {value}
        reaches = False
        while left:
            node = self._facts.producers.get(left.pop())
            if node is None or self._facts.homes[node.outputs[0]] is not self._graph:
                return False
            for operand in self._facts.depends.intersection(node.inputs):
                if operand == z or self._arranged(operand) == start:
                    if not self._reduces(node):
                        return False
                    reaches = True
                elif operand not in seen:
                    seen.add(operand)
                    left.append(operand)
        return reaches

    def _reduces(self, node: Node) -> bool:
        """Whether a node, or one in the call that it is, sums or takes maxima over axes."""
        if is_call(node):
            return any(map(self._reduces, node.bodies[0].nodes))
        return node.name in ("reduce_sum", "reduce_max")

    def _arranged(self, operand: Operand) -> int | None:
        """The value of the same graph of which this is an arrangement, or a repetition."""
        while not isinstance(operand, Constant):
            node = self._facts.producers.get(operand)
            if node is None or node.name not in ARRANGES:
                return operand
            operand = node.inputs[0]
        return None
