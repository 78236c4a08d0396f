"""Projected gradient ascent (PGA) along pullbacks: counterfactuals (paper, section 5.1)."""

from typing import Any, Literal, TypedDict, Unpack, overload

import jax
from jax.sharding import NamedSharding

from jax_excite.ascent import Ascent
from jax_excite.callables.pytree import as_floats
from jax_excite.errors import InputError
from jax_excite.gating import Gating
from jax_excite.pullbacks import items
from jax_excite.pullbacks.items import as_items
from jax_excite.pullbacks.pga_loops import climb, climb_grid
from jax_excite.pullbacks.request import Request
from jax_excite.pullbacks.targets import Target, Targets
from jax_excite.recipes import EXCITATION, EXCITATION_PGA
from jax_excite.transform.sites import Names, SiteSelection
from jax_excite.typing import Items, Params


class AscentOptions(TypedDict, total=False):
    """The keyword arguments of `pga` and `pga_grid` that do not change what they return."""

    at: str | int | None
    gating: Gating
    skip: SiteSelection
    only: SiteSelection | None
    enter: Names
    batched: bool | None
    batch_size: int | None
    sharding: NamedSharding | None


@overload
def pga(
    params: Params,
    x: Items,
    c: Target,
    ascent: Ascent = ...,
    *,
    around: Items | None = ...,
    trajectory: Literal[False] = ...,
    **options: Unpack[AscentOptions],
) -> Any: ...
@overload
def pga(
    params: Params,
    x: Items,
    c: Target,
    ascent: Ascent = ...,
    *,
    around: Items | None = ...,
    trajectory: Literal[True],
    **options: Unpack[AscentOptions],
) -> tuple[Any, jax.Array]: ...
def pga(
    params: Params,
    x: Items,
    c: Target,
    ascent: Ascent = EXCITATION_PGA,
    *,
    at: str | int | None = None,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    around: Items | None = None,
    batched: bool | None = None,
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
    trajectory: bool = False,
) -> Any:
    """Climb towards a target along the pullback, in one compiled loop (paper, section 5.1).

    Each step adds the pullback scaled to the L2 norm `ascent.step_size`, projects the item onto
    the L2 ball of `ascent.radius` around the original, and clips it to `ascent.bounds` when
    `ascent.clip` says so.

    Args:
        params: as for `pullback`, which has more details on the other arguments too.
        x: one image `[H, W, C]`, a batch `[N, H, W, C]`, or other items, with `batched`; all of
            them in `ascent.bounds`.
        c: the target; a cotangent stands for its product with the outputs.
        ascent: steps, step size, radius and bounds; the default is the paper's.
        at: the site whose output the target refers to.
        gating: how gates are softened.
        skip: sites to leave hard.
        only: if given, the only sites to soften.
        enter: names of functions with custom derivative rules to replace by their bodies.
        around: the centres of the balls, shaped like `x`; `x` itself if None. To continue an
            earlier ascent, give the images that it started from.
        batched: as for `pullback`.
        batch_size: as for `pullback`.
        sharding: as for `pullback`.
        trajectory: also return the target's value along the way.

    Returns:
        The perturbed items, with the shape and dtype of `x` (16-bit images are rounded after the
        projections). With `trajectory`, a pair of these and of the target's values (for a class,
        its logits) before each step and after the last one, `[steps + 1]` or `[N, steps + 1]`.

    Raises:
        ExciteError: as for `pullback`; also `InputError` if `around` is not shaped like `x`.
    """
    request = Request.of(
        params,
        x,
        gating,
        bounds=ascent.bounds,
        batched=batched,
        clips=True,
        at=at,
        skip=skip,
        only=only,
        enter=enter,
        batch_size=batch_size,
        sharding=sharding,
    )
    centres = request.items
    if around is not None:
        centres, _ = as_items(around, ascent.bounds, not request.is_single, clips=True)
        given, wanted = items.shapes_of(centres), items.shapes_of(request.items)
        if given != wanted:
            raise InputError(f"around has shape {given}: give the shape of x, {wanted}")
    settings = {
        "ascent": as_floats(ascent),
        "selection": request.selection,
        "trajectory": trajectory,
    }
    perturbed, *values = request.over_rows(climb, centres, request.target(c), **settings)
    return (perturbed, *values) if trajectory else perturbed


@overload
def pga_grid(
    params: Params,
    x: Items,
    classes: Targets,
    ascent: Ascent = ...,
    *,
    trajectory: Literal[False] = ...,
    **options: Unpack[AscentOptions],
) -> Any: ...
@overload
def pga_grid(
    params: Params,
    x: Items,
    classes: Targets,
    ascent: Ascent = ...,
    *,
    trajectory: Literal[True],
    **options: Unpack[AscentOptions],
) -> tuple[Any, jax.Array]: ...
def pga_grid(
    params: Params,
    x: Items,
    classes: Targets,
    ascent: Ascent = EXCITATION_PGA,
    *,
    at: str | int | None = None,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    batched: bool | None = None,
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
    out: Any = None,
    trajectory: bool = False,
) -> Any:
    """Projected gradient ascent of each item towards each of several targets.

    Args:
        params: as for `pullback`.
        x: as for `pga`.
        classes: as for `pullback_grid`.
        ascent: as for `pga`, which has more details on the other arguments too.
        at: the site whose output the target refers to.
        gating: how gates are softened.
        skip: sites to leave hard.
        only: if given, the only sites to soften.
        enter: names of functions with custom derivative rules to replace by their bodies.
        batched: as for `pullback`.
        batch_size: the maximum number of cells (an item with a class) at a time, on each device.
        sharding: as for `pullback`.
        out: an array of the result's shape to write to, as for `pullback_grid`.
        trajectory: also return the targets' values along the way.

    Returns:
        The perturbed items, such as images `[N, C, H, W, 3]` or `[C, H, W, 3]`. With `trajectory`,
        a pair of these and of the values, `[N, C, steps + 1]` or `[C, steps + 1]`.

    Raises:
        SettingError: `out` has a different shape.
        ExciteError: as for `pullback`.
    """
    request = Request.of(
        params,
        x,
        gating,
        bounds=ascent.bounds,
        batched=batched,
        clips=True,
        at=at,
        skip=skip,
        only=only,
        enter=enter,
        batch_size=batch_size,
        sharding=sharding,
    )
    settings = {
        "ascent": as_floats(ascent),
        "selection": request.selection,
        "trajectory": trajectory,
    }
    perturbed, *values = request.over_grid(climb_grid, request.columns(classes), out, **settings)
    return (perturbed, *values) if trajectory else perturbed
