"""The change that projected gradient ascent makes to an image, as an attribution."""

from typing import Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jax_excite.ascent import Ascent
from jax_excite.pullbacks.pga import AscentOptions, pga
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import EXCITATION_PGA
from jax_excite.typing import AnyArray, Params


def pga_difference(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    ascent: Ascent = EXCITATION_PGA,
    **options: Unpack[AscentOptions],
) -> Float[jax.Array, "*N H W C"]:
    """The perturbed item of `pga` minus the item (paper, section 5.1): shaped like `x`, signed.

    Arguments and errors are those of `pga`.
    """
    perturbed = pga(params, x, c, ascent, **options)
    return jax.tree.map(jnp.subtract, perturbed, jax.tree.map(jnp.asarray, x))
