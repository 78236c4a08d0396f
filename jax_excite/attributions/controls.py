"""Maps that explain nothing: a metric that likes them is a bad metric.

They have the signature of an attribution, and look neither at the network nor at the target.
"""

import jax
import jax.numpy as jnp

from jax_excite.attributions.engine import Images
from jax_excite.pullback import Params, as_batch
from jax_excite.targets import Target


def random_map(params: Params, x: Images, c: Target, *, key: jax.Array) -> jax.Array:
    """Standard normal noise, the same for each image of a batch, shaped like `x`."""
    as_batch(x, None)
    x = jnp.asarray(x)
    noise = jax.random.normal(key, x.shape[-3:], x.dtype)
    return jnp.broadcast_to(noise, x.shape)


def constant_map(params: Params, x: Images, c: Target) -> jax.Array:
    """Ones, shaped like `x`."""
    as_batch(x, None)
    return jnp.ones_like(x)


def edges(params: Params, x: Images, c: Target) -> jax.Array:
    """The magnitude of Sobel's gradient of each channel, shaped like `x`; borders are repeated."""
    images, single = as_batch(x, None)
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
