"""Items: what a network computes from, as arrays or pytrees of arrays with the items along axis 0.

An item is an image, any other float array, or a pytree of several inputs.
"""

from typing import Any

import jax
import numpy as np

from jax_excite.data.arrays import check_floats
from jax_excite.data.images import check_images
from jax_excite.errors import InputError
from jax_excite.typing import Bounds

_SINGLE, _BATCH = 3, 4  # the ranks of one image and of a batch of them


def as_items(
    x: Any, bounds: Bounds | None, batched: bool | None = None, *, clips: bool = False
) -> tuple[Any, bool]:
    """Check items; return them with a batch axis, and whether `x` was a single item.

    Args:
        x: an array, or a pytree of arrays that all have a batch axis, or all lack it.
        bounds: the range that images are checked against; None checks only that they are finite.
        batched: whether `x` has a batch axis. None decides by the rank: an array of rank 3 is one
            image `[H, W, C]`, an array of rank 4 is a batch `[N, H, W, C]`.
        clips: whether items are going to be clipped to the range, so that it is checked for all.

    Raises:
        ImageError: `x` has the rank of images, but is not an image or batch of images.
        InputError: `x` is not a float array or a pytree of them, the lengths of its batch axes
            differ, or `batched` has to be given.
    """
    leaves = jax.tree.leaves(x)
    is_array = isinstance(x, (np.ndarray, jax.Array))
    if not leaves or (len(leaves) == 1 and leaves[0] is x and not is_array):
        raise InputError(f"x is of type {type(x).__name__}: give a float array or a pytree of them")
    if batched is None:
        if not is_array or x.ndim not in (_SINGLE, _BATCH):
            raise InputError(
                f"x has shape {shapes_of(x)}: an array of rank 3 is one image [H, W, C], and of "
                "rank 4 a batch of them. For other inputs, give batched=True if the first axis of "
                "each array counts the items, or batched=False if x is a single item"
            )
        batched = x.ndim == _BATCH
    if is_array and x.ndim == (_BATCH if batched else _SINGLE):
        check_images(x, bounds)
    else:
        for leaf in leaves:
            check_floats(leaf, bounds if clips else None, "inputs are float arrays")
    if not batched:
        return jax.tree.map(lambda leaf: leaf[None], x), True
    counts = {np.shape(leaf)[:1] for leaf in leaves}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise InputError(
            f"x has shape {shapes_of(x)}: in a batch, the first axis of each array counts the "
            "items, of which there is at least one"
        )
    return x, False


def as_images(x: Any, bounds: Bounds | None) -> tuple[Any, bool]:
    """Check images; return them as `[N, H, W, C]`, and whether `x` was a single image."""
    check_images(x, bounds)
    return (x[None], True) if x.ndim == _SINGLE else (x, False)


def count(items: Any) -> int:
    """The number of items."""
    return len(jax.tree.leaves(items)[0])


def rows(items: Any, index: Any) -> Any:
    """Some of the items, by an index of the first axis."""
    return jax.tree.map(lambda leaf: leaf[index], items)


def looks_channels_first(items: Any) -> bool:
    """Whether items are `[N, 1, H, W]` or `[N, 3, H, W]`, as images of other libraries are."""
    shape = np.shape(items) if isinstance(items, (np.ndarray, jax.Array)) else ()
    return len(shape) == _BATCH and shape[1] in (1, 3) and shape[3] not in (1, 3)


def shapes_of(tree: Any) -> str:
    """The shapes of a pytree's arrays, in its structure, for messages."""
    return str(jax.tree.map(_Text.of, tree))


class _Text(str):
    """A shape that prints without quotation marks."""

    __slots__ = ()

    @classmethod
    def of(cls, leaf: Any) -> "_Text":
        return cls(np.shape(leaf))

    def __repr__(self) -> str:
        return str(self)
