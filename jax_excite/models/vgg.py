"""VGG (Simonyan and Zisserman, 2015, arXiv 1409.1556), with or without BatchNorm.

Attribute names are torchvision's, so that weights map by name. The rows of the first matrix of the
head are in the order height, width, channel; torchvision's are in the order channel, height, width.
"""

import dataclasses

import jax
from flax import nnx

from jax_excite.models.layers import (
    MaxPool,
    adaptive_avg_pool,
    batch_norm,
    conv,
    dropout,
    linear,
    run,
    scoped,
)

WIDTHS = (64, 128, 256, 512, 512)
HEAD = 4096


@dataclasses.dataclass(frozen=True)
class VGGConfig:
    """A member of the family.

    Attributes:
        depths: the number of 3x3 convolutions in each of the five stages.
        norm: whether each of them is followed by BatchNorm.
    """

    depths: tuple[int, int, int, int, int]
    norm: bool = False

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> "VGG":
        """The network with random weights."""
        return VGG(self, num_classes=num_classes, rngs=rngs)


class VGG(nnx.Module):
    """Five stages of 3x3 convolutions, each ending in a max-pool, and a head of three matrices."""

    def __init__(self, config: VGGConfig, *, num_classes: int, rngs: nnx.Rngs):
        self.features = nnx.List()
        inputs = 3
        for repeats, width in zip(config.depths, WIDTHS, strict=True):
            for _ in range(repeats):
                self.features.append(conv(inputs, width, 3, padding=1, bias=True, rngs=rngs))
                if config.norm:
                    self.features.append(batch_norm(width, rngs=rngs))
                self.features.append(jax.nn.relu)
                inputs = width
            self.features.append(MaxPool(2, 2))
        self.classifier = nnx.List(
            [
                linear(7 * 7 * inputs, HEAD, rngs=rngs),
                jax.nn.relu,
                dropout,
                linear(HEAD, HEAD, rngs=rngs),
                jax.nn.relu,
                dropout,
                linear(HEAD, num_classes, rngs=rngs),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        x = run("features", self.features, x)
        x = scoped("avgpool", lambda x: adaptive_avg_pool(x, 7), x)
        x = x.reshape(*x.shape[:-3], -1)
        return run("classifier", self.classifier, x)


VGGS = {
    "vgg11": VGGConfig((1, 1, 2, 2, 2)),
    "vgg11_bn": VGGConfig((1, 1, 2, 2, 2), norm=True),
    "vgg13": VGGConfig((2, 2, 2, 2, 2)),
    "vgg13_bn": VGGConfig((2, 2, 2, 2, 2), norm=True),
    "vgg16": VGGConfig((2, 2, 3, 3, 3)),
    "vgg16_bn": VGGConfig((2, 2, 3, 3, 3), norm=True),
    "vgg19": VGGConfig((2, 2, 4, 4, 4)),
    "vgg19_bn": VGGConfig((2, 2, 4, 4, 4), norm=True),
}
