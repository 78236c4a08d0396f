"""The settings of projected gradient ascent (PGA), and its step (paper, section 5.1)."""

import dataclasses
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Float
from optax.projections import projection_box, projection_l2_ball

from jax_excite.errors import SettingError
from jax_excite.typing import Bounds

_TRACED = ("step_size", "radius", "bounds")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Ascent:
    """The number and size of the steps of an ascent, and its constraints.

    This class is a pytree. The number of steps is static. All other settings are traced, so
    changing them does not trigger recompilation. All norms are computed per image, over pixels and
    channels, in units of images in [-1, 1].

    Attributes:
        steps: the number of steps, >= 0.
        step_size: the L2 norm of a step; negative to descend.
        radius: the radius of the L2 ball around the original image, > 0; None for no ball.
        bounds: the range that images are checked against and clipped to; None for no clipping.

    Raises:
        SettingError: `steps`, `step_size` or `radius` is out of its range.
    """

    steps: int = 10
    step_size: ArrayLike = 20.0
    radius: ArrayLike | None = 100.0
    bounds: Bounds | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        steps = self.steps
        if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 0:
            raise SettingError(f"steps is {steps}: give a whole number of at least 0")
        size, radius = self.step_size, self.radius
        if not isinstance(size, Tracer) and not np.isfinite(size):
            raise SettingError(f"step_size is {size}: give a finite number")
        if radius is not None and not isinstance(radius, Tracer):
            if not np.asarray(radius) > 0:
                raise SettingError(
                    f"radius is {radius}: give a positive number, or None for no ball"
                )
            object.__setattr__(self, "radius", None if radius == math.inf else radius)

    def step(
        self,
        x: Float[jax.Array, "N ..."],
        centres: Float[jax.Array, "N ..."],
        field: Float[jax.Array, "N ..."],
    ) -> Float[jax.Array, "N ..."]:
        """Move images `[N, H, W, 3]` a step along a field; project onto the ball and bounds.

        Args:
            x: the images.
            centres: the centres of the balls, shaped like `x`.
            field: the vector field at `x`, shaped like `x`.
        """
        field = field.astype(x.dtype)
        norm = jnp.sqrt(jnp.sum(field**2, axis=(1, 2, 3), keepdims=True))
        x = x + field / jnp.maximum(norm, 1e-20) * jnp.asarray(self.step_size, x.dtype)
        if self.radius is not None:
            ball = jnp.asarray(self.radius, x.dtype)
            x = centres + jax.vmap(lambda delta: projection_l2_ball(delta, ball))(x - centres)
        if self.bounds is not None:
            x = projection_box(x, *(jnp.asarray(bound, x.dtype) for bound in self.bounds))
        return x

    def tree_flatten_with_keys(self) -> tuple[list[Any], int]:
        """The traced settings with their names, and the number of steps."""
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in _TRACED]
        return leaves, self.steps

    @classmethod
    def tree_unflatten(cls, steps: int, leaves: Any) -> "Ascent":
        """The inverse of flattening; nothing is checked, because JAX may pass placeholders."""
        ascent = object.__new__(cls)
        object.__setattr__(ascent, "steps", steps)
        for name, value in zip(_TRACED, leaves, strict=True):
            object.__setattr__(ascent, name, value)
        return ascent
