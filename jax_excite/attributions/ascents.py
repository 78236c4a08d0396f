"""What projected gradient ascent changes in an image, as an attribution."""

from typing import Unpack

import jax
import jax.numpy as jnp

from jax_excite.ascent import AscentOptions, pga
from jax_excite.attributions.engine import Images
from jax_excite.pullback import Params
from jax_excite.targets import Target


def pga_difference(
    params: Params, x: Images, c: Target, **options: Unpack[AscentOptions]
) -> jax.Array:
    """The perturbed image of `pga` less the image (paper, section 5.1): shaped like `x`, signed.

    Arguments and errors are those of `pga`.
    """
    return pga(params, x, c, **options) - jnp.asarray(x)
