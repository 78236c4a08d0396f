"""Surrogate gradients: a hard forward pass with a soft backward pass, as `jax.custom_vjp`.

`soften_relu` and `soften_max_pool` take the hard output as it was computed and give it the soft
derivative; `excite` puts them behind every site of a function. `gated_relu` and
`surrogate_max_pool` are the same as functions of the input alone.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jax_excite.errors import GatingError
from jax_excite.gating import (
    GateName,
    PoolPadding,
    PoolWeights,
    UpperGate,
    check_choice,
    check_temperature,
    gate_values,
    is_zero,
)

# Beyond this many cells in a window the backward pass loops instead of being written out.
_UNROLLED_CELLS = 64


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
    hard = lax.reduce_window(
        lax.stop_gradient(x),
        np.array(-np.inf, x.dtype),
        lax.max,
        window.dimensions,
        window.strides,
        window.padding,
        window_dilation=window.dilation,
    )
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def soften_relu(
    config: ReluConfig, hard: jax.Array, z: jax.Array, temperature: jax.Array, slope: jax.Array
) -> jax.Array:
    """`hard`, with the derivative of a ReLU of `z` whose gate is soft.

    `temperature` and `slope` broadcast to `z` and have `compute_dtype(z.dtype)`.
    """
    check_broadcasts(temperature, z.shape)
    check_broadcasts(slope, z.shape)
    return _batched_with(hard, temperature, slope)


def _soften_relu_fwd(
    config: ReluConfig, hard: jax.Array, z: jax.Array, temperature: jax.Array, slope: jax.Array
) -> tuple[jax.Array, Any]:
    return soften_relu(config, hard, z, temperature, slope), (z, temperature, slope)


def _soften_relu_bwd(config: ReluConfig, residuals: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    stored, temperature, slope = residuals
    z = stored.astype(temperature.dtype)
    gate = gate_values(config.gate, z, temperature, slope)
    if config.bound is not None:
        bound = jnp.asarray(config.bound, z.dtype)
        below = (z < bound).astype(z.dtype)
        if config.gate == "hard" or config.upper == "hard":
            gate = gate * below
        elif config.upper == "soft":
            gate = gate * gate_values(config.gate, bound - z, temperature, slope)
        else:
            gate = jnp.where(is_zero(temperature), gate * below, gate)
    product = cotangent.astype(z.dtype) * gate
    return None, product.astype(stored.dtype), None, None


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


@dataclasses.dataclass(frozen=True)
class Window:
    """A pooling window, one entry for each axis of the input, batch and channels included."""

    dimensions: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """The static part of a softened max-pool."""

    window: Window
    weights: PoolWeights = "through"
    padding: PoolPadding = "zero"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def soften_max_pool(
    config: PoolConfig, hard: jax.Array, x: jax.Array, temperature: jax.Array
) -> jax.Array:
    """`hard`, with the derivative of softmax-pooling of `x`.

    `temperature` has `compute_dtype(x.dtype)` and extent 1 along the pooled axes.
    """
    pooled_once = tuple(
        extent if d == 1 else 1 for extent, d in zip(x.shape, config.window.dimensions, strict=True)
    )
    check_broadcasts(temperature, pooled_once)
    return _batched_with(hard, temperature)


def _soften_max_pool_fwd(
    config: PoolConfig, hard: jax.Array, x: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, Any]:
    return soften_max_pool(config, hard, x, temperature), (hard, x, temperature)


def _soften_max_pool_bwd(
    config: PoolConfig, residuals: Any, cotangent: jax.Array
) -> tuple[Any, ...]:
    """The derivative of `sum_k w_k x_k`, `w = softmax(x / T)`, over the cells k of each window.

    `w_k * (1 + (x_k - pooled) / T)` with the softmax weights differentiated, `w_k` without;
    at T = 0 the indicator of the first largest cell.
    """
    stored_hard, stored, temperature = residuals
    x = stored.astype(temperature.dtype)
    hard = stored_hard.astype(x.dtype)
    g = cotangent.astype(x.dtype)
    cells = _Cells(config.window, x.shape, hard.shape)
    padded = lax.pad(x, jnp.zeros((), x.dtype), cells.pads)
    zero = is_zero(temperature)
    divisor = jnp.where(zero, jnp.ones_like(temperature), temperature)

    # A common shift of each window's softmax: its largest participant.
    shift = hard
    if cells.any_padding is not None and config.padding == "zero":
        shift = jnp.where(cells.any_padding, jnp.maximum(hard, 0), hard)

    def participant(k: Any) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        x_k = cells.take(padded, k)
        inside = cells.inside(k)
        e_k = jnp.exp((x_k - shift) / divisor)
        if inside is not None and config.padding == "-inf":
            e_k = jnp.where(inside, e_k, jnp.zeros_like(e_k))
        return x_k, e_k, inside

    def accumulate(k: Any, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        total, weighted, largest, best = sums
        x_k, e_k, inside = participant(k)
        first = (x_k > best) | (largest == cells.count)
        if inside is not None:
            first = first & inside
        largest, best = jnp.where(first, k, largest), jnp.where(first, x_k, best)
        return total + e_k, weighted + e_k * x_k, largest, best

    nothing = jnp.zeros_like(hard)
    unknown = jnp.full(hard.shape, cells.count, jnp.int32)
    total, weighted, largest, _ = cells.loop(accumulate, (nothing, nothing, unknown, nothing))
    pooled = weighted / total

    def scatter(k: Any, gradient: jax.Array) -> jax.Array:
        x_k, e_k, _ = participant(k)
        soft = e_k / total
        if config.weights == "through":
            soft = soft * (1 + (x_k - pooled) / divisor)
        weight = jnp.where(zero, (largest == k).astype(soft.dtype), soft)
        return cells.put(gradient, k, g * weight)

    # Last cell first: an input cell then sums its windows in the order in which XLA does.
    gradient = cells.loop(scatter, jnp.zeros_like(padded), reverse=True)
    unpad = [(-low, -high, 0) for low, high, _ in cells.pads]
    gradient = lax.pad(gradient, jnp.zeros((), x.dtype), unpad)
    return None, gradient.astype(stored.dtype), None


soften_max_pool.defvjp(_soften_max_pool_fwd, _soften_max_pool_bwd)


class _Cells:
    """The cells of a pooling window: for cell k, a strided slice of the padded input."""

    def __init__(self, window: Window, shape: tuple[int, ...], pooled: tuple[int, ...]):
        self.strides = window.strides
        self.pads = [(low, high, 0) for low, high in window.padding]
        self.extents = [(n - 1) * s + 1 for n, s in zip(pooled, window.strides, strict=True)]
        index = np.array(list(itertools.product(*map(range, window.dimensions))), np.int32)
        self.count = math.prod(window.dimensions)
        self.starts = index * np.array(window.dilation, np.int32)
        # Per axis, [cell offset, output position]: is that cell inside the unpadded input?
        self._masks = []
        for axis, (low, _) in enumerate(window.padding):
            cell = np.arange(window.dimensions[axis]) * window.dilation[axis]
            at = cell[:, None] + np.arange(pooled[axis]) * window.strides[axis] - low
            self._masks.append((at >= 0) & (at < shape[axis]))
        self._index = index
        self._padded_axes = [a for a, mask in enumerate(self._masks) if not mask.all()]
        self.any_padding = None
        if self._padded_axes:
            whole = np.ones((1,) * len(pooled), bool)
            for axis in self._padded_axes:
                whole = whole & self._along(axis, self._masks[axis].all(axis=0))
            self.any_padding = ~whole

    def _along(self, axis: int, mask: Any) -> Any:
        return mask.reshape([-1 if a == axis else 1 for a in range(len(self._masks))])

    def inside(self, k: Any) -> Any:
        """Where cell k is not padding, broadcastable to the output; None where it never is."""
        if not self._padded_axes:
            return None
        inside: Any = True
        for axis in self._padded_axes:
            cell = jnp.asarray(self._index)[k, axis]
            inside = inside & self._along(axis, jnp.asarray(self._masks[axis])[cell])
        return inside

    def take(self, padded: jax.Array, k: Any) -> jax.Array:
        """Cell k of every window, shaped like the output."""
        block = lax.dynamic_slice(padded, self._start(k), self.extents)
        return lax.slice(block, [0] * block.ndim, block.shape, self.strides)

    def put(self, gradient: jax.Array, k: Any, values: jax.Array) -> jax.Array:
        """Add `values`, shaped like the output, to cell k of every window."""
        spread = lax.pad(values, jnp.zeros((), values.dtype), [(0, 0, s - 1) for s in self.strides])
        start = self._start(k)
        block = lax.dynamic_slice(gradient, start, self.extents)
        return lax.dynamic_update_slice(gradient, block + spread, start)

    def _start(self, k: Any) -> list[Any]:
        if isinstance(k, int):
            return [int(s) for s in self.starts[k]]
        return list(jnp.asarray(self.starts)[k])

    def loop(self, body: Callable[[Any, Any], Any], carry: Any, reverse: bool = False) -> Any:
        """Fold `body` over the cells, in row-major order or in its reverse."""
        last = self.count - 1
        if self.count <= _UNROLLED_CELLS:
            for k in range(self.count):
                carry = body(last - k if reverse else k, carry)
            return carry
        return lax.fori_loop(
            0, self.count, lambda k, carry: body(last - k if reverse else k, carry), carry
        )
