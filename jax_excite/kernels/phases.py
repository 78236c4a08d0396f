"""Phases of an array: its entries at positions that are equal modulo the strides."""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Phase = tuple[int, ...]


def phases(strides: Sequence[int]) -> list[Phase]:
    """All phases, each with one offset per axis."""
    return list(itertools.product(*map(range, strides)))


def shifted(part: jax.Array, offsets: Sequence[int], sizes: Sequence[int]) -> jax.Array:
    """An array of shape `sizes` with `part` placed at `offsets`, cropped, and zeros elsewhere."""
    edges = [
        (start, size - start - n, 0)
        for start, size, n in zip(offsets, sizes, part.shape, strict=True)
    ]
    return lax.pad(part, jnp.zeros((), part.dtype), edges)


def interleave(
    parts: Mapping[Phase, jax.Array], strides: Sequence[int], shape: Sequence[int]
) -> jax.Array:
    """The array of shape `shape` with the given phases, and zeros in the phases not given.

    Args:
        parts: the phases, all of one shape: along each axis the size over the stride, rounded up.
        strides: the strides, one per axis.
        shape: the shape to which the whole is cropped.
    """
    nothing = jnp.zeros_like(next(iter(parts.values())))

    def merged(phase: Phase) -> jax.Array:
        axis = len(phase)
        if axis == len(strides):
            return parts.get(phase, nothing)
        inner = [merged((*phase, i)) for i in range(strides[axis])]
        if len(inner) == 1:
            return inner[0]
        sizes = list(inner[0].shape)
        sizes[axis] *= strides[axis]
        return jnp.stack(inner, axis + 1).reshape(sizes)

    return lax.slice(merged(()), [0] * len(shape), shape)
