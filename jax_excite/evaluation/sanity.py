"""Sanity checks of the method itself: does a map depend on the weights, the class and the gates?

After "Sanity Checks for Saliency Maps" (Adebayo et al., 2018), section 3: a map that stays the same
when weights are randomised explains the image, not the network.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from jax_excite.callables.pytree import as_pytree
from jax_excite.gating import Gating
from jax_excite.metrics.randomisation import layers, randomise
from jax_excite.metrics.similarity import cosine, pearson
from jax_excite.pullbacks.pullback import pullback
from jax_excite.recipes import EXCITATION
from jax_excite.typing import AnyArray, Params


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How similar two vector fields are.

    Attributes:
        name: what is compared.
        cosine: the cosine of the angle between the fields, in [-1, 1]; 0 for unrelated fields.
        rank_correlation: Spearman's rank correlation of the fields' magnitudes per pixel, in
            [-1, 1].
    """

    name: str
    cosine: float
    rank_correlation: float


def compare(
    name: str, a: Float[AnyArray, "*N H W C"], b: Float[AnyArray, "*N H W C"]
) -> Comparison:
    """Compare two fields `[H, W, 3]`; the rank correlation is NaN if a magnitude is constant."""
    first, second = np.asarray(a), np.asarray(b)
    (angle,) = np.nan_to_num(cosine(first[None], second[None]))
    ranks = (rankdata(np.linalg.norm(field, axis=-1)) for field in (first, second))
    return Comparison(name, float(angle), float(pearson(*ranks)))


def randomisation_cascade(
    params: Params,
    x: Float[AnyArray, "H W C"],
    c: int,
    *,
    gating: Gating = EXCITATION,
    seed: int = 0,
) -> list[Comparison]:
    """Compare the pullback with those of the network randomised from the top down to each layer.

    Args:
        params: a callable pytree.
        x: one image `[H, W, 3]`.
        c: a class index.
        gating: as for `pullback`.
        seed: the seed of the shuffling.

    Returns:
        One comparison per layer, top layer first, with that layer and all above it randomised.
    """
    original = pullback(params, x, c, gating=gating)
    changed, comparisons = params, []
    for layer, names in layers(params, x[None]).items():
        changed = randomise(changed, names, seed)
        comparisons.append(compare(layer, original, pullback(changed, x, c, gating=gating)))
    return comparisons


def temperature_limits(
    params: Params, x: Float[AnyArray, "H W C"], c: int, *, gating: Gating = EXCITATION
) -> dict[str, float]:
    """Relative L2 distances that are 0 up to rounding, by the limits of section 5.2.

    Args:
        params: a callable pytree.
        x: one image `[H, W, 3]`, in which not all pixels are 0.
        c: a class index.
        gating: the gating, except for its temperatures. The upper bounds of clipped ReLUs are hard
            near T = 0 and pass the gradient at T = infinity, because otherwise there is no limit.

    Returns:
        The distances by name: between the pullback at T = 0 and the plain gradient, between the
        pullbacks at a tiny temperature and at T = 0, and between the pullbacks of `x` and `-x` at
        T = infinity, where gates are constant.
    """

    def at(temperature: float, image: Float[AnyArray, "H W C"] = x) -> jax.Array:
        at_limit = dataclasses.replace(
            gating,
            temperature=temperature,
            pool_temperature=temperature,
            site_temperatures={},
            upper="hard" if temperature < 1 else "pass",
        )
        return pullback(params, image, c, gating=at_limit)

    params = as_pytree(params)
    gradient = jax.jit(jax.grad(lambda image: params(image[None])[0, c]))(jnp.asarray(x))
    hard, none = at(0.0), at(np.inf)
    return {
        "T = 0 and the gradient": _distance(hard, gradient),
        "T = 1e-12 and T = 0": _distance(at(1e-12), hard),
        "T = inf at two images": _distance(at(np.inf, -x), none),
    }


def _distance(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b)))
