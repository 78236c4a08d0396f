"""Insertion and deletion curves."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jax_excite.attributions.gradients import item_like, whole_number
from jax_excite.errors import SettingError
from jax_excite.metrics.faithfulness import ranked_groups
from jax_excite.metrics.perturbation import Case, Replaced, before, responses, rest
from jax_excite.pullbacks.targets import Target
from jax_excite.typing import AnyArray, Bounds, Params

Baseline = float | np.ndarray | jax.Array | Literal["blur"]

_BLUR_STD = 5.0  # pixels
_BLUR_REACH = 15


@dataclasses.dataclass(frozen=True)
class Curve:
    """How the target's value changes as pixels are replaced.

    Attributes:
        values: the values before the first step and after each step, `[..., steps + 1]`; the
            leading axes are those of the methods and images of the maps.
        area: the area under the curve, by the trapezoidal rule, over the fraction of pixels that
            are replaced: `[...]`.
    """

    values: np.ndarray
    area: np.ndarray


def deletion(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    maps: Float[AnyArray, "*M H W C"],
    *,
    steps: int = 50,
    baseline: Baseline = 0.0,
    softmax: bool = True,
    bounds: Bounds | None = (-1.0, 1.0),
    batch_size: int | None = None,
) -> Curve:
    """The target's value as pixels are replaced, those of greatest attribution first.

    Petsiuk et al., "RISE" (2018), section 4.3: the sooner the value falls, the better. The metric
    also rewards maps that find values to which the network is brittle, including adversarial ones;
    read it together with `insertion`. A pixel's attribution is the sum over its channels.

    Args:
        params: a callable pytree, as for `pullback`.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`.
        c: the target.
        maps: shaped like `x`, or with a leading axis for several methods.
        steps: the number of steps, >= 1; each replaces the same number of pixels, except that the
            last may replace fewer.
        baseline: the replacement: a number, an array that broadcasts to an image, or `blur` for
            the blurred image (Gaussian, standard deviation of 5 pixels); 0 is mid grey.
        softmax: whether the target's value is a probability instead of a logit.
        bounds: as for `pullback`.
        batch_size: the number of copies of an image computed at a time.

    Returns:
        The curves.

    Raises:
        SettingError: `steps` or `baseline` is out of its range.
        ExciteError: as for `pullback`, or the maps do not fit the images.
    """
    case = Case.of(params, x, c, maps, bounds)
    return _curve(case, before, steps, baseline, softmax, batch_size)


def insertion(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    maps: Float[AnyArray, "*M H W C"],
    *,
    steps: int = 50,
    baseline: Baseline = "blur",
    softmax: bool = True,
    bounds: Bounds | None = (-1.0, 1.0),
    batch_size: int | None = None,
) -> Curve:
    """The target's value as pixels of the image replace a baseline, greatest attribution first.

    Petsiuk et al., "RISE" (2018), section 4.3: the sooner the value rises, the better. Arguments,
    result and errors are those of `deletion`.
    """
    case = Case.of(params, x, c, maps, bounds)
    return _curve(case, rest, steps, baseline, softmax, batch_size)


def _curve(
    case: Case, replaced: Replaced, steps: int, baseline: Baseline, softmax: bool, rows: int | None
) -> Curve:
    count = whole_number(steps, "steps")
    if isinstance(baseline, str):
        if baseline != "blur":
            raise SettingError(f"baseline is {baseline!r}: give a number, an array, or 'blur'")
        base = blurred(jnp.asarray(case.x))
    else:
        base = item_like(baseline, case.x, None, "baseline")
    groups = ranked_groups(case.maps.sum(axis=-1, keepdims=True), count)
    copies = int(groups.max()) + 2
    found, _ = responses(
        case, groups, replaced, copies, base, softmax=softmax, batch_size=rows, only_values=True
    )
    curves = case.values(found if found.ndim == 3 else found[None])
    pixels = groups.shape[2] * groups.shape[3]
    size = -(-pixels // count)
    places = np.minimum(np.arange(copies) * size, pixels) / pixels
    return Curve(curves, np.asarray(np.trapezoid(curves, places, axis=-1)))


@jax.jit
def blurred(x: jax.Array) -> jax.Array:
    """Images `[N, H, W, 3]` blurred by a Gaussian of 5 pixels; borders are replicated."""
    reach = np.arange(-_BLUR_REACH, _BLUR_REACH + 1)
    weights = np.exp(-(reach**2) / (2 * _BLUR_STD**2))
    kernel = jnp.asarray(weights / weights.sum(), x.dtype)

    def along(x: jax.Array, axis: int) -> jax.Array:
        pads = [(_BLUR_REACH, _BLUR_REACH) if a == axis else (0, 0) for a in range(x.ndim)]
        padded, extent = jnp.pad(x, pads, mode="edge"), x.shape[axis]
        shifted = [
            lax.slice_in_dim(padded, start, start + extent, axis=axis)
            for start in range(len(reach))
        ]
        return sum((w * part for w, part in zip(kernel, shifted, strict=True)), jnp.zeros_like(x))

    return along(along(x, 1), 2)
