"""Similarity of two maps or two series, and roughness of a map."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float
from scipy.stats import rankdata

from jax_excite.typing import AnyArray


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis, in [-1, 1]; NaN where one does not vary."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    first = a - a.mean(axis=-1, keepdims=True)
    second = b - b.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    varied = (np.ptp(a, axis=-1) > 0) & (np.ptp(b, axis=-1) > 0) & (norms > 0)
    product = np.sum(first * second, axis=-1)
    return np.divide(product, norms, out=np.full(norms.shape, np.nan), where=varied)


def spearman(
    a: Float[AnyArray, "*N H W C"], b: Float[AnyArray, "*N H W C"]
) -> Float[np.ndarray, "*N"]:
    """Spearman's rank correlation of maps `[N, H, W, 3]`, over all their values: `[N]`."""
    first, second = (rankdata(np.asarray(m).reshape(len(m), -1), axis=1) for m in (a, b))
    return pearson(first, second)


def cosine(
    a: Float[AnyArray, "*N H W C"], b: Float[AnyArray, "*N H W C"]
) -> Float[np.ndarray, "*N"]:
    """Cosine of the angle between maps `[N, H, W, 3]`: `[N]`; NaN where one is 0."""
    first, second = (np.asarray(m, np.float64).reshape(len(m), -1) for m in (a, b))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    product = np.sum(first * second, axis=1)
    return np.divide(product, norms, out=np.full(norms.shape, np.nan), where=norms > 0)


def ssim(a: Float[AnyArray, "*N H W C"], b: Float[AnyArray, "*N H W C"]) -> Float[np.ndarray, "*N"]:
    """Structural similarity of maps `[N, H, W, 3]`, summed over channels: `[N]`, in [-1, 1].

    Wang et al., "Image Quality Assessment" (2004), with windows of 7 x 7 and the joint range of the
    two maps; NaN where this range is 0.
    """
    first, second = (jnp.asarray(m).sum(axis=-1) for m in (a, b))
    return np.asarray(jax.vmap(_ssim)(first, second), np.float64)


_WINDOW = 7


@jax.jit
def _ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """The structural similarity of one pair of arrays of any rank."""
    size = _WINDOW**a.ndim

    def mean(value: jax.Array) -> jax.Array:
        window = (_WINDOW,) * a.ndim
        total = lax.reduce_window(
            value, np.array(0, a.dtype), lax.add, window, (1,) * a.ndim, "VALID"
        )
        return total / size

    both = jnp.stack([a, b])
    span = both.max() - both.min()
    # Centred and scaled by the range, as variances would be differences of large numbers otherwise.
    a, b = ((value - both.mean()) / span for value in (a, b))
    low = both.mean() / span
    mean_a, mean_b = mean(a), mean(b)
    unbiased = size / (size - 1)
    variance_a = unbiased * (mean(a * a) - mean_a**2)
    variance_b = unbiased * (mean(b * b) - mean_b**2)
    covariance = unbiased * (mean(a * b) - mean_a * mean_b)
    mean_a, mean_b = mean_a + low, mean_b + low
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (likeness / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean()


def total_variation(maps: Float[AnyArray, "*N H W C"]) -> Float[np.ndarray, "*N"]:
    """Roughness of maps: mean absolute difference of neighbours over the mean absolute value.

    After Rudin, Osher & Fatemi (1992). The division makes the value the same for all multiples of a
    map. The value is about sqrt(2) for white noise, near 0 for a smooth map, and 0 for a constant
    map.

    Args:
        maps: `[H, W, 3]`, or with any leading axes.

    Returns:
        One value per map, shaped like the leading axes; NaN where a map is 0.
    """
    found = np.asarray(maps, np.float64)
    down = np.abs(np.diff(found, axis=-3)).mean(axis=(-3, -2, -1))
    across = np.abs(np.diff(found, axis=-2)).mean(axis=(-3, -2, -1))
    size = np.abs(found).mean(axis=(-3, -2, -1))
    differences = (down + across) / 2
    return np.divide(differences, size, out=np.full(size.shape, np.nan), where=size > 0)
