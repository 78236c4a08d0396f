"""EfficientNet (Tan and Le, arXiv 1905.11946) and EfficientNetV2 (arXiv 2104.00298).

Attribute names are torchvision's, so that weights map by name. As there, padding is half the
kernel's size, and not TensorFlow's "SAME".
"""

import dataclasses
import math

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

ACT = jax.nn.silu


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of blocks.

    Attributes:
        repeats: the number of blocks.
        size: the kernel size.
        stride: the stride of the first block.
        expansion: the factor of the channels inside a block.
        outputs: the channels after it.
        fused: whether one convolution expands and filters (`FusedMBConv`).
    """

    repeats: int
    size: int
    stride: int
    expansion: int
    outputs: int
    fused: bool = False


B0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
V2_S = (
    Stage(2, 3, 1, 1, 24, fused=True),
    Stage(4, 3, 2, 4, 48, fused=True),
    Stage(4, 3, 2, 4, 64, fused=True),
    Stage(6, 3, 2, 4, 128),
    Stage(9, 3, 1, 6, 160),
    Stage(15, 3, 2, 6, 256),
)


class MBConv(Residual):
    """Expand, filter each channel, weigh the channels, project; a shortcut if shapes are equal."""

    def __init__(self, inputs: int, stage: Stage, stride: int, epsilon: float, *, rngs: nnx.Rngs):
        width, size, outputs = inputs * stage.expansion, stage.size, stage.outputs
        self.shortcut = stride == 1 and inputs == outputs
        same = {"epsilon": epsilon, "rngs": rngs}
        layers: list[Layer] = []
        if width != inputs:
            layers.append(conv_norm(inputs, width, 1, ACT, **same))
        layers += [
            conv_norm(width, width, size, ACT, stride=stride, groups=width, **same),
            SqueezeExcitation(width, max(1, inputs // 4), ACT, jax.nn.sigmoid, rngs=rngs),
            conv_norm(width, outputs, 1, **same),
        ]
        self.block = Chain(layers)


class FusedMBConv(Residual):
    """Expand and filter by one convolution, project; a shortcut if shapes are equal."""

    def __init__(self, inputs: int, stage: Stage, stride: int, epsilon: float, *, rngs: nnx.Rngs):
        width, size, outputs = inputs * stage.expansion, stage.size, stage.outputs
        self.shortcut = stride == 1 and inputs == outputs
        same = {"epsilon": epsilon, "rngs": rngs}
        layers: list[Layer] = (
            [conv_norm(inputs, outputs, size, ACT, stride=stride, **same)]
            if width == inputs
            else [
                conv_norm(inputs, width, size, ACT, stride=stride, **same),
                conv_norm(width, outputs, 1, **same),
            ]
        )
        self.block = Chain(layers)


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """A member of the family.

    Attributes:
        stages: the stages at width and depth 1.
        stem: the channels of the first convolution at width 1.
        width: the factor by which the channels are multiplied.
        depth: the factor by which the repeats are multiplied.
        head: the channels before the linear head; None for four times those of the last stage.
        epsilon: the number added to the variances of BatchNorm.
    """

    stages: tuple[Stage, ...] = B0
    stem: int = 32
    width: float = 1.0
    depth: float = 1.0
    head: int | None = None
    epsilon: float = 1e-5

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> "EfficientNet":
        """The network with random weights."""
        return EfficientNet(self, num_classes=num_classes, rngs=rngs)

    def scaled(self, stage: Stage) -> Stage:
        """A stage at this width and depth."""
        return dataclasses.replace(
            stage,
            repeats=math.ceil(stage.repeats * self.depth),
            outputs=round_channels(stage.outputs * self.width),
        )


class EfficientNet(nnx.Module):
    """A stem, stages of blocks, a 1x1 convolution, and a linear head."""

    def __init__(self, config: EfficientNetConfig, *, num_classes: int, rngs: nnx.Rngs):
        epsilon = config.epsilon
        inputs = round_channels(config.stem * config.width)
        self.features = nnx.List(
            [conv_norm(3, inputs, 3, ACT, stride=2, epsilon=epsilon, rngs=rngs)]
        )
        for stage in map(config.scaled, config.stages):
            kind = FusedMBConv if stage.fused else MBConv
            blocks: list[Layer] = []
            for i in range(stage.repeats):
                step = stage.stride if i == 0 else 1
                blocks.append(kind(inputs, stage, step, epsilon, rngs=rngs))
                inputs = stage.outputs
            self.features.append(Chain(blocks))
        width = config.head or 4 * inputs
        self.features.append(conv_norm(inputs, width, 1, ACT, epsilon=epsilon, rngs=rngs))
        self.classifier = nnx.List([dropout, linear(width, num_classes, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        x = run("features", self.features, x)
        return run("classifier", self.classifier, global_avg_pool(x))


EFFICIENTNETS = {
    "efficientnet_b0": EfficientNetConfig(),
    "efficientnet_b1": EfficientNetConfig(depth=1.1),
    "efficientnet_b2": EfficientNetConfig(width=1.1, depth=1.2),
    "efficientnet_b3": EfficientNetConfig(width=1.2, depth=1.4),
    "efficientnet_b4": EfficientNetConfig(width=1.4, depth=1.8),
    "efficientnet_b5": EfficientNetConfig(width=1.6, depth=2.2, epsilon=1e-3),
    "efficientnet_b6": EfficientNetConfig(width=1.8, depth=2.6, epsilon=1e-3),
    "efficientnet_b7": EfficientNetConfig(width=2.0, depth=3.1, epsilon=1e-3),
    "efficientnet_v2_s": EfficientNetConfig(V2_S, stem=24, head=1280, epsilon=1e-3),
}
