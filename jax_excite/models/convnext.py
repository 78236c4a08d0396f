"""ConvNeXt (Liu et al., 2022, arXiv 2201.03545).

Attribute names are torchvision's, so that weights map by name.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jax_excite.models.layers import (
    Chain,
    Layer,
    LayerNorm,
    conv,
    gelu,
    global_avg_pool,
    linear,
    run,
)


def unchanged(x: jax.Array) -> jax.Array:
    """Where PyTorch moves or flattens axes; it keeps its place, since indices are in names."""
    return x


class CNBlock(nnx.Module):
    """A 7x7 filter of each channel, LayerNorm, two matrices, scales of channels, and a shortcut."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.block = Chain(
            [
                conv(channels, channels, 7, padding=3, groups=channels, bias=True, rngs=rngs),
                unchanged,
                LayerNorm(channels),
                linear(channels, 4 * channels, rngs=rngs),
                gelu,
                linear(4 * channels, channels, rngs=rngs),
                unchanged,
            ]
        )
        self.layer_scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, channels]` to the same shape."""
        return x + self.layer_scale[...] * self.block(x)


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """A member of the family.

    Attributes:
        depths: the number of blocks in each of the four stages.
        widths: the channels of each stage.
    """

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> "ConvNeXt":
        """The network with random weights."""
        return ConvNeXt(self, num_classes=num_classes, rngs=rngs)


class ConvNeXt(nnx.Module):
    """Four stages of `CNBlock`, each after a convolution without overlap, and a linear head."""

    def __init__(self, config: ConvNeXtConfig, *, num_classes: int, rngs: nnx.Rngs):
        features: list[Layer] = []
        inputs = 3
        for i, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            size = 4 if i == 0 else 2
            down = conv(inputs, width, size, stride=size, bias=True, rngs=rngs)
            # The stem normalises after its convolution, the others before theirs.
            norm = LayerNorm(width if i == 0 else inputs)
            features.append(Chain([down, norm] if i == 0 else [norm, down]))
            features.append(Chain([CNBlock(width, rngs=rngs) for _ in range(depth)]))
            inputs = width
        self.features = nnx.List(features)
        head = linear(inputs, num_classes, rngs=rngs)
        self.classifier = nnx.List([LayerNorm(inputs), unchanged, head])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        x = run("features", self.features, x)
        return run("classifier", self.classifier, global_avg_pool(x))


CONVNEXTS = {
    "convnext_tiny": ConvNeXtConfig((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ConvNeXtConfig((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": ConvNeXtConfig((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": ConvNeXtConfig((3, 3, 27, 3), (192, 384, 768, 1536)),
}
