"""Projected gradient ascent (PGA) along pullbacks: counterfactuals (paper, section 5.1)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from optax.projections import projection_box, projection_l2_ball

from jax_excite import targets
from jax_excite.callables import as_floats, as_pytree
from jax_excite.errors import ImageError
from jax_excite.gating import Gating, check_gating
from jax_excite.plan import SiteSelection
from jax_excite.pullback import (
    Bounds,
    Params,
    as_batch,
    hashable,
    in_chunks,
    linearise,
    number_of_logits,
)
from jax_excite.recipes import EXCITATION
from jax_excite.surrogates import compute_dtype
from jax_excite.targets import Target


class AscentOptions(TypedDict, total=False):
    """The keyword arguments of `pga` and `pga_grid` that do not change what they return."""

    steps: int
    step_size: float
    radius: float | None
    bounds: Bounds | None
    gating: Gating
    skip: SiteSelection
    only: SiteSelection | None
    batch_size: int | None


Images = jax.Array | np.ndarray
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
    around: Images | None = None,
    batch_size: int | None = None,
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
        around: centres of the balls, shaped like `x`, to go on with an earlier ascent from there;
            `x` itself if None.
        batch_size: at most this many images at a time.
        trajectory: return the target's value along the way too.

    Returns:
        The perturbed images, with the shape and dtype of `x` (in 16 bits, rounded to that after the
        projections). With `trajectory`, a pair of these
        and of the target's values (the logits of a class) before each step and after the last,
        `[steps + 1]` or `[N, steps + 1]`.

    Raises:
        ValueError: `steps`, `step_size` or `radius` is out of its range.
        ExciteError: as for `pullback`.
    """
    images, single = as_batch(x, bounds)
    centres = images if around is None else as_batch(around, bounds)[0]
    if centres.shape != images.shape:
        raise ImageError(f"around has shape {centres.shape}: give that of x, {images.shape}")
    params = as_pytree(params)
    target = targets.prepare(c, len(images), number_of_logits(params, images), single)
    climb = _climber(params, steps, step_size, radius, bounds, gating, skip, only, trajectory)
    perturbed, values = in_chunks(climb, len(images), batch_size, images, centres, target)
    if single:
        perturbed, values = perturbed[0], values[0]
    return (perturbed, values) if trajectory else perturbed


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
    batch_size: int | None = None,
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
        batch_size: at most this many cells (an image with a class) at a time.
        trajectory: return the classes' logits along the way too.

    Returns:
        The perturbed images, `[N, C, H, W, 3]` or `[C, H, W, 3]`. With `trajectory`, a pair of
        these and of the logits, `[N, C, steps + 1]` or `[C, steps + 1]`.

    Raises:
        ValueError: as for `pga`.
        ExciteError: as for `pullback`.
    """
    images, single = as_batch(x, bounds)
    params = as_pytree(params)
    indices = targets.class_rows(classes, len(images), number_of_logits(params, images))
    cells = indices.shape
    climb = _climber(params, steps, step_size, radius, bounds, gating, skip, only, trajectory)

    def climb_cells(rows: Any, target: Any) -> Any:
        cells = images[rows]
        return climb(cells, cells, target)

    rows = np.repeat(np.arange(cells[0]), cells[1])
    results = in_chunks(climb_cells, len(rows), batch_size, rows, indices.reshape(-1))
    perturbed, values = (part.reshape(*cells, *part.shape[1:]) for part in results)
    if single:
        perturbed, values = perturbed[0], values[0]
    return (perturbed, values) if trajectory else perturbed


def _climber(
    params: Params,
    steps: int,
    step_size: float,
    radius: float | None,
    bounds: Bounds | None,
    gating: Gating,
    skip: SiteSelection,
    only: SiteSelection | None,
    trajectory: bool,
) -> Callable[[Any, Any, Any], tuple[jax.Array, jax.Array]]:
    """Checked settings, bound to the compiled ascent of images towards targets."""
    if steps < 0:
        raise ValueError(f"steps is {steps}: give a number of at least 0")
    if not isinstance(step_size, Tracer) and not np.isfinite(step_size):
        raise ValueError(f"step_size is {step_size}: give a finite number")
    if radius is not None and not isinstance(radius, Tracer):
        if not radius > 0:
            raise ValueError(f"radius is {radius}: give a positive number, or None for no ball")
        radius = None if radius == np.inf else radius
    check_gating(gating)
    return functools.partial(
        _climb,
        params,
        gating=as_floats(gating),
        step_size=as_floats(step_size),
        radius=as_floats(radius),
        bounds=as_floats(bounds),
        skip=hashable(skip),
        only=hashable(only),
        steps=steps,
        trajectory=trajectory,
    )


@functools.partial(jax.jit, static_argnames=("skip", "only", "steps", "trajectory"))
def _climb(
    params: Params,
    images: jax.Array,
    centres: jax.Array,
    target: Any,
    *,
    gating: Gating,
    step_size: jax.Array,
    radius: jax.Array | None,
    bounds: tuple[jax.Array, jax.Array] | None,
    skip: Any,
    only: Any,
    steps: int,
    trajectory: bool,
) -> tuple[jax.Array, jax.Array]:
    """Perturbed images, and the target's values `[N, steps + 1]`, or `[N, 0]` if not asked for."""
    dtype = compute_dtype(images.dtype)
    original = centres.astype(dtype)

    def step(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array | None]:
        logits, transpose = linearise(params, x.astype(images.dtype), gating, skip, only)
        field = transpose(targets.cotangents(target, logits)).astype(dtype)
        norm = jnp.sqrt(jnp.sum(field**2, axis=(1, 2, 3), keepdims=True))
        x = x + field / jnp.maximum(norm, 1e-20) * jnp.asarray(step_size, dtype)
        if radius is not None:
            ball = jnp.asarray(radius, dtype)
            x = original + jax.vmap(lambda delta: projection_l2_ball(delta, ball))(x - original)
        if bounds is not None:
            x = projection_box(x, *(jnp.asarray(bound, dtype) for bound in bounds))
        return x, targets.values(target, logits) if trajectory else None

    x, values = lax.scan(step, images.astype(dtype), length=steps)
    perturbed = x.astype(images.dtype)
    if values is None:
        return perturbed, jnp.zeros((len(images), 0), dtype)
    last = targets.values(target, params(perturbed))
    return perturbed, jnp.concatenate([values, last[None]]).T
