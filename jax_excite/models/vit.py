"""Vision transformers (Dosovitskiy et al., 2021, arXiv 2010.11929).

Attribute names are torchvision's, so that weights map by name.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jax_excite.errors import ImageError
from jax_excite.models.layers import (
    Chain,
    LayerNorm,
    attention,
    conv,
    dropout,
    gelu,
    initializer,
    linear,
    scoped,
)


class SelfAttention(nnx.Module):
    """Multi-head self-attention, with queries, keys and values from one matrix."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.in_proj_kernel = nnx.Param(
            initializer(nnx.initializers.xavier_uniform(), rngs)(rngs.params(), (width, 3 * width))
        )
        self.in_proj_bias = nnx.Param(jnp.zeros(3 * width))
        self.out_proj = linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., T, width]` to the same shape."""
        projected = x @ self.in_proj_kernel[...] + self.in_proj_bias[...]
        q, k, v = (
            part.reshape(*x.shape[:-1], self.heads, -1) for part in jnp.split(projected, 3, -1)
        )
        return self.out_proj(attention(q, k, v).reshape(x.shape))


class EncoderBlock(nnx.Module):
    """Self-attention and two matrices, each after LayerNorm and with a shortcut."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.ln_1 = LayerNorm(width)
        self.self_attention = SelfAttention(width, heads, rngs=rngs)
        self.ln_2 = LayerNorm(width)
        self.mlp = Chain(
            [
                linear(width, 4 * width, rngs=rngs),
                gelu,
                dropout,
                linear(4 * width, width, rngs=rngs),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., T, width]` to the same shape."""
        x = x + scoped("self_attention", lambda x: self.self_attention(self.ln_1(x)), x)
        return x + scoped("mlp", lambda x: self.mlp(self.ln_2(x)), x)


class Encoder(nnx.Module):
    """Positions are added to the tokens, then come the blocks and LayerNorm."""

    def __init__(self, tokens: int, config: "ViTConfig", *, rngs: nnx.Rngs):
        width = config.width
        drawn = initializer(nnx.initializers.normal(0.02), rngs)
        self.pos_embedding = nnx.Param(drawn(rngs.params(), (1, tokens, width)))
        self.layers = nnx.Dict(
            {
                f"encoder_layer_{i}": EncoderBlock(width, config.heads, rngs=rngs)
                for i in range(config.depth)
            }
        )
        self.ln = LayerNorm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., T, width]` to the same shape."""
        x = x + self.pos_embedding[...][0]
        for i in range(len(self.layers)):  # a pytree's keys are in alphabetical order
            name = f"encoder_layer_{i}"
            x = scoped(name, self.layers[name], x)
        return self.ln(x)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """A member of the family.

    Attributes:
        patch: the height and width of a patch.
        width: the length of a token's vector.
        depth: the number of blocks.
        heads: the number of heads.
        size: the height and width of the images, which its positions are learned for.
    """

    patch: int
    width: int
    depth: int
    heads: int
    size: int = 224

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> "ViT":
        """The network with random weights."""
        return ViT(self, num_classes=num_classes, rngs=rngs)


class ViT(nnx.Module):
    """Patches and one more token pass through an encoder; the head reads that token."""

    def __init__(self, config: ViTConfig, *, num_classes: int, rngs: nnx.Rngs):
        width, patch = config.width, config.patch
        self.size = config.size
        self.conv_proj = conv(3, width, patch, stride=patch, bias=True, rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.encoder = Encoder((config.size // patch) ** 2 + 1, config, rngs=rngs)
        self.heads = nnx.Dict(head=linear(width, num_classes, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map normalised images `[H, W, 3]` or `[N, H, W, 3]` to logits `[K]` or `[N, K]`.

        Raises:
            ImageError: the images have another size than the one that the positions are for.
        """
        if x.shape[-3:-1] != (self.size, self.size):
            raise ImageError(
                f"x has shape {x.shape}: this network takes images of exactly {self.size} x "
                f"{self.size} pixels"
            )
        x = scoped("conv_proj", self.conv_proj, x)
        tokens = x.reshape(*x.shape[:-3], -1, x.shape[-1])
        first = jnp.broadcast_to(self.class_token[...][0], (*tokens.shape[:-2], 1, x.shape[-1]))
        tokens = jnp.concatenate([first, tokens], axis=-2)
        tokens = scoped("encoder", self.encoder, tokens)
        return scoped("heads", self.heads["head"], tokens[..., 0, :])


VITS = {
    "vit_b_16": ViTConfig(16, 768, 12, 12),
    "vit_b_32": ViTConfig(32, 768, 12, 12),
    "vit_l_16": ViTConfig(16, 1024, 24, 16),
    "vit_l_32": ViTConfig(32, 1024, 24, 16),
}
