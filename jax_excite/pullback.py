"""Excitation pullbacks of a network's logits, for one target an image or for a grid of classes."""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_excite import targets
from jax_excite.callables import as_floats, as_pytree
from jax_excite.errors import TargetError
from jax_excite.gating import Gating, check_gating
from jax_excite.images import check_images
from jax_excite.plan import SiteSelection
from jax_excite.recipes import EXCITATION
from jax_excite.targets import Target
from jax_excite.transform import excite

Bounds = tuple[float, float]
Params = Callable[[jax.Array], jax.Array]


def pullback(
    params: Params,
    x: jax.Array | np.ndarray,
    c: Target,
    *,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    bounds: Bounds | None = (-1.0, 1.0),
    batch_size: int | None = None,
) -> jax.Array:
    """Pull a target back from the logits to the image, through soft gates (paper, section 4.2).

    Compiled once for each shape, dtype and static setting; another class, temperature or set of
    weights recompiles nothing.

    Args:
        params: a callable pytree that maps images `[N, H, W, 3]` to logits `[N, K]`: a model from
            `load`, any NNX or Equinox module, `jax.tree_util.Partial(linen.apply, variables)`.
            A plain function works too; arrays that it closes over are compiled in as constants.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`, float, in `bounds`.
        c: the target: a class index, an integer array `[N]`, a float cotangent with the shape of
            the logits, or a scalar objective of one image's logits `[K]`.
        gating: how gates are softened; the default is the paper's.
        skip: sites to leave hard, by index or name as `sites` lists them.
        only: if given, the only sites to soften.
        bounds: the range of images, checked; None checks only that they are finite.
        batch_size: at most this many images at a time, to bound memory; None for all at once.

    Returns:
        The vector field at `x`: signed, not normalised, with the shape of `x`.

    Raises:
        ImageError: `x` is no image or batch of images in [-1, 1].
        TargetError: a class index out of range, or a target that does not fit the logits.
        GatingError: the model has no gate, a site does not exist, a temperature does not fit.
    """
    return value_and_pullback(
        params, x, c, gating=gating, skip=skip, only=only, bounds=bounds, batch_size=batch_size
    )[1]


def value_and_pullback(
    params: Params,
    x: jax.Array | np.ndarray,
    c: Target,
    *,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    bounds: Bounds | None = (-1.0, 1.0),
    batch_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The logits and the pullback, from one forward pass.

    Arguments and errors are those of `pullback`.

    Returns:
        The logits, `[K]` or `[N, K]`, and the vector field, shaped like `x`.
    """
    check_gating(gating)
    images, single = as_batch(x, bounds)
    params = as_pytree(params)
    target = targets.prepare(c, len(images), number_of_logits(params, images), single)
    compute = functools.partial(
        _value_and_pullback,
        params,
        gating=as_floats(gating),
        skip=hashable(skip),
        only=hashable(only),
    )
    logits, field = in_chunks(compute, len(images), batch_size, images, target)
    return (logits[0], field[0]) if single else (logits, field)


def pullback_grid(
    params: Params,
    x: jax.Array | np.ndarray,
    classes: Sequence[int] | np.ndarray | jax.Array,
    *,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    bounds: Bounds | None = (-1.0, 1.0),
    batch_size: int | None = None,
) -> jax.Array:
    """Pullbacks of several classes for each image, from one forward pass an image.

    The class grid of the paper's section 5.1. Arguments and errors are those of `pullback`, but:

    Args:
        params: as for `pullback`.
        x: as for `pullback`.
        classes: `C` class indices for all images, or an array `[N, C]` with a row for each.
        gating: as for `pullback`.
        skip: as for `pullback`.
        only: as for `pullback`.
        bounds: as for `pullback`.
        batch_size: at most this many cells (an image with a class) at a time.

    Returns:
        The vector fields, `[N, C, H, W, 3]`, or `[C, H, W, 3]` for one image.
    """
    check_gating(gating)
    images, single = as_batch(x, bounds)
    params = as_pytree(params)
    indices = targets.class_rows(classes, len(images), number_of_logits(params, images))
    columns = indices.shape[1]
    check_batch_size(batch_size)
    compute = functools.partial(
        _pullback_grid,
        params,
        gating=as_floats(gating),
        skip=hashable(skip),
        only=hashable(only),
        classes_at_once=columns if batch_size is None else min(batch_size, columns),
    )
    rows = None if batch_size is None else max(1, batch_size // columns)
    field = in_chunks(compute, len(images), rows, images, indices)
    return field[0] if single else field


@functools.partial(jax.jit, static_argnames=("skip", "only"))
def _value_and_pullback(
    params: Params, x: jax.Array, target: Any, gating: Gating, skip: Any, only: Any
) -> tuple[jax.Array, jax.Array]:
    logits, transpose = linearise(params, x, gating, skip, only)
    return logits, transpose(targets.cotangents(target, logits))


@functools.partial(jax.jit, static_argnames=("skip", "only", "classes_at_once"))
def _pullback_grid(
    params: Params,
    x: jax.Array,
    indices: jax.Array,
    gating: Gating,
    skip: Any,
    only: Any,
    classes_at_once: int,
) -> jax.Array:
    logits, transpose = linearise(params, x, gating, skip, only)

    def column(target: jax.Array) -> jax.Array:
        return transpose(targets.cotangents(target, logits))

    if classes_at_once == indices.shape[1]:
        field = jax.vmap(column)(indices.T)
    else:
        field = lax.map(column, indices.T, batch_size=classes_at_once)
    return jnp.moveaxis(field, 0, 1)


def linearise(
    params: Params, x: jax.Array, gating: Gating, skip: Any, only: Any
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The logits of a batch, and the map from their cotangents to vector fields."""
    logits, transpose = jax.vjp(excite(params, gating, skip=skip, only=only), x)
    return logits, lambda cotangent: transpose(cotangent)[0]


def as_batch(
    x: jax.Array | np.ndarray, bounds: Bounds | None
) -> tuple[jax.Array | np.ndarray, bool]:
    """Checked images `[N, H, W, 3]`, and whether `x` was a single one."""
    check_images(x, bounds)
    return (x[None], True) if x.ndim == 3 else (x, False)


def number_of_logits(params: Params, images: jax.Array | np.ndarray) -> int:
    """K, where `params` maps images `[N, H, W, 3]` to logits `[N, K]`; else `TargetError`."""
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


def hashable(selection: SiteSelection | None) -> Any:
    """A site selection that a compiled function takes as a static argument."""
    if selection is None or isinstance(selection, (str, int, np.integer)):
        return selection
    return tuple(selection)


def check_batch_size(batch_size: int | None) -> None:
    """Raise `ValueError` unless `batch_size` is None or a whole number of at least 1."""
    if batch_size is not None and not (isinstance(batch_size, numbers.Integral) and batch_size > 0):
        raise ValueError(f"batch_size is {batch_size}: give a whole number of at least 1, or None")


def in_chunks(
    compute: Callable[..., Any], rows: int, batch_size: int | None, *operands: Any
) -> Any:
    """`compute(*operands)`, at most `batch_size` rows of the arrays among `operands` at a time.

    The last chunk is filled up with copies of its last row, so that one program serves all.
    """
    check_batch_size(batch_size)
    if batch_size is None or rows <= batch_size:
        return compute(*operands)
    results = []
    for start in range(0, rows, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), rows - 1)
        results.append(compute(*(o if callable(o) else o[index] for o in operands)))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:rows], *results)
