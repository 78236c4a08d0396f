"""MobileNetV3 (Howard et al., 2019, arXiv 1905.02244), large and small.

Attribute names are torchvision's, so that weights map by name.
"""

import dataclasses

import jax
from flax import nnx

from jax_excite.models.layers import (
    Chain,
    Layer,
    Residual,
    SqueezeExcitation,
    conv_norm,
    dropout,
    global_avg_pool,
    linear,
    round_channels,
    run,
)

EPSILON = 1e-3
STEM = 16

RELU, SWISH = jax.nn.relu, jax.nn.hard_swish


@dataclasses.dataclass(frozen=True)
class Block:
    """An inverted residual: kernel size, channels inside and after, and what it has.

    Attributes:
        size: the kernel size.
        width: the channels inside.
        outputs: the channels after it.
        squeezes: whether it has squeeze-and-excitation.
        activation: the activation function inside.
        stride: the stride.
    """

    size: int
    width: int
    outputs: int
    squeezes: bool
    activation: Layer
    stride: int


LARGE = (
    Block(3, 16, 16, False, RELU, 1),
    Block(3, 64, 24, False, RELU, 2),
    Block(3, 72, 24, False, RELU, 1),
    Block(5, 72, 40, True, RELU, 2),
    Block(5, 120, 40, True, RELU, 1),
    Block(5, 120, 40, True, RELU, 1),
    Block(3, 240, 80, False, SWISH, 2),
    Block(3, 200, 80, False, SWISH, 1),
    Block(3, 184, 80, False, SWISH, 1),
    Block(3, 184, 80, False, SWISH, 1),
    Block(3, 480, 112, True, SWISH, 1),
    Block(3, 672, 112, True, SWISH, 1),
    Block(5, 672, 160, True, SWISH, 2),
    Block(5, 960, 160, True, SWISH, 1),
    Block(5, 960, 160, True, SWISH, 1),
)
SMALL = (
    Block(3, 16, 16, True, RELU, 2),
    Block(3, 72, 24, False, RELU, 2),
    Block(3, 88, 24, False, RELU, 1),
    Block(5, 96, 40, True, SWISH, 2),
    Block(5, 240, 40, True, SWISH, 1),
    Block(5, 240, 40, True, SWISH, 1),
    Block(5, 120, 48, True, SWISH, 1),
    Block(5, 144, 48, True, SWISH, 1),
    Block(5, 288, 96, True, SWISH, 2),
    Block(5, 576, 96, True, SWISH, 1),
    Block(5, 576, 96, True, SWISH, 1),
)


class InvertedResidual(Residual):
    """Expand, filter each channel, weigh the channels, project; a shortcut if shapes are equal."""

    def __init__(self, inputs: int, block: Block, *, rngs: nnx.Rngs):
        width, outputs, act = block.width, block.outputs, block.activation
        self.shortcut = block.stride == 1 and inputs == outputs
        layers: list[Layer] = []
        if width != inputs:
            layers.append(conv_norm(inputs, width, 1, act, epsilon=EPSILON, rngs=rngs))
        layers.append(
            conv_norm(
                width,
                width,
                block.size,
                act,
                stride=block.stride,
                groups=width,
                epsilon=EPSILON,
                rngs=rngs,
            )
        )
        if block.squeezes:
            squeezed = round_channels(width / 4)
            gate = jax.nn.hard_sigmoid
            layers.append(SqueezeExcitation(width, squeezed, RELU, gate, rngs=rngs))
        layers.append(conv_norm(width, outputs, 1, epsilon=EPSILON, rngs=rngs))
        self.block = Chain(layers)


@dataclasses.dataclass(frozen=True)
class MobileNetV3Config:
    """A member of the family.

    Attributes:
        blocks: its inverted residuals.
        head: the channels between the two matrices of the head.
    """

    blocks: tuple[Block, ...]
    head: int

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> "MobileNetV3":
        """The network with random weights."""
        return MobileNetV3(self, num_classes=num_classes, rngs=rngs)


class MobileNetV3(nnx.Module):
    """A stem, inverted residuals, a 1x1 convolution, and a head of two matrices."""

    def __init__(self, config: MobileNetV3Config, *, num_classes: int, rngs: nnx.Rngs):
        stem = conv_norm(3, STEM, 3, SWISH, stride=2, epsilon=EPSILON, rngs=rngs)
        features: list[Layer] = [stem]
        inputs = STEM
        for block in config.blocks:
            features.append(InvertedResidual(inputs, block, rngs=rngs))
            inputs = block.outputs
        width = 6 * inputs
        features.append(conv_norm(inputs, width, 1, SWISH, epsilon=EPSILON, rngs=rngs))
        self.features = nnx.List(features)
        self.classifier = nnx.List(
            [
                linear(width, config.head, rngs=rngs),
                SWISH,
                dropout,
                linear(config.head, num_classes, rngs=rngs),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        x = run("features", self.features, x)
        return run("classifier", self.classifier, global_avg_pool(x))


MOBILENETS_V3 = {
    "mobilenet_v3_large": MobileNetV3Config(LARGE, head=1280),
    "mobilenet_v3_small": MobileNetV3Config(SMALL, head=1024),
}
