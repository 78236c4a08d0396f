"""Types that several modules share.

Signatures contain shapes in the notation of `jaxtyping`: `Float[AnyArray, "*N H W C"]` is one image
or a batch of any float dtype. Each name stands for one size throughout a signature. The shapes are
checked only in the tests (tests/unit/test_shapes.py).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# A callable pytree: images `[N, H, W, 3]` -> logits `[N, K]`.
Params = Callable[[jax.Array], jax.Array]
AnyArray = jax.Array | np.ndarray
# The lowest and the highest value of an image.
Bounds = tuple[float | jax.Array, float | jax.Array]
# An attribution method as the metrics call it: network, images, target -> maps.
Method = Callable[[Any, Any, Any], Any]
