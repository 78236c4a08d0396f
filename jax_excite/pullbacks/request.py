"""The checked arguments of a public function as one object, and how its results are computed."""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float

from jax_excite.callables.known import is_known, place_of, read, write
from jax_excite.callables.pytree import Flattened, as_floats, check_callable
from jax_excite.data.arrays import dtype_in_jax
from jax_excite.errors import ExciteError, InputError, SettingError, TargetError
from jax_excite.gating import Gating, check_gating
from jax_excite.pullbacks import items, targets
from jax_excite.pullbacks.batching import (
    COLUMN,
    Cells,
    Grid,
    cells_a_write,
    cells_at_once,
    rows_at_once,
    tall,
)
from jax_excite.pullbacks.compiled import Compiled
from jax_excite.pullbacks.items import as_items
from jax_excite.pullbacks.sharding import gathered, sharding_of, shards_of, spread
from jax_excite.pullbacks.softened import Blockwise
from jax_excite.transform.plan import Plan
from jax_excite.transform.sites import SELECT_ALL, Names, Selection, SiteSelection
from jax_excite.typing import AnyArray, Bounds, Items, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A network, its items, the gating and its sites, and how to compute the results.

    Attributes:
        params: the network as a callable pytree all of whose leaves are arrays, flattened once.
        items: an array `[N, ...]`, such as images `[N, H, W, C]`, or a pytree of them.
        is_single: whether the caller gave one item without a batch axis.
        gating: how gates are softened, with its numbers as floats.
        selection: the sites that the gating applies to, and the site that the target is at.
        batch_size: the maximum number of items, or cells, at a time; None selects a fast number.
        sharding: how the items are spread over devices, or None.
    """

    params: Flattened
    items: Any
    is_single: bool
    gating: Gating
    selection: Selection
    batch_size: int | None
    sharding: NamedSharding | None

    @staticmethod
    def of(
        params: Params,
        x: Items,
        gating: Gating,
        *,
        bounds: Bounds | None,
        batched: bool | None = None,
        clips: bool = False,
        at: str | int | None = None,
        skip: SiteSelection = (),
        only: SiteSelection | None = None,
        enter: Names = (),
        batch_size: int | None = None,
        sharding: NamedSharding | None = None,
    ) -> "Request":
        """Make a request of a caller's arguments, which are those of `pullback`.

        `clips` is that of `as_items`.

        Raises:
            ExciteError: as for `pullback`, except for errors of the target.
        """
        check_gating(gating)
        given, is_single = as_items(x, bounds, batched, clips=clips)
        return Request(
            params=Flattened.of(params),
            items=given,
            is_single=is_single,
            gating=as_floats(gating),
            selection=Selection.of(skip, only, enter, at),
            batch_size=batch_size,
            sharding=sharding_of(x, sharding),
        )

    @property
    def count(self) -> int:
        """The number of items, N."""
        return items.count(self.items)

    @functools.cached_property
    def outputs(self) -> Any:
        """Shapes of the outputs; raises `TargetError` if an array has no batch axis."""
        return shapes_of_outputs(self.params, self.items, self.selection)

    def target(self, c: Any) -> Any:
        """Convert a target to the form that compiled functions take, or raise `TargetError`."""
        return targets.prepare(c, self.outputs, self.count, self.is_single)

    def columns(self, classes: Any) -> Any:
        """Convert the targets of a grid to one target `[N, C]`, or raise `TargetError`."""
        return targets.columns(classes, self.outputs, self.count)

    def over_rows(self, compiled: Compiled, *operands: Any, **settings: Any) -> Any:
        """Call a compiled function with the items and with operands that have a row per item.

        `compiled` also takes `rows`, the number of items at a time.
        """
        results = compiled(
            self.params,
            self.gating,
            *spread(self.sharding, self.items, *operands),
            rows=rows_at_once(self.batch_size, self.items, self.gating),
            sharding=self.sharding,
            **settings,
        )
        return gathered(self.sharding, results, self.count, self.is_single)

    def over_grid(
        self, compiled: Compiled, columns: Any, out: Any, **settings: Any
    ) -> tuple[Any, ...]:
        """Call a compiled function with the items and with targets `[N, C]`.

        `compiled` also takes `cells`, the number of cells at a time, and returns `[N, C, ...]`. If
        `out` is given, the first result is written to it, one block of cells after the other.
        """
        settings = {**settings, "sharding": self.sharding}
        compute = functools.partial(compiled, self.params, self.gating, **settings)
        cells = cells_at_once(self.batch_size, self.items, self.gating)
        if out is None:
            results = compute(*spread(self.sharding, self.items, columns), cells=cells)
            return gathered(self.sharding, results, self.count, self.is_single)
        count, width = jax.tree.leaves(columns)[0].shape[:2]
        _check_out(out, (count, width), self.items, self.is_single)
        whole = _Lifted(out) if self.is_single else out
        shards = shards_of(self.sharding)
        cells, grid = self._written((math.ceil(count / shards), width), cells)
        others: list[np.ndarray] = []
        for rows, across, place in grid.blocks(count, shards):
            chosen = targets.cells(columns, rows, across)
            block = spread(self.sharding, items.rows(self.items, rows), chosen)
            results = compute(*block, cells=cells)
            first, *more = gathered(self.sharding, results, len(rows), single=False)
            inside = tuple(slice(part.stop - part.start) for part in place)
            whole[place] = np.asarray(first)[inside]
            others = others or [np.empty((count, width, *p.shape[2:]), p.dtype) for p in more]
            for array, part in zip(others, more, strict=True):
                array[place] = np.asarray(part)[inside]
        return (out, *(array[0] if self.is_single else array for array in others))

    def _written(self, shape: tuple[int, int], cells: Cells) -> tuple[Cells, Grid]:
        """Cells at a time and blocks to write, for a grid that is written while it is computed."""
        alike = jax.tree.map(lambda leaf: np.broadcast_to(leaf[:1], leaf.shape), self.items)
        blockwise = Blockwise(self.params, alike, self.selection)
        block, written = cells_a_write(cells)
        if not isinstance(block, int) or isinstance(cells, int):
            return block, Grid(*shape, written)
        if blockwise.treats_items_alone(1) and blockwise.treats_items_alone(block):
            return block, Grid(*shape, written)
        grid = tall(*shape)
        may_be_cut = blockwise.treats_items_alone(grid.rows_at_once)
        return COLUMN, grid if may_be_cut else Grid(*shape, COLUMN)


class _Lifted:
    """An array without a batch axis that is written to as if it had one of length 1."""

    def __init__(self, array: Any):
        self._array = array

    def __setitem__(self, place: tuple[slice, ...], block: np.ndarray) -> None:
        self._array[place[1:]] = block[0]


def _check_out(out: Any, shape: tuple[int, int], given: Any, is_single: bool) -> None:
    if not isinstance(given, (np.ndarray, jax.Array)):
        raise SettingError("out is for inputs that are one array: x is a pytree of several")
    wanted = (*shape[is_single:], *given.shape[1:])
    if tuple(out.shape) != wanted:
        raise SettingError(f"out has shape {tuple(out.shape)}: the result has {wanted}")
    if not np.issubdtype(out.dtype, np.floating):
        raise SettingError(f"out has dtype {out.dtype}: the result is float, so give a float array")


def number_of_logits(params: Params, images: Float[AnyArray, "N ..."]) -> int:
    """The K of the logits `[N, K]` that `params` returns; raises `TargetError` if it does not."""
    return shape_of_logits(params, images).shape[1]


def shape_of_logits(params: Params, images: Float[AnyArray, "N ..."]) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the logits `[N, K]`; raises `TargetError` if there are none."""
    shapes = shapes_of_outputs(params, images)
    if getattr(shapes, "ndim", None) != 2:
        raise TargetError(
            f"params(x) of {len(images)} images gave shape {items.shapes_of(shapes)}: it has to "
            f"return logits of shape ({len(images)}, K)"
        )
    return shapes


