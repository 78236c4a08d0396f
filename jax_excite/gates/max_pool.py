"""Max-pooling with the gradient of softmax-pooling.

`soften_max_pool` takes the hard output as it was computed and gives it the soft derivative;
`excite` puts it behind every such site of a function. `surrogate_max_pool` is the same as a
function of the input alone.
"""

import functools
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jax_excite.errors import GatingError
from jax_excite.gates.pool_windows import (
    PoolConfig,
    Window,
    cell_weights,
    is_whole,
    max_pool,
    pooled_once,
    whole_weights,
)
from jax_excite.gates.surrogates import batched_with, check_broadcasts, parameters
from jax_excite.gating import (
    PoolPadding,
    PoolWeights,
    check_choice,
    check_temperature,
)


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
            f"x has shape {x.shape}; a window of {rank} axes needs {rank} spatial axes, "
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
    return soften_max_pool(config, hard, x, *parameters(x, temperature))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def soften_max_pool(
    config: PoolConfig, hard: jax.Array, x: jax.Array, temperature: jax.Array
) -> jax.Array:
    """`hard`, with the derivative of softmax-pooling of `x`.

    `temperature` has `compute_dtype(x.dtype)` and extent 1 along the pooled axes.
    """
    check_broadcasts(temperature, pooled_once(config.window, x.shape))
    return batched_with(hard, temperature)


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
