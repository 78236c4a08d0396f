"""Control maps that explain nothing: a metric that rates them highly is a bad metric.

They have the signature of an attribution, but hold no information about the network or the target.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, PRNGKeyArray

from jax_excite.callables.pytree import as_pytree, is_weight
from jax_excite.pullbacks.items import as_images
from jax_excite.pullbacks.targets import Target
from jax_excite.typing import AnyArray, Params


def random_map(
    params: Params, x: Float[AnyArray, "*N H W C"], c: Target, *, key: PRNGKeyArray
) -> Float[jax.Array, "*N H W C"]:
    """Standard normal noise, shaped like `x`, drawn separately per network, image and target.

    The same key, network, image and target give the same noise.
    """
    images, single = as_images(x, None)
    weights = [jnp.asarray(leaf) for leaf in jax.tree.leaves(as_pytree(params)) if is_weight(leaf)]
    target = [] if callable(c) else [jnp.asarray(c)[None] if single else jnp.asarray(c)]
    noise = _noise(key, weights, jnp.asarray(images), target)
    return noise[0] if single else noise


@jax.jit
def _noise(
    key: jax.Array, weights: list[jax.Array], images: jax.Array, target: list[jax.Array]
) -> jax.Array:
    targets = [jnp.broadcast_to(each, (len(images), *each.shape[1:])) for each in target]
    network = sum((_number(leaf) for leaf in weights), jnp.uint32(0))

    def draw(image: jax.Array, own: list[jax.Array]) -> jax.Array:
        number = sum((_number(each) for each in own), network + _number(image))
        return jax.random.normal(jax.random.fold_in(key, number), image.shape, image.dtype)

    return jax.vmap(draw)(images, targets)


def _number(value: jax.Array) -> jax.Array:
    """A hash of 32 bits; it is exact, so that an image has the same hash alone and in a batch."""
    bits = lax.bitcast_convert_type(value.astype(jnp.float32).ravel(), jnp.uint32)
    odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    mixed = (bits ^ (bits >> 15)) * (odd * jnp.uint32(2654435761))
    return (mixed ^ (mixed >> 13)).sum(dtype=jnp.uint32)


def constant_map(
    params: Params, x: Float[AnyArray, "*N H W C"], c: Target
) -> Float[jax.Array, "*N H W C"]:
    """Ones, shaped like `x`."""
    as_images(x, None)
    return jnp.ones_like(x)


def edges(
    params: Params, x: Float[AnyArray, "*N H W C"], c: Target
) -> Float[jax.Array, "*N H W C"]:
    """The magnitude of the Sobel gradient per channel, shaped like `x`; borders are replicated."""
    images, single = as_images(x, None)
    images = jnp.asarray(images)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]

    def across(axis: int) -> jax.Array:
        total = jnp.zeros(images.shape, images.dtype)
        for along, smooth in enumerate((1.0, 2.0, 1.0)):
            for side, sign in ((0, -1.0), (2, 1.0)):
                top, left = (side, along) if axis == 1 else (along, side)
                total += smooth * sign * padded[:, top : top + height, left : left + width]
        return total

    magnitude = jnp.hypot(across(1), across(2))
    return magnitude[0] if single else magnitude
