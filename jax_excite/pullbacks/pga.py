"""Projected gradient ascent (PGA) along pullbacks: counterfactuals (paper, section 5.1)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding

from jax_excite.callables.pytree import as_floats, as_pytree
from jax_excite.errors import ImageError, SettingError
from jax_excite.gating import Gating, check_gating
from jax_excite.pullbacks import targets
from jax_excite.pullbacks.batching import cells_at_once, rows_at_once
from jax_excite.pullbacks.pga_loops import Settings, Step, climb, climb_grid
from jax_excite.pullbacks.pullback import as_batch, number_of_logits, over_grid
from jax_excite.pullbacks.sharding import gathered, sharding_of, spread
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import EXCITATION
from jax_excite.transform.plan import Names, Selection, SiteSelection
from jax_excite.typing import Bounds, Images, Params


class AscentOptions(TypedDict, total=False):
    """The keyword arguments of `pga` and `pga_grid` that do not change what they return."""

    steps: int
    step_size: float
    radius: float | None
    bounds: Bounds | None
    gating: Gating
    skip: SiteSelection
    only: SiteSelection | None
    enter: Names
    batch_size: int | None
    sharding: NamedSharding | None


Classes = Sequence[int] | np.ndarray | jax.Array


@overload
def pga(
    params: Params,
    x: Images,
    c: Target,
    *,
    around: Images | None = ...,
    trajectory: Literal[False] = ...,
    **options: Unpack[AscentOptions],
) -> jax.Array: ...
@overload
def pga(
    params: Params,
    x: Images,
    c: Target,
    *,
    around: Images | None = ...,
    trajectory: Literal[True],
    **options: Unpack[AscentOptions],
) -> tuple[jax.Array, jax.Array]: ...
def pga(
    params: Params,
    x: Images,
    c: Target,
    *,
    steps: int = 10,
    step_size: float = 20.0,
    radius: float | None = 100.0,
    bounds: Bounds | None = (-1.0, 1.0),
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    around: Images | None = None,
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Climb towards a target along the pullback, in one compiled loop (paper, section 5.1).

    Each step adds the pullback scaled to L2 norm `step_size`, projects the image onto the L2 ball
    of `radius` around the original, and clips it to `bounds`. All norms are those of one image,
    over pixels and channels, in units of images in [-1, 1].

    Args:
        params: as for `pullback`, like all that is not described here.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`.
        c: the target; of a cotangent, its product with the logits.
        steps: number of steps, >= 0; another number compiles anew.
        step_size: L2 norm of a step; negative to climb down.
        radius: radius of the ball, > 0; None for no ball.
        bounds: range that images are checked against and clipped to; None for no clipping.
        gating: how gates are softened.
        skip: sites to leave hard.
        only: if given, the only sites to soften.
        enter: functions with derivative rules of their own to replace by their bodies, by name.
        around: centres of the balls, shaped like `x`, to go on with an earlier ascent from there;
            `x` itself if None.
        batch_size: as for `pullback`.
        sharding: as for `pullback`.
        trajectory: return the target's value along the way too.

    Returns:
        The perturbed images, with the shape and dtype of `x` (in 16 bits, rounded to that after the
        projections). With `trajectory`, a pair of these
        and of the target's values (the logits of a class) before each step and after the last,
        `[steps + 1]` or `[N, steps + 1]`.

    Raises:
        SettingError: `steps`, `step_size` or `radius` is out of its range.
        ExciteError: as for `pullback`.
    """
    images, single = as_batch(x, bounds)
    centres = images if around is None else as_batch(around, bounds)[0]
    if centres.shape != images.shape:
        raise ImageError(f"around has shape {centres.shape}: give that of x, {images.shape}")
    params = as_pytree(params)
    target = targets.prepare(c, len(images), number_of_logits(params, images), single)
    sharding = sharding_of(x, sharding)
    selection = Selection.of(skip, only, enter)
    compute = _bind(climb, params, steps, step_size, radius, bounds, gating, selection, trajectory)
    results = compute(
        *spread(sharding, images, centres, target),
        rows=rows_at_once(batch_size, x, gating),
        sharding=sharding,
    )
    perturbed, *values = gathered(sharding, results, len(images), single)
    return (perturbed, *values) if trajectory else perturbed


