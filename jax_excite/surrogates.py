"""Surrogate gradients: a hard forward pass with a soft backward pass, as `jax.custom_vjp`.

`soften_relu` and `soften_max_pool` take the hard output as it was computed and give it the soft
derivative; `excite` puts them behind every site of a function. `gated_relu` and
`surrogate_max_pool` are the same as functions of the input alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jax_excite.errors import GatingError
from jax_excite.gating import (
    Cotangents,
    GateName,
    PoolPadding,
    PoolWeights,
    UpperGate,
    check_choice,
    check_temperature,
    gate_values,
    is_zero,
)
from jax_excite.windows import (
    PoolConfig,
    Window,
    cell_weights,
    is_whole,
    max_pool,
    pooled_once,
    whole_weights,
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
    return soften_relu(config, hard, z, *_parameters(z, temperature, slope))


def surrogate_max_pool(
    x: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    *,
    temperature: ArrayLike = 0.3,
    dilation: Sequence[int] | None = None,
    weights: PoolWeights = "through",
    pool_padding: PoolPadding = "zero",
) -> jax.Array:
    """Max-pooling with the gradient of softmax-pooling (paper, section 5.3 and Listing 2).

    Args:
        x: `[H, W, C]` or `[N, H, W, C]`, any float dtype; other numbers of spatial axes work too.
        window_shape: size of the window along each spatial axis.
        strides: steps of the window; 1 along each axis by default, as in `flax.nnx.max_pool`.
        padding: `VALID`, `SAME` or a (low, high) pair for each spatial axis.
        temperature: >= 0, traced; a scalar, or an array that broadcasts to `x` with extent 1 along
            the spatial axes. 0 is the hard pool: the first largest cell takes the gradient.
        dilation: distance between the cells of a window.
        weights: differentiate the softmax weights (`through`) or hold them constant (`detached`).
        pool_padding: padding cells take part in the softmax as zeros (`zero`) or not (`-inf`).

    Returns:
        The hard max-pool of `x`, bit for bit; the cotangent of `x` has its shape and dtype.

    Raises:
        GatingError: a negative temperature, one of the wrong shape, or a window that does not fit.
    """
    x = jnp.asarray(x)
    check_temperature(temperature)
    check_choice(weights, get_args(PoolWeights), "weights")
    check_choice(pool_padding, get_args(PoolPadding), "pool_padding")
    rank = len(window_shape)
    if x.ndim not in (rank + 1, rank + 2):
        raise GatingError(
            f"x has shape {x.shape}; a window of {rank} axes wants {rank} spatial axes, "
            "channels last, and at most one batch axis"
        )
    ones = (1,) * rank
    lead = (1,) * (x.ndim - rank - 1)

    def whole(sizes: Sequence[int] | None) -> tuple[int, ...]:
        return (*lead, *(ones if sizes is None else sizes), 1)

    dimensions, steps, gaps = whole(window_shape), whole(strides), whole(dilation)
    if isinstance(padding, str):
        extents = [(d - 1) * gap + 1 for d, gap in zip(dimensions, gaps, strict=True)]
        pads = lax.padtype_to_pads(x.shape, extents, steps, padding)
    else:
        pads = [*((0, 0) for _ in lead), *padding, (0, 0)]
    window = Window(dimensions, steps, tuple((int(lo), int(hi)) for lo, hi in pads), gaps)
    config = PoolConfig(window, weights, pool_padding)
    hard = max_pool(window, lax.stop_gradient(x))
    return soften_max_pool(config, hard, x, *_parameters(x, temperature))


def _parameters(z: jax.Array, *values: ArrayLike) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(value).astype(compute_dtype(z.dtype)) for value in values)


def compute_dtype(dtype: Any) -> Any:
    """The dtype that gates are computed in: at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _batched_with(hard: jax.Array, *parameters: jax.Array) -> jax.Array:
    """`hard`, as an output that depends on the parameters.

    Without that, `vmap` over temperatures takes the output for one that all temperatures share,
    and sums their cotangents before the backward pass sees them.
    """
    for parameter in parameters:
        known = jnp.broadcast_to(parameter >= 0, hard.shape)
        hard = lax.select(known, hard, hard)
    return hard


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
    return _batched_with(hard, temperature, slope)


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


def check_broadcasts(temperature: jax.Array, shape: tuple[int, ...]) -> None:
    """Raise `GatingError` unless a temperature broadcasts to the pre-activation's shape."""
    try:
        fits = np.broadcast_shapes(temperature.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise GatingError(
            f"a temperature of shape {temperature.shape} does not broadcast to its site's "
            f"shape {shape}"
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def soften_max_pool(
    config: PoolConfig, hard: jax.Array, x: jax.Array, temperature: jax.Array
) -> jax.Array:
    """`hard`, with the derivative of softmax-pooling of `x`.

    `temperature` has `compute_dtype(x.dtype)` and extent 1 along the pooled axes.
    """
    check_broadcasts(temperature, pooled_once(config.window, x.shape))
    return _batched_with(hard, temperature)


def _soften_max_pool_fwd(
    config: PoolConfig, hard: jax.Array, x: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, Any]:
    return soften_max_pool(config, hard, x, temperature), (hard, x, temperature)


def _soften_max_pool_bwd(
    config: PoolConfig, residuals: Any, cotangent: jax.Array
) -> tuple[Any, ...]:
    hard, stored, temperature = residuals
    x = stored.astype(temperature.dtype)
    g = cotangent.astype(x.dtype)
    hard = hard.astype(x.dtype)
    if is_whole(config.window, x.shape):
        gradient = g * whole_weights(config, hard, x, temperature)
    else:
        cells, weight = cell_weights(config, hard, x, temperature)
        gradient = cells.scatter(lambda k: g * weight(k))
    return None, gradient.astype(stored.dtype), None


soften_max_pool.defvjp(_soften_max_pool_fwd, _soften_max_pool_bwd)
