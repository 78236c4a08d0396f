"""Convolutions and their input gradients in forms that XLA compiles to fast code on a CPU.

All arrays are channels-last, with any number of spatial axes; kernels are `[*sizes, I, O]`. The
measurements are in docs/performance.md.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_excite.kernels.phases import interleave, phases

Shape = tuple[int, ...]

# The most channels, counted over all phases, for which the gradient of a strided convolution is
# computed for all phases in one vector.
_VECTOR = 16


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The static part of a convolution of `[N, *spatial, I]` by a kernel `[*sizes, I, O]`."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int
    precision: Any

    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """The convolution as XLA computes it."""
        axes = "DHW"[-len(self.strides) :]
        return lax.conv_general_dilated(
            x,
            w,
            self.strides,
            self.padding,
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            feature_group_count=self.groups,
            precision=self.precision,
        )

    def unstrided(self, padding: list[tuple[int, int]]) -> "Convolution":
        """The convolution with stride 1 and another padding."""
        return dataclasses.replace(self, strides=(1,) * len(self.strides), padding=tuple(padding))


@dataclasses.dataclass(frozen=True)
class Form:
    """A way to compute the input gradient of a convolution.

    Attributes:
        prepare: computes from the kernel what `gradient` needs besides it, a pytree of arrays. It
            depends on nothing else, so it can be computed once before a loop.
        gradient: computes the cotangent of the input from the convolution, the input's shape, the
            kernel, the prepared arrays and the cotangent of the output.
        forward: computes the convolution, if there is a faster way for that too; else None.
    """

    prepare: Callable[[Convolution, jax.Array], Any]
    gradient: Callable[[Convolution, Shape, jax.Array, Any, jax.Array], jax.Array]
    forward: Callable[[Convolution, jax.Array, jax.Array], jax.Array] | None = None


def choose(conv: Convolution, x_shape: Shape, w_shape: Shape) -> Form | None:
    """The form for a convolution; None if XLA's is the only one."""
    if conv.groups == x_shape[-1] == w_shape[-1] > 1:
        return DEPTHWISE
    if conv.groups != 1:
        return None
    if math.prod(w_shape[:-2]) == 1 and not any(map(any, conv.padding)):
        return POINTWISE
    phases = math.prod(conv.strides)
    return SPACE_TO_DEPTH if phases > 1 and phases * x_shape[-1] <= _VECTOR else PHASES


# A kernel of one cell: a matrix product.


def _pointwise(conv: Convolution, x: jax.Array, w: jax.Array) -> jax.Array:
    if set(conv.strides) != {1}:
        x = lax.slice(x, [0] * x.ndim, x.shape, (1, *conv.strides, 1))
    return _matmul(conv, x, w, 0)


def _nothing(conv: Convolution, w: jax.Array) -> tuple[()]:
    return ()


def _pointwise_gradient(
    conv: Convolution, shape: Shape, w: jax.Array, _: tuple[()], g: jax.Array
) -> jax.Array:
    y = _matmul(conv, g, w, 1)
    if set(conv.strides) == {1}:
        return y
    edges = [
        (0, n - (m - 1) * s - 1, s - 1)
        for n, m, s in zip(shape[1:-1], y.shape[1:-1], conv.strides, strict=True)
    ]
    return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _matmul(conv: Convolution, x: jax.Array, w: jax.Array, contracted: int) -> jax.Array:
    axes = (((x.ndim - 1,), (contracted,)), ((), ()))
    return lax.dot_general(x, w.reshape(w.shape[-2:]), axes, precision=conv.precision)


POINTWISE = Form(_nothing, _pointwise_gradient, _pointwise)


# A phase consists of the input positions that are equal modulo the stride. They use the same cells
# of the kernel, so their gradient is a convolution of stride 1. With stride 1 there is one phase.


def _cells_by_phase(conv: Convolution, w: jax.Array) -> dict[str, jax.Array]:
    """For each phase, the cells of the kernel that it uses, in reverse order."""
    found = {}
    for phase in phases(conv.strides):
        picked = w[
            tuple(
                slice((a + low) % s, None, s)
                for a, s, (low, _) in zip(phase, conv.strides, conv.padding, strict=True)
            )
        ]
        if picked.size:
            found[str(phase)] = jnp.flip(picked, range(len(phase)))
    return found


