"""Types that several modules share.

Signatures contain shapes in the notation of `jaxtyping`: `Float[AnyArray, "*N H W C"]` is one image
or a batch of any float dtype. Each name stands for one size throughout a signature. The shapes are
checked only in the tests (tests/unit/test_shapes.py).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

# A callable pytree: items with a batch axis -> outputs, each with the same batch axis.
Params = Callable[[Any], Any]
AnyArray = jax.Array | np.ndarray
# One item or a batch of items: images `[*N, H, W, C]`, other arrays, or a pytree of them.
Items = PyTree[Float[AnyArray, "..."]]
# The lowest and the highest value of an image.
Bounds = tuple[float | jax.Array, float | jax.Array]
# An attribution method as the metrics call it: network, images, target -> maps.
Method = Callable[[Any, Any, Any], Any]
