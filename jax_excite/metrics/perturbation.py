"""Responses of a network to images with replaced parts, shared by the faithfulness metrics."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jax_excite.callables.pytree import as_pytree
from jax_excite.errors import ImageError
from jax_excite.pullbacks import targets
from jax_excite.pullbacks.batching import Rows, evenly, rows_at_once
from jax_excite.pullbacks.items import as_images
from jax_excite.pullbacks.request import shape_of_logits
from jax_excite.pullbacks.softened import softened
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import VANILLA
from jax_excite.typing import AnyArray, Bounds, Params

# Forward passes alone are fastest with smaller blocks than pullbacks.
_CPU_COPIES = 4

# Which values are replaced in the k-th copy of an image: (its groups, k) -> mask [H, W, 3].
Replaced = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Case:
    """Images with their maps, validated.

    Attributes:
        params: the network.
        x: images `[N, H, W, 3]`.
        target: the target, as `targets.prepare` returns it.
        maps: the maps of each method, `[M, N, H, W, 3]`; 0 where a map is not finite.
        finite: which maps are finite, `[M, N]`.
        shape: the shape in which a metric's values are returned to the caller.
    """

    params: Params
    x: Float[AnyArray, "N H W C"]
    target: Any
    maps: jax.Array
    finite: np.ndarray
    shape: tuple[int, ...]

    @staticmethod
    def of(
        params: Params,
        x: Float[AnyArray, "*N H W C"],
        c: Target,
        maps: Float[AnyArray, "*M H W C"],
        bounds: Bounds | None,
    ) -> "Case":
        """The case for a caller's arguments: one image or a batch, maps of one or several methods.

        Raises:
            ImageError: `x` is not an image or a batch, or the maps do not have its shape.
            TargetError: as for `pullback`.
        """
        images, single = as_images(x, bounds)
        params = as_pytree(params)
        target = targets.prepare(c, shape_of_logits(params, images), len(images), single)
        own, shape = grouped(x, maps)
        finite = np.asarray(jnp.isfinite(own).all(axis=(2, 3, 4)))
        own = jnp.where(finite[:, :, None, None, None], own, 0)
        return Case(params, images, target, own, finite, shape)

    def values(self, found: np.ndarray) -> np.ndarray:
        """A metric's values `[M, N, ...]` in the caller's shape; NaN where a map is not finite."""
        axes = tuple(range(2, found.ndim))
        known = np.where(np.expand_dims(self.finite, axes), found, np.nan)
        return known.reshape((*self.shape, *found.shape[2:]))


def grouped(
    x: Float[AnyArray, "..."], maps: Float[AnyArray, "..."]
) -> tuple[jax.Array, tuple[int, ...]]:
    """Maps as `[M, N, H, W, 3]`, and the shape of their values: the leading axes of `maps`."""
    found = jnp.asarray(maps)
    if found.shape[-x.ndim :] != x.shape or found.ndim not in (x.ndim, x.ndim + 1):
        raise ImageError(
            f"maps have shape {found.shape}: give maps of the shape of x, {x.shape}, with an "
            "additional leading axis for several methods"
        )
    count = len(x) if x.ndim == 4 else 1
    return found.reshape(-1, count, *x.shape[-3:]), found.shape[:-3]


def equal(groups: jax.Array, k: jax.Array) -> jax.Array:
    """Copy k has group k replaced."""
    return groups == k


def before(groups: jax.Array, k: jax.Array) -> jax.Array:
    """Copy k has the first k groups replaced."""
    return groups < k


def rest(groups: jax.Array, k: jax.Array) -> jax.Array:
    """Copy k has all but the first k groups replaced."""
    return groups >= k


@dataclasses.dataclass(frozen=True)
class Listed:
    """Copy k has the k-th set of values replaced, listed by index in the flattened image.

    Indices beyond the image are ignored.
    """

    shape: tuple[int, ...]

    def __call__(self, groups: jax.Array, k: jax.Array) -> jax.Array:
        """The mask of set k."""
        flat = jnp.zeros(math.prod(self.shape), bool)
        return flat.at[groups[k]].set(True, mode="drop").reshape(self.shape)


def drops(
    case: Case, groups: AnyArray, replaced: Replaced, copies: int, base: Any, **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The drop of the target's value in each copy, and the map's sum over the replaced values.

    Arguments are those of `responses`. `replaced` must replace nothing in copy number `copies`.

    Returns:
        Drops `[M, N, K]`, or `[N, K]` if methods share groups, and sums `[M, N, K]`, in float64.
    """
    found, sums = responses(case, groups, replaced, copies + 1, base, **settings)
    return found[..., -1:] - found[..., :-1], sums[..., :-1]


