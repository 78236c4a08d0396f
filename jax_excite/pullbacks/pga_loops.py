"""The compiled loops of projected gradient ascent (paper, section 5.1)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from jax_excite.ascent import Ascent
from jax_excite.gates.surrogates import compute_dtype
from jax_excite.gating import Gating
from jax_excite.pullbacks import items, targets
from jax_excite.pullbacks.batching import Cells, Rows, in_loop
from jax_excite.pullbacks.compiled import compiled
from jax_excite.pullbacks.sharding import on_each
from jax_excite.pullbacks.softened import Blockwise, Softened, fields, linearise
from jax_excite.transform.sites import Selection
from jax_excite.typing import Params


def _ascend(
    network: Softened,
    start: Any,
    centres: Any,
    target: Any,
    gating: Gating,
    ascent: Ascent,
) -> tuple[Any, jax.Array]:
    """Items after an ascent, and the target's values before each step, `[steps, N]`.

    `start` has dtypes of at least 32 bits. The network is called with the dtypes of `centres`.
    """

    def step(x: Any, _: None) -> tuple[Any, jax.Array]:
        outputs, pull = linearise(network, like(centres, x), gating)
        moved = ascent.step(x, like(x, centres), pull(target))
        return moved, targets.values(target, outputs)

    end, values = lax.scan(step, start, length=ascent.steps)
    return ascent.finished(end), values


def like(wanted: Any, x: Any) -> Any:
    """Items in the dtypes of others."""
    return jax.tree.map(lambda w, part: part.astype(w.dtype), wanted, x)


def computable(x: Any) -> Any:
    """Items in dtypes of at least 32 bits."""
    return jax.tree.map(lambda part: part.astype(compute_dtype(part.dtype)), x)


def _finished(
    network: Softened,
    gating: Gating,
    perturbed: Any,
    target: Any,
    values: jax.Array,
    trajectory: bool,
) -> tuple[Any, ...]:
    """Perturbed items and, with `trajectory`, the target's values `[N, steps + 1]`."""
    if not trajectory:
        return (perturbed,)
    last = targets.values(target, network(perturbed, gating))
    return perturbed, jnp.concatenate([values, last[None]]).T


_STATIC = ("selection", "trajectory", "sharding")


@compiled(*_STATIC, "rows")
def climb(
    params: Params,
    gating: Gating,
    x: Any,
    centres: Any,
    target: Any,
    *,
    ascent: Ascent,
    selection: Selection,
    trajectory: bool,
    rows: Rows,
    sharding: NamedSharding | None,
) -> tuple[jax.Array, ...]:
    """Run the ascent of each of `N` items towards its target.

    Returns:
        The perturbed items and, with `trajectory`, the target's values `[N, steps + 1]`.
    """

    def compute(
        params: Params,
        gating: Gating,
        ascent: Ascent,
        x: Any,
        centres: Any,
        target: Any,
    ) -> Any:
        blockwise = Blockwise(params, x, selection)
        at_once = blockwise.rows_at_once(rows)
        network = blockwise.of(at_once)

        def block(x: Any, centres: Any, target: Any) -> Any:
            end, values = _ascend(network, computable(x), centres, target, gating, ascent)
            return _finished(network, gating, like(x, end), target, values, trajectory)

        return in_loop(block, at_once, x, centres, target)

    return on_each(compute, sharding, (params, gating, ascent), (x, centres, target))


@compiled(*_STATIC, "cells")
def climb_grid(
    params: Params,
    gating: Gating,
    x: Any,
    columns: Any,
    *,
    ascent: Ascent,
    selection: Selection,
    trajectory: bool,
    cells: Cells,
    sharding: NamedSharding | None,
) -> tuple[Any, ...]:
    """Run the ascent of each of `N` items towards each of its targets `[N, C]`.

    The first step takes its pullbacks from one forward pass per item.

    Returns:
        As for `climb`, `[N, C, ...]`.
    """

    def compute(params: Params, gating: Gating, ascent: Ascent, x: Any, columns: Any) -> Any:
        blockwise = Blockwise(params, x, selection)
        grid = blockwise.grid(_shape(columns)[1], cells, repeats=True)
        on_items = blockwise.of(grid.rows_at_once)
        on_cells = blockwise.of(grid.rows_at_once * grid.columns_at_once)
        rest = dataclasses.replace(ascent, steps=max(ascent.steps - 1, 0))

        def begin(rows: Any) -> Any:
            given = items.rows(x, rows)
            outputs, pull = linearise(on_items, given, gating)

            def finish(chosen: Any) -> Any:
                of_cells = targets.cells(columns, rows, chosen)
                shape = _shape(of_cells)
                centres = jax.tree.map(lambda part: jnp.repeat(part, shape[1], 0), given)
                start, values, target = computable(centres), [], _merged(of_cells)
                if ascent.steps > 0:
                    start = ascent.step(start, start, _merged(fields(pull, of_cells)))
                    values = [_values(of_cells, outputs).reshape(1, -1)]
                end, more = _ascend(on_cells, start, centres, target, gating, rest)
                values, end = jnp.concatenate([*values, more]), like(centres, end)
                results = _finished(on_cells, gating, end, target, values, trajectory)
                return jax.tree.map(lambda part: part.reshape(*shape, *part.shape[1:]), results)

            return finish

        return grid.in_loop(begin)

    return on_each(compute, sharding, (params, gating, ascent), (x, columns))


def _shape(cells: Any) -> tuple[int, int]:
    """The numbers of rows and columns of cells."""
    return jax.tree.leaves(cells)[0].shape[:2]


def _merged(cells: Any) -> Any:
    """Cells `[N, C, ...]` as items `[N * C, ...]`."""
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), cells)


def _values(cells: Any, outputs: Any) -> jax.Array:
    """The values `[N, C]` of targets `[N, C]` for the outputs of `N` items."""
    of_column = functools.partial(targets.values, outputs=outputs)
    return jax.vmap(of_column, in_axes=1, out_axes=1)(cells)