def _from_phases(
    conv: Convolution,
    shape: Shape,
    kernels: dict[str, jax.Array],
    g: jax.Array,
    apply: Callable[[Convolution, jax.Array], jax.Array],
) -> jax.Array:
    """The input gradient, given a function that convolves with stride 1."""
    parts = {}
    for phase in phases(conv.strides):
        if str(phase) not in kernels:
            continue
        w = kernels[str(phase)]
        padding = []
        for axis, (a, s) in enumerate(zip(phase, conv.strides, strict=True)):
            size, outputs = -(-shape[1 + axis] // s), g.shape[1 + axis]
            offset = (a + conv.padding[axis][0]) // s
            padding.append((w.shape[axis] - 1 - offset, size + offset - outputs))
        parts[0, *phase, 0] = apply(conv.unstrided(padding), w)
    return interleave(parts, (1, *conv.strides, 1), shape)


def _transposed_by_phase(conv: Convolution, w: jax.Array) -> dict[str, jax.Array]:
    return {phase: jnp.swapaxes(cells, -1, -2) for phase, cells in _cells_by_phase(conv, w).items()}


def _phases_gradient(
    conv: Convolution, shape: Shape, w: jax.Array, kernels: dict[str, jax.Array], g: jax.Array
) -> jax.Array:
    return _from_phases(conv, shape, kernels, g, lambda unstrided, w: unstrided(g, w))


PHASES = Form(_transposed_by_phase, _phases_gradient)


# One kernel per channel: an elementwise weighted sum of shifted inputs.


def _depthwise(conv: Convolution, x: jax.Array, w: jax.Array) -> jax.Array:
    edges = [(0, 0, 0), *((*sides, 0) for sides in conv.padding), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    sizes = w.shape[:-2]
    spans = [
        (n - k) // s * s + 1 for n, k, s in zip(x.shape[1:-1], sizes, conv.strides, strict=True)
    ]
    total = jnp.zeros((), x.dtype)
    for cell in itertools.product(*map(range, sizes)):
        stop = (c + span for c, span in zip(cell, spans, strict=True))
        limits = (x.shape[0], *stop, x.shape[-1])
        total = total + lax.slice(x, (0, *cell, 0), limits, (1, *conv.strides, 1)) * w[(*cell, 0)]
    return total


def _depthwise_gradient(
    conv: Convolution, shape: Shape, w: jax.Array, kernels: dict[str, jax.Array], g: jax.Array
) -> jax.Array:
    return _from_phases(conv, shape, kernels, g, lambda unstrided, w: _depthwise(unstrided, g, w))


DEPTHWISE = Form(_cells_by_phase, _depthwise_gradient, _depthwise)


# Few channels: one convolution computes all phases of the input gradient, as its channels.


def _taps_by_phase(conv: Convolution, w: jax.Array) -> jax.Array:
    """The kernel `[*taps, O, phases * I]`; the cells that a phase lacks are zero."""
    rank, outputs = len(conv.strides), w.shape[-1]
    for axis, (s, (low, _)) in enumerate(zip(conv.strides, conv.padding, strict=True)):
        k = w.shape[2 * axis]
        taps = np.arange(-((k - 1 - low) // s), (s - 1 + low) // s + 1)
        cell = np.arange(s) + low - s * taps[:, None]
        extended = jnp.pad(w, [(0, int(a == 2 * axis)) for a in range(w.ndim)])
        w = jnp.take(extended, np.where((cell < 0) | (cell >= k), k, cell), axis=2 * axis)
    order = (*range(0, 2 * rank, 2), 2 * rank + 1, *range(1, 2 * rank, 2), 2 * rank)
    return w.transpose(order).reshape(*w.shape[0 : 2 * rank : 2], outputs, -1)


def _space_to_depth_gradient(
    conv: Convolution, shape: Shape, w: jax.Array, kernel: jax.Array, g: jax.Array
) -> jax.Array:
    rank = len(conv.strides)
    padding, sizes = [], []
    for axis, s in enumerate(conv.strides):
        last = (s - 1 + conv.padding[axis][0]) // s
        sizes.append(-(-shape[1 + axis] // s))
        padding.append((kernel.shape[axis] - 1 - last, sizes[-1] + last - g.shape[1 + axis]))
    y = conv.unstrided(padding)(g, kernel).reshape(-1, *sizes, *conv.strides, shape[-1])
    pairs = ((1 + axis, 1 + rank + axis) for axis in range(rank))
    y = y.transpose(0, *itertools.chain(*pairs), 1 + 2 * rank)
    whole = [m * s for m, s in zip(sizes, conv.strides, strict=True)]
    return lax.slice(y.reshape(-1, *whole, shape[-1]), [0] * len(shape), shape)


SPACE_TO_DEPTH = Form(_taps_by_phase, _space_to_depth_gradient)
