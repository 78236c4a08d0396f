"""Excitation pullbacks of a network's logits, for one target per image or for a grid of classes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding
from jaxtyping import Float, Int

from jax_excite.gating import Gating
from jax_excite.pullbacks.batching import Cells, Rows, in_loop
from jax_excite.pullbacks.request import Request
from jax_excite.pullbacks.sharding import on_each
from jax_excite.pullbacks.softened import Blockwise, fields, linearise
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import EXCITATION
from jax_excite.transform.sites import Names, Selection, SiteSelection
from jax_excite.typing import AnyArray, Bounds, Params


def pullback(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    *,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    bounds: Bounds | None = (-1.0, 1.0),
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
) -> Float[jax.Array, "*N H W C"]:
    """Pull a target back from the logits to the image, through soft gates (paper, section 4.2).

    The computation is compiled once per shape, dtype and static setting. Changing the class, the
    temperature or the weights does not trigger recompilation.

    Args:
        params: a callable pytree that maps images `[N, H, W, 3]` to logits `[N, K]`: a model from
            `load`, any NNX or Equinox module, or `jax.tree_util.Partial(linen.apply, variables)`.
            A plain function works too; the arrays that it closes over are read at each call.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`, float, in `bounds`.
        c: the target: a class index, an integer array `[N]`, a float cotangent with the shape of
            the logits, or a scalar objective of one image's logits `[K]`.
        gating: how gates are softened; the default is the paper's.
        skip: sites to leave hard, by index or name as `sites` lists them.
        only: if given, the only sites to soften.
        enter: names of functions with custom derivative rules to replace by their bodies.
        bounds: the range that images are checked against; None checks only that they are finite.
        batch_size: the maximum number of images at a time, on each device, to bound memory. None
            selects a fast number: 6 on a CPU if the function treats images independently, otherwise
            all.
        sharding: how to spread the images over devices, such as
            `NamedSharding(mesh, PartitionSpec("data"))`. The number of images need not divide
            evenly. None keeps their placement: a sharded `x` is computed where its rows are.

    Returns:
        The vector field at `x`: signed, not normalised, with the shape of `x`.

    Raises:
        ImageError: `x` is not an image or batch of images in `bounds`.
        TargetError: a class index is out of range, or the target does not fit the logits.
        GatingError: the model has no gate, a site does not exist, or a temperature does not fit.
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
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    *,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    bounds: Bounds | None = (-1.0, 1.0),
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
) -> tuple[Float[jax.Array, "*N K"], Float[jax.Array, "*N H W C"]]:
    """The logits and the pullback, from one forward pass.

    Arguments and errors are those of `pullback`.

    Returns:
        The logits, `[K]` or `[N, K]`, and the vector field, shaped like `x`.
    """
    request = Request.of(
        params,
        x,
        gating,
        bounds=bounds,
        skip=skip,
        only=only,
        enter=enter,
        batch_size=batch_size,
        sharding=sharding,
    )
    return request.over_rows(_value_and_pullback, request.target(c), selection=request.selection)


def pullback_grid(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    classes: Sequence[int] | Int[AnyArray, "*N K"],
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
    """Pullbacks of several classes for each image, from one forward pass per image.

    This is the class grid of the paper's section 5.1. Arguments and errors are those of `pullback`,
    except as described here.

    Args:
        params: as for `pullback`.
        x: as for `pullback`.
        classes: `C` class indices for all images, or an array `[N, C]` with a row per image.
        gating: as for `pullback`.
        skip: as for `pullback`.
        only: as for `pullback`.
        enter: as for `pullback`.
        bounds: as for `pullback`.
        batch_size: the maximum number of cells (an image with a class) at a time, on each device.
        sharding: as for `pullback`.
        out: a float array of the result's shape that the result is written to, some batches at a
            time. Use it for a grid larger than memory, with a `numpy.lib.format.open_memmap` or a
            Zarr array.

    Returns:
        The vector fields, `[N, C, H, W, 3]`, or `[C, H, W, 3]` for one image. If `out` is given, it
        is returned.

    Raises:
        SettingError: `out` has a different shape, or its dtype is not float.
    """
    request = Request.of(
        params,
        x,
        gating,
        bounds=bounds,
        skip=skip,
        only=only,
        enter=enter,
        batch_size=batch_size,
        sharding=sharding,
    )
    indices = request.classes(classes)
    return request.over_grid(_pullback_grid, indices, out, selection=request.selection)[0]


@functools.partial(jax.jit, static_argnames=("selection", "rows", "sharding"))
def _value_and_pullback(
    params: Params,
    gating: Gating,
    x: Float[jax.Array, "N H W C"],
    target: Any,
    *,
    selection: Selection,
    rows: Rows,
    sharding: NamedSharding | None,
) -> tuple[Float[jax.Array, "N K"], Float[jax.Array, "N H W C"]]:
    def compute(params: Params, gating: Gating, x: jax.Array, target: Any) -> Any:
        blockwise = Blockwise(params, x, selection, fold=len(x) > 1)
        at_once = blockwise.rows_at_once(rows)
        network = blockwise.of(at_once)

        def block(x: jax.Array, target: Any) -> tuple[jax.Array, jax.Array]:
            logits, pull = linearise(network, x, gating)
            return logits, pull(target)

        return in_loop(block, at_once, x, target)

    return on_each(compute, sharding, (params, gating), (x, target))


@functools.partial(jax.jit, static_argnames=("selection", "cells", "sharding"))
def _pullback_grid(
    params: Params,
    gating: Gating,
    x: Float[jax.Array, "N H W C"],
    indices: Int[jax.Array, "N K"],
    *,
    selection: Selection,
    cells: Cells,
    sharding: NamedSharding | None,
) -> tuple[Float[jax.Array, "N K H W C"]]:
    def compute(params: Params, gating: Gating, x: jax.Array, indices: jax.Array) -> Any:
        blockwise = Blockwise(params, x, selection)
        grid = blockwise.grid(indices.shape[1], cells, repeats=False)
        network = blockwise.of(grid.rows_at_once)

        def begin(rows: Any) -> Any:
            _, pull = linearise(network, x[rows], gating)
            return lambda columns: (fields(pull, indices[rows][:, columns]),)

        return grid.in_loop(begin)

    return on_each(compute, sharding, (params, gating), (x, indices))
