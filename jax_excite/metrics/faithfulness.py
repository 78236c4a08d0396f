"""Faithfulness: does a map show what the network's output depends on?

All of these metrics replace parts of an image, which moves it away from the images that the network
was trained on. A map that describes how the network responds to grey squares may not describe how
it responds to photographs (Hooker et al., "A Benchmark for Interpretability Methods", 2019). The
metrics also depend on the baseline that replaces the parts. Compare methods within one setting,
never values across settings.
"""

import math
from typing import Any, TypedDict, Unpack

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from jax_excite.attributions.gradients import item_like, whole_number
from jax_excite.errors import SettingError
from jax_excite.metrics.perturbation import Case, Listed, drops, equal
from jax_excite.metrics.similarity import pearson
from jax_excite.pullbacks.targets import Target
from jax_excite.typing import AnyArray, Bounds, Params


class Options(TypedDict, total=False):
    """The keyword arguments that all faithfulness metrics take.

    `baseline` is the replacement: a number, or an array that broadcasts to an image `[H, W, 3]`;
    the default is 0, mid grey. With `softmax`, the target's value is a probability instead of a
    logit. `bounds` and `batch_size` (copies of an image computed at a time) are those of
    `pullback`.
    """

    baseline: float | np.ndarray | jax.Array
    softmax: bool
    bounds: Bounds | None
    batch_size: int | None


def faithfulness_correlation(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    maps: Float[AnyArray, "*M H W C"],
    *,
    key: PRNGKeyArray,
    runs: int = 100,
    subset_size: int = 224,
    **options: Unpack[Options],
) -> Float[np.ndarray, "*M"]:
    """Correlation of a map's sum over random values with the drop when these are replaced.

    Bhatt et al., "Evaluating and Aggregating Feature-based Model Explanations" (2020), section 3.1.
    A few hundred scattered values hardly change the output, so the correlation is small for any map
    and must be averaged over many images.

    Args:
        params: a callable pytree, as for `pullback`.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`.
        c: the target.
        maps: shaped like `x`, or with a leading axis for several methods, which then share the
            network's outputs.
        key: a key of `jax.random`; the subsets are `random_subsets(key, runs, subset_size, size)`,
            where `size` is the number of values of an image. They are the same for all images.
        runs: the number of subsets, >= 2.
        subset_size: the number of values per subset; each channel counts.
        **options: `baseline`, `softmax`, `bounds` and `batch_size`; see `Options`.

    Returns:
        Pearson's correlation per image (and method), in [-1, 1]; NaN where the map or the output
        does not vary.

    Raises:
        SettingError: a number is out of its range.
        ExciteError: as for `pullback`, or the maps do not fit the images.
    """
    case, base, settings = _prepared(params, x, c, maps, options)
    shape = case.x.shape[1:]
    size = math.prod(shape)
    subsets = random_subsets(key, runs, subset_size, size)
    none = np.full((1, subset_size), size)
    listed = np.concatenate([subsets, none])[None, None]
    fallen, sums = drops(case, listed, Listed(shape), runs, base, **settings)
    return case.values(pearson(sums, fallen))


def random_subsets(key: PRNGKeyArray, runs: int, subset_size: int, size: int) -> np.ndarray:
    """`runs` subsets of `subset_size` distinct indices below `size`, `[runs, subset_size]`."""
    whole_number(runs, "runs")
    if whole_number(subset_size, "subset_size") > size:
        raise SettingError(
            f"subset_size is {subset_size}: give at most {size}, the number of values in an image"
        )
    # NumPy draws a small sample without shuffling the whole range.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    return np.stack([rng.choice(size, subset_size, replace=False) for _ in range(runs)])


