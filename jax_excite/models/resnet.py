"""ResNet (He et al., 2016, arXiv 1512.03385), v1.5: the stride is on the 3x3 convolution.

Attribute names are torchvision's, so that weights map by name.
"""

import jax
from flax import nnx

from jax_excite.models.blocks import MaxPool, batch_norm, conv, global_avg_pool, run, scoped


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
    """Two 3x3 convolutions around a shortcut: ResNet18 and 34."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, *, rngs: nnx.Rngs):
        self.conv1 = conv(inputs, width, 3, stride=stride, padding=1, rngs=rngs)
        self.bn1 = batch_norm(width, rngs=rngs)
        self.conv2 = conv(width, width, 3, padding=1, rngs=rngs)
        self.bn2 = batch_norm(width, rngs=rngs)
        changed = stride != 1 or inputs != width
        self.downsample = Downsample(inputs, width, stride, rngs=rngs) if changed else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, C]` to the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return jax.nn.relu(x + shortcut)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut: ResNet50 and deeper."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, *, rngs: nnx.Rngs):
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, 1, rngs=rngs)
        self.bn1 = batch_norm(width, rngs=rngs)
        self.conv2 = conv(width, width, 3, stride=stride, padding=1, rngs=rngs)
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


class ResNet(nnx.Module):
    """A stem, four stages of blocks of widths 64 to 512, and a linear head."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int,
        rngs: nnx.Rngs,
    ):
        self.conv1 = conv(3, 64, 7, stride=2, padding=3, rngs=rngs)
        self.bn1 = batch_norm(64, rngs=rngs)
        self.maxpool = MaxPool(3, 2, padding=1)
        inputs = 64
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            blocks = nnx.List()
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(inputs, width, stride, rngs=rngs))
                inputs = width * block.expansion
            setattr(self, f"layer{stage + 1}", blocks)
        self.fc = nnx.Linear(inputs, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        x = scoped("bn1", self.bn1, scoped("conv1", self.conv1, x))
        x = scoped("relu", jax.nn.relu, x)
        x = scoped("maxpool", self.maxpool, x)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = run(name, getattr(self, name), x)
        return scoped("fc", self.fc, global_avg_pool(x))


def resnet50(*, num_classes: int = 1000, rngs: nnx.Rngs) -> ResNet:
    """ResNet50 v1.5, torchvision's `resnet50`."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes, rngs=rngs)
