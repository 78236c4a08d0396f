"""Phases of an array: its entries at positions that are the same modulo the strides."""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Phase = tuple[int, ...]


def phases(strides: Sequence[int]) -> list[Phase]:
    """All phases, one offset for each axis."""
    return list(itertools.product(*map(range, strides)))


def shifted(part: jax.Array, offsets: Sequence[int], sizes: Sequence[int]) -> jax.Array:
    """An array of `sizes` that has `part` from `offsets` on, cropped, and zeros around it."""
    edges = [
        (start, size - start - n, 0)
        for start, size, n in zip(offsets, sizes, part.shape, strict=True)
    ]
    return lax.pad(part, jnp.zeros((), part.dtype), edges)


def interleave(
    parts: Mapping[Phase, jax.Array], strides: Sequence[int], shape: Sequence[int]
) -> jax.Array:
    """The array of that shape with these phases, and zeros where there is none.

    Args:
        parts: phases of one shape: on each axis the size over the stride, rounded up.
        strides: one for each axis.
        shape: what the whole is cropped to.
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