@overload
def pga_grid(
    params: Params,
    x: Images,
    classes: Classes,
    *,
    trajectory: Literal[False] = ...,
    **options: Unpack[AscentOptions],
) -> jax.Array: ...
@overload
def pga_grid(
    params: Params,
    x: Images,
    classes: Classes,
    *,
    trajectory: Literal[True],
    **options: Unpack[AscentOptions],
) -> tuple[jax.Array, jax.Array]: ...
def pga_grid(
    params: Params,
    x: Images,
    classes: Classes,
    *,
    steps: int = 10,
    step_size: float = 20.0,
    radius: float | None = 100.0,
    bounds: Bounds | None = (-1.0, 1.0),
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
    out: Any = None,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Projected gradient ascent of each image towards each of several classes.

    Args:
        params: as for `pullback`.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`.
        classes: `C` class indices for all images, or an array `[N, C]` with a row for each.
        steps: as for `pga`, like all that is not described here.
        step_size: L2 norm of a step.
        radius: radius of the ball, or None.
        bounds: range of the images, or None.
        gating: how gates are softened.
        skip: sites to leave hard.
        only: if given, the only sites to soften.
        enter: functions with derivative rules of their own to replace by their bodies, by name.
        batch_size: at most this many cells (an image with a class) at a time, on each device.
        sharding: as for `pullback`.
        out: an array of the result's shape to write to, as for `pullback_grid`.
        trajectory: return the classes' logits along the way too.

    Returns:
        The perturbed images, `[N, C, H, W, 3]` or `[C, H, W, 3]`. With `trajectory`, a pair of
        these and of the logits, `[N, C, steps + 1]` or `[C, steps + 1]`.

    Raises:
        SettingError: as for `pga`; `out` has another shape.
        ExciteError: as for `pullback`.
    """
    images, single = as_batch(x, bounds)
    params = as_pytree(params)
    indices = targets.class_rows(classes, len(images), number_of_logits(params, images))
    selection = Selection.of(skip, only, enter)
    compute = _bind(
        climb_grid, params, steps, step_size, radius, bounds, gating, selection, trajectory
    )
    cells = cells_at_once(batch_size, x, gating)
    compute = functools.partial(compute, cells=cells, sharding=sharding_of(x, sharding))
    perturbed, *values = over_grid(compute, images, indices, single, out)
    return (perturbed, *values) if trajectory else perturbed


def _bind(
    compiled: Callable[..., Any],
    params: Params,
    steps: int,
    step_size: float,
    radius: float | None,
    bounds: Bounds | None,
    gating: Gating,
    selection: Selection,
    trajectory: bool,
) -> functools.partial[Any]:
    """A compiled ascent with its settings, checked."""
    if steps < 0:
        raise SettingError(f"steps is {steps}: give a number of at least 0")
    check_gating(gating)
    return functools.partial(
        compiled,
        params,
        settings=as_floats(Settings(gating, checked_step(step_size, radius, bounds))),
        selection=selection,
        steps=steps,
        trajectory=trajectory,
    )


def checked_step(step_size: Any, radius: Any, bounds: Bounds | None) -> Step:
    """A step of these settings of `pga`, or `SettingError`."""
    if not isinstance(step_size, Tracer) and not np.isfinite(step_size):
        raise SettingError(f"step_size is {step_size}: give a finite number")
    if radius is not None and not isinstance(radius, Tracer):
        if not radius > 0:
            raise SettingError(f"radius is {radius}: give a positive number, or None for no ball")
        radius = None if radius == np.inf else radius
    return Step(step_size, radius, bounds)
