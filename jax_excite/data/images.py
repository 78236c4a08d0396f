"""Images in [-1, 1]: reading from files, checking inputs, and converting to bytes for display."""

import contextlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from jax_excite.data.arrays import check_floats
from jax_excite.errors import ImageError
from jax_excite.typing import AnyArray, Bounds

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray

# Pillow supports more formats; for some of them it starts another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# The grey around images in a letterbox, as in YOLOX.
_LETTERBOX = 114
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# What Pillow raises on a file that is damaged, is not an image, or decodes to too many pixels.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def load_image(
    source: ImageSource,
    size: int = 224,
    *,
    resize: int | None = None,
    fit: str = "crop",
    interpolation: str = "bilinear",
) -> Float[np.ndarray, "{size} {size} 3"]:
    """Read an image as ImageNet classifiers expect it, with antialiased resizing.

    A square image is resized to `size`. Any other image is resized so that its short side is
    `resize`, and cropped to `size` in the centre, with torchvision's rounding.

    Args:
        source: a path, a PIL image of 8-bit channels, or a uint8 array `[H, W, 3]`. Grey, palette
            and transparent images become RGB (transparency is dropped); the orientation that EXIF
            data gives is applied.
        size: height and width of the result, in pixels.
        resize: pixels of the short side before the crop; `round(size * 256 / 224)` if None.
        fit: `crop`, or `letterbox` as object detectors expect it: the whole image is scaled to fit
            into the upper left, and the rest is grey (114 of 255).
        interpolation: how it is resized, `bilinear` or `bicubic`.

    Returns:
        A float32 array `[size, size, 3]` in [-1, 1].

    Raises:
        FileNotFoundError: there is no file at the path.
        ImageError: the file or array is not an image, or has too many pixels.
    """
    short = round(size * 256 / 224) if resize is None else resize
    if fit not in ("crop", "letterbox"):
        raise ImageError(f"fit is {fit!r}: give 'crop' or 'letterbox'")
    if interpolation not in _RESAMPLING:
        raise ImageError(f"interpolation is {interpolation!r}: give one of {(*_RESAMPLING,)}")
    if size < 1:
        raise ImageError(f"size is {size}: give a positive number of pixels")
    if short < size and fit == "crop":
        raise ImageError(f"resize is {short}: give at least as many pixels as size, {size}")
    if isinstance(source, (str, os.PathLike)):
        image = _from_file(Path(source))
    elif isinstance(source, Image.Image):
        image = to_rgb(source, f"the PIL image of mode {source.mode}")
    else:
        image = _from_array(source)
    how = _RESAMPLING[interpolation]
    fitted = _letterbox(image, size, how) if fit == "letterbox" else _crop(image, short, size, how)
    pixels = np.asarray(fitted, np.float32)
    return pixels / np.float32(255) * np.float32(2) - np.float32(1)


def load_images(
    sources: Iterable[ImageSource],
    size: int = 224,
    *,
    resize: int | None = None,
    fit: str = "crop",
    interpolation: str = "bilinear",
) -> Float[np.ndarray, "N {size} {size} 3"]:
    """Read several images as `load_image` does: float32 `[N, size, size, 3]` in [-1, 1]."""
    if isinstance(sources, (str, os.PathLike)):
        raise ImageError(f"{sources} is one path: give a sequence of images, or use load_image")
    how: Any = {"resize": resize, "fit": fit, "interpolation": interpolation}
    images = [load_image(source, size, **how) for source in sources]
    if not images:
        raise ImageError("there are no images: give at least one")
    return np.stack(images)


def check_images(x: Any, bounds: Bounds | None = (-1.0, 1.0), channels: int | None = None) -> None:
    """Raise unless `x` is one image `[H, W, C]` or a batch `[N, H, W, C]` of finite floats.

    Args:
        x: a NumPy or JAX array. Only the shape and dtype of a traced array can be checked.
        bounds: the range in which its values must lie, with a relative tolerance of 1e-6; None for
            any finite values.
        channels: the number of channels; None for any number.

    Raises:
        ImageError: `x` is anything else. The message describes `x` and what is expected.
    """
    last = "C" if channels is None else channels
    wanted = f"images are float arrays [H, W, {last}] or [N, H, W, {last}]"
    if isinstance(x, (np.ndarray, jax.Array)):
        fits = channels is None or x.shape[-1:] == (channels,)
        if x.ndim not in (3, 4) or 0 in x.shape or not fits:
            first = x.ndim in (3, 4) and x.shape[-3] == channels
            hint = "; move channels first to last with moveaxis(x, -3, -1)" if first else ""
            raise ImageError(f"x has shape {x.shape} and dtype {x.dtype}: {wanted}{hint}")
    check_floats(x, bounds, wanted, ImageError)


