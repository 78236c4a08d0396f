"""Excitation pullbacks of a network's outputs, for one target per item or for a grid of classes."""

from typing import Any

import jax
from jax.sharding import NamedSharding

from jax_excite.gating import Gating
from jax_excite.pullbacks import items, targets
from jax_excite.pullbacks.batching import Cells, Rows, in_loop
from jax_excite.pullbacks.compiled import compiled
from jax_excite.pullbacks.request import Request
from jax_excite.pullbacks.sharding import on_each
from jax_excite.pullbacks.softened import Blockwise, fields, linearise
from jax_excite.pullbacks.targets import Target, Targets
from jax_excite.recipes import EXCITATION
from jax_excite.transform.sites import Names, Selection, SiteSelection
from jax_excite.typing import Bounds, Items, Params


def pullback(
    params: Params,
    x: Items,
    c: Target,
    *,
    at: str | int | None = None,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    bounds: Bounds | None = (-1.0, 1.0),
    batched: bool | None = None,
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
) -> Any:
    """Pull a target back from the outputs to the input, through soft gates (paper, section 4.2).

    The computation is compiled once per shape, dtype and static setting. Changing the class, the
    temperature or the weights does not trigger recompilation.

    Args:
        params: a callable pytree that maps a batch of items to outputs, such as images
            `[N, H, W, C]` to logits `[N, K]`: a model from `load`, any NNX or Equinox module, or
            `jax.tree_util.Partial(linen.apply, variables)`. A plain function works too; the arrays
            that it closes over are read at each call.
        x: one image `[H, W, C]` or a batch `[N, H, W, C]`, float, in `bounds`; or other float
            arrays, or a pytree of several inputs, with `batched`.
        c: the target: a class index of logits `[N, K]`; an integer array `[N]` of them; a tuple of
            indices of one entry of an item's outputs, in a pytree preceded by the keys of the
            array, such as `("scores", 3)`; a float cotangent with the structure and shape of the
            outputs; or a scalar objective of one item's outputs.
        at: the site whose output the target refers to, by index or name as `sites` lists them,
            instead of the outputs of `params` (paper, section 3.1: the pullback of a hidden
            neuron). An integer target is then a channel, summed over all positions. The rest of the
            network is not differentiated.
        gating: how gates are softened; the default is the paper's.
        skip: sites to leave hard, by index or name as `sites` lists them.
        only: if given, the only sites to soften.
        enter: names of functions with custom derivative rules to replace by their bodies.
        bounds: the range that images are checked against; None checks only that they are finite,
            which is all that is checked of other inputs.
        batched: whether `x` has a batch axis. None decides by the rank: 3 for one image, 4 for a
            batch of them; it has to be given for other inputs.
        batch_size: the maximum number of items at a time, on each device, to bound memory. None
            selects a fast number: 6 on a CPU if the function treats items independently, otherwise
            all.
        sharding: how to spread the items over devices, such as
            `NamedSharding(mesh, PartitionSpec("data"))`. The number of items need not divide
            evenly. None keeps their placement: a sharded `x` is computed where its rows are.

    Returns:
        The vector field at `x`: signed, not normalised, with the shape of `x`.

    Raises:
        InputError: `x` is not an image or batch of images in `bounds` (`ImageError`), or `batched`
            has to be given.
        TargetError: a class index is out of range, or the target does not fit the outputs.
        GatingError: the model has no gate, a site does not exist, or a temperature does not fit.
    """
    return value_and_pullback(
        params,
        x,
        c,
        at=at,
        gating=gating,
        skip=skip,
        only=only,
        enter=enter,
        bounds=bounds,
        batched=batched,
        batch_size=batch_size,
        sharding=sharding,
    )[1]


