"""Projected gradient ascent (PGA) along pullbacks: counterfactuals (paper, section 5.1)."""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float

from jax_excite.ascent import Ascent
from jax_excite.callables.pytree import as_floats
from jax_excite.errors import ImageError
from jax_excite.gating import Gating
from jax_excite.pullbacks.pga_loops import climb, climb_grid
from jax_excite.pullbacks.request import Request, as_batch
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import EXCITATION, EXCITATION_PGA
from jax_excite.transform.sites import Names, SiteSelection
from jax_excite.typing import AnyArray, Params


class AscentOptions(TypedDict, total=False):
    """The keyword arguments of `pga` and `pga_grid` that do not change what they return."""

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
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    ascent: Ascent = ...,
    *,
    around: Float[AnyArray, "*N H W C"] | None = ...,
    trajectory: Literal[False] = ...,
    **options: Unpack[AscentOptions],
) -> jax.Array: ...
@overload
def pga(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    ascent: Ascent = ...,
    *,
    around: Float[AnyArray, "*N H W C"] | None = ...,
    trajectory: Literal[True],
    **options: Unpack[AscentOptions],
) -> tuple[jax.Array, jax.Array]: ...
def pga(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    ascent: Ascent = EXCITATION_PGA,
    *,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    around: Float[AnyArray, "*N H W C"] | None = None,
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Climb towards a target along the pullback, in one compiled loop (paper, section 5.1).

    Each step adds the pullback scaled to the L2 norm `ascent.step_size`, projects the image onto
    the L2 ball of `ascent.radius` around the original, and clips it to `ascent.bounds`.

    Args:
        params: as for `pullback`, which has more details on the other arguments too.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`.
        c: the target; a cotangent stands for its product with the logits.
        ascent: steps, step size, radius and bounds; the default is the paper's.
        gating: how gates are softened.
        skip: sites to leave hard.
        only: if given, the only sites to soften.
        enter: names of functions with custom derivative rules to replace by their bodies.
        around: the centres of the balls, shaped like `x`; `x` itself if None. To continue an
            earlier ascent, give the images that it started from.
        batch_size: as for `pullback`.
        sharding: as for `pullback`.
        trajectory: also return the target's value along the way.

    Returns:
        The perturbed images, with the shape and dtype of `x` (16-bit images are rounded after the
        projections). With `trajectory`, a pair of these and of the target's values (for a class,
        its logits) before each step and after the last one, `[steps + 1]` or `[N, steps + 1]`.

    Raises:
        ExciteError: as for `pullback`; also `ImageError` if `around` is not shaped like `x`.
    """
    request = Request.of(
        params,
        x,
        gating,
        bounds=ascent.bounds,
        skip=skip,
        only=only,
        enter=enter,
        batch_size=batch_size,
        sharding=sharding,
    )
    centres = request.images if around is None else as_batch(around, ascent.bounds)[0]
    if centres.shape != request.images.shape:
        raise ImageError(
            f"around has shape {centres.shape}: give the shape of x, {request.images.shape}"
        )
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
    x: Float[AnyArray, "*N H W C"],
    classes: Classes,
    ascent: Ascent = ...,
    *,
    trajectory: Literal[False] = ...,
    **options: Unpack[AscentOptions],
) -> jax.Array: ...
@overload
def pga_grid(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    classes: Classes,
    ascent: Ascent = ...,
    *,
    trajectory: Literal[True],
    **options: Unpack[AscentOptions],
) -> tuple[jax.Array, jax.Array]: ...
def pga_grid(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    classes: Classes,
    ascent: Ascent = EXCITATION_PGA,
    *,
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
        classes: `C` class indices for all images, or an array `[N, C]` with a row per image.
        ascent: as for `pga`, which has more details on the other arguments too.
        gating: how gates are softened.
        skip: sites to leave hard.
        only: if given, the only sites to soften.
        enter: names of functions with custom derivative rules to replace by their bodies.
        batch_size: the maximum number of cells (an image with a class) at a time, on each device.
        sharding: as for `pullback`.
        out: an array of the result's shape to write to, as for `pullback_grid`.
        trajectory: also return the classes' logits along the way.

    Returns:
        The perturbed images, `[N, C, H, W, 3]` or `[C, H, W, 3]`. With `trajectory`, a pair of
        these and of the logits, `[N, C, steps + 1]` or `[C, steps + 1]`.

    Raises:
        SettingError: `out` has a different shape.
        ExciteError: as for `pullback`.
    """
    request = Request.of(
        params,
        x,
        gating,
        bounds=ascent.bounds,
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
    perturbed, *values = request.over_grid(climb_grid, request.classes(classes), out, **settings)
    return (perturbed, *values) if trajectory else perturbed
