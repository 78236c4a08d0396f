"""What surrogate gradients share: dtypes, shapes of temperatures, and outputs under `vmap`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jax_excite.errors import GatingError


def parameters(z: jax.Array, *values: ArrayLike) -> tuple[jax.Array, ...]:
    """Temperatures and slopes as arrays of the dtype that the gates of `z` are computed in."""
    return tuple(jnp.asarray(value).astype(compute_dtype(z.dtype)) for value in values)


def compute_dtype(dtype: Any) -> Any:
    """The dtype that gates are computed in: at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def batched_with(hard: jax.Array, *parameters: jax.Array) -> jax.Array:
    """`hard`, as an output that depends on the parameters.

    Without that, `vmap` over temperatures takes the output for one that all temperatures share,
    and sums their cotangents before the backward pass sees them.
    """
    for parameter in parameters:
        known = jnp.broadcast_to(parameter >= 0, hard.shape)
        hard = lax.select(known, hard, hard)
    return hard


def check_broadcasts(temperature: jax.Array, shape: tuple[int, ...]) -> None:
    """Raise `GatingError` unless a temperature broadcasts to the pre-activation's shape."""
    try:
        fits = np.broadcast_shapes(temperature.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise GatingError(
            f"a temperature of shape {temperature.shape} does not broadcast to its site's "
            f"shape {shape}"
        )