def faithfulness_estimate(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    maps: Float[AnyArray, "*M H W C"],
    *,
    steps: int = 50,
    **options: Unpack[Options],
) -> Float[np.ndarray, "*M"]:
    """Correlation of a map's sum over groups of values with the drop when each is replaced.

    Alvarez-Melis & Jaakkola, "Towards Robust Interpretability with Self-Explaining Neural
    Networks" (2018), section 5. The first group holds the values of greatest attribution, the
    second the next greatest, and so on. Arguments, result and errors are those of
    `faithfulness_correlation`, with these exceptions:

    Args:
        params: a callable pytree.
        x: one image or a batch.
        c: the target.
        maps: their maps. Each map has its own groups, so methods share nothing here.
        steps: the number of groups, >= 2.
        **options: see `Options`.

    Returns:
        Pearson's correlation per image (and method).
    """
    case, base, settings = _prepared(params, x, c, maps, options)
    groups = ranked_groups(case.maps, whole_number(steps, "steps"))
    fallen, sums = drops(case, groups, equal, int(groups.max()) + 1, base, **settings)
    # The last group may be smaller, so the sums vary even for a constant map.
    flat = np.asarray(case.maps).reshape(*case.maps.shape[:2], -1)
    return case.values(np.where(np.ptp(flat, axis=-1) > 0, pearson(sums, fallen), np.nan))


def ranked_groups(maps: Float[AnyArray, "*M H W C"], steps: int) -> np.ndarray:
    """The group of each value of maps `[..., H, W, C]`: 0 for the greatest, up to `steps` - 1.

    All groups have the same size, except that the last may be smaller. Equal values are ranked in
    the order of their positions.
    """
    flat = np.asarray(maps).reshape(-1, math.prod(maps.shape[-3:]))
    size = math.ceil(flat.shape[1] / steps)
    order = np.argsort(-flat, axis=1, kind="stable")
    groups = np.empty(flat.shape, np.int32)
    np.put_along_axis(groups, order, np.arange(flat.shape[1], dtype=np.int32)[None] // size, axis=1)
    return groups.reshape(maps.shape)


def infidelity(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    maps: Float[AnyArray, "*M H W C"],
    *,
    patch_size: int = 32,
    scaled: bool = True,
    **options: Unpack[Options],
) -> Float[np.ndarray, "*M"]:
    """Mean squared error of the map as a linear model of the effect of replacing squares.

    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations" (2019), definition 2.1. The
    image is cut into squares, and each square is replaced in turn. For a change `I` of the image, a
    drop `d` of the target's value and a map `m`, the error is `mean((I . m - d)^2)`. Arguments,
    result and errors are those of `faithfulness_correlation`, with these exceptions:

    Args:
        params: a callable pytree.
        x: one image or a batch.
        c: the target.
        maps: their maps; methods share the network's outputs.
        patch_size: the side of the squares in pixels, >= 1; squares at the lower and right borders
            may be smaller.
        scaled: multiply each map by the number that minimises the error, `sum(I.m d) /
            sum((I.m)^2)`, as the authors do, so that a map of the wrong scale is not penalised.
        **options: see `Options`.

    Returns:
        The error per image (and method), >= 0, in squared units of the target's value. With
        `scaled`, no map has a greater error than the zero map, whose error is the mean of `d^2`.
    """
    case, base, settings = _prepared(params, x, c, maps, options)
    height, width = case.x.shape[1:3]
    side = whole_number(patch_size, "patch_size")
    across = -(-width // side)
    squares = np.arange(height)[:, None] // side * across + np.arange(width) // side
    groups = squares.astype(np.int32)[None, None, :, :, None]
    count = int(squares.max()) + 1
    fallen, sums = drops(case, groups, equal, count, base, weighted=True, **settings)
    return case.values(squared_error(sums, fallen, scaled))


def squared_error(sums: np.ndarray, drops: np.ndarray, scaled: bool) -> np.ndarray:
    """Mean squared difference along the last axis; if `scaled`, for the best multiple of `sums`."""
    if scaled:
        power = np.sum(sums**2, axis=-1, keepdims=True)
        product = np.sum(sums * drops, axis=-1, keepdims=True)
        sums = sums * np.divide(product, power, out=np.zeros_like(power), where=power > 0)
    return np.mean((sums - drops) ** 2, axis=-1)


def _prepared(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    maps: Float[AnyArray, "*M H W C"],
    options: Options,
) -> tuple[Case, jax.Array, dict[str, Any]]:
    case = Case.of(params, x, c, maps, options.get("bounds", (-1.0, 1.0)))
    base = item_like(options.get("baseline", 0.0), x, None, "baseline")
    settings = {k: v for k, v in options.items() if k in ("softmax", "batch_size")}
    return case, base, settings
