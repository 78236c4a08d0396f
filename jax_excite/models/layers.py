"""Layers that the architectures share, in evaluation form, padded and pooled as in PyTorch."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Layer = Callable[[jax.Array], jax.Array]


class NotDrawn(nnx.Rngs):
    """For networks of which only the shapes are needed: weights are zeros, which takes no time.

    `nnx.Rngs` counts its keys, and under a trace each count takes longer than the one before.
    """

    def params(self) -> jax.Array:
        """The same key every time."""
        return jax.random.key(0)


def initializer(drawn: nnx.Initializer, rngs: nnx.Rngs) -> nnx.Initializer:
    """The initializer of weights that these random numbers are for."""
    return nnx.initializers.zeros if isinstance(rngs, NotDrawn) else drawn


def scoped(scope: str, layer: Layer, x: jax.Array) -> jax.Array:
    """`layer(x)` under a name that profiles and gate sites show, such as `layer1.0`."""
    with jax.named_scope(scope):
        return layer(x)


def run(scope: str, layers: Iterable[Layer], x: jax.Array) -> jax.Array:
    """Apply the layers in turn, layer `i` under the name `scope.i`."""
    for i, layer in enumerate(layers):
        x = scoped(f"{scope}.{i}", layer, x)
    return x


def conv(
    inputs: int,
    outputs: int,
    size: int,
    *,
    rngs: nnx.Rngs,
    stride: int = 1,
    padding: int | str = 0,
    groups: int = 1,
    bias: bool = False,
) -> nnx.Conv:
    """A square convolution with `padding` zeros on every side, or "SAME" as in TensorFlow."""
    sides = padding if isinstance(padding, str) else ((padding, padding),) * 2
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=sides,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=initializer(nnx.initializers.he_normal(), rngs),
        rngs=rngs,
    )


def linear(inputs: int, outputs: int, *, rngs: nnx.Rngs, bias: bool = True) -> nnx.Linear:
    """A linear layer."""
    kernel = initializer(nnx.initializers.lecun_normal(), rngs)
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=kernel, rngs=rngs)


def batch_norm(features: int, *, rngs: nnx.Rngs, epsilon: float = 1e-5) -> nnx.BatchNorm:
    """BatchNorm with its stored statistics."""
    return nnx.BatchNorm(features, use_running_average=True, epsilon=epsilon, rngs=rngs)


class Chain(nnx.List):
    """Layers that are applied in turn, such as PyTorch's `Sequential`; their names are indices."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply them."""
        for i, layer in enumerate(self):
            x = scoped(str(i), layer, x)
        return x


def conv_norm(
    inputs: int,
    outputs: int,
    size: int,
    activation: Layer | None = None,
    *,
    rngs: nnx.Rngs,
    stride: int = 1,
    groups: int = 1,
    epsilon: float = 1e-5,
) -> Chain:
    """A convolution with half its size as padding, BatchNorm, and an activation function."""
    layers: list[Layer] = [
        conv(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, rngs=rngs),
        batch_norm(outputs, epsilon=epsilon, rngs=rngs),
    ]
    return Chain(layers if activation is None else [*layers, activation])


class Residual(nnx.Module):
    """A block of layers, whose input is added to its output if `shortcut` is true."""

    block: Chain
    shortcut: bool

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, inputs]` to `[..., H / stride, W / stride, outputs]`, rounded up."""
        y = self.block(x)
        return x + y if self.shortcut else y


class SqueezeExcitation(nnx.Module):
    """Each channel times a number computed from the means of all (Hu et al., arXiv 1709.01507)."""

    def __init__(
        self, channels: int, squeezed: int, activation: Layer, gate: Layer, *, rngs: nnx.Rngs
    ):
        self.fc1 = conv(channels, squeezed, 1, bias=True, rngs=rngs)
        self.fc2 = conv(squeezed, channels, 1, bias=True, rngs=rngs)
        self.activation = activation
        self.gate = gate

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., H, W, channels]` to the same shape."""
        scale = self.activation(self.fc1(x.mean((-3, -2), keepdims=True)))
        return x * self.gate(self.fc2(scale))


class LayerNorm(nnx.Module):
    """LayerNorm over the channels, in the dtype of its input (Ba et al., arXiv 1607.06450)."""

    def __init__(self, features: int, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., features]` to the same shape."""
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Scaled dot-product attention of `[..., T, heads, width]` over `[..., S, heads, width]`.

    `jax.nn.dot_product_attention` computes in float32 even for float64.
    """
    scores = jnp.einsum("...thd,...shd->...hts", q, k) / math.sqrt(q.shape[-1])
    return jnp.einsum("...hts,...shd->...thd", jax.nn.softmax(scores), v)


def gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function, as in PyTorch.

    `jax.nn.gelu` computes it by `erfc`, which takes twice as long on a CPU.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def round_channels(channels: float, least: int = 8) -> int:
    """The nearest multiple of 8, at least `least`, but not more than a tenth below `channels`."""
    rounded = max(least, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def dropout(x: jax.Array) -> jax.Array:
    """Dropout in evaluation form: the identity.

    It keeps its place in the list of layers, because list indices are part of weight names.
    """
    return x


class MaxPool(nnx.Module):
    """Square max-pooling over `[..., H, W, C]`, padded with -inf.

    With `ceil_mode`, a last window that extends beyond the edge is included if it starts inside
    (`torch.nn.MaxPool2d`). The padding that this requires depends on the size of the input.
    """

    def __init__(self, size: int, stride: int, padding: int = 0, *, ceil_mode: bool = False):
        self.size = size
        self.stride = stride
        self.padding = padding
        self.ceil_mode = ceil_mode

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pool."""
        sides: Any = [(self.padding, self.padding + self._overhang(n)) for n in x.shape[-3:-1]]
        return nnx.max_pool(x, (self.size, self.size), (self.stride, self.stride), sides)

    def _overhang(self, n: int) -> int:
        """How far the last window extends beyond the padded edge of an axis of length `n`."""
        if not self.ceil_mode:
            return 0
        span = n + 2 * self.padding - self.size
        windows = -(-span // self.stride) + 1
        if (windows - 1) * self.stride >= n + self.padding:
            windows -= 1
        return max((windows - 1) * self.stride - span, 0)


def halve(x: jax.Array) -> jax.Array:
    """`[..., H, W, C]` to `[..., H // 2, W // 2, C]`, by means over 2x2 squares."""
    return nnx.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """`[..., H, W, C]` to `[..., size, size, C]`, by means over nearly equal bins.

    Bin `i` of an axis of length `n` spans `floor(i n / size)` to `ceil((i + 1) n / size)`, so
    bins overlap if `size` does not divide `n` (`torch.nn.AdaptiveAvgPool2d`).
    """
    for axis in (-3, -2):
        n = x.shape[axis]
        bins = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        if n != size:
            means = [
                jax.lax.slice_in_dim(x, *bounds, axis=x.ndim + axis).mean(axis) for bounds in bins
            ]
            x = jnp.stack(means, axis)
    return x


def global_avg_pool(x: jax.Array) -> jax.Array:
    """`[..., H, W, C]` to `[..., C]`."""
    return x.mean((-3, -2))
