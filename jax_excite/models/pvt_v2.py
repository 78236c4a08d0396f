"""Pyramid vision transformers, version 2 (Wang et al., 2022, arXiv 2106.13797).

Attribute names are timm's, so that weights map by name.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jax_excite.models.layers import (
    LayerNorm,
    attention,
    conv,
    gelu,
    global_avg_pool,
    linear,
    run,
    scoped,
)

HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
# Of the embeddings and of the reduced keys; the other norms have 1e-6.
EPSILON = 1e-5


class PatchEmbed(nnx.Module):
    """A convolution with overlapping windows, and LayerNorm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, *, rngs: nnx.Rngs):
        self.proj = conv(
            inputs, outputs, size, stride=stride, padding=size // 2, bias=True, rngs=rngs
        )
        self.norm = LayerNorm(outputs, EPSILON)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, inputs]` to `[..., H / stride, W / stride, outputs]`, rounded up."""
        return self.norm(self.proj(x))


class Attention(nnx.Module):
    """Self-attention of all places, with keys and values of a map that is smaller."""

    def __init__(self, width: int, heads: int, reduction: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.q = linear(width, width, rngs=rngs)
        self.kv = linear(width, 2 * width, rngs=rngs)
        self.proj = linear(width, width, rngs=rngs)
        reduces = reduction > 1
        self.sr = (
            conv(width, width, reduction, stride=reduction, bias=True, rngs=rngs)
            if reduces
            else None
        )
        self.norm = LayerNorm(width, EPSILON) if reduces else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, width]` to the same shape."""
        smaller = x
        if self.sr is not None and self.norm is not None:
            smaller = self.norm(self.sr(x))
        k, v = jnp.split(self._tokens(self.kv(smaller), 2), 2, axis=-2)
        found = attention(self._tokens(self.q(x), 1), k, v)
        return self.proj(found.reshape(x.shape))

    def _tokens(self, x: jax.Array, parts: int) -> jax.Array:
        """`[..., H, W, parts * width]` to `[..., H W, parts * heads, width / heads]`."""
        shape = (*x.shape[:-3], x.shape[-3] * x.shape[-2], parts * self.heads, -1)
        return x.reshape(shape)


class Mlp(nnx.Module):
    """Two matrices, with a 3x3 filter of each channel between them."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = linear(width, hidden, rngs=rngs)
        self.dwconv = conv(hidden, hidden, 3, padding=1, groups=hidden, bias=True, rngs=rngs)
        self.fc2 = linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, width]` to the same shape."""
        return self.fc2(gelu(self.dwconv(self.fc1(x))))


class Block(nnx.Module):
    """Attention and `Mlp`, each after LayerNorm and with a shortcut."""

    def __init__(self, width: int, heads: int, reduction: int, ratio: int, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads, reduction, rngs=rngs)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, ratio * width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, width]` to the same shape."""
        x = x + scoped("attn", lambda x: self.attn(self.norm1(x)), x)
        return x + scoped("mlp", lambda x: self.mlp(self.norm2(x)), x)


class Stage(nnx.Module):
    """A smaller map (except in the first stage), blocks, and LayerNorm."""

    def __init__(self, inputs: int, config: "PVTv2Config", stage: int, *, rngs: nnx.Rngs):
        width = config.widths[stage]
        self.downsample = PatchEmbed(inputs, width, 3, 2, rngs=rngs) if stage else None
        heads, reduction, ratio = HEADS[stage], REDUCTIONS[stage], config.ratios[stage]
        self.blocks = nnx.List(
            [Block(width, heads, reduction, ratio, rngs=rngs) for _ in range(config.depths[stage])]
        )
        self.norm = LayerNorm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, inputs]` to `[..., H / 2, W / 2, width]`, rounded up."""
        if self.downsample is not None:
            x = scoped("downsample", self.downsample, x)
        return self.norm(run("blocks", self.blocks, x))


@dataclasses.dataclass(frozen=True)
class PVTv2Config:
    """A member of the family.

    Attributes:
        depths: the number of blocks in each of the four stages.
        widths: the channels of each stage.
        ratios: the factors by which the first matrix of an `Mlp` multiplies them.
    """

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (64, 128, 320, 512)
    ratios: tuple[int, int, int, int] = (8, 8, 4, 4)

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> "PVTv2":
        """The network with random weights."""
        return PVTv2(self, num_classes=num_classes, rngs=rngs)


class PVTv2(nnx.Module):
    """A stem, four stages, and a linear head."""

    def __init__(self, config: PVTv2Config, *, num_classes: int, rngs: nnx.Rngs):
        self.patch_embed = PatchEmbed(3, config.widths[0], 7, 4, rngs=rngs)
        inputs = (config.widths[0], *config.widths)
        self.stages = nnx.List([Stage(inputs[i], config, i, rngs=rngs) for i in range(4)])
        self.head = linear(config.widths[-1], num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`."""
        x = scoped("patch_embed", self.patch_embed, x)
        x = run("stages", self.stages, x)
        return scoped("head", self.head, global_avg_pool(x))


PVTS_V2 = {
    "pvt_v2_b0": PVTv2Config((2, 2, 2, 2), (32, 64, 160, 256)),
    "pvt_v2_b1": PVTv2Config((2, 2, 2, 2)),
    "pvt_v2_b2": PVTv2Config((3, 4, 6, 3)),
    "pvt_v2_b3": PVTv2Config((3, 4, 18, 3)),
    "pvt_v2_b4": PVTv2Config((3, 8, 27, 3)),
    "pvt_v2_b5": PVTv2Config((3, 6, 40, 3), ratios=(4, 4, 4, 4)),
}