def shapes_of_outputs(params: Params, given: Any, selection: Selection = SELECT_ALL) -> Any:
    """Shapes of the outputs for items; raises `TargetError` if an array has no batch axis."""
    try:
        leaves, tree = jax.tree.flatten((params, given))
        types = tuple(
            (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in leaves
        )
        shapes = _shapes_of_outputs(tree, types, jnp.result_type(float), selection)
    except ExciteError:
        raise
    except Exception as error:
        shape = items.shapes_of(given)
        if items.looks_channels_first(given):
            raise InputError(
                f"params failed for x of shape {shape}, which looks as if channels came first: "
                "images are [N, H, W, C], so move them with moveaxis(x, -3, -1)"
            ) from error
        error.add_note(
            f"params was called with x of shape {shape}; images have their channels last"
        )
        raise
    count, leaves = items.count(given), jax.tree.leaves(shapes)
    if not leaves or any(leaf.shape[:1] != (count,) for leaf in leaves):
        raise TargetError(
            f"params(x) of {count} items gave shape {items.shapes_of(shapes)}: the first axis of "
            f"each output has to count the items, {count}"
        )
    return shapes


@functools.lru_cache(maxsize=64)
def _shapes_of_outputs(tree: Any, types: Any, _: np.dtype, selection: Selection) -> Any:
    """Shapes for leaves of these shapes and dtypes, in a mode with this default float dtype."""
    leaves = [
        jax.ShapeDtypeStruct(shape, dtype_in_jax(dtype), weak_type=weak)
        for shape, dtype, weak in types
    ]
    network, given = tree.unflatten(leaves)
    check_callable(network)
    fixed = {"selection": selection}
    place = place_of("outputs", network, given, fixed) if is_known(network) else None
    kept = read(place)
    if kept is not None:
        shape, dtype = json.loads(kept)
        return jax.ShapeDtypeStruct(tuple(shape), dtype)
    shapes = _traced_shapes(tree, leaves, selection)
    if isinstance(shapes, jax.ShapeDtypeStruct):
        write(place, json.dumps([shapes.shape, str(shapes.dtype)]).encode())
    return shapes


def _traced_shapes(tree: Any, leaves: Sequence[Any], selection: Selection) -> Any:
    def output(*leaves: jax.Array) -> Any:
        params, x = tree.unflatten(leaves)
        if selection.at is None:
            return params(x)
        return Plan(params, (x,), {}, selection).run(lambda at: (at.hard, None))[0]

    return jax.eval_shape(output, *leaves)
