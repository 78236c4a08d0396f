"""The settings of projected gradient ascent (PGA), and its step (paper, section 5.1)."""

import dataclasses
import math
import numbers
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from optax.projections import projection_box, projection_l2_ball

from jax_excite.errors import SettingError
from jax_excite.typing import Bounds

Clip = Literal["each", "last", "never"]
_TRACED = ("step_size", "radius", "bounds")
_STATIC = ("steps", "clip", "relative")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Ascent:
    """The number and size of the steps of an ascent, and its constraints.

    This class is a pytree. The step size, the radius and the bounds are traced, so changing them
    does not trigger recompilation; the other settings are static. All norms are those of one item
    over all its entries (of all its inputs, if there are several), in units of the input: images
    are in [-1, 1].

    Attributes:
        steps: the number of steps, >= 0.
        step_size: the L2 norm of a step; negative to descend.
        radius: the radius of the L2 ball around the original image, > 0; None for no ball.
        bounds: the range that inputs are checked against and clipped to; None for neither.
        clip: clip to the bounds after `each` step (the paper), once after the `last` one, or
            `never` (the successor's default).
        relative: the step size is in units of the L2 norm of the original image.

    Raises:
        SettingError: `steps`, `step_size`, `radius` or `clip` is not one of its values.
    """

    steps: int = 10
    step_size: ArrayLike = 20.0
    radius: ArrayLike | None = 100.0
    bounds: Bounds | None = (-1.0, 1.0)
    clip: Clip = "each"
    relative: bool = False

    def __post_init__(self) -> None:
        steps = self.steps
        if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 0:
            raise SettingError(f"steps is {steps}: give a whole number of at least 0")
        if self.clip not in get_args(Clip):
            choices = ", ".join(map(repr, get_args(Clip)))
            raise SettingError(f"clip is {self.clip!r}: choose one of {choices}")
        size, radius = self.step_size, self.radius
        if not isinstance(size, Tracer) and not np.isfinite(size):
            raise SettingError(f"step_size is {size}: give a finite number")
        if radius is not None and not isinstance(radius, Tracer):
            if not np.asarray(radius) > 0:
                raise SettingError(
                    f"radius is {radius}: give a positive number, or None for no ball"
                )
            object.__setattr__(self, "radius", None if radius == math.inf else radius)

    def step(self, x: Any, centres: Any, field: Any) -> Any:
        """Move a batch of items a step along a field; project them onto the ball and bounds.

        Args:
            x: the items, an array `[N, ...]` or a pytree of them.
            centres: the centres of the balls, shaped like `x`.
            field: the vector field at `x`, shaped like `x`.
        """
        return jax.vmap(self._step)(x, centres, field)

    def finished(self, x: Any) -> Any:
        """A batch of items after the last step: clipped, if that is the time to clip."""
        return self._clipped(x) if self.clip == "last" else x

    def _step(self, x: Any, centre: Any, field: Any) -> Any:
        """The step of a single item."""
        field = jax.tree.map(lambda part, like: part.astype(like.dtype), field, x)
        norm = jnp.maximum(optax.tree.norm(field), 1e-20)
        unit = optax.tree.norm(centre) if self.relative else 1

        def moved(part: jax.Array, along: jax.Array) -> jax.Array:
            size = jnp.asarray(self.step_size * unit, part.dtype)
            return part + along / norm.astype(part.dtype) * size

        x = jax.tree.map(moved, x, field)
        if self.radius is not None:
            delta = jax.tree.map(jnp.subtract, x, centre)
            ball = jnp.asarray(self.radius, jax.tree.leaves(delta)[0].dtype)
            x = jax.tree.map(jnp.add, centre, projection_l2_ball(delta, ball))
        return self._clipped(x) if self.clip == "each" else x

    def _clipped(self, x: Any) -> Any:
        if self.bounds is None:
            return x
        low, high = self.bounds
        return jax.tree.map(
            lambda part: projection_box(
                part, jnp.asarray(low, part.dtype), jnp.asarray(high, part.dtype)
            ),
            x,
        )

    def tree_flatten_with_keys(self) -> tuple[list[Any], tuple[Any, ...]]:
        """The traced settings with their names, and the static ones."""
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in _TRACED]
        return leaves, tuple(getattr(self, name) for name in _STATIC)

    @classmethod
    def tree_unflatten(cls, static: Any, leaves: Any) -> "Ascent":
        """The inverse of flattening; nothing is checked, because JAX may pass placeholders."""
        ascent = object.__new__(cls)
        for name, value in zip((*_TRACED, *_STATIC), (*leaves, *static), strict=True):
            object.__setattr__(ascent, name, value)
        return ascent
