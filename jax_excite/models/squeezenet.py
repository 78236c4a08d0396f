"""SqueezeNet (Iandola et al., 2016, arXiv 1602.07360).

Attribute names are torchvision's, so that weights map by name.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jax_excite.models.layers import Layer, MaxPool, conv, dropout, global_avg_pool, run

# Squeeze and expand channels of the eight fire modules.
FIRES = (
    (16, 64),
    (16, 64),
    (32, 128),
    (32, 128),
    (48, 192),
    (48, 192),
    (64, 256),
    (64, 256),
)


@dataclasses.dataclass(frozen=True)
class SqueezeNetConfig:
    """A member of the family.

    Attributes:
        stem: the number of channels of the first convolution.
        kernel: the kernel size of the first convolution.
        pooled: the fire modules, counted from 0, that have a max-pool before them.
    """

    stem: int
    kernel: int
    pooled: tuple[int, int, int]

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> "SqueezeNet":
        """The network with random weights."""
        return SqueezeNet(self, num_classes=num_classes, rngs=rngs)


class Fire(nnx.Module):
    """Squeeze the channels by a 1x1 convolution, then expand by parallel 1x1 and 3x3 ones."""

    def __init__(self, inputs: int, squeeze: int, expand: int, *, rngs: nnx.Rngs):
        self.squeeze = conv(inputs, squeeze, 1, bias=True, rngs=rngs)
        self.expand1x1 = conv(squeeze, expand, 1, bias=True, rngs=rngs)
        self.expand3x3 = conv(squeeze, expand, 3, padding=1, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, inputs]` to `[..., H, W, 2 * expand]`."""
        x = jax.nn.relu(self.squeeze(x))
        sides = [jax.nn.relu(self.expand1x1(x)), jax.nn.relu(self.expand3x3(x))]
        return jnp.concatenate(sides, axis=-1)


class SqueezeNet(nnx.Module):
    """Fire modules between ceil-mode max-pools; the logits are means of a 1x1 convolution."""

    def __init__(self, config: SqueezeNetConfig, *, num_classes: int, rngs: nnx.Rngs):
        stem = conv(3, config.stem, config.kernel, stride=2, bias=True, rngs=rngs)
        features: list[Layer] = [stem, jax.nn.relu]
        inputs = config.stem
        for i, (squeeze, expand) in enumerate(FIRES):
            if i in config.pooled:
                features.append(MaxPool(3, 2, ceil_mode=True))
            features.append(Fire(inputs, squeeze, expand, rngs=rngs))
            inputs = 2 * expand
        self.features = nnx.List(features)
        head = conv(inputs, num_classes, 1, bias=True, rngs=rngs)
        self.classifier = nnx.List([dropout, head, jax.nn.relu, global_avg_pool])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        return run("classifier", self.classifier, run("features", self.features, x))


SQUEEZENETS = {
    "squeezenet1_0": SqueezeNetConfig(stem=96, kernel=7, pooled=(0, 3, 7)),
    "squeezenet1_1": SqueezeNetConfig(stem=64, kernel=3, pooled=(0, 2, 4)),
}
