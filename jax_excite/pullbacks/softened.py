"""A softened function for many calls within one trace, on a whole batch or on blocks of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jax_excite.gating import Gating
from jax_excite.kernels.convolutions import Prepared
from jax_excite.pullbacks import items, targets
from jax_excite.pullbacks.batching import AUTO, COLUMN, Cells, Grid, Rows, evenly, tall
from jax_excite.transform.plan import Plan
from jax_excite.transform.sites import SELECT_ALL, Selection


def softened(
    fn: Callable[[jax.Array], Any],
    like: Any,
    selection: Selection = SELECT_ALL,
    *,
    fold: bool = True,
) -> "Softened":
    """`excite(fn)` for many calls within one trace, on arrays shaped like `like`.

    `fn` is traced once. Everything that does not depend on the input is computed here, outside of
    any loop that calls the result. For speed, the outputs differ from those of `fn` by rounding,
    unlike those of `excite`. `fold` saves time only if the result is called with more than one
    image. Errors are those of `excite`.
    """
    plan = Plan(fn, (like,), {}, selection)
    return Softened(plan, plan.prepare(fold=fold))


@dataclasses.dataclass(frozen=True)
class Softened:
    """A softened function of a batch and a gating."""

    plan: Plan
    prepared: Prepared

    def __call__(self, x: Any, gating: Gating) -> Any:
        """The function's outputs for a batch of the shape that it was traced for."""
        self.plan.check(gating)
        return self.plan.run(
            lambda at: (at.soften(gating), None),
            arrays=jax.tree.leaves(x),
            prepared=self.prepared,
        )[0]


class Blockwise:
    """A function of a batch, softened for blocks of it; it is traced once per size of a block.

    Args:
        fn: the function.
        x: the batch.
        selection: the sites to soften.
        fold: as for `softened`.
    """

    def __init__(
        self,
        fn: Callable[[jax.Array], Any],
        x: Any,
        selection: Selection = SELECT_ALL,
        *,
        fold: bool = True,
    ):
        self._fn = fn
        self._x = x
        self._selection = selection
        self._fold = fold
        self._plans: dict[int, Plan] = {}
        self._networks: dict[int, Softened] = {}

    def of(self, rows: int) -> Softened:
        """The softened function of a block of so many rows."""
        if rows not in self._networks:
            plan = self._plan(rows)
            self._networks[rows] = Softened(plan, plan.prepare(fold=self._fold))
        return self._networks[rows]

    def treats_items_alone(self, rows: int) -> bool:
        """Whether the function computes from each item of such a block what the whole batch gives.

        A block of as many rows as the batch may hold other items, so it is no exception.
        """
        whole = self._plan(items.count(self._x))
        try:
            block = self._plan(rows)
        except Exception:  # a function may reject batches of another size for any reason
            return False
        return block.treats_items_alone(whole)

    def rows_at_once(self, rows: Rows) -> int:
        """The number of rows of a block; all of them if `rows` is `AUTO` and items may be mixed."""
        count = items.count(self._x)
        at_once = evenly(count, rows)
        cut = rows != AUTO or at_once == count or self.treats_items_alone(at_once)
        return at_once if cut else count

    def grid(self, columns: int, cells: Cells, *, repeats: bool) -> Grid:
        """The blocks of a grid with a row per item.

        Without a number of cells that the caller chose, a block is as large as is fast, or narrower
        if the function gives something else for such blocks than for the whole batch.

        Args:
            columns: the number of columns.
            cells: what `cells_at_once` returned.
            repeats: whether the function is computed once per cell, instead of once per row.
        """
        count = items.count(self._x)
        grid = Grid(count, columns, cells)
        if cells not in (AUTO, None):
            return grid
        for candidate in (grid, tall(count, columns)):
            width = candidate.columns_at_once if repeats else 1
            is_whole = candidate.rows_at_once == count and width == 1
            if is_whole or self.treats_items_alone(candidate.rows_at_once * width):
                return candidate
        return Grid(count, columns, COLUMN)

    def _plan(self, rows: int) -> Plan:
        if rows not in self._plans:
            count = items.count(self._x)
            index = np.arange(rows) % count
            block = self._x if rows == count else items.rows(self._x, index)
            self._plans[rows] = Plan(self._fn, (block,), {}, self._selection)
        return self._plans[rows]


def fields(pull: Callable[[Any], Any], columns: Any) -> Any:
    """The pullbacks `[N, C, ...]` of targets `[N, C]`, by the map that `linearise` returns."""
    return jax.vmap(pull, in_axes=1, out_axes=1)(columns)


def linearise(
    network: Callable[[Any, Gating], Any], x: Any, gating: Gating
) -> tuple[Any, Callable[[Any], Any]]:
    """The outputs of a batch, and the map from targets (made by `targets.prepare`) to fields."""
    outputs, transpose = jax.vjp(lambda x: network(x, gating), x)
    return outputs, lambda target: transpose(targets.cotangents(target, outputs))[0]
