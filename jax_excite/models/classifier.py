"""A network together with the preprocessing that its weights were trained with."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_excite.data.images import check_images
from jax_excite.data.preprocessing import Preprocessing
from jax_excite.errors import ImageError

Temperatures = tuple[tuple[str, float | tuple[float, ...]], ...]


class Classifier(nnx.Module):
    """A network that takes images in [-1, 1], as a pytree whose leaves are its weights.

    Attributes:
        net: the network.
        preprocessing: how images are normalised, which is the first operation of a call.
        class_names: a name for each logit; empty if they are not known.
        temperatures: the temperatures of these weights, by site: numbers, or tuples with one
            number per channel. Empty if there are none. `site_temperatures` returns them in the
            form that `Gating` takes.
    """

    def __init__(
        self,
        net: nnx.Module,
        preprocessing: Preprocessing,
        class_names: tuple[str, ...] = (),
        temperatures: Temperatures = (),
    ):
        self.net = net
        self.preprocessing = preprocessing
        self.class_names = class_names
        self.temperatures = temperatures

    @property
    def site_temperatures(self) -> dict[str, np.ndarray]:
        """The stored temperatures, for `Gating(site_temperatures=...)`."""
        return {site: np.asarray(value, np.float32) for site, value in self.temperatures}

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images `[H, W, 3]` or `[N, H, W, 3]` in [-1, 1] to logits `[K]` or `[N, K]`.

        Raises:
            ImageError: `x` is not such an array, or is too small for the network.
        """
        check_images(x, bounds=None, channels=3)
        height, width = x.shape[-3:-1]
        smallest = self.preprocessing.min_size
        if min(height, width) < smallest:
            raise ImageError(
                f"x has shape {x.shape}: this network takes images of at least {smallest} x "
                f"{smallest} pixels"
            )
        with jax.named_scope("preprocessing"):
            x = self.preprocessing.normalise(jnp.asarray(x))
        return self.net(x)