def to_uint8(
    x: Float[AnyArray, "*N H W C"], bounds: Bounds = (-1.0, 1.0)
) -> UInt8[np.ndarray, "*N H W C"]:
    """Images as bytes for display: `bounds` map to 0 and 255, and values outside are clipped.

    Args:
        x: images `[H, W, C]` or `[N, H, W, C]`, finite.
        bounds: the values that become black and white.

    Returns:
        A uint8 array of the same shape.

    Raises:
        ImageError: `x` is not such an array.
    """
    check_images(x, bounds=None)
    unit = (np.asarray(x, np.float64) - bounds[0]) / (bounds[1] - bounds[0])
    return np.rint(255 * unit.clip(0, 1)).astype(np.uint8)


def _from_file(path: Path) -> Image.Image:
    if path.is_dir():
        raise ImageError(f"{path} is a directory: give an image file")
    with path.open("rb") as file:
        with decoding(str(path)):
            image = Image.open(file, formats=FORMATS)
            image.load()
        return to_rgb(image, str(path))


def _from_array(array: Any) -> Image.Image:
    if not isinstance(array, np.ndarray):
        raise ImageError(
            f"the image is of type {type(array).__name__}: give a path, a PIL image or a uint8 "
            "numpy array [H, W, 3]; load_images takes several"
        )
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"the array has shape {array.shape} and dtype {array.dtype}: give uint8 [H, W, 3]; "
            "load_images takes several; floats in [-1, 1] are images already"
        )
    return Image.fromarray(array)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """The image upright, in RGB, without transparency; `ImageError` if channels are not 8-bit."""
    if 0 in image.size or image.mode[0] in "IF":
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels of mode {image.mode}: give at least "
            "one pixel, of 8-bit channels"
        )
    with decoding(name):
        turn = _TURNS.get(_orientation(image))
        upright = image if turn is None else image.transpose(turn)
        # Pillow warns when it drops a palette's transparency in one step.
        has_key = "transparency" in upright.info
        return (upright.convert("RGBA") if has_key else upright).convert("RGB")


# The operation that turns an image upright, by the orientation in its EXIF data.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> Any:
    """The orientation tag of an image, or 1 if it has no readable one; other tags are ignored."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGED:
        return 1


@contextlib.contextmanager
def decoding(name: str, at_most: int | None = None) -> Iterator[None]:
    """A context in which Pillow reads `name`: what it raises becomes one `ImageError`.

    Args:
        name: what messages call the image.
        at_most: the number of pixels that the message allows, if it is less than Pillow's limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # damaged tags beside intact pixels
            yield
    except _DAMAGED as error:
        why = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(
            f"{name} cannot be read as an image ({why}): give an undamaged file in one of the "
            f"formats {', '.join(FORMATS)}, of at most {at_most or Image.MAX_IMAGE_PIXELS} pixels"
        ) from error


def _letterbox(image: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    factor = min(size / image.width, size / image.height)
    width, height = (max(1, int(n * factor)) for n in image.size)
    whole = Image.new("RGB", (size, size), (_LETTERBOX,) * 3)
    whole.paste(image.resize((width, height), how))
    return whole


def _crop(image: Image.Image, short: int, size: int, how: Image.Resampling) -> Image.Image:
    width, height = image.size
    if width == height:
        return image.resize((size, size), how)
    long = int(short * max(width, height) / min(width, height))
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and short * long > limit:
        raise ImageError(
            f"an image of {width} x {height} pixels becomes {short} x {long} when its short side "
            f"is resized to {short}: give one that is closer to square (at most {limit} pixels "
            "after resizing)"
        )
    new_width, new_height = (short, long) if width < height else (long, short)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    resized = image.resize((new_width, new_height), how)
    return resized.crop((left, top, left + size, top + size))
