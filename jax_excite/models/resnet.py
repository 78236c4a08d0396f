"""ResNet (He et al., 2016, arXiv 1512.03385), v1.5: the stride is on the 3x3 convolution.

ResNeXt (Xie et al., 2017, arXiv 1611.05431) splits the 3x3 convolutions of its bottlenecks into
groups; Wide ResNet (Zagoruyko and Komodakis, 2016, arXiv 1605.07146) widens them.

Attribute names are torchvision's, so that weights map by name.
"""

import dataclasses

import jax
from flax import nnx

from jax_excite.models.layers import MaxPool, batch_norm, conv, global_avg_pool, linear, run, scoped

EXPANSION = 4  # output channels of a bottleneck, per inner channel of one without groups


class Downsample(nnx.List):
    """The projection on the shortcut where a block changes the shape: convolution, BatchNorm."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        super().__init__(
            [conv(inputs, outputs, 1, stride=stride, rngs=rngs), batch_norm(outputs, rngs=rngs)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Project."""
        projection, norm = self
        return norm(projection(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with a shortcut around them: ResNet18 and 34."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.conv1 = conv(inputs, outputs, 3, stride=stride, padding=1, rngs=rngs)
        self.bn1 = batch_norm(outputs, rngs=rngs)
        self.conv2 = conv(outputs, outputs, 3, padding=1, rngs=rngs)
        self.bn2 = batch_norm(outputs, rngs=rngs)
        changed = stride != 1 or inputs != outputs
        self.downsample = Downsample(inputs, outputs, stride, rngs=rngs) if changed else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, C]` to the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return jax.nn.relu(x + shortcut)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut around them: ResNet50 and deeper."""

    def __init__(
        self, inputs: int, width: int, outputs: int, stride: int, groups: int, *, rngs: nnx.Rngs
    ):
        self.conv1 = conv(inputs, width, 1, rngs=rngs)
        self.bn1 = batch_norm(width, rngs=rngs)
        self.conv2 = conv(width, width, 3, stride=stride, padding=1, groups=groups, rngs=rngs)
        self.bn2 = batch_norm(width, rngs=rngs)
        self.conv3 = conv(width, outputs, 1, rngs=rngs)
        self.bn3 = batch_norm(outputs, rngs=rngs)
        changed = stride != 1 or inputs != outputs
        self.downsample = Downsample(inputs, outputs, stride, rngs=rngs) if changed else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, C]` to the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return jax.nn.relu(x + shortcut)


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """A member of the family.

    Attributes:
        depths: the number of blocks in each of the four stages.
        bottleneck: whether the blocks are `Bottleneck` rather than `BasicBlock`.
        groups: the number of groups of a bottleneck's 3x3 convolution.
        group_width: the number of channels per group in the first stage; it doubles in each later
            stage.
    """

    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> "ResNet":
        """The network with random weights."""
        return ResNet(self, num_classes=num_classes, rngs=rngs)


class ResNet(nnx.Module):
    """A stem, four stages of blocks of widths 64 to 512, and a linear head."""

    def __init__(self, config: ResNetConfig, *, num_classes: int, rngs: nnx.Rngs):
        self.conv1 = conv(3, 64, 7, stride=2, padding=3, rngs=rngs)
        self.bn1 = batch_norm(64, rngs=rngs)
        self.maxpool = MaxPool(3, 2, padding=1)
        inputs = 64
        for stage, depth in enumerate(config.depths):
            width = config.groups * config.group_width * 2**stage
            outputs = 64 * 2**stage * (EXPANSION if config.bottleneck else 1)
            blocks = nnx.List()
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                if config.bottleneck:
                    block = Bottleneck(inputs, width, outputs, stride, config.groups, rngs=rngs)
                else:
                    block = BasicBlock(inputs, outputs, stride, rngs=rngs)
                blocks.append(block)
                inputs = outputs
            setattr(self, f"layer{stage + 1}", blocks)
        self.fc = linear(inputs, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        x = scoped("bn1", self.bn1, scoped("conv1", self.conv1, x))
        x = scoped("relu", jax.nn.relu, x)
        x = scoped("maxpool", self.maxpool, x)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = run(name, getattr(self, name), x)
        return scoped("fc", self.fc, global_avg_pool(x))


RESNETS = {
    "resnet18": ResNetConfig((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetConfig((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetConfig((3, 4, 6, 3)),
    "resnet101": ResNetConfig((3, 4, 23, 3)),
    "resnet152": ResNetConfig((3, 8, 36, 3)),
    "resnext50_32x4d": ResNetConfig((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": ResNetConfig((3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": ResNetConfig((3, 4, 23, 3), groups=64, group_width=4),
    "wide_resnet50_2": ResNetConfig((3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": ResNetConfig((3, 4, 23, 3), group_width=128),
}
