"""Work split into blocks of bounded size, in a compiled loop or in successive calls."""

import itertools
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jax_excite.errors import SettingError

# The block size on a CPU. Larger blocks are not faster, because their intermediate values no longer
# fit into the cache.
_CPU_BATCH = 6
# The block size on other devices for a grid that is written while it is computed. Without such
# writing, these devices compute everything in one block.
_STREAMED = 64
# This many blocks of cells are computed before each write, so that they share forward passes.
_BLOCKS_A_WRITE = 8

COLUMN = "column"
# The block size of a CPU if the function is found to treat items independently; otherwise all.
AUTO = "auto"
Rows = int | None | Literal["auto"]
Cells = Rows | Literal["column"]


def rows_at_once(batch_size: int | None, x: Any = None, gating: Any = None) -> Rows:
    """The size of blocks: `batch_size`, or if that is None, a size that is fast on the device.

    Args:
        batch_size: the size that the caller requests, or None.
        x: the items. Traced items may be spread over several devices, and a loop over their rows
            would gather them. Without `batch_size` they therefore stay together.
        gating: the gating. If its temperatures vary over items, the items stay together too.

    Returns:
        A number of rows, None for all of them, or `AUTO`.

    Raises:
        SettingError: `batch_size` is not a whole number of at least 1.
    """
    check_batch_size(batch_size)
    if batch_size is not None:
        return int(batch_size)
    by_image = any(np.ndim(leaf) > 1 for leaf in jax.tree.leaves(gating))
    together = by_image or _may_be_spread(x)
    return None if together or jax.default_backend() != "cpu" else AUTO


def _may_be_spread(x: Any) -> bool:
    is_traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x))
    return is_traced and jax.device_count() > 1


def cells_at_once(batch_size: int | None, x: Any, gating: Any) -> Cells:
    """Like `rows_at_once`, for a grid: a number of cells, None for all, `AUTO` or `COLUMN`."""
    if batch_size is None and _may_be_spread(x):
        # Otherwise rows and columns would be merged into one axis, which would gather the rows.
        return COLUMN
    return rows_at_once(batch_size, x, gating)


def tall(rows: int, columns: int) -> "Grid":
    """A grid in blocks of one column and of the number of rows that is fast on a CPU.

    It is for functions that compute a single item differently from several, such as `jnp.matmul`.
    """
    grid = Grid(rows, columns, COLUMN)
    grid.rows_at_once = evenly(rows, AUTO)
    return grid


def cells_a_write(cells: Cells) -> tuple[Cells, Cells]:
    """Cells per block and cells per write, for a grid that is written while it is computed.

    Args:
        cells: the result of `cells_at_once`.
    """
    if cells == COLUMN:
        return cells, cells
    block = cells if isinstance(cells, int) else _CPU_BATCH if cells == AUTO else _STREAMED
    return block, block * _BLOCKS_A_WRITE


def check_batch_size(batch_size: int | None) -> None:
    """Raise `SettingError` unless `batch_size` is None or a whole number of at least 1."""
    if batch_size is not None and not (isinstance(batch_size, numbers.Integral) and batch_size > 0):
        raise SettingError(
            f"batch_size is {batch_size}: give a whole number of at least 1, or None"
        )


def evenly(count: int, most: Rows) -> int:
    """The size of blocks of at most `most` rows, with blocks as even as possible."""
    most = _CPU_BATCH if isinstance(most, str) else most
    return count if most is None else math.ceil(count / math.ceil(count / most))


def in_loop(compute: Callable[..., Any], rows: int, *operands: Any) -> Any:
    """Call `compute(*operands)` on `rows` rows of the operands at a time, in a compiled loop.

    Operands are pytrees of arrays; callable ones are passed unchanged. The last block is padded
    with copies of the last row.
    """
    count = len(jax.tree.leaves(operands[0])[0])
    if count <= rows:
        return compute(*operands)
    blocks = math.ceil(count / rows)
    index = np.minimum(np.arange(blocks * rows), count - 1).reshape(blocks, rows)

    def block(index: jax.Array) -> Any:
        taken = (o if callable(o) else jax.tree.map(lambda a: a[index], o) for o in operands)
        return compute(*taken)

    results = lax.map(block, jnp.asarray(index))
    return jax.tree.map(lambda part: _merged(part, 0)[:count], results)


class Grid:
    """A grid of rows and columns, split into blocks of at most `cells` cells.

    A block consists of whole rows if at least one row fits; otherwise it is a part of one row. With
    `COLUMN`, each block is a whole column.
    """

    def __init__(self, rows: int, columns: int, cells: Cells):
        self.shape = rows, columns
        cells = _CPU_BATCH if cells == AUTO else cells
        if isinstance(cells, str):
            self.columns_at_once, self.rows_at_once = 1, rows
            return
        cells = rows * columns if cells is None else cells
        self.columns_at_once = evenly(columns, cells)
        self.rows_at_once = evenly(rows, max(1, cells // columns))

    def in_loop(self, begin: Callable[[Any], Callable[[Any], Any]]) -> Any:
        """Compute the results of all blocks in a compiled loop.

        `begin(rows)` computes what the columns of some rows share. It returns a function from
        columns to results, whose first axes are those of the block. Rows and columns are indices;
        the last blocks are padded with the last index.
        """
        (rows, columns), height, width = self.shape, self.rows_at_once, self.columns_at_once
        down, across = math.ceil(rows / height), math.ceil(columns / width)

        def beside(rows: Any) -> Any:
            finish = begin(rows)
            if across == 1:
                return finish(slice(columns))

            def part(at: jax.Array) -> Any:
                return finish((at * width + np.arange(width)).clip(max=columns - 1))

            parts = lax.map(part, jnp.arange(across))
            return jax.tree.map(lambda found: _merged(found.swapaxes(0, 1), 1), parts)

        def below(at: jax.Array) -> Any:
            return beside((at * height + np.arange(height)).clip(max=rows - 1))

        if down == 1:
            results = beside(slice(rows))
        else:
            below_each_other = lax.map(below, jnp.arange(down))
            results = jax.tree.map(lambda found: _merged(found, 0), below_each_other)
        return jax.tree.map(lambda found: found[:rows, :columns], results)

    def blocks(self, count: int, shards: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
        """The rows and columns of blocks; the blocks of all shards are stacked along the rows.

        Args:
            count: the number of rows of all shards together.
            shards: the number of shards; the rows of the grid itself are those of one shard.

        Yields:
            Indices of rows and of columns, padded with the last index to blocks of equal size, and
            the block's place in the whole grid, as a pair of slices.
        """
        columns = self.shape[1]
        height, width = self.rows_at_once * shards, self.columns_at_once
        for top, left in itertools.product(range(0, count, height), range(0, columns, width)):
            row, column = np.arange(top, top + height), np.arange(left, left + width)
            place = slice(top, min(top + height, count)), slice(left, min(left + width, columns))
            yield row.clip(max=count - 1), column.clip(max=columns - 1), place


def _merged(part: jax.Array, axis: int) -> jax.Array:
    """Merge an axis and the next one."""
    shape = part.shape
    return part.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
