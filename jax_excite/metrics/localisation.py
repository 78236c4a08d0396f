"""Localisation: does a map point at the object?"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from jax_excite.errors import ImageError
from jax_excite.pullbacks.items import as_images
from jax_excite.typing import AnyArray


@dataclasses.dataclass(frozen=True)
class Mosaics:
    """Images that are each composed of four photographs.

    Attributes:
        x: the mosaics, `[N, H, W, 3]`; each quadrant holds a photograph at half its size.
        target: class index of the target photograph, `[N]`.
        masks: the quadrant of the target photograph, `[N, H, W]` bool.
        parts: indices of the photographs, `[N, 4]`: top left, top right, bottom left, bottom right.
    """

    x: np.ndarray
    target: np.ndarray
    masks: np.ndarray
    parts: np.ndarray


def mosaics(
    x: Float[AnyArray, "N H W C"], classes: Int[AnyArray, " N"], *, seed: int = 0
) -> Mosaics:
    """Put each photograph into one quadrant of a mosaic, beside three of other classes.

    After Arias-Duart et al., "Focus! Rating XAI Methods and Finding Biases" (2022), section 3, who
    use two photographs of the class and two of others, at full size. Here only one photograph is of
    the class, so that one photograph per class is enough. A quadrant is a photograph at half its
    height and width.

    Args:
        x: photographs `[N, H, W, 3]`, of even height and width.
        classes: class index of each, `[N]`, of at least four different classes.
        seed: the seed for the choice of the other photographs and of the quadrants.

    Raises:
        ImageError: the photographs or classes do not meet these conditions.
    """
    images, _ = as_images(x, None)
    count, height, width, _ = images.shape
    classes = np.asarray(classes)
    if x.ndim != 4 or classes.shape != (count,) or height % 2 or width % 2:
        raise ImageError(
            f"x has shape {x.shape} and classes {classes.shape}: give photographs [N, H, W, 3] of "
            "even height and width, and one class per photograph"
        )
    if len(np.unique(classes)) < 4:
        raise ImageError("the photographs have fewer than four classes: a mosaic needs four")
    rng = np.random.default_rng(seed)
    parts = np.empty((count, 4), int)
    masks = np.zeros((count, height, width), bool)
    for number in range(count):
        chosen = [number]
        for other in rng.permutation(count):
            if len(chosen) < 4 and classes[other] not in classes[chosen]:
                chosen.append(int(other))
        places = rng.permutation(4)
        parts[number, places] = chosen
        row, column = divmod(int(places[0]), 2)
        half = (
            slice(row * height // 2, (row + 1) * height // 2),
            slice(column * width // 2, (column + 1) * width // 2),
        )
        masks[(number, *half)] = True
    shape = (count, height // 2, width // 2, 3)
    small = np.asarray(jax.image.resize(jnp.asarray(images), shape, "linear"))
    quarters = small[parts].reshape(count, 2, 2, *shape[1:])
    whole = quarters.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
    return Mosaics(whole, classes, masks, parts)


def focus(
    maps: Float[AnyArray, "*M N H W C"], masks: Bool[np.ndarray, "N H W"]
) -> Float[np.ndarray, "*M N"]:
    """The fraction of a map's positive attribution that lies inside a mask.

    Arias-Duart et al. (2022), equation 1. A map that ignores the class scores the fraction of the
    image that the mask covers, 1/4 for a quadrant.

    Args:
        maps: `[N, H, W, 3]`, or with a leading axis for several methods.
        masks: `[N, H, W]` bool, such as those of `mosaics` or `boxes`.

    Returns:
        One value per image (and method), in [0, 1]; NaN where no attribution is positive.

    Raises:
        ImageError: the masks do not fit the maps.
    """
    positive = np.maximum(_fitting(maps, masks), 0)
    inside = (positive * masks[..., None]).sum(axis=(-3, -2, -1))
    total = positive.sum(axis=(-3, -2, -1))
    return np.divide(inside, total, out=np.full(total.shape, np.nan), where=total > 0)


def pointing_game(
    maps: Float[AnyArray, "*M N H W C"], masks: Bool[np.ndarray, "N H W"], *, tolerance: int = 0
) -> Float[np.ndarray, "*M N"]:
    """Whether the pixel of greatest attribution lies inside a mask.

    Zhang et al., "Top-Down Neural Attention by Excitation Backprop" (2018), section 4.1. A pixel's
    attribution is the greatest of its channels. The metric depends only on the
    position of that pixel.

    Args:
        maps: `[N, H, W, 3]`, or with a leading axis for several methods.
        masks: `[N, H, W]` bool, such as those of `mosaics` or `boxes`.
        tolerance: the distance from a mask, in pixels, up to which a pixel counts as inside, >= 0;
            the authors use 15.

    Returns:
        1.0 or 0.0 per image (and method). If several pixels share the greatest attribution, one of
        them inside the mask is enough. NaN where a map is constant or a mask is empty.

    Raises:
        ImageError: the masks do not fit the maps.
    """
    strength = _fitting(maps, masks).max(axis=-1)
    if tolerance:
        reach = np.hypot(*np.mgrid[-tolerance : tolerance + 1, -tolerance : tolerance + 1])
        masks = ndimage.binary_dilation(masks, (reach <= tolerance)[None])
    peak = strength.max(axis=(-2, -1), keepdims=True)
    hit = ((strength == peak) & masks).any(axis=(-2, -1)).astype(float)
    known = (np.ptp(strength, axis=(-2, -1)) > 0) & masks.any(axis=(-2, -1))
    return np.where(known, hit, np.nan)


def boxes(corners: Int[np.ndarray, "N 4"], height: int, width: int) -> Bool[np.ndarray, "N H W"]:
    """Masks `[N, H, W]` of boxes `[N, 4]`: left, top, right, bottom, in pixels.

    Right and bottom are exclusive.
    """
    left, top, right, bottom = np.asarray(corners).T[:, :, None, None]
    rows, columns = np.mgrid[:height, :width]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def _fitting(maps: Float[AnyArray, "*M N H W C"], masks: Bool[np.ndarray, "N H W"]) -> np.ndarray:
    found = np.asarray(maps, np.float64)
    if found.ndim not in (4, 5) or found.shape[-4:-1] != masks.shape or masks.dtype != bool:
        raise ImageError(
            f"maps have shape {found.shape} and masks {masks.shape} of {masks.dtype}: give maps "
            "[N, H, W, 3], with an additional leading axis for several methods, and masks [N, H, "
            "W] of bool"
        )
    return found
