"""The compiled loops of projected gradient ascent (paper, section 5.1)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from optax.projections import projection_box, projection_l2_ball

from jax_excite.gates.surrogates import compute_dtype
from jax_excite.gating import Gating
from jax_excite.pullbacks import targets
from jax_excite.pullbacks.batching import AUTO, COLUMN, Cells, Grid, Rows, in_loop
from jax_excite.pullbacks.pullback import GatedNetwork, fields, linearise
from jax_excite.pullbacks.sharding import on_each
from jax_excite.pullbacks.softened import softened, softened_if_alone, softened_rows
from jax_excite.transform.plan import Selection
from jax_excite.typing import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """How far a step goes, and where it has to stay; all of it traced."""

    size: ArrayLike
    radius: ArrayLike | None
    bounds: tuple[ArrayLike, ArrayLike] | None

    def __call__(self, x: jax.Array, centres: jax.Array, field: jax.Array) -> jax.Array:
        """From images `[N, H, W, 3]` along their pullbacks, back into the ball and the bounds."""
        field = field.astype(x.dtype)
        norm = jnp.sqrt(jnp.sum(field**2, axis=(1, 2, 3), keepdims=True))
        x = x + field / jnp.maximum(norm, 1e-20) * jnp.asarray(self.size, x.dtype)
        if self.radius is not None:
            ball = jnp.asarray(self.radius, x.dtype)
            x = centres + jax.vmap(lambda delta: projection_l2_ball(delta, ball))(x - centres)
        if self.bounds is not None:
            x = projection_box(x, *(jnp.asarray(bound, x.dtype) for bound in self.bounds))
        return x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """What an ascent follows, and its steps."""

    gating: Gating
    step: Step


def _ascend(
    network: GatedNetwork,
    start: jax.Array,
    centres: jax.Array,
    target: Any,
    settings: Settings,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Images after some steps, and the target's values before each, `[steps, N]`.

    `start` has at least 32 bits; the network gets images of the dtype of `centres`.
    """

    def step(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        logits, pull = linearise(network, x.astype(centres.dtype), settings.gating)
        moved = settings.step(x, centres.astype(x.dtype), pull(target))
        return moved, targets.values(target, logits)

    return lax.scan(step, start, length=steps)


def _finished(
    params: Params, perturbed: jax.Array, target: Any, values: jax.Array, trajectory: bool
) -> tuple[jax.Array, ...]:
    """Perturbed images, and if asked for the target's values `[N, steps + 1]`."""
    if not trajectory:
        return (perturbed,)
    last = targets.values(target, params(perturbed))
    return perturbed, jnp.concatenate([values, last[None]]).T


_STATIC = ("selection", "steps", "trajectory", "sharding")


@functools.partial(jax.jit, static_argnames=(*_STATIC, "rows"))
def climb(
    params: Params,
    images: jax.Array,
    centres: jax.Array,
    target: Any,
    *,
    settings: Settings,
    selection: Selection,
    steps: int,
    trajectory: bool,
    rows: Rows,
    sharding: NamedSharding | None,
) -> tuple[jax.Array, ...]:
    """Climb with each of `N` images towards its target.

    Returns:
        Perturbed images, and with `trajectory` the target's values `[N, steps + 1]`.
    """

    def compute(
        params: Params, settings: Settings, images: jax.Array, centres: jax.Array, target: Any
    ) -> Any:
        network, at_once = softened_rows(params, images, selection, rows)

        def block(images: jax.Array, centres: jax.Array, target: Any) -> Any:
            start = images.astype(compute_dtype(images.dtype))
            x, values = _ascend(network, start, centres, target, settings, steps)
            return _finished(params, x.astype(images.dtype), target, values, trajectory)

        return in_loop(block, at_once, images, centres, target)

    return on_each(compute, sharding, (params, settings), (images, centres, target))


@functools.partial(jax.jit, static_argnames=(*_STATIC, "cells"))
def climb_grid(
    params: Params,
    images: jax.Array,
    indices: jax.Array,
    *,
    settings: Settings,
    selection: Selection,
    steps: int,
    trajectory: bool,
    cells: Cells,
    sharding: NamedSharding | None,
) -> tuple[jax.Array, ...]:
    """`climb` with each of `N` images towards each of its classes `[N, C]`.

    The first step takes its pullbacks from one forward pass an image.

    Returns:
        As for `climb`, `[N, C, ...]`.
    """

    def compute(params: Params, settings: Settings, images: jax.Array, indices: jax.Array) -> Any:
        def repeated(grid: Grid) -> jax.Array:
            return jnp.repeat(images[: grid.rows_at_once], grid.columns_at_once, 0)

        grid, on_cells = Grid(len(indices), indices.shape[1], cells), None
        if cells in (AUTO, None):
            on_cells = softened_if_alone(params, repeated(grid), images, selection)
            if on_cells is None:
                grid = Grid(len(indices), indices.shape[1], COLUMN)
        on_cells = on_cells or softened(params, repeated(grid), selection)
        on_images = softened(params, images[: grid.rows_at_once], selection)

        def begin(rows: Any) -> Any:
            x = images[rows]
            logits, pull = linearise(on_images, x, settings.gating)

            def finish(columns: Any) -> Any:
                classes = indices[rows][:, columns]
                centres, target = jnp.repeat(x, classes.shape[1], 0), classes.reshape(-1)
                start = centres.astype(compute_dtype(centres.dtype))
                values = []
                if steps > 0:
                    start = settings.step(start, start, fields(pull, classes).reshape(start.shape))
                    values = [jnp.take_along_axis(logits, classes, 1).reshape(1, -1)]
                more_steps = max(steps - 1, 0)
                end, more = _ascend(on_cells, start, centres, target, settings, more_steps)
                values = jnp.concatenate([*values, more])
                end = end.astype(images.dtype)
                results = _finished(params, end, target, values, trajectory)
                return tuple(part.reshape(*classes.shape, *part.shape[1:]) for part in results)

            return finish

        return grid.in_loop(begin)

    return on_each(compute, sharding, (params, settings), (images, indices))
