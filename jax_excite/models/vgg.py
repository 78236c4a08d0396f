"""VGG (Simonyan and Zisserman, 2015, arXiv 1409.1556), with or without BatchNorm.

Attribute names are torchvision's, so that weights map by name. The first matrix of the head takes
its rows in the order height, width, channel, where torchvision's takes channel, height, width.
"""

import jax
from flax import nnx

from jax_excite.models.blocks import (
    MaxPool,
    adaptive_avg_pool,
    batch_norm,
    conv,
    dropout,
    run,
    scoped,
)

# The number of 3x3 convolutions in each of the five stages, by depth.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
HEAD = 4096


class VGG(nnx.Module):
    """Five stages of 3x3 convolutions, each ended by a max-pool, and a head of three matrices."""

    def __init__(self, depth: int, *, norm: bool, num_classes: int, rngs: nnx.Rngs):
        self.features = nnx.List()
        inputs = 3
        for repeats, width in zip(DEPTHS[depth], WIDTHS, strict=True):
            for _ in range(repeats):
                self.features.append(conv(inputs, width, 3, padding=1, bias=True, rngs=rngs))
                if norm:
                    self.features.append(batch_norm(width, rngs=rngs))
                self.features.append(jax.nn.relu)
                inputs = width
            self.features.append(MaxPool(2, 2))
        self.classifier = nnx.List(
            [
                nnx.Linear(7 * 7 * inputs, HEAD, rngs=rngs),
                jax.nn.relu,
                dropout,
                nnx.Linear(HEAD, HEAD, rngs=rngs),
                jax.nn.relu,
                dropout,
                nnx.Linear(HEAD, num_classes, rngs=rngs),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        x = run("features", self.features, x)
        x = scoped("avgpool", lambda x: adaptive_avg_pool(x, 7), x)
        x = x.reshape(*x.shape[:-3], -1)
        return run("classifier", self.classifier, x)


def vgg11_bn(*, num_classes: int = 1000, rngs: nnx.Rngs) -> VGG:
    """VGG11 with BatchNorm, torchvision's `vgg11_bn`."""
    return VGG(11, norm=True, num_classes=num_classes, rngs=rngs)
