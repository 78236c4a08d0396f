"""What a network's weights expect of images: their size, range and order of channels."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jax_excite.data.images import load_images
from jax_excite.errors import SettingError

Order = Literal["RGB", "BGR"]
Fit = Literal["crop", "letterbox"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of images that a network's weights require.

    Images stay in [-1, 1] outside of the network, so that step sizes keep their units.

    Attributes:
        mean: the number subtracted from pixels in [0, 1], per channel.
        std: the number by which the difference is divided, per channel. A network that takes pixels
            in 0..255 has the mean 0 and the standard deviation 1 / 255.
        resize: the length in pixels of an image's short side before the centre crop.
        size: the height and width in pixels for which the weights are meant.
        min_size: the smallest height and width that the network accepts.
        order: the order in which the network takes the channels. Mean and standard deviation are in
            this order too.
        fit: how images get their size: by a centre `crop`, or by a `letterbox`, which scales the
            whole image to fit into the upper left, and fills the rest with grey (114 of 255).
        interpolation: how images are resized.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int = 256
    size: int = 224
    min_size: int = 1
    order: Order = "RGB"
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(self.std):
            raise SettingError(
                f"mean is {self.mean} and std is {self.std}: give as many numbers, none of std 0"
            )
        for name, value, choices in (
            ("order", self.order, Order),
            ("fit", self.fit, Fit),
            ("interpolation", self.interpolation, Interpolation),
        ):
            if value not in choices.__args__:
                raise SettingError(f"{name} is {value!r}: give one of {choices.__args__}")

    @property
    def channels(self) -> int:
        """The number of channels."""
        return len(self.mean)

    def normalise(self, x: jax.Array) -> jax.Array:
        """Convert images `[..., C]` in [-1, 1] to the network's input."""
        x = x[..., ::-1] if self.order == "BGR" else x
        mean = jnp.asarray(self.mean, x.dtype)
        std = jnp.asarray(self.std, x.dtype)
        return ((x + 1) / 2 - mean) / std

    def load_images(self, sources: Any) -> np.ndarray:
        """Read images as the network takes them: `[N, size, size, C]` in [-1, 1].

        Args:
            sources: a sequence of what `load_image` takes. Colours become grey for a network of
                one channel.
        """
        images = load_images(
            sources,
            self.size,
            resize=self.resize,
            fit=self.fit,
            interpolation=self.interpolation,
        )
        if self.channels == 1:
            # The weights of ITU-R BT.601, as in Pillow.
            return images @ np.array([[0.299], [0.587], [0.114]], images.dtype)
        return images


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
