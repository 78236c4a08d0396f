"""DenseNet-BC (Huang et al., 2017, arXiv 1608.06993).

Attribute names are torchvision's, so that weights map by name.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jax_excite.models.layers import (
    MaxPool,
    batch_norm,
    conv,
    global_avg_pool,
    halve,
    linear,
    scoped,
)

BOTTLENECK = 4  # channels between the two convolutions of a layer, per channel that it adds


class DenseLayer(nnx.Module):
    """A 1x1 and a 3x3 convolution, each after BatchNorm and ReLU; returns the new channels."""

    def __init__(self, inputs: int, growth: int, *, rngs: nnx.Rngs):
        self.norm1 = batch_norm(inputs, rngs=rngs)
        self.conv1 = conv(inputs, BOTTLENECK * growth, 1, rngs=rngs)
        self.norm2 = batch_norm(BOTTLENECK * growth, rngs=rngs)
        self.conv2 = conv(BOTTLENECK * growth, growth, 3, padding=1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, inputs]` to `[..., H, W, growth]`."""
        x = self.conv1(jax.nn.relu(self.norm1(x)))
        return self.conv2(jax.nn.relu(self.norm2(x)))


class DenseBlock(nnx.Module):
    """Layers that each take all the channels before them: `denselayer1`, `denselayer2`, ..."""

    def __init__(self, inputs: int, growth: int, depth: int, *, rngs: nnx.Rngs):
        self.depth = depth
        for i in range(depth):
            layer = DenseLayer(inputs + i * growth, growth, rngs=rngs)
            setattr(self, f"denselayer{i + 1}", layer)

    def __call__(self, x: jax.Array, scope: str) -> jax.Array:
        """`[..., H, W, inputs]` to `[..., H, W, inputs + depth * growth]`."""
        for i in range(self.depth):
            name = f"denselayer{i + 1}"
            new = scoped(f"{scope}.{name}", getattr(self, name), x)
            x = jnp.concatenate([x, new], axis=-1)
        return x


class Transition(nnx.Module):
    """Halves the number of channels, the height and the width."""

    def __init__(self, inputs: int, *, rngs: nnx.Rngs):
        self.norm = batch_norm(inputs, rngs=rngs)
        self.conv = conv(inputs, inputs // 2, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, inputs]` to `[..., H // 2, W // 2, inputs // 2]`."""
        return halve(self.conv(jax.nn.relu(self.norm(x))))


class Features(nnx.Module):
    """Everything before the last ReLU: a stem, dense blocks with transitions between, BatchNorm."""

    def __init__(self, growth: int, depths: tuple[int, ...], stem: int, *, rngs: nnx.Rngs):
        self.blocks = len(depths)
        self.conv0 = conv(3, stem, 7, stride=2, padding=3, rngs=rngs)
        self.norm0 = batch_norm(stem, rngs=rngs)
        self.pool0 = MaxPool(3, 2, padding=1)
        channels = stem
        for i, depth in enumerate(depths, start=1):
            setattr(self, f"denseblock{i}", DenseBlock(channels, growth, depth, rngs=rngs))
            channels += depth * growth
            if i < self.blocks:
                setattr(self, f"transition{i}", Transition(channels, rngs=rngs))
                channels //= 2
        self.norm5 = batch_norm(channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, 3]` to `[..., H // 32, W // 32, channels]`, up to rounding."""
        x = scoped("features.norm0", self.norm0, scoped("features.conv0", self.conv0, x))
        x = scoped("features.relu0", jax.nn.relu, x)
        x = scoped("features.pool0", self.pool0, x)
        for i in range(1, self.blocks + 1):
            name = f"denseblock{i}"
            x = getattr(self, name)(x, f"features.{name}")
            if i < self.blocks:
                name = f"transition{i}"
                x = scoped(f"features.{name}", getattr(self, name), x)
        return scoped("features.norm5", self.norm5, x)


@dataclasses.dataclass(frozen=True)
class DenseNetConfig:
    """A member of the family.

    Attributes:
        depths: the number of layers in each of the four dense blocks.
        growth: the number of channels that each layer adds.
        stem: the number of channels before the first dense block.
    """

    depths: tuple[int, int, int, int]
    growth: int = 32
    stem: int = 64

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> "DenseNet":
        """The network with random weights."""
        return DenseNet(self, num_classes=num_classes, rngs=rngs)


class DenseNet(nnx.Module):
    """Features, a last ReLU (scope `final`), and a linear head."""

    def __init__(self, config: DenseNetConfig, *, num_classes: int, rngs: nnx.Rngs):
        self.features = Features(config.growth, config.depths, config.stem, rngs=rngs)
        channels = self.features.norm5.num_features
        self.classifier = linear(channels, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        x = scoped("final", jax.nn.relu, self.features(x))
        return scoped("classifier", self.classifier, global_avg_pool(x))


DENSENETS = {
    "densenet121": DenseNetConfig((6, 12, 24, 16)),
    "densenet161": DenseNetConfig((6, 12, 36, 24), growth=48, stem=96),
    "densenet169": DenseNetConfig((6, 12, 32, 32)),
    "densenet201": DenseNetConfig((6, 12, 48, 32)),
}
