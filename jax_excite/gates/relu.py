"""ReLU, clipped ReLU and leaky ReLU: their gates, and a hard forward with a soft backward pass.

`soften_relu` takes the hard output as it was computed and gives it the soft derivative; `excite`
applies it at every ReLU site of a function. `gated_relu` does the same as a function of `z` alone.
`Relu` is the kind of gate; `relu_forms.py` recognises it by the values that it computes.
"""

import dataclasses
import functools
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_excite.gates.gate import AtSite, Found, Gate
from jax_excite.gates.reading import Reading
from jax_excite.gates.relu_forms import find_relu, is_guard
from jax_excite.gates.surrogates import batched_with, check_broadcasts, marked, parameters
from jax_excite.gating import (
    Cotangents,
    GateName,
    Gating,
    UpperGate,
    check_choice,
    check_temperature,
    gate_values,
    is_zero,
)
from jax_excite.graphs.graph import Node, Operand


def gated_relu(
    z: jax.Array,
    temperature: ArrayLike = 0.3,
    *,
    gate: GateName = "sigmoid",
    slope: ArrayLike = 0.3,
) -> Float[jax.Array, "*Z"]:
    """ReLU whose gradient is multiplied by a soft gate instead of `z > 0` (paper, Listing 1).

    Args:
        z: pre-activation, any shape, any float dtype.
        temperature: at least 0, traced, broadcastable to `z`; 0 is the hard gate, for which
            relu'(0) = 0.
        gate: the name of the gate, as in `Gating`.
        slope: the value of the gate where `z <= 0`, for `gate="leaky"`.

    Returns:
        `jax.nn.relu(z)`, bit for bit; the cotangent of `z` has its shape and dtype.

    Raises:
        GatingError: the temperature is negative or does not broadcast to `z`.
    """
    z = jnp.asarray(z)
    check_temperature(temperature)
    check_choice(gate, get_args(GateName), "gate")
    config = ReluConfig(gate=gate)
    hard = jax.nn.relu(lax.stop_gradient(z))
    return soften_relu(config, hard, z, *parameters(z, temperature, slope))


@dataclasses.dataclass(frozen=True)
class ReluConfig:
    """The static part of a softened ReLU; `bound` is the upper bound of a clipped ReLU."""

    gate: GateName = "sigmoid"
    bound: float | None = None
    upper: UpperGate = "pass"
    cotangents: Cotangents = "all"


def relu_gate(
    config: ReluConfig,
    z: Float[jax.Array, "*Z"],
    temperature: jax.Array,
    slope: jax.Array,
    below: Float[jax.Array, "*Z"] | None = None,
) -> tuple[Float[jax.Array, "*Z"], Float[jax.Array, "*Z"] | None]:
    """The gate of a ReLU at `z`, and for a clipped ReLU the share stopped by its upper bound.

    The arguments are those of `soften_relu`; the results have the shape of `z`.
    """
    gate = gate_values(config.gate, z, temperature, slope)
    if below is not None:
        gate = below + (1 - below) * gate
    if config.bound is None:
        return gate, None
    bound = jnp.asarray(config.bound, z.dtype)
    below = (z < bound).astype(z.dtype)
    if config.gate != "hard" and config.upper == "soft":
        below = gate_values(config.gate, bound - z, temperature, slope)
    elif config.gate != "hard" and config.upper == "pass":
        below = jnp.where(is_zero(temperature), below, jnp.ones_like(below))
    return gate * below, 1 - below


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def soften_relu(
    config: ReluConfig,
    hard: Float[jax.Array, "*Z"],
    z: Float[jax.Array, "*Z"],
    temperature: jax.Array,
    slope: jax.Array,
    below: Float[jax.Array, "*Z"] | None = None,
) -> Float[jax.Array, "*Z"]:
    """`hard`, with the derivative of a ReLU of `z` whose gate is soft.

    `temperature` and `slope` broadcast to `z` and have `compute_dtype(z.dtype)`. `below`, of that
    dtype and the shape of `z`, is the derivative of a leaky ReLU where `z < 0`: its gate is
    `below + (1 - below) * gate`.
    """
    return _checked(hard, z, temperature, slope)


def _checked(hard: jax.Array, z: jax.Array, temperature: jax.Array, slope: jax.Array) -> jax.Array:
    check_broadcasts(temperature, z.shape)
    check_broadcasts(slope, z.shape)
    return marked(batched_with(hard, temperature, slope), "relu")


