"""The checked arguments of a public function as one object, and how its results are computed."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float

from jax_excite.callables.pytree import as_floats, as_pytree
from jax_excite.data.images import check_images
from jax_excite.errors import SettingError, TargetError
from jax_excite.gating import Gating, check_gating
from jax_excite.pullbacks import targets
from jax_excite.pullbacks.batching import (
    COLUMN,
    Cells,
    Grid,
    cells_a_write,
    cells_at_once,
    rows_at_once,
    tall,
)
from jax_excite.pullbacks.sharding import gathered, sharding_of, shards_of, spread
from jax_excite.pullbacks.softened import Blockwise
from jax_excite.transform.sites import Names, Selection, SiteSelection
from jax_excite.typing import AnyArray, Bounds, Params

Compiled = Callable[..., Any]  # called as compiled(params, gating, *arrays, sharding=..., ...)


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A network, its images, the gating and its sites, and how to compute the results.

    Attributes:
        params: the network as a callable pytree all of whose leaves are arrays.
        images: `[N, H, W, 3]`.
        is_single: whether the caller gave one image without a batch axis.
        gating: how gates are softened, with its numbers as floats.
        selection: the sites that the gating applies to.
        batch_size: the maximum number of images, or cells, at a time; None selects a fast number.
        sharding: how the images are spread over devices, or None.
    """

    params: Params
    images: Float[AnyArray, "N H W C"]
    is_single: bool
    gating: Gating
    selection: Selection
    batch_size: int | None
    sharding: NamedSharding | None

    @staticmethod
    def of(
        params: Params,
        x: Float[AnyArray, "*N H W C"],
        gating: Gating,
        *,
        bounds: Bounds | None,
        skip: SiteSelection = (),
        only: SiteSelection | None = None,
        enter: Names = (),
        batch_size: int | None = None,
        sharding: NamedSharding | None = None,
    ) -> "Request":
        """Make a request of a caller's arguments, which are those of `pullback`.

        Raises:
            ExciteError: as for `pullback`, except for errors of the target.
        """
        check_gating(gating)
        images, is_single = as_batch(x, bounds)
        return Request(
            params=as_pytree(params),
            images=images,
            is_single=is_single,
            gating=as_floats(gating),
            selection=Selection.of(skip, only, enter),
            batch_size=batch_size,
            sharding=sharding_of(x, sharding),
        )

    @functools.cached_property
    def logits(self) -> int:
        """The number of logits per image; raises `TargetError` if the outputs are not logits."""
        return number_of_logits(self.params, self.images)

    def target(self, c: Any) -> Any:
        """Convert a target to the form that compiled functions take, or raise `TargetError`."""
        return targets.prepare(c, len(self.images), self.logits, self.is_single)

    def classes(self, classes: Any) -> Any:
        """Convert classes to indices `[N, C]`, or raise `TargetError`."""
        return targets.class_rows(classes, len(self.images), self.logits)

    def over_rows(self, compiled: Compiled, *operands: Any, **settings: Any) -> Any:
        """Call a compiled function with the images and with operands that have a row per image.

        `compiled` also takes `rows`, the number of images at a time.
        """
        results = compiled(
            self.params,
            self.gating,
            *spread(self.sharding, self.images, *operands),
            rows=rows_at_once(self.batch_size, self.images, self.gating),
            sharding=self.sharding,
            **settings,
        )
        return gathered(self.sharding, results, len(self.images), self.is_single)

    def over_grid(
        self, compiled: Compiled, indices: Any, out: Any, **settings: Any
    ) -> tuple[Any, ...]:
        """Call a compiled function with the images and with classes `[N, C]`.

        `compiled` also takes `cells`, the number of cells at a time, and returns `[N, C, ...]`. If
        `out` is given, the first result is written to it, one block of cells after the other.
        """
        settings = {**settings, "sharding": self.sharding}
        compute = functools.partial(compiled, self.params, self.gating, **settings)
        cells = cells_at_once(self.batch_size, self.images, self.gating)
        if out is None:
            results = compute(*spread(self.sharding, self.images, indices), cells=cells)
            return gathered(self.sharding, results, len(self.images), self.is_single)
        _check_out(out, (*indices.shape, *self.images.shape[1:]), self.is_single)
        whole = _Lifted(out) if self.is_single else out
        shards = shards_of(self.sharding)
        shape = math.ceil(len(indices) / shards), indices.shape[1]
        cells, grid = self._written(shape, cells)
        others: list[np.ndarray] = []
        for rows, columns, place in grid.blocks(len(indices), shards):
            block = spread(self.sharding, self.images[rows], indices[rows][:, columns])
            results = compute(*block, cells=cells)
            first, *more = gathered(self.sharding, results, len(rows), single=False)
            inside = tuple(slice(part.stop - part.start) for part in place)
            whole[place] = np.asarray(first)[inside]
            others = others or [np.empty((*indices.shape, *p.shape[2:]), p.dtype) for p in more]
            for array, part in zip(others, more, strict=True):
                array[place] = np.asarray(part)[inside]
        return (out, *(array[0] if self.is_single else array for array in others))

    def _written(self, shape: tuple[int, int], cells: Cells) -> tuple[Cells, Grid]:
        """Cells at a time and blocks to write, for a grid that is written while it is computed."""
        alike = np.broadcast_to(self.images[:1], self.images.shape)
        blockwise = Blockwise(self.params, alike)
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


def _check_out(out: Any, shape: tuple[int, ...], is_single: bool) -> None:
    wanted = shape[1:] if is_single else shape
    if tuple(out.shape) != wanted:
        raise SettingError(f"out has shape {tuple(out.shape)}: the result has {wanted}")
    if not np.issubdtype(out.dtype, np.floating):
        raise SettingError(f"out has dtype {out.dtype}: the result is float, so give a float array")


def as_batch(
    x: Float[AnyArray, "*N H W C"], bounds: Bounds | None
) -> tuple[Float[AnyArray, "N H W C"], bool]:
    """Check images; return them as `[N, H, W, 3]`, and whether `x` was a single image."""
    check_images(x, bounds)
    return (x[None], True) if x.ndim == 3 else (x, False)


def number_of_logits(params: Params, images: Float[AnyArray, "N ..."]) -> int:
    """The K of the logits `[N, K]` that `params` returns; raises `TargetError` if it does not."""
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
