"""EfficientNet-Lite (Tan and Le, 2019, arXiv 1905.11946, without squeeze-and-excitation, ReLU6).

Attribute names are those of the package `efficientnet_lite_pytorch` without their leading
underscores, so that weights map by name. Padding is TensorFlow's "SAME" for the size of the input:
at stride 2 it may be one pixel wider below and to the right.
"""

import dataclasses
import math

import jax
from flax import nnx

from jax_excite.models.layers import (
    batch_norm,
    conv,
    global_avg_pool,
    linear,
    round_channels,
    run,
    scoped,
)

EPSILON = 1e-3
STEM = 32
HEAD = 1280

# Stages of variant 0: repeats, kernel size, stride, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class MBConv(nnx.Module):
    """Expand by a 1x1 convolution, filter each channel, project; a shortcut if shapes are equal."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int, expansion: int, *, rngs: nnx.Rngs
    ):
        width = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.expand_conv = conv(inputs, width, 1, rngs=rngs) if expansion > 1 else None
        self.bn0 = batch_norm(width, epsilon=EPSILON, rngs=rngs) if expansion > 1 else None
        self.depthwise_conv = conv(
            width, width, size, stride=stride, padding="SAME", groups=width, rngs=rngs
        )
        self.bn1 = batch_norm(width, epsilon=EPSILON, rngs=rngs)
        self.project_conv = conv(width, outputs, 1, rngs=rngs)
        self.bn2 = batch_norm(outputs, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, inputs]` to `[..., H / stride, W / stride, outputs]`, rounded up."""
        y = x
        if self.expand_conv is not None and self.bn0 is not None:
            y = jax.nn.relu6(self.bn0(self.expand_conv(y)))
        y = jax.nn.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.shortcut else y


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteConfig:
    """A member of the family.

    Attributes:
        width: the factor by which the channels of variant 0 are multiplied.
        depth: the factor by which its repeats are multiplied.
    """

    width: float
    depth: float

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> "EfficientNetLite":
        """The network with random weights."""
        return EfficientNetLite(self, num_classes=num_classes, rngs=rngs)


class EfficientNetLite(nnx.Module):
    """A stem, seven stages of `MBConv`, a 1x1 convolution to 1280 channels, and a linear head.

    The stem, the head and the repeats of the first and last stage do not scale with the variant.
    """

    def __init__(self, config: EfficientNetLiteConfig, *, num_classes: int, rngs: nnx.Rngs):
        self.conv_stem = conv(3, STEM, 3, stride=2, padding="SAME", rngs=rngs)
        self.bn0 = batch_norm(STEM, epsilon=EPSILON, rngs=rngs)
        self.blocks = nnx.List()
        inputs = STEM
        for i, (repeats, size, stride, expansion, outputs) in enumerate(STAGES):
            outputs = round_channels(outputs * config.width)
            scaled = 0 < i < len(STAGES) - 1
            for j in range(math.ceil(repeats * config.depth) if scaled else repeats):
                step = stride if j == 0 else 1
                self.blocks.append(MBConv(inputs, outputs, size, step, expansion, rngs=rngs))
                inputs = outputs
        self.conv_head = conv(inputs, HEAD, 1, rngs=rngs)
        self.bn1 = batch_norm(HEAD, epsilon=EPSILON, rngs=rngs)
        self.fc = linear(HEAD, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        x = scoped("stem", lambda x: jax.nn.relu6(self.bn0(self.conv_stem(x))), x)
        x = run("blocks", self.blocks, x)
        x = scoped("head", lambda x: jax.nn.relu6(self.bn1(self.conv_head(x))), x)
        return scoped("fc", self.fc, global_avg_pool(x))


EFFICIENTNETS_LITE = {
    "efficientnet_lite0": EfficientNetLiteConfig(width=1.0, depth=1.0),
    "efficientnet_lite1": EfficientNetLiteConfig(width=1.0, depth=1.1),
    "efficientnet_lite2": EfficientNetLiteConfig(width=1.1, depth=1.2),
}
