"""Windows of max-pooling: their cells, and the weights that softmax-pooling gives to each."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_excite.gating import PoolPadding, PoolWeights, is_zero
from jax_excite.kernels.phases import Phase, interleave, shifted

# The operations on the cells of a window are unrolled up to this many cells, and looped beyond.
_UNROLLED_CELLS = 64


@dataclasses.dataclass(frozen=True)
class Window:
    """A pooling window, with one entry per axis of the input, including batch and channels.

    `floor` is the initial value of the maximum: the result of the pool where no cell is larger.
    """

    dimensions: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    floor: float = -math.inf


def pooled_once(window: Window, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an input with the pooled axes set to 1."""
    return tuple(n if d == 1 else 1 for n, d in zip(shape, window.dimensions, strict=True))


def pooled_shape(window: Window, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the pooled output for an input of shape `shape`, with all axes kept."""
    return tuple(
        (n + low + high - (d - 1) * gap - 1) // stride + 1
        for n, d, stride, (low, high), gap in zip(
            shape, window.dimensions, window.strides, window.padding, window.dilation, strict=True
        )
    )


def is_whole(window: Window, shape: tuple[int, ...]) -> bool:
    """Whether a window covers whole axes and has many cells, so that a loop over them is slow."""
    covers = all(d in (1, n) for d, n in zip(window.dimensions, shape, strict=True))
    plain = {*window.strides, *window.dilation} == {1} and {*window.padding} == {(0, 0)}
    return covers and plain and math.prod(window.dimensions) > _UNROLLED_CELLS


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """The static part of a softened max-pool."""

    window: Window
    weights: PoolWeights = "through"
    padding: PoolPadding = "zero"


def cell_weights(
    config: PoolConfig, hard: jax.Array, x: jax.Array, temperature: jax.Array
) -> tuple["Cells", Callable[[Any], jax.Array]]:
    """The cells of a max-pool's windows, and the weight of cell k in each window: its derivative.

    The derivative of `sum_k w_k x_k`, where `w = softmax(x / T)`, with respect to `x_k` is
    `w_k * (1 + (x_k - pooled) / T)` if the softmax weights are differentiated, and `w_k` if they
    are not. At T = 0 it is the indicator of the first largest cell. That cell is found among the
    cells themselves, without `hard`: `x` may have been recomputed since `hard` was computed, and
    then the two differ by rounding.

    Args:
        config: the window, and which of these weights to use.
        hard: the max-pool of `x`.
        x: the value that is pooled.
        temperature: an array with extent 1 along the pooled axes.

    Returns:
        The cells, and a function from k to the weights, which are shaped like `hard`.
    """
    cells = Cells(config.window, x.shape, hard.shape)
    padded = cells.pad(x)
    inverse = _inverse(temperature)

    def value(k: Any) -> jax.Array:
        # A cell of -inf, as in padding written by hand, is ignored.
        x_k = cells.take(padded, k)
        return jnp.where(x_k > -jnp.inf, x_k, jnp.zeros_like(x_k))

    part = _parts(config, cells, hard, padded, temperature, inverse)

    def accumulate(k: Any, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return sums[0] + part(k), sums[1] + part(k) * value(k)

    nothing = jnp.zeros_like(hard)
    total, weighted = cells.loop(accumulate, (nothing, nothing))
    share = jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
    pooled = weighted * share

    def weight(k: Any) -> jax.Array:
        soft = part(k) * share
        return soft * (1 + (value(k) - pooled) * inverse) if config.weights == "through" else soft

    return cells, weight


def _inverse(temperature: jax.Array) -> jax.Array:
    """`1 / T`, and 0 where T is 0."""
    zero = is_zero(temperature)
    return jnp.where(zero, 0, 1 / jnp.where(zero, jnp.ones_like(temperature), temperature))


def _parts(
    config: PoolConfig,
    cells: "Cells",
    hard: jax.Array,
    padded: jax.Array,
    temperature: jax.Array,
    inverse: jax.Array,
) -> Callable[[Any], jax.Array]:
    """A function from k to the softmax weight of cell k, up to one factor per window."""
    # The shift of each window's softmax: the largest value that takes part in it.
    shift = hard
    if cells.any_padding is not None and config.padding == "zero":
        shift = jnp.where(cells.any_padding, jnp.maximum(hard, 0), hard)

    def soft(k: Any) -> jax.Array:
        x_k, inside = cells.take(padded, k), cells.inside(k)
        counts = x_k > -jnp.inf
        if inside is not None and config.padding == "-inf":
            counts = counts & inside
        exponent = jnp.where(counts, x_k - shift, jnp.zeros_like(x_k)) * inverse
        return jnp.where(counts, jnp.exp(exponent), jnp.zeros_like(x_k))

    def mixed(first: jax.Array) -> Callable[[Any], jax.Array]:
        zero = is_zero(temperature)

        def part(k: Any) -> jax.Array:
            largest = (first == k) & (cells.take(padded, k) >= config.window.floor)
            return jnp.where(zero, largest.astype(hard.dtype), soft(k))

        return part

    if cells.count > _UNROLLED_CELLS:
        return mixed(_first_largest(cells, hard, padded))
    # The branches also keep XLA from recomputing the exponentials at each use.
    return lax.cond(
        jnp.any(is_zero(temperature)),
        lambda: tuple(map(mixed(_first_largest(cells, hard, padded)), range(cells.count))),
        lambda: tuple(map(soft, range(cells.count))),
    ).__getitem__


def _first_largest(cells: "Cells", hard: jax.Array, padded: jax.Array) -> jax.Array:
    """The index of the first largest cell of each window, ignoring padding."""

    def find(k: Any, known: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        first, best = known
        x_k, inside = cells.take(padded, k), cells.inside(k)
        can_be = x_k > -jnp.inf if inside is None else inside & (x_k > -jnp.inf)
        better = can_be & ((x_k > best) | (first == cells.count))
        return jnp.where(better, k, first), jnp.where(better, x_k, best)

    unknown = jnp.full(hard.shape, cells.count, jnp.int32)
    return cells.loop(find, (unknown, jnp.zeros_like(hard)))[0]


def max_pool(window: Window, x: jax.Array) -> jax.Array:
    """The largest cell of each window; padding is -inf."""
    lowest = np.array(-np.inf, x.dtype)

    def reduce(x: jax.Array) -> jax.Array:
        sizes, steps = window.dimensions, window.strides
        return lax.reduce_window(
            x, lowest, lax.max, sizes, steps, window.padding, window_dilation=window.dilation
        )

    if math.prod(window.dimensions) > _UNROLLED_CELLS:
        return reduce(x)
    cells = Cells(window, x.shape, jax.eval_shape(reduce, x).shape)
    padded = lax.pad(x, lowest, [(low, high, 0) for low, high in window.padding])
    return functools.reduce(jnp.maximum, (cells.take(padded, k) for k in range(cells.count)))


def pool_gate(
    config: PoolConfig, hard: jax.Array, x: jax.Array, temperature: jax.Array
) -> jax.Array:
    """The weights of `cell_weights` for all cells, `[cells, *hard.shape]`."""
    if is_whole(config.window, x.shape):
        weights = whole_weights(config, hard, x, temperature)
        axes = [axis for axis, d in enumerate(config.window.dimensions) if d > 1]
        return jnp.moveaxis(weights, axes, range(len(axes))).reshape(-1, *hard.shape)
    cells, weight = cell_weights(config, hard, x, temperature)
    if cells.count > _UNROLLED_CELLS:
        return lax.map(weight, jnp.arange(cells.count))
    return jnp.stack([weight(k) for k in range(cells.count)])


def whole_weights(
    config: PoolConfig, hard: jax.Array, x: jax.Array, temperature: jax.Array
) -> jax.Array:
    """The weights of `cell_weights` for a window that covers whole axes, shaped like `x`."""
    axes = tuple(axis for axis, d in enumerate(config.window.dimensions) if d > 1)
    counts = x > -jnp.inf
    zero, inverse = is_zero(temperature), _inverse(temperature)
    exponent = jnp.where(counts, x - hard, jnp.zeros_like(x)) * inverse
    part = jnp.where(counts, jnp.exp(exponent), jnp.zeros_like(x))
    weights = part / jnp.sum(part, axes, keepdims=True)
    if config.weights == "through":
        values = jnp.where(counts, x, jnp.zeros_like(x))
        pooled = jnp.sum(weights * values, axes, keepdims=True)
        weights = weights * (1 + (values - pooled) * inverse)
    moved = jnp.moveaxis(x, axes, range(-len(axes), 0))
    flat = moved.reshape(*moved.shape[: -len(axes)], -1)
    first = jax.nn.one_hot(jnp.argmax(flat, -1), flat.shape[-1], dtype=x.dtype)
    first = jnp.moveaxis(first.reshape(moved.shape), range(-len(axes), 0), axes)
    return jnp.where(zero & (x >= config.window.floor), first, jnp.where(zero, 0, weights))


def weighted_pool(window: Window, x: jax.Array, weights: jax.Array) -> jax.Array:
    """`sum_k weights[k] x_k` over the cells k of each window, with padding 0; linear in `x`."""
    cells = Cells(window, x.shape, weights.shape[1:])
    padded = cells.pad(x)

    def add(k: Any, total: jax.Array) -> jax.Array:
        x_k = cells.take(padded, k)
        return total + weights[k] * jnp.where(x_k > -jnp.inf, x_k, jnp.zeros_like(x_k))

    return cells.loop(add, jnp.zeros(weights.shape[1:], x.dtype))


class Cells:
    """The cells of a pooling window: for cell k, a strided slice of the padded input."""

    def __init__(self, window: Window, shape: tuple[int, ...], pooled: tuple[int, ...]):
        self.strides = window.strides
        self.shape = shape
        self._pads = [(low, high, 0) for low, high in window.padding]
        self._low = np.array([low for low, _ in window.padding])
        sizes = zip(shape, window.padding, strict=True)
        self.padded = tuple(size + low + high for size, (low, high) in sizes)
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
        """A mask of where cell k is not padding, shaped like the output up to broadcasting.

        None if no cell of any window is padding.
        """
        if not self._padded_axes:
            return None
        inside: Any = True
        for axis in self._padded_axes:
            cell = jnp.asarray(self._index)[k, axis]
            inside = inside & self._along(axis, jnp.asarray(self._masks[axis])[cell])
        return inside

    def pad(self, x: jax.Array) -> jax.Array:
        """The input padded with zeros, in the form that the other methods take."""
        return lax.pad(x, jnp.zeros((), x.dtype), self._pads)

    def take(self, padded: jax.Array, k: Any) -> jax.Array:
        """Cell k of every window, shaped like the output."""
        block = lax.dynamic_slice(padded, self._start(k), self.extents)
        return lax.slice(block, [0] * block.ndim, block.shape, self.strides)

    def scatter(self, values: Callable[[Any], jax.Array]) -> jax.Array:
        """Add `values(k)`, shaped like the output, to cell k of every window, for all k.

        The last cell is added first, so that an input cell sums its windows in XLA's order.
        """
        if self.count > _UNROLLED_CELLS:
            return self._scatter_in_a_loop(values)
        sizes = [-(-n // s) for n, s in zip(self.shape, self.strides, strict=True)]
        parts: dict[Phase, jax.Array] = {}
        for k in reversed(range(self.count)):
            first = self.starts[k] - self._low
            part = shifted(values(k), first // self.strides, sizes)
            phase = tuple(first % self.strides)
            parts[phase] = parts[phase] + part if phase in parts else part
        return interleave(parts, self.strides, self.shape)

    def _scatter_in_a_loop(self, values: Callable[[Any], jax.Array]) -> jax.Array:
        def add(k: Any, total: jax.Array) -> jax.Array:
            part = values(k)
            part = lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, s - 1) for s in self.strides])
            block = lax.dynamic_slice(total, self._start(k), self.extents)
            return lax.dynamic_update_slice(total, block + part, self._start(k))

        shape = jax.eval_shape(values, 0)
        total = self.loop(add, jnp.zeros(self.padded, shape.dtype), reverse=True)
        crop = [(-low, -high, 0) for low, high, _ in self._pads]
        return lax.pad(total, jnp.zeros((), total.dtype), crop)

    def _start(self, k: Any) -> list[Any]:
        if isinstance(k, int):
            return [int(s) for s in self.starts[k]]
        return list(jnp.asarray(self.starts)[k])

    def loop(self, body: Callable[[Any, Any], Any], carry: Any, reverse: bool = False) -> Any:
        """Fold `body` over the cells, in row-major order or in reverse."""
        last = self.count - 1
        if self.count <= _UNROLLED_CELLS:
            for k in range(self.count):
                carry = body(last - k if reverse else k, carry)
            return carry
        return lax.fori_loop(
            0, self.count, lambda k, carry: body(last - k if reverse else k, carry), carry
        )
