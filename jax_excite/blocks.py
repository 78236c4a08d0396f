"""Work cut into blocks of bounded size, in a compiled loop or in one call after the other."""

import itertools
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# On a CPU more at a time is no faster: what a block computes no longer fits the cache.
_CPU_BATCH = 6


def rows_at_once(batch_size: int | None) -> int | None:
    """The size of blocks: `batch_size`, or without one what the device is fast with.

    Returns:
        A number of rows, or None for all of them.

    Raises:
        ValueError: `batch_size` is no whole number of at least 1.
    """
    check_batch_size(batch_size)
    if batch_size is None:
        return _CPU_BATCH if jax.default_backend() == "cpu" else None
    return int(batch_size)


def check_batch_size(batch_size: int | None) -> None:
    """Raise `ValueError` unless `batch_size` is None or a whole number of at least 1."""
    if batch_size is not None and not (isinstance(batch_size, numbers.Integral) and batch_size > 0):
        raise ValueError(f"batch_size is {batch_size}: give a whole number of at least 1, or None")


def evenly(count: int, most: int | None) -> int:
    """The size of the fewest blocks of at most so many rows, with least left over in the last."""
    return count if most is None else math.ceil(count / math.ceil(count / most))


def in_loop(compute: Callable[..., Any], rows: int, *operands: Any) -> Any:
    """`compute(*operands)`, `rows` of the arrays at a time, in a compiled loop.

    Operands that are callable are passed as they are. The last block is filled up with its last
    row.
    """
    count = len(operands[0])
    if count <= rows:
        return compute(*operands)
    blocks = math.ceil(count / rows)
    index = np.minimum(np.arange(blocks * rows), count - 1).reshape(blocks, rows)

    def block(index: jax.Array) -> Any:
        return compute(*(o if callable(o) else o[index] for o in operands))

    results = lax.map(block, jnp.asarray(index))
    return jax.tree.map(lambda part: _merged(part, 0)[:count], results)


class Grid:
    """A grid of rows and columns, cut into blocks of at most so many cells.

    A block has whole rows if one fits; else it is a part of one row, and the cells of a row are
    computed from as many forward passes as it has parts.
    """

    def __init__(self, rows: int, columns: int, cells: int | None):
        self.shape = rows, columns
        cells = rows * columns if cells is None else cells
        self.columns_at_once = evenly(columns, cells)
        self.rows_at_once = evenly(rows, max(1, cells // columns))

    def in_loop(self, compute: Callable[[Any, Any], Any]) -> Any:
        """The results of `compute(rows, columns)` of all blocks, in a compiled loop.

        Rows and columns are indices; the last blocks repeat the last ones. The results start with
        the axes of the block.
        """
        (rows, columns), height, width = self.shape, self.rows_at_once, self.columns_at_once
        down, across = math.ceil(rows / height), math.ceil(columns / width)
        if down == across == 1:
            return compute(np.arange(rows), np.arange(columns))

        def block(at: tuple[jax.Array, jax.Array]) -> Any:
            row, column = at[0] * height + np.arange(height), at[1] * width + np.arange(width)
            return compute(row.clip(max=rows - 1), column.clip(max=columns - 1))

        results = lax.map(block, jnp.divmod(jnp.arange(down * across), across))

        def whole(part: jax.Array) -> jax.Array:
            part = part.reshape(down, across, *part.shape[1:]).swapaxes(1, 2)
            return _merged(_merged(part, 0), 1)[:rows, :columns]

        return jax.tree.map(whole, results)

    def blocks(self, shards: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
        """Rows and columns of the blocks, so many blocks below each other at a time.

        Yields:
            Indices of rows and of columns, filled up with the last ones to blocks of one size, and
            the block's place in the grid, as a pair of slices.
        """
        rows, columns = self.shape
        height, width = self.rows_at_once * shards, self.columns_at_once
        for top, left in itertools.product(range(0, rows, height), range(0, columns, width)):
            row, column = np.arange(top, top + height), np.arange(left, left + width)
            place = slice(top, min(top + height, rows)), slice(left, min(left + width, columns))
            yield row.clip(max=rows - 1), column.clip(max=columns - 1), place


def _merged(part: jax.Array, axis: int) -> jax.Array:
    """Two axes made one."""
    shape = part.shape
    return part.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
