"""Photographs that people upload: bounded, checked, and kept as they are."""

import dataclasses
import functools
import io
import threading
import unicodedata

from PIL import Image

from jax_excite.data.images import FORMATS, decoding, to_rgb
from jax_excite.errors import ImageError

MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
_LONGEST_NAME = 60
_SMALL = 144  # pixels
# Decoding a photograph of 50 million pixels takes several hundred megabytes: one at a time.
_decoding = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph that can be decoded.

    Attributes:
        name: what the page calls it. It is never used as a path.
        data: the content of the file.
        suffix: the ending of a file name that belongs to its format, such as `.jpeg`.
    """

    name: str
    data: bytes
    suffix: str

    @staticmethod
    def of(name: str, data: bytes) -> "Photograph":
        """A photograph of the content of a file, if it can be decoded.

        Args:
            name: the name that the uploader gives, which may be anything.
            data: the content.

        Raises:
            ImageError: the content is no image, or has too many bytes or pixels. The message is for
                the uploader.
        """
        shown = _printable(name)
        if len(data) > MAX_BYTES:
            raise ImageError(
                f"{shown} has {len(data) / 1e6:.0f} MB: give a photograph of at most "
                f"{MAX_BYTES / 1e6:.0f} MB"
            )
        with _decoding:
            image = _decoded(data, shown)
            to_rgb(image, shown)
        return Photograph(shown, data, f".{(image.format or 'png').lower()}")

    @functools.cached_property
    def thumbnail(self) -> Image.Image:
        """The photograph in small, decoded once."""
        small = self.image()
        small.thumbnail((_SMALL, _SMALL))
        return small

    def image(self) -> Image.Image:
        """The pixels: upright, in RGB."""
        with _decoding:
            return to_rgb(_decoded(self.data, self.name), self.name)


def _decoded(data: bytes, name: str) -> Image.Image:
    with decoding(name, MAX_PIXELS):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels: give a photograph of at most "
            f"{MAX_PIXELS / 1e6:.0f} million pixels"
        )
    with decoding(name, MAX_PIXELS):
        image.load()
    return image


def _printable(name: str) -> str:
    """The last part of a name, without characters that are not printed."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    printed = "".join(c for c in last if unicodedata.category(c)[0] not in "CZ" or c == " ")
    return printed.strip()[:_LONGEST_NAME] or "the photograph"
