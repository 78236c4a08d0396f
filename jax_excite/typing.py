"""Types that several modules share."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# A callable pytree: images `[N, H, W, 3]` -> logits `[N, K]`.
Params = Callable[[jax.Array], jax.Array]
# Images, maps or fields: one `[H, W, 3]`, or a batch `[N, H, W, 3]`.
Images = jax.Array | np.ndarray
# The lowest and the highest value of an image.
Bounds = tuple[float, float]
# An attribution as metrics call it: network, images, target -> maps.
Method = Callable[[Any, Any, Any], Any]
