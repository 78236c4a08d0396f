"""MobileNetV2 (Sandler et al., 2018, arXiv 1801.04381).

Attribute names are torchvision's, so that weights map by name.
"""

import dataclasses

import jax
from flax import nnx

from jax_excite.models.layers import (
    Chain,
    Layer,
    batch_norm,
    conv,
    conv_norm,
    dropout,
    global_avg_pool,
    linear,
    run,
)

STEM = 32
HEAD = 1280

# Stages: expansion, output channels, repeats, stride.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nnx.Module):
    """Expand by a 1x1 convolution, filter each channel, project; a shortcut if shapes are equal."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, *, rngs: nnx.Rngs):
        width = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        layers: list[Layer] = []
        if expansion > 1:
            layers.append(conv_norm(inputs, width, 1, jax.nn.relu6, rngs=rngs))
        layers += [
            conv_norm(width, width, 3, jax.nn.relu6, stride=stride, groups=width, rngs=rngs),
            conv(width, outputs, 1, rngs=rngs),
            batch_norm(outputs, rngs=rngs),
        ]
        self.conv = Chain(layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, inputs]` to `[..., H / stride, W / stride, outputs]`, rounded up."""
        y = self.conv(x)
        return x + y if self.shortcut else y


@dataclasses.dataclass(frozen=True)
class MobileNetV2Config:
    """The only member of the family, at width 1."""

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> "MobileNetV2":
        """The network with random weights."""
        return MobileNetV2(num_classes=num_classes, rngs=rngs)


class MobileNetV2(nnx.Module):
    """A stem, seven stages of `InvertedResidual`, a 1x1 convolution, and a linear head."""

    def __init__(self, *, num_classes: int, rngs: nnx.Rngs):
        features: list[Layer] = [conv_norm(3, STEM, 3, jax.nn.relu6, stride=2, rngs=rngs)]
        inputs = STEM
        for expansion, outputs, repeats, stride in STAGES:
            for i in range(repeats):
                step = stride if i == 0 else 1
                features.append(InvertedResidual(inputs, outputs, step, expansion, rngs=rngs))
                inputs = outputs
        features.append(conv_norm(inputs, HEAD, 1, jax.nn.relu6, rngs=rngs))
        self.features = nnx.List(features)
        self.classifier = nnx.List([dropout, linear(HEAD, num_classes, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        x = run("features", self.features, x)
        return run("classifier", self.classifier, global_avg_pool(x))


MOBILENETS_V2 = {"mobilenet_v2": MobileNetV2Config()}