def value_and_pullback(
    params: Params,
    x: Items,
    c: Target,
    *,
    at: str | int | None = None,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    bounds: Bounds | None = (-1.0, 1.0),
    batched: bool | None = None,
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
) -> tuple[Any, Any]:
    """The outputs and the pullback, from one forward pass.

    Arguments and errors are those of `pullback`.

    Returns:
        The outputs, such as logits `[K]` or `[N, K]`, and the vector field, shaped like `x`. With
        `at`, the outputs are those of the site. Their batch axis comes first; for a site in a loop,
        an axis for the steps follows.
    """
    request = Request.of(
        params,
        x,
        gating,
        bounds=bounds,
        batched=batched,
        at=at,
        skip=skip,
        only=only,
        enter=enter,
        batch_size=batch_size,
        sharding=sharding,
    )
    target = request.target(c)
    outputs, fields = request.over_rows(outputs_and_fields, target, selection=request.selection)
    return targets.bare(outputs), fields


def pullback_grid(
    params: Params,
    x: Items,
    classes: Targets,
    *,
    at: str | int | None = None,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    bounds: Bounds | None = (-1.0, 1.0),
    batched: bool | None = None,
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
    out: Any = None,
) -> Any:
    """Pullbacks of several targets for each item, from one forward pass per item.

    This is the class grid of the paper's section 5.1. Arguments and errors are those of `pullback`,
    except as described here.

    Args:
        params: as for `pullback`.
        x: as for `pullback`.
        classes: `C` class indices (channels, with `at`) for all items, an array `[N, C]` of them
            with a row per item, or a list of `C` tuples of indices.
        at: as for `pullback`.
        gating: as for `pullback`.
        skip: as for `pullback`.
        only: as for `pullback`.
        enter: as for `pullback`.
        bounds: as for `pullback`.
        batched: as for `pullback`.
        batch_size: the maximum number of cells (an item with a class) at a time, on each device.
        sharding: as for `pullback`.
        out: a float array of the result's shape that the result is written to, some batches at a
            time. Use it for a grid larger than memory, with a `numpy.lib.format.open_memmap` or a
            Zarr array.

    Returns:
        The vector fields, `[N, C, H, W, 3]`, or `[C, H, W, 3]` for one image, in the structure of
        `x`. If `out` is given, it is returned.

    Raises:
        SettingError: `out` has a different shape, its dtype is not float, or `x` is a pytree.
    """
    request = Request.of(
        params,
        x,
        gating,
        bounds=bounds,
        batched=batched,
        at=at,
        skip=skip,
        only=only,
        enter=enter,
        batch_size=batch_size,
        sharding=sharding,
    )
    columns = request.columns(classes)
    return request.over_grid(_pullback_grid, columns, out, selection=request.selection)[0]


@compiled("selection", "rows", "sharding")
def outputs_and_fields(
    params: Params,
    gating: Gating,
    x: Any,
    target: Any,
    *,
    selection: Selection,
    rows: Rows,
    sharding: NamedSharding | None,
) -> tuple[Any, Any]:
    """The outputs of items, and the pullback of a target of each: the compiled part."""

    def compute(params: Params, gating: Gating, x: Any, target: Any) -> Any:
        blockwise = Blockwise(params, x, selection, fold=items.count(x) > 1)
        at_once = blockwise.rows_at_once(rows)
        network = blockwise.of(at_once)

        def block(x: Any, target: Any) -> tuple[Any, Any]:
            outputs, pull = linearise(network, x, gating)
            return outputs, pull(target)

        return in_loop(block, at_once, x, target)

    return on_each(compute, sharding, (params, gating), (x, target))


@compiled("selection", "cells", "sharding")
def _pullback_grid(
    params: Params,
    gating: Gating,
    x: Any,
    columns: Any,
    *,
    selection: Selection,
    cells: Cells,
    sharding: NamedSharding | None,
) -> tuple[Any]:
    def compute(params: Params, gating: Gating, x: Any, columns: Any) -> Any:
        blockwise = Blockwise(params, x, selection)
        grid = blockwise.grid(jax.tree.leaves(columns)[0].shape[1], cells, repeats=False)
        network = blockwise.of(grid.rows_at_once)

        def begin(rows: Any) -> Any:
            _, pull = linearise(network, items.rows(x, rows), gating)
            return lambda chosen: (fields(pull, targets.cells(columns, rows, chosen)),)

        return grid.in_loop(begin)

    return on_each(compute, sharding, (params, gating), (x, columns))
