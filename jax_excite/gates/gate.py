"""The interface of the kinds of gates, and a gate as it is reached during an evaluation.

Each kind of gate is one file of this folder with one subclass of `Gate`. The subclass defines how
the gate is recognised in a graph, its surrogate derivative, what its temperature means, and its
value in the theory of paths. `kinds.py` lists the classes; the code in `transform/` refers to none
of them by name.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_excite.errors import GatingError
from jax_excite.gates.surrogates import check_broadcasts, compute_dtype
from jax_excite.gating import Gating
from jax_excite.graphs.graph import Node, Operand

if TYPE_CHECKING:
    from jax_excite.gates.reading import Reading

SOFT_ALREADY = "its gradient is soft already"


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """A place where a derivative jumps.

    Attributes:
        kind: the name of its kind, as listed by `sites`.
        node: the node that computes its output.
        z: its pre-activation, or the input of a max-pool.
        form: how it is written.
        obstacle: why it is left hard; empty for a gate that can be softened.
    """

    kind: str
    node: Node
    z: Operand
    form: str
    obstacle: str = ""

    @property
    def is_gate(self) -> bool:
        """Whether it is a gate of a kind that can be softened."""
        return self.obstacle == SOFT_ALREADY

    def is_left(self, gating: Gating, *, named: bool = False) -> bool:
        """Whether a gating leaves it with its own derivative.

        Args:
            gating: the gating.
            named: whether the gating has a temperature for this site alone.
        """
        return False


@dataclasses.dataclass(frozen=True, eq=False)
class Gate(Found, abc.ABC):
    """A gate that was found in a graph; each subclass is one kind of gate.

    Attributes:
        kinds: the names under which `sites` lists it.
        plain_rules: JAX functions whose custom derivative rules are those of the hard gate, so that
            calls of them are entered.
        setting: the field of `Gating` with its temperature; empty if it has none.
        is_calibrated: whether its temperature is in units of the spread of its pre-activation.
        is_activation: whether its output is a function of its pre-activation, entry by entry.
    """

    kinds: ClassVar[tuple[str, ...]]
    plain_rules: ClassVar[tuple[str, ...]] = ()
    setting: ClassVar[str]
    is_calibrated: ClassVar[bool] = True
    is_activation: ClassVar[bool] = False

    @property
    def is_gate(self) -> bool:
        """Always true."""
        return True

    # How it is recognised.

    @classmethod
    @abc.abstractmethod
    def find(cls, reading: "Reading", value: int, node: Node) -> Found | None:
        """The gate whose output is `value`, or None.

        A `Found` that is not a `Gate` stands for an activation that is left as it is.

        Args:
            reading: the reading of the graph.
            value: a float value of the graph.
            node: the node that computes it; its only output is `value`.
        """

    @classmethod
    def is_guard(cls, reading: "Reading", value: int) -> bool:
        """Whether a value looks like a gate of this kind but is not a site at all."""
        return False

    @classmethod
    def refusal(cls, reading: "Reading", node: Node) -> str:
        """Why a node that looks like a gate of this kind is not one; empty for other nodes."""
        return ""

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The operands besides `z` from which it is computed, such as slopes."""
        return ()

    @property
    def sources(self) -> tuple[Operand, ...]:
        """The operands that are no part of it, at which the search for other gates continues."""
        return self.z, *self.operands

    # How it is evaluated.

    def fast(self, inputs: Sequence[jax.Array]) -> jax.Array | None:
        """The node's output by faster means, equal up to rounding; None if there are none."""
        return None

    def inward(self, hard: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The output and the pre-activation in the form for which the derivative is written."""
        return hard, z

    def outward(self, output: jax.Array, hard: jax.Array) -> jax.Array:
        """Convert an output from the form of `inward` to that of the node, shaped like `hard`."""
        return output

    # Its derivative, and what its temperature means.

    def default_temperature(self, gating: Gating) -> ArrayLike | None:
        """The temperature that a gating sets for this kind of gate; None if it leaves it."""
        return getattr(gating, self.setting)

    def is_left(self, gating: Gating, *, named: bool = False) -> bool:
        """See `Found.is_left`."""
        return not named and self.default_temperature(gating) is None

    def temperature_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape to which a temperature must broadcast if the pre-activation has `shape`."""
        return shape

    @abc.abstractmethod
    def soften(self, at: "AtSite", gating: Gating) -> jax.Array:
        """The output, bit for bit, with the derivative of the soft gate."""

    # The theory of paths (paper, sections 2 to 4).

    @abc.abstractmethod
    def value(self, at: "AtSite", gating: Gating) -> tuple[jax.Array, jax.Array | None]:
        """The gate's value, and the share of a constant upper bound in its output, if any."""

    @abc.abstractmethod
    def value_shape(self, at: "AtSite") -> tuple[int, ...]:
        """The shape of the gate's value."""

    @abc.abstractmethod
    def held(self, at: "AtSite", value: jax.Array, stopped: jax.Array | None) -> jax.Array:
        """The output with the gate held at `value`; it is affine in the pre-activation."""


@dataclasses.dataclass(frozen=True)
class AtSite:
    """A gate as it is reached during an evaluation.

    Attributes:
        index: the index of its site.
        name: the name of its site.
        gate: the gate.
        plain: computes its output, with its own derivative.
        hard: its output, without a derivative.
        z: its pre-activation; the input of a max-pool.
        operands: the values of `Gate.operands`.
        given: the value that the caller of `Plan.run` passed for it.
    """

    index: int
    name: str
    gate: Gate
    plain: Callable[[], jax.Array]
    hard: jax.Array
    z: jax.Array
    operands: Sequence[jax.Array] = ()
    given: Any = None

    def soften(self, gating: Gating) -> jax.Array:
        """The output, bit for bit, with the derivative that a gating gives it."""
        return self.plain() if self.is_left(gating) else self.gate.soften(self, gating)

    def is_left(self, gating: Gating) -> bool:
        """Whether a gating leaves the site with its own derivative."""
        return self.gate.is_left(gating, named=bool(self._own_temperature(gating)))

    def _own_temperature(self, gating: Gating) -> list[ArrayLike]:
        """The temperature that a gating sets for this site alone, if it does."""
        given = (gating.site_temperatures.get(name) for name in (self.name, str(self.index)))
        return [temperature for temperature in given if temperature is not None]

    def temperature(self, gating: Gating) -> jax.Array:
        """The temperature that a gating sets for the site.

        Raises:
            GatingError: the temperature does not broadcast to the pre-activation.
        """
        own = self._own_temperature(gating)
        temperature = own[0] if own else self.gate.default_temperature(gating)
        assert temperature is not None, "a gating sets the temperature of what it softens"
        return self.parameter(temperature, self.gate.temperature_shape(self.z.shape))

    def parameter(self, value: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
        """A setting as an array of the dtype in which the gate is computed.

        Raises:
            GatingError: the setting does not broadcast to `shape`.
        """
        array = jnp.asarray(value)
        try:
            check_broadcasts(array, shape)
        except GatingError as error:
            raise GatingError(f"site {self.index} ({self.name}): {error}") from None
        return array.astype(compute_dtype(self.z.dtype))
