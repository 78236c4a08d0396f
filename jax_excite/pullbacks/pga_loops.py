"""The compiled loops of projected gradient ascent (paper, section 5.1)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Float, Int

from jax_excite.ascent import Ascent
from jax_excite.gates.surrogates import compute_dtype
from jax_excite.gating import Gating
from jax_excite.pullbacks import targets
from jax_excite.pullbacks.batching import Cells, Rows, in_loop
from jax_excite.pullbacks.sharding import on_each
from jax_excite.pullbacks.softened import Blockwise, Softened, fields, linearise
from jax_excite.transform.sites import Selection
from jax_excite.typing import Params


def _ascend(
    network: Softened,
    start: jax.Array,
    centres: jax.Array,
    target: Any,
    gating: Gating,
    ascent: Ascent,
) -> tuple[jax.Array, jax.Array]:
    """Images after an ascent, and the target's values before each step, `[steps, N]`.

    `start` has a dtype of at least 32 bits. The network is called with the dtype of `centres`.
    """

    def step(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        logits, pull = linearise(network, x.astype(centres.dtype), gating)
        moved = ascent.step(x, centres.astype(x.dtype), pull(target))
        return moved, targets.values(target, logits)

    return lax.scan(step, start, length=ascent.steps)


def _finished(
    params: Params, perturbed: jax.Array, target: Any, values: jax.Array, trajectory: bool
) -> tuple[jax.Array, ...]:
    """Perturbed images and, with `trajectory`, the target's values `[N, steps + 1]`."""
    if not trajectory:
        return (perturbed,)
    last = targets.values(target, params(perturbed))
    return perturbed, jnp.concatenate([values, last[None]]).T


_STATIC = ("selection", "trajectory", "sharding")


@functools.partial(jax.jit, static_argnames=(*_STATIC, "rows"))
def climb(
    params: Params,
    gating: Gating,
    images: Float[jax.Array, "N H W C"],
    centres: Float[jax.Array, "N H W C"],
    target: Any,
    *,
    ascent: Ascent,
    selection: Selection,
    trajectory: bool,
    rows: Rows,
    sharding: NamedSharding | None,
) -> tuple[jax.Array, ...]:
    """Run the ascent of each of `N` images towards its target.

    Returns:
        The perturbed images and, with `trajectory`, the target's values `[N, steps + 1]`.
    """

    def compute(
        params: Params,
        gating: Gating,
        ascent: Ascent,
        images: jax.Array,
        centres: jax.Array,
        target: Any,
    ) -> Any:
        blockwise = Blockwise(params, images, selection)
        at_once = blockwise.rows_at_once(rows)
        network = blockwise.of(at_once)

        def block(images: jax.Array, centres: jax.Array, target: Any) -> Any:
            start = images.astype(compute_dtype(images.dtype))
            x, values = _ascend(network, start, centres, target, gating, ascent)
            return _finished(params, x.astype(images.dtype), target, values, trajectory)

        return in_loop(block, at_once, images, centres, target)

    return on_each(compute, sharding, (params, gating, ascent), (images, centres, target))


@functools.partial(jax.jit, static_argnames=(*_STATIC, "cells"))
def climb_grid(
    params: Params,
    gating: Gating,
    images: Float[jax.Array, "N H W C"],
    indices: Int[jax.Array, "N K"],
    *,
    ascent: Ascent,
    selection: Selection,
    trajectory: bool,
    cells: Cells,
    sharding: NamedSharding | None,
) -> tuple[jax.Array, ...]:
    """Run the ascent of each of `N` images towards each of its classes `[N, C]`.

    The first step takes its pullbacks from one forward pass per image.

    Returns:
        As for `climb`, `[N, C, ...]`.
    """

    def compute(
        params: Params, gating: Gating, ascent: Ascent, images: jax.Array, indices: jax.Array
    ) -> Any:
        blockwise = Blockwise(params, images, selection)
        grid = blockwise.grid(indices.shape[1], cells, repeats=True)
        on_images = blockwise.of(grid.rows_at_once)
        on_cells = blockwise.of(grid.rows_at_once * grid.columns_at_once)
        rest = dataclasses.replace(ascent, steps=max(ascent.steps - 1, 0))

        def begin(rows: Any) -> Any:
            x = images[rows]
            logits, pull = linearise(on_images, x, gating)

            def finish(columns: Any) -> Any:
                classes = indices[rows][:, columns]
                centres, target = jnp.repeat(x, classes.shape[1], 0), classes.reshape(-1)
                start = centres.astype(compute_dtype(centres.dtype))
                values = []
                if ascent.steps > 0:
                    start = ascent.step(start, start, fields(pull, classes).reshape(start.shape))
                    values = [jnp.take_along_axis(logits, classes, 1).reshape(1, -1)]
                end, more = _ascend(on_cells, start, centres, target, gating, rest)
                values = jnp.concatenate([*values, more])
                end = end.astype(images.dtype)
                results = _finished(params, end, target, values, trajectory)
                return tuple(part.reshape(*classes.shape, *part.shape[1:]) for part in results)

            return finish

        return grid.in_loop(begin)

    return on_each(compute, sharding, (params, gating, ascent), (images, indices))
