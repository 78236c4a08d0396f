"""Types that several modules share.

Shapes stand in signatures, as `jaxtyping` has them: `Float[AnyArray, "*N H W C"]` is one image or a
batch of any float dtype, and each name stands for one size throughout a signature. They are checked
in the tests only (tests/unit/test_shapes.py).
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
# An attribution as metrics call it: network, images, target -> maps.
Method = Callable[[Any, Any, Any], Any]
