"""Metrics of a method, not of a map: its response to noise, another class or other weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from jax_excite.attributions.gradients import whole_number
from jax_excite.callables.pytree import as_pytree
from jax_excite.errors import ExciteError, SettingError
from jax_excite.metrics.randomisation import layers, randomise
from jax_excite.metrics.similarity import spearman, ssim
from jax_excite.pullbacks.items import as_images
from jax_excite.pullbacks.request import number_of_logits
from jax_excite.typing import AnyArray, Method, Params

# A method is any of `attributions` with its settings bound: (params, x, c) -> maps shaped like x.
Similarity = Callable[[Any, Any], np.ndarray]  # two batches of maps [N, H, W, 3] -> [N]


def max_sensitivity(
    method: Method,
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Any,
    *,
    key: PRNGKeyArray,
    radius: float = 0.2,
    samples: int = 10,
    maps: Float[AnyArray, "*N H W C"] | None = None,
) -> Float[np.ndarray, "*N"]:
    """The most that a map changes, relative to its norm, when the image changes a little.

    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations" (2019), definition 3.1, by
    random search: a lower bound that rises with `samples`. A map that ignores the image scores 0,
    however bad it is.

    Args:
        method: an attribution with its settings bound, called as `method(params, x, c)`.
        params: a callable pytree, as for `pullback`.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`.
        c: the target.
        key: a key of `jax.random`; sample `i` adds `jax.random.uniform(jax.random.fold_in(key, i),
            [H, W, 3], minval=-radius, maxval=radius)` to each image. The sum may leave the bounds
            of images, so bind `bounds=None` to the method.
        radius: the greatest change of a value, > 0, in units of images.
        samples: the number of random changes, >= 1.
        maps: the maps of `method` at `x`, if already computed.

    Returns:
        The greatest relative change per image, in the L2 norm; NaN where the map is 0.

    Raises:
        SettingError: `samples` or `radius` is out of its range.
    """
    whole_number(samples, "samples")
    if not radius > 0:
        raise SettingError(f"radius is {radius}: give a positive number")
    images, single = as_images(x, None)
    x = jnp.asarray(x)
    before = _flat(method(params, x, c) if maps is None else maps, len(images))
    norms = np.linalg.norm(before, axis=1)
    worst = np.zeros(len(images))
    for sample in range(samples):
        own = jax.random.fold_in(key, sample)
        noise = jax.random.uniform(own, x.shape[-3:], x.dtype, -radius, radius)
        after = _flat(method(params, x + noise, c), len(images))
        worst = np.maximum(worst, np.linalg.norm(after - before, axis=1))
    found = np.divide(worst, norms, out=np.full(len(images), np.nan), where=norms > 0)
    return found[0] if single else found


def random_logit(
    method: Method,
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Any,
    *,
    key: PRNGKeyArray,
    similarity: Similarity = ssim,
    maps: Float[AnyArray, "*N H W C"] | None = None,
) -> Float[np.ndarray, "*N"]:
    """Similarity between the maps of the target and of another class that is drawn at random.

    Sixt et al., "When Explanations Lie" (2020), section 5: a map that stays the same explains
    the image, not the class. Similar classes may well share evidence.

    Args:
        method: an attribution with its settings bound, called as `method(params, x, c)`.
        params: a callable pytree, as for `pullback`.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`.
        c: a class index, or one per image.
        key: a key of `jax.random`; the classes are `other_classes(key, c, number of logits)`.
        similarity: the similarity of two batches of maps.
        maps: the maps of `method` at `x`, if already computed.

    Returns:
        The similarity per image.

    Raises:
        ExciteError: there are fewer than two classes.
    """
    images, single = as_images(x, None)
    logits = number_of_logits(as_pytree(params), images)
    if logits < 2:
        raise ExciteError("the network has one logit, so there is no other class to compare with")
    before = method(params, x, c) if maps is None else maps
    wanted = np.broadcast_to(np.asarray(c), len(images))
    others = other_classes(key, wanted, logits)
    after = method(params, x, others[0] if single else others)
    found = similarity(*(np.asarray(m).reshape(images.shape) for m in (before, after)))
    return found[0] if single else found


def other_classes(
    key: PRNGKeyArray, classes: Int[np.ndarray, " N"], logits: int
) -> Int[np.ndarray, " N"]:
    """For each class `[N]`, a different one, drawn uniformly from `logits` classes."""
    drawn = jax.random.randint(key, classes.shape, 1, logits)
    return (classes + np.asarray(drawn)) % logits


def randomised(
    params: Params, x: Float[AnyArray, "*N H W C"], *, seed: int = 0, down_to: str | None = None
) -> Params:
    """The network with the entries of each weight shuffled; this keeps their distribution.

    Adebayo et al. (2018), section 3.1, who draw new weights instead.

    Args:
        params: a callable pytree whose leaves are its weights.
        x: one image `[H, W, 3]` or a batch, from which the order of the layers is found.
        seed: the seed of the shuffling.
        down_to: the lowest layer to shuffle, together with all layers above it, by its name in
            `randomisation.layers`; None for all layers.

    Raises:
        ExciteError: there is no such layer, or `params` has no weights.
    """
    found = layers(params, as_images(x, None)[0][:1])
    if down_to is not None and down_to not in found:
        raise ExciteError(f"down_to is {down_to!r}: choose one of the layers {', '.join(found)}")
    changed = params
    for layer, names in found.items():
        changed = randomise(changed, names, seed)
        if layer == down_to:
            break
    return changed


def parameter_randomisation(
    method: Method,
    params: Params,
    changed: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Any,
    *,
    similarity: Similarity = spearman,
    maps: Float[AnyArray, "*N H W C"] | None = None,
) -> Float[np.ndarray, "*N"]:
    """Similarity between the maps of the network and of one with random weights.

    Adebayo et al., "Sanity Checks for Saliency Maps" (2018), section 3.1. Maps that are dominated
    by edges of the image correlate in any case, and signs agree by chance; `evaluation.sanity`
    compares magnitudes.

    Args:
        method: an attribution with its settings bound, called as `method(params, x, c)`.
        params: a callable pytree whose leaves are its weights.
        changed: the same network with random weights, as `randomised` returns it.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`.
        c: the target.
        similarity: the similarity of two batches of maps.
        maps: the maps of `method` at `x`, if already computed.

    Returns:
        The similarity per image.
    """
    images, single = as_images(x, None)
    before = method(params, x, c) if maps is None else maps
    after = method(changed, x, c)
    alike = similarity(*(np.asarray(m).reshape(images.shape) for m in (before, after)))
    return alike[0] if single else alike


def _flat(maps: Any, count: int) -> np.ndarray:
    return np.asarray(maps, np.float64).reshape(count, -1)
