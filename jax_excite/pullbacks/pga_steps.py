"""Projected gradient ascent one step at a time, for those who watch it (paper, section 5.1)."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from jax_excite.ascent import Ascent
from jax_excite.callables.pytree import as_floats
from jax_excite.gating import Gating
from jax_excite.pullbacks import targets
from jax_excite.pullbacks.pga_loops import computable, like
from jax_excite.pullbacks.pullback import outputs_and_fields
from jax_excite.pullbacks.request import Request
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import EXCITATION, EXCITATION_PGA
from jax_excite.transform.sites import SiteSelection
from jax_excite.typing import Items, Params


class Moment(NamedTuple):
    """An ascent before one of its steps, or after the last one.

    Attributes:
        x: the items, shaped like those that the ascent started from.
        outputs: the outputs of the network there; those of the site, if the target is at one.
        value: the target's value there, such as a logit: `[]`, or `[N]` for a batch.
        field: the pullback of the target there, shaped like `x`.
    """

    x: Any
    outputs: Any
    value: Any
    field: Any


def pga_steps(
    params: Params,
    x: Items,
    c: Target,
    ascent: Ascent = EXCITATION_PGA,
    *,
    at: str | int | None = None,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    batched: bool | None = None,
) -> Iterator[Moment]:
    """Climb as `pga` does, and yield each point on the way.

    All points come from one compiled program, that of `value_and_pullback`, so another number of
    steps does not trigger recompilation. The first point is there earlier than the result of `pga`,
    which takes longer to compile; but the steps of `pga`, in one compiled loop, are faster. Both
    differ by rounding only.

    Args:
        params: as for `pga`.
        x: as for `pga`.
        c: as for `pga`.
        ascent: as for `pga`.
        at: as for `pga`.
        gating: as for `pga`.
        skip: as for `pga`.
        batched: as for `pga`.

    Returns:
        An iterator of `ascent.steps + 1` points, from the start to the end of the ascent. A point
        is computed when it is asked for.

    Raises:
        ExciteError: as for `pga`.
    """
    options: Any = {"bounds": ascent.bounds, "clips": True, "batched": batched}
    request = Request.of(params, x, gating, at=at, skip=skip, **options)
    return _points(request, request.target(c), ascent)


def _points(request: Request, target: Any, ascent: Ascent) -> Iterator[Moment]:
    start = request.items
    now = centres = computable(start)
    one = as_floats(dataclasses.replace(ascent, steps=1))
    for left in reversed(range(ascent.steps + 1)):
        if not left:
            now = ascent.finished(now)
        x = like(start, now)
        here = dataclasses.replace(request, items=x, is_single=False)
        outputs, field = here.over_rows(outputs_and_fields, target, selection=request.selection)
        values = targets.values(target, outputs)
        moment = Moment(x, targets.bare(outputs), values, field)
        yield jax.tree.map(lambda part: part[0], moment) if request.is_single else moment
        if left:
            now = _step(one, now, centres, field)


@jax.jit
def _step(ascent: Ascent, x: Any, centres: Any, field: Any) -> Any:
    return ascent.step(x, centres, field)
