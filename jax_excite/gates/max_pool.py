"""Max-pooling with the gradient of softmax-pooling.

`soften_max_pool` takes the hard output as it was computed and gives it the soft derivative;
`excite` applies it at every max-pool site of a function. `surrogate_max_pool` does the same as a
function of the input alone. `MaxPool` is the kind of gate; `pool_forms.py` recognises the many
forms in which a max-pool is written.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_excite.errors import GatingError
from jax_excite.gates.gate import AtSite, Found, Gate
from jax_excite.gates.pool_forms import find_pool, shifts_or_scales
from jax_excite.gates.pool_windows import (
    PoolConfig,
    Window,
    cell_weights,
    is_whole,
    max_pool,
    pool_gate,
    pooled_once,
    pooled_shape,
    weighted_pool,
    whole_weights,
)
from jax_excite.gates.reading import Reading
from jax_excite.gates.surrogates import batched_with, check_broadcasts, marked, parameters
from jax_excite.gating import (
    Gating,
    PoolPadding,
    PoolWeights,
    check_choice,
    check_temperature,
)
from jax_excite.graphs.graph import Node


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
) -> Float[jax.Array, "*N C"]:
    """Max-pooling with the gradient of softmax-pooling (paper, section 5.3 and Listing 2).

    Args:
        x: `[H, W, C]` or `[N, H, W, C]`, any float dtype; other numbers of spatial axes work too.
        window_shape: the size of the window along each spatial axis.
        strides: the steps of the window; 1 along each axis by default, as in `flax.nnx.max_pool`.
        padding: `VALID`, `SAME` or a (low, high) pair for each spatial axis.
        temperature: at least 0, traced; a scalar, or an array that broadcasts to `x` with extent 1
            along the spatial axes. 0 is the hard pool: the first largest cell takes the gradient.
        dilation: the distance between the cells of a window.
        weights: differentiate the softmax weights (`through`) or hold them constant (`detached`).
        pool_padding: include padding cells in the softmax as zeros (`zero`) or not (`-inf`).

    Returns:
        The hard max-pool of `x`, bit for bit; the cotangent of `x` has its shape and dtype.

    Raises:
        GatingError: the temperature is negative or of the wrong shape, or the window does not fit.
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
    return marked(batched_with(hard, temperature), "max_pool")


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


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Gate):
    """Max-pooling: the weights that softmax-pooling gives to the cells of each window.

    Attributes:
        window: the window, along all axes of the input.
    """

    window: Window
    kinds: ClassVar[tuple[str, ...]] = ("max_pool",)
    setting: ClassVar[str] = "pool_temperature"

    @classmethod
    def find(cls, reading: Reading, value: int, node: Node) -> Found | None:
        """See `Gate.find`."""
        pool = find_pool(reading, value, node)
        if pool is None or not reading.facts.is_float(pool.x):
            return None
        return cls("max_pool", node, pool.x, pool.form, pool.obstacle, window=pool.window)

    @classmethod
    def refusal(cls, reading: Reading, node: Node) -> str:
        """Why the maximum over axes in a stable softmax is not a max-pool."""
        if not shifts_or_scales(reading, node):
            return ""
        return "it shifts or scales what it is the maximum of, as a stable softmax does"

    def fast(self, inputs: Sequence[jax.Array]) -> jax.Array | None:
        """The same maxima over slices, which are faster on a CPU than `reduce_window`."""
        if self.node.name != "reduce_window_max":
            return None
        return max_pool(self.window, inputs[0])

    def inward(self, hard: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The output with all axes of the input, including those pooled whole, and `z`."""
        return hard.reshape(pooled_shape(self.window, z.shape)), z

    def outward(self, output: jax.Array, hard: jax.Array) -> jax.Array:
        """The output with the axes of the node's own output."""
        return output.reshape(hard.shape)

    def temperature_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape with extent 1 along the pooled axes: a window has one temperature."""
        return pooled_once(self.window, shape)

    def soften(self, at: AtSite, gating: Gating) -> jax.Array:
        """The output with the derivative of softmax-pooling."""
        return soften_max_pool(self._config(gating), at.hard, at.z, at.temperature(gating))

    def value(self, at: AtSite, gating: Gating) -> tuple[jax.Array, jax.Array | None]:
        """The weights of the cells of each window, `[cells, *output]`."""
        temperature = at.temperature(gating)
        hard, z = (array.astype(temperature.dtype) for array in (at.hard, at.z))
        return pool_gate(self._config(gating), hard, z, temperature).astype(at.z.dtype), None

    def value_shape(self, at: AtSite) -> tuple[int, ...]:
        """`[cells, *output]`."""
        return math.prod(self.window.dimensions), *at.hard.shape

    def held(self, at: AtSite, value: jax.Array, stopped: jax.Array | None) -> jax.Array:
        """The weighted sum of the cells of each window."""
        return weighted_pool(self.window, at.z, value.astype(at.z.dtype))

    def _config(self, gating: Gating) -> PoolConfig:
        return PoolConfig(self.window, gating.pool_weights, gating.pool_padding)