def responses(
    case: Case,
    groups: AnyArray,
    replaced: Replaced,
    copies: int,
    base: Any,
    *,
    weighted: bool = False,
    softmax: bool = False,
    batch_size: int | None = None,
    only_values: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The target's value at perturbed copies of images, and the map's sum over the replaced values.

    Args:
        case: images and maps.
        groups: what `replaced` takes, with leading axes `[M or 1, N or 1]`; an axis is 1 if all
            methods, or all images, share the groups.
        replaced: which values are replaced in each copy.
        copies: the number of copies of each image, K.
        base: the replacement: a number, or images `[N, H, W, 3]`.
        weighted: sum the map times the change instead of the map alone.
        softmax: return probabilities (`targets.probabilities`) instead of logits.
        batch_size: the number of copies computed at a time.
        only_values: do not compute the sums.

    Returns:
        In float64: the values `[M, N, K]`, or `[N, K]` if methods share groups; and the sums
        `[M, N, K]`.
    """
    maps = case.maps[:, :, :0, :0] if only_values else case.maps
    found, sums = _responses(
        case.params,
        jnp.asarray(case.x),
        case.target,
        maps,
        groups,
        jnp.asarray(base, case.x.dtype),
        replaced=replaced,
        copies=copies,
        weighted=weighted,
        softmax=softmax,
        rows=evenly(copies, _copies_at_once(batch_size)),
    )
    return np.asarray(found, np.float64), np.asarray(sums, np.float64)


def _copies_at_once(batch_size: int | None) -> Rows:
    most = rows_at_once(batch_size)
    return _CPU_COPIES if batch_size is None and most is not None else most


@functools.partial(jax.jit, static_argnames=("replaced", "copies", "weighted", "softmax", "rows"))
def _responses(
    params: Params,
    x: jax.Array,
    target: Any,
    maps: jax.Array,
    groups: jax.Array,
    base: jax.Array,
    *,
    replaced: Replaced,
    copies: int,
    weighted: bool,
    softmax: bool,
    rows: int,
) -> tuple[jax.Array, jax.Array]:
    methods, images = groups.shape[0], len(x)
    blocks = math.ceil(copies / rows)
    like = jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
    network = softened(params, jnp.zeros(like.shape, like.dtype))
    base = jnp.broadcast_to(base, x.shape)
    summed = 0 not in maps.shape

    def block(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        method, image, part = jnp.unravel_index(at, (methods, images, blocks))
        chosen = groups[method, jnp.minimum(image, groups.shape[1] - 1)]
        k = jnp.minimum(part * rows + jnp.arange(rows), copies - 1)
        own = x[image]
        mask = jax.vmap(lambda k: jnp.broadcast_to(replaced(chosen, k), own.shape))(k)
        copied = jnp.where(mask, base[image], own)
        repeated = (
            target
            if callable(target)
            else jax.tree.map(
                lambda part: jnp.broadcast_to(part[image], (rows, *part.shape[1:])), target
            )
        )
        logits = network(copied, VANILLA)
        value = targets.values(repeated, targets.probabilities(logits) if softmax else logits)
        if not summed:
            return value, jnp.zeros((0, rows), value.dtype)
        # If methods share groups, the sums of all methods; otherwise those of the current method.
        wanted = maps[:, image] if methods == 1 else maps[method, image][None]
        change = own - copied if weighted else mask.astype(own.dtype)
        return value, jnp.einsum("mhwc,khwc->mk", wanted, change)

    found, sums = lax.map(block, jnp.arange(methods * images * blocks))
    found = found.reshape(methods, images, blocks * rows)[..., :copies]
    each = sums.shape[1]
    sums = jnp.moveaxis(sums.reshape(methods, images, blocks, each, rows), 3, 1)
    sums = sums.reshape(methods * each, images, blocks * rows)[..., :copies]
    return cast(jax.Array, found[0] if methods == 1 else found), sums
