"""Excitation pullbacks of a network's logits, for one target an image or for a grid of classes."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jax_excite.callables.pytree import as_floats, as_pytree
from jax_excite.data.images import check_images
from jax_excite.errors import SettingError, TargetError
from jax_excite.gating import Gating, check_gating
from jax_excite.pullbacks import targets
from jax_excite.pullbacks.batching import (
    AUTO,
    COLUMN,
    Cells,
    Grid,
    Rows,
    cells_a_write,
    cells_at_once,
    in_loop,
    rows_at_once,
    tall,
)
from jax_excite.pullbacks.sharding import gathered, on_each, sharding_of, shards_of, spread
from jax_excite.pullbacks.softened import (
    softened,
    softened_if_alone,
    softened_rows,
    treats_items_alone,
)
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import EXCITATION
from jax_excite.transform.plan import Names, Selection, SiteSelection
from jax_excite.typing import Bounds, Params

GatedNetwork = Callable[[jax.Array, Gating], jax.Array]  # as `softened` makes of `Params`


def pullback(
    params: Params,
    x: jax.Array | np.ndarray,
    c: Target,
    *,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    bounds: Bounds | None = (-1.0, 1.0),
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
) -> jax.Array:
    """Pull a target back from the logits to the image, through soft gates (paper, section 4.2).

    Compiled once for each shape, dtype and static setting; another class, temperature or set of
    weights recompiles nothing.

    Args:
        params: a callable pytree that maps images `[N, H, W, 3]` to logits `[N, K]`: a model from
            `load`, any NNX or Equinox module, `jax.tree_util.Partial(linen.apply, variables)`.
            A plain function works too; arrays that it closes over are compiled in as constants.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`, float, in `bounds`.
        c: the target: a class index, an integer array `[N]`, a float cotangent with the shape of
            the logits, or a scalar objective of one image's logits `[K]`.
        gating: how gates are softened; the default is the paper's.
        skip: sites to leave hard, by index or name as `sites` lists them.
        only: if given, the only sites to soften.
        enter: functions with derivative rules of their own to replace by their bodies, by name.
        bounds: the range of images, checked; None checks only that they are finite.
        batch_size: at most this many images at a time, to bound memory, on each device; None for
            as many as are fast: on a CPU 6 of a function that is found to treat images alone,
            else all.
        sharding: how to spread the images over devices, such as
            `NamedSharding(mesh, PartitionSpec("data"))`. Their number need not divide evenly. None
            for as they are: a sharded `x` is computed where its rows are.

    Returns:
        The vector field at `x`: signed, not normalised, with the shape of `x`.

    Raises:
        ImageError: `x` is no image or batch of images in [-1, 1].
        TargetError: a class index out of range, or a target that does not fit the logits.
        GatingError: the model has no gate, a site does not exist, a temperature does not fit.
    """
    return value_and_pullback(
        params,
        x,
        c,
        gating=gating,
        skip=skip,
        only=only,
        enter=enter,
        bounds=bounds,
        batch_size=batch_size,
        sharding=sharding,
    )[1]


def value_and_pullback(
    params: Params,
    x: jax.Array | np.ndarray,
    c: Target,
    *,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    bounds: Bounds | None = (-1.0, 1.0),
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The logits and the pullback, from one forward pass.

    Arguments and errors are those of `pullback`.

    Returns:
        The logits, `[K]` or `[N, K]`, and the vector field, shaped like `x`.
    """
    check_gating(gating)
    images, single = as_batch(x, bounds)
    params = as_pytree(params)
    target = targets.prepare(c, len(images), number_of_logits(params, images), single)
    sharding = sharding_of(x, sharding)
    rows, target = spread(sharding, images, target)
    results = _value_and_pullback(
        params,
        rows,
        target,
        gating=as_floats(gating),
        selection=Selection.of(skip, only, enter),
        rows=rows_at_once(batch_size, x, gating),
        sharding=sharding,
    )
    return gathered(sharding, results, len(images), single)


def pullback_grid(
    params: Params,
    x: jax.Array | np.ndarray,
    classes: Sequence[int] | np.ndarray | jax.Array,
    *,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    bounds: Bounds | None = (-1.0, 1.0),
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
    out: Any = None,
) -> Any:
    """Pullbacks of several classes for each image, from one forward pass an image.

    The class grid of the paper's section 5.1. Arguments and errors are those of `pullback`, but:

    Args:
        params: as for `pullback`.
        x: as for `pullback`.
        classes: `C` class indices for all images, or an array `[N, C]` with a row for each.
        gating: as for `pullback`.
        skip: as for `pullback`.
        only: as for `pullback`.
        enter: as for `pullback`.
        bounds: as for `pullback`.
        batch_size: at most this many cells (an image with a class) at a time, on each device.
        sharding: as for `pullback`.
        out: a float array of the result's shape to write to, some batches at a time, for a grid
            larger than memory: a `numpy.lib.format.open_memmap`, a Zarr array.

    Returns:
        The vector fields, `[N, C, H, W, 3]`, or `[C, H, W, 3]` for one image; `out`, if given.

    Raises:
        SettingError: `out` has another shape, or no float dtype.
    """
    check_gating(gating)
    images, single = as_batch(x, bounds)
    params = as_pytree(params)
    indices = targets.class_rows(classes, len(images), number_of_logits(params, images))
    compute = functools.partial(
        _pullback_grid,
        params,
        gating=as_floats(gating),
        selection=Selection.of(skip, only, enter),
        cells=cells_at_once(batch_size, x, gating),
        sharding=sharding_of(x, sharding),
    )
    return over_grid(compute, images, indices, single, out)[0]


def over_grid(
    compute: functools.partial[tuple[jax.Array, ...]],
    images: Any,
    indices: Any,
    single: bool,
    out: Any,
) -> tuple[Any, ...]:
    """`compute(images, indices)`, whose results `[N, C, ...]` are an image a cell, then others.

    With `out`, the images are written there, a block of cells after the other.
    """
    sharding = compute.keywords["sharding"]
    if out is None:
        results = compute(*spread(sharding, images, indices))
        return gathered(sharding, results, len(images), single)
    wanted = (*indices.shape, *images.shape[1:])[single:]
    if tuple(out.shape) != wanted:
        raise SettingError(f"out has shape {tuple(out.shape)}: the result has {wanted}")
    if not np.issubdtype(out.dtype, np.floating):
        raise SettingError(f"out has dtype {out.dtype}: the result is float, so give such an array")
    shards = shards_of(sharding)
    shape = math.ceil(len(indices) / shards), indices.shape[1]
    cells, grid = _blocks(compute.args[0], images, shape, compute.keywords["cells"])
    compute = functools.partial(compute, cells=cells)
    others: list[np.ndarray] = []
    for rows, columns, place in grid.blocks(len(indices), shards):
        block = spread(sharding, images[rows], indices[rows][:, columns])
        first, *more = gathered(sharding, compute(*block), len(rows), single=False)
        inside = tuple(slice(part.stop - part.start) for part in place)
        out[place[single:]] = np.asarray(first)[inside][0 if single else slice(None)]
        others = others or [np.empty((*indices.shape, *p.shape[2:]), p.dtype) for p in more]
        for array, part in zip(others, more, strict=True):
            array[place] = np.asarray(part)[inside]
    return (out, *(array[0] if single else array for array in others))


def _blocks(
    params: Params, images: Any, shape: tuple[int, int], cells: Cells
) -> tuple[Cells, Grid]:
    """Of a grid that is written as it is computed: cells at a time, and the blocks to write."""

    def alike(count: int) -> np.ndarray:
        return np.broadcast_to(images[:1], (count, *images.shape[1:]))

    def may_be_cut(*sizes: Any) -> bool:
        whole = alike(len(images))
        return all(treats_items_alone(params, alike(size), whole) for size in sizes)

    at_once, written = cells_a_write(cells)
    if cells not in (AUTO, None) or may_be_cut(1, at_once):
        return at_once, Grid(*shape, written)
    grid = tall(*shape)
    return COLUMN, grid if may_be_cut(grid.rows_at_once) else Grid(*shape, COLUMN)


@functools.partial(jax.jit, static_argnames=("selection", "rows", "sharding"))
def _value_and_pullback(
    params: Params,
    x: jax.Array,
    target: Any,
    *,
    gating: Gating,
    selection: Selection,
    rows: Rows,
    sharding: NamedSharding | None,
) -> tuple[jax.Array, jax.Array]:
    def compute(params: Params, gating: Gating, x: jax.Array, target: Any) -> Any:
        network, at_once = softened_rows(params, x, selection, rows, fold=len(x) > 1)

        def block(x: jax.Array, target: Any) -> tuple[jax.Array, jax.Array]:
            logits, pull = linearise(network, x, gating)
            return logits, pull(target)

        return in_loop(block, at_once, x, target)

    return on_each(compute, sharding, (params, gating), (x, target))


@functools.partial(jax.jit, static_argnames=("selection", "cells", "sharding"))
def _pullback_grid(
    params: Params,
    x: jax.Array,
    indices: jax.Array,
    *,
    gating: Gating,
    selection: Selection,
    cells: Cells,
    sharding: NamedSharding | None,
) -> tuple[jax.Array]:
    def compute(params: Params, gating: Gating, x: jax.Array, indices: jax.Array) -> Any:
        grid = Grid(len(indices), indices.shape[1], cells)
        network = None
        if cells == AUTO and grid.rows_at_once < len(x):
            for blocks in (grid, tall(*grid.shape), Grid(*grid.shape, COLUMN)):
                grid = blocks
                network = softened_if_alone(params, x[: grid.rows_at_once], x, selection)
                if network is not None:
                    break
        network = network or softened(params, x[: grid.rows_at_once], selection)

        def begin(rows: Any) -> Any:
            _, pull = linearise(network, x[rows], gating)
            return lambda columns: (fields(pull, indices[rows][:, columns]),)

        return grid.in_loop(begin)

    return on_each(compute, sharding, (params, gating), (x, indices))


def fields(pull: Callable[[Any], jax.Array], indices: jax.Array) -> jax.Array:
    """The pullbacks `[N, C, H, W, 3]` of classes `[N, C]`, by what `linearise` gave for images."""
    return jnp.moveaxis(jax.vmap(pull)(indices.T), 0, 1)


def linearise(
    network: GatedNetwork, x: jax.Array, gating: Gating
) -> tuple[jax.Array, Callable[[Any], jax.Array]]:
    """The logits of a batch, and the map from targets (of `targets.prepare`) to vector fields."""
    logits, transpose = jax.vjp(lambda x: network(x, gating), x)
    return logits, lambda target: transpose(targets.cotangents(target, logits))[0]


def as_batch(
    x: jax.Array | np.ndarray, bounds: Bounds | None
) -> tuple[jax.Array | np.ndarray, bool]:
    """Checked images `[N, H, W, 3]`, and whether `x` was a single one."""
    check_images(x, bounds)
    return (x[None], True) if x.ndim == 3 else (x, False)


def number_of_logits(params: Params, images: jax.Array | np.ndarray) -> int:
    """K, where `params` maps images `[N, H, W, 3]` to logits `[N, K]`; else `TargetError`."""
    shapes = _apply.eval_shape(params, images)
    if getattr(shapes, "ndim", None) != 2 or shapes.shape[0] != len(images):
        got = jax.tree.map(lambda leaf: leaf.shape, shapes)
        raise TargetError(
            f"params(x) of {len(images)} images gave shape {got}: it has to return logits of "
            f"shape ({len(images)}, K)"
        )
    return shapes.shape[1]


@jax.jit
def _apply(params: Params, x: jax.Array) -> Any:
    return params(x)
