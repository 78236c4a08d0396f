"""Transfer: do changes along one network's attributions raise the target in another network?"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_excite.ascent import Ascent
from jax_excite.attributions.gradients import whole_number
from jax_excite.callables.pytree import as_floats, as_pytree
from jax_excite.pullbacks import targets
from jax_excite.pullbacks.items import as_images
from jax_excite.pullbacks.request import number_of_logits
from jax_excite.recipes import EXCITATION_PGA
from jax_excite.typing import AnyArray, Method, Params


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a network scores targets.

    Attributes:
        rank: the number of classes that the network ranks above each target, `[N]`; 0 is the best.
        probability: softmax probability of each target, `[N]`.
    """

    rank: np.ndarray
    probability: np.ndarray


def standing(
    params: Params, x: Float[AnyArray, "*N H W C"], c: Any, *, batch_size: int = 16
) -> Standing:
    """How a network scores targets in images.

    Args:
        params: a callable pytree.
        x: one image `[H, W, 3]` (then N is 1), or images `[N, H, W, 3]`.
        c: a class index, or one per image `[N]`.
        batch_size: the number of images computed at a time, >= 1.

    Raises:
        SettingError: `batch_size` is out of its range.
        ExciteError: `x` is not an image or a batch, or `c` is not a class of the network.
    """
    whole_number(batch_size, "batch_size")
    images, _ = as_images(x, None)
    params = as_pytree(params)
    wanted = targets.class_rows(
        np.broadcast_to(np.asarray(c), len(images))[:, None],
        len(images),
        number_of_logits(params, images),
    )
    starts = range(0, len(images), batch_size)
    found = [_logits(params, images[start : start + batch_size]) for start in starts]
    logits = np.concatenate([np.asarray(part, np.float64) for part in found])
    own = np.take_along_axis(logits, np.asarray(wanted), axis=1)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    chosen = np.exp(own - logits.max(axis=1, keepdims=True))[:, 0]
    return Standing((logits > own).sum(axis=1), chosen / weights.sum(axis=1))


@jax.jit
def _logits(params: Params, x: jax.Array) -> jax.Array:
    return params(x)


def climb_along(
    method: Method,
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Any,
    ascent: Ascent = EXCITATION_PGA,
) -> Float[jax.Array, "*N H W C"]:
    """Projected gradient ascent along any attribution, as `pga` climbs along pullbacks.

    Args:
        method: an attribution with its settings bound, called as `method(params, x, c)`.
        params: the network whose attributions are followed.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`.
        c: the target.
        ascent: as for `pga`.

    Returns:
        The perturbed images, shaped like `x`. Where an attribution is 0 or NaN, the image does not
        change.

    Raises:
        ExciteError: as for `pga`.
    """
    images, single = as_images(x, ascent.bounds)
    settings = as_floats(ascent)
    start = current = jnp.asarray(images)
    for _ in range(ascent.steps):
        own = current[0] if single else current
        field = jnp.nan_to_num(method(params, own, c)).reshape(current.shape)
        current = _step(settings, current, start, field)
    current = settings.finished(current)
    return current[0] if single else current


@jax.jit
def _step(ascent: Ascent, x: jax.Array, start: jax.Array, field: jax.Array) -> jax.Array:
    return ascent.step(x, start, field)


def transfer(
    method: Method,
    params: Params,
    other: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Any,
    ascent: Ascent = EXCITATION_PGA,
) -> tuple[Standing, Standing]:
    """How another network scores targets before and after an ascent along attributions.

    Changes that are fitted to the noise of the first network do not show in the second, because its
    gradients are never computed.

    Args:
        method: an attribution with its settings bound.
        params: the network that is followed.
        other: the network that scores the images, with the same classes.
        x: one image or a batch; the other network gets the images unchanged, at the size that the
            first network takes.
        c: a class index, or one per image.
        ascent: as for `pga`.
    """
    after = climb_along(method, params, x, c, ascent)
    return standing(other, x, c), standing(other, after, c)