def _soften_relu_fwd(
    config: ReluConfig,
    hard: jax.Array,
    z: jax.Array,
    temperature: jax.Array,
    slope: jax.Array,
    below: jax.Array | None,
) -> tuple[jax.Array, Any]:
    return _checked(hard, z, temperature, slope), (z, temperature, slope, below)


def _soften_relu_bwd(config: ReluConfig, residuals: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    stored, temperature, slope, below = residuals
    z = stored.astype(temperature.dtype)
    gate, _ = relu_gate(config, z, temperature, slope, below)
    if config.cotangents == "positive":
        cotangent = jnp.maximum(cotangent, 0)
    cotangent = cotangent.astype(z.dtype)
    by_below = None if below is None else cotangent * jnp.minimum(z, 0)
    return None, (cotangent * gate).astype(stored.dtype), None, None, by_below


soften_relu.defvjp(_soften_relu_fwd, _soften_relu_bwd)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Relu(Gate):
    """ReLU, clipped ReLU, and leaky or parametric ReLU.

    Attributes:
        bound: the upper bound of a clipped ReLU.
        slope: the derivative of a leaky ReLU below 0.
        negative: whether it is the negative of a ReLU of `-z`, such as `min(z, 0)`.
    """

    bound: float | None = None
    slope: Operand | None = None
    negative: bool = False
    kinds: ClassVar[tuple[str, ...]] = ("relu", "clipped_relu", "leaky_relu")
    setting: ClassVar[str] = "temperature"
    is_activation: ClassVar[bool] = True
    plain_rules: ClassVar[tuple[str, ...]] = ("relu", "relu6")

    @classmethod
    def find(cls, reading: Reading, value: int, node: Node) -> Found | None:
        """See `Gate.find`; a hard sigmoid is left as it is."""
        found = find_relu(reading, value, node)
        if found is None:
            return None
        form = node.params.get("name") or node.function[0] or node.name
        if found.obstacle:
            return Found(found.shape, node, found.z, form, found.obstacle)
        negative = found.shape == "negative_relu"
        kind = "relu" if negative else found.shape
        return cls(
            kind, node, found.z, form, bound=found.bound, slope=found.slope, negative=negative
        )

    @classmethod
    def is_guard(cls, reading: Reading, value: int) -> bool:
        """Whether a value is a variance that is kept from falling below 0 by rounding."""
        return is_guard(reading, value)

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The slope, if there is one."""
        return () if self.slope is None else (self.slope,)

    def inward(self, hard: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The output and `z` with the signs of a ReLU."""
        return (-hard, -z) if self.negative else (hard, z)

    def outward(self, output: jax.Array, hard: jax.Array) -> jax.Array:
        """The output with the sign of the node's own output."""
        return -output if self.negative else output

    def soften(self, at: AtSite, gating: Gating) -> jax.Array:
        """The output with the derivative of `relu_gate`."""
        return soften_relu(self._config(gating), at.hard, at.z, *self._settings(at, gating))

    def value(self, at: AtSite, gating: Gating) -> tuple[jax.Array, jax.Array | None]:
        """The gate, shaped like `z`, and for a clipped ReLU the share stopped by its bound."""
        temperature, slope, below = self._settings(at, gating)
        z = at.z.astype(temperature.dtype)
        gate, stopped = relu_gate(self._config(gating), z, temperature, slope, below)
        return gate.astype(at.z.dtype), None if stopped is None else stopped.astype(at.z.dtype)

    def value_shape(self, at: AtSite) -> tuple[int, ...]:
        """The shape of the pre-activation."""
        return at.z.shape

    def held(self, at: AtSite, value: jax.Array, stopped: jax.Array | None) -> jax.Array:
        """The gate times the pre-activation, plus what the bound contributes."""
        output = value.astype(at.z.dtype) * at.z
        if self.bound is None or stopped is None:
            return output
        return output + self.bound * stopped.astype(at.z.dtype)

    def _config(self, gating: Gating) -> ReluConfig:
        cotangents = gating.cotangents if self.slope is None else "all"
        return ReluConfig(gating.gate, self.bound, gating.upper, cotangents)

    def _settings(
        self, at: AtSite, gating: Gating
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """The temperature, the slope of a leaky gate, and a leaky ReLU's derivative below 0."""
        temperature = at.temperature(gating)
        below = None
        if self.slope is not None:
            below = jnp.broadcast_to(at.operands[0].astype(temperature.dtype), at.z.shape)
        return temperature, at.parameter(gating.slope, at.z.shape), below
