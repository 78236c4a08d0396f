"""ReLU, clipped ReLU and leaky ReLU: their gates, and a hard forward with a soft backward pass.

`soften_relu` takes the hard output as it was computed and gives it the soft derivative; `excite`
puts it behind every such site of a function. `gated_relu` is the same as a function of `z` alone.
"""

import dataclasses
import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jax_excite.gates.surrogates import batched_with, check_broadcasts, parameters
from jax_excite.gating import (
    Cotangents,
    GateName,
    UpperGate,
    check_choice,
    check_temperature,
    gate_values,
    is_zero,
)


def gated_relu(
    z: jax.Array,
    temperature: ArrayLike = 0.3,
    *,
    gate: GateName = "sigmoid",
    slope: ArrayLike = 0.3,
) -> jax.Array:
    """ReLU whose gradient is multiplied by a soft gate instead of `z > 0` (paper, Listing 1).

    Args:
        z: pre-activation, any shape, any float dtype.
        temperature: >= 0, traced, broadcastable to `z`; 0 is the hard gate, with relu'(0) = 0.
        gate: which gate, as in `Gating`.
        slope: the gate of `z <= 0` for `gate="leaky"`.

    Returns:
        `jax.nn.relu(z)`, bit for bit; the cotangent of `z` has its shape and dtype.

    Raises:
        GatingError: a negative temperature, or one that does not broadcast to `z`.
    """
    z = jnp.asarray(z)
    check_temperature(temperature)
    check_choice(gate, get_args(GateName), "gate")
    config = ReluConfig(gate=gate)
    hard = jax.nn.relu(lax.stop_gradient(z))
    return soften_relu(config, hard, z, *parameters(z, temperature, slope))


@dataclasses.dataclass(frozen=True)
class ReluConfig:
    """The static part of a softened ReLU; `bound` is the upper one of clipped ReLUs."""

    gate: GateName = "sigmoid"
    bound: float | None = None
    upper: UpperGate = "pass"
    cotangents: Cotangents = "all"


def relu_gate(
    config: ReluConfig,
    z: jax.Array,
    temperature: jax.Array,
    slope: jax.Array,
    below: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """The gate of a ReLU at `z`, and of a clipped one the share that its upper bound has stopped.

    Arguments are those of `soften_relu`; the results have the shape of `z`.
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
    hard: jax.Array,
    z: jax.Array,
    temperature: jax.Array,
    slope: jax.Array,
    below: jax.Array | None = None,
) -> jax.Array:
    """`hard`, with the derivative of a ReLU of `z` whose gate is soft.

    `temperature` and `slope` broadcast to `z` and have `compute_dtype(z.dtype)`. `below`, of that
    dtype and the shape of `z`, is the derivative of a leaky ReLU where `z < 0`: its gate is
    `below + (1 - below) * gate`.
    """
    return _checked(hard, z, temperature, slope)


def _checked(hard: jax.Array, z: jax.Array, temperature: jax.Array, slope: jax.Array) -> jax.Array:
    check_broadcasts(temperature, z.shape)
    check_broadcasts(slope, z.shape)
    return batched_with(hard, temperature, slope)


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
