"""Do ascents made with a detector raise the same class in a classifier that had no part in them?

    python -m experiments.transfer PHOTOGRAPHS --yolox yolox_nano.onnx --out DIR

For each photograph, a COCO class that is not shown is raised in YOLOX-nano (the sum of its class
scores over all cells), and the result is judged by EfficientNet-Lite0: the rank of the best of the
ImageNet classes that mean the same, and the change of the logarithm of their probability. The ways
of raising it are the gradient, `recipes.SEMANTIC` at several temperatures, and random directions of
the same lengths. Results are written photograph by photograph, and a run continues where it was
stopped.
"""

import argparse
import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import jax_excite as je
from jax_excite import recipes, theory
from jax_excite.data.preprocessing import Preprocessing

# COCO's classes, and the ImageNet classes that mean the same.
CLASSES: dict[int, tuple[str, list[int]]] = {
    1: ("bicycle", [444, 671]),
    2: ("car", [407, 436, 468, 511, 609, 627, 656, 661, 751, 817]),
    4: ("airplane", [404, 895]),
    5: ("bus", [654, 779, 874]),
    6: ("train", [466, 547, 705, 820]),
    7: ("truck", [555, 569, 675, 717, 864, 867]),
    14: ("bird", [*range(7, 25), *range(80, 101), *range(127, 147)]),
    15: ("cat", [281, 282, 283, 284, 285]),
    16: ("dog", [*range(151, 269)]),
    17: ("horse", [339]),
    18: ("sheep", [348, 349]),
    19: ("cow", [345]),
    20: ("elephant", [385, 386]),
    21: ("bear", [294, 295, 296, 297]),
    22: ("zebra", [340]),
    25: ("umbrella", [879]),
    39: ("bottle", [440, 720, 737, 898, 907]),
    41: ("cup", [504, 968]),
    46: ("banana", [954]),
    49: ("orange", [950]),
    53: ("pizza", [963]),
    63: ("laptop", [620, 681]),
    66: ("keyboard", [508]),
    74: ("clock", [409, 530, 892]),
}
ASCENT = je.Ascent(steps=10, step_size=20.0, radius=100.0)
SIZE = 416
COLUMNS = ("photograph", "target", "way", "rank", "change")


def ways(network: Any, photographs: list[np.ndarray]) -> dict[str, je.Gating | None]:
    """The gatings to compare; None stands for random directions."""

    def at(temperature: float) -> je.Gating:
        return dataclasses.replace(recipes.SEMANTIC, silu_temperature=temperature)

    def by_deviation(scale: float) -> je.Gating:
        own = {site: np.float32(scale * deviation) for site, deviation in deviations.items()}
        return dataclasses.replace(recipes.SEMANTIC, site_temperatures=own)

    kinds = {site.name: site.kind for site in je.sites(network, photographs[0])}
    variances: dict[str, list[float]] = {}
    for photograph in photographs:
        for site, z in theory.preactivations(network, photograph).items():
            variances.setdefault(site, []).append(float(np.var(z)))
    deviations = {
        site: np.sqrt(np.mean(found)) for site, found in variances.items() if kinds[site] == "silu"
    }
    return {
        "gradient": recipes.VANILLA,
        "T = 0.8": at(0.8),
        "T = 1.6": recipes.SEMANTIC,
        "T = 3.2": at(3.2),
        "0.6 of the deviation": by_deviation(0.6),
        "1.6 of the deviation": by_deviation(1.6),
        "random": None,
    }


def square(path: Path) -> Image.Image:
    """The middle of a photograph."""
    with Image.open(path) as image:
        photograph = image.convert("RGB")
    width, height = photograph.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return photograph.crop((left, top, left + side, top + side))


def targets(photographs: list[Path]) -> list[int]:
    """A class per photograph that it does not show, in turns."""
    order, chosen = list(CLASSES), []
    for place, path in enumerate(photographs):
        shown = int(path.name[:4])
        turn = place % len(order)
        chosen.append(next(c for c in order[turn:] + order if shown not in CLASSES[c][1]))
    return chosen


def raised(network: Any, x: np.ndarray, target: int, gating: je.Gating | None) -> np.ndarray:
    """A photograph after an ascent."""
    if gating is None:
        return at_random(x, target)
    cells = jax.eval_shape(network, x[None]).shape[1:]
    cotangent = np.zeros((1, *cells), np.float32)
    cotangent[:, :, 5 + target] = 1
    return np.asarray(je.pga(network, x[None], cotangent, ASCENT, gating=gating))[0]


def at_random(x: np.ndarray, seed: int) -> np.ndarray:
    """A photograph after as many steps of the same length in random directions."""
    rng = np.random.default_rng(seed)
    moved = x
    for _ in range(ASCENT.steps):
        step = rng.normal(size=x.shape)
        moved = moved + ASCENT.step_size * step / np.linalg.norm(step)
        change = moved - x
        moved = x + change * min(1.0, 100.0 / np.linalg.norm(change))
        moved = moved.clip(-1, 1)
    return moved.astype(np.float32)


@jax.jit
def judged(judge: Any, x: jax.Array) -> jax.Array:
    """The log-probabilities that a classifier gives to an image of another size."""
    small = jax.image.resize(x, (224, 224, 3), "linear", antialias=True)
    return jax.nn.log_softmax(judge(small[None])[0])


def score(before: np.ndarray, after: np.ndarray, classes: list[int]) -> tuple[int, float]:
    """The rank of the best of some classes, from 1, and the change of their log-probability."""
    rank = int((after > after[classes].max()).sum()) + 1
    change = np.logaddexp.reduce(after[classes]) - np.logaddexp.reduce(before[classes])
    return rank, float(change)


def interval(
    values: np.ndarray, statistic: Callable[[np.ndarray], Any], rng: np.random.Generator
) -> tuple[float, float]:
    """The 95 % interval of a statistic over photographs, by the bootstrap."""
    draws = rng.integers(0, len(values), (2000, len(values)))
    found = [statistic(values[draw]) for draw in draws]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def summarise(rows: list[dict[str, str]]) -> str:
    """A table of the ways."""
    rng = np.random.default_rng(0)
    by_way: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        by_way.setdefault(row["way"], {})[row["photograph"]] = row
    common = sorted(set.intersection(*(set(found) for found in by_way.values())))
    changes = {
        way: np.array([float(found[name]["change"]) for name in common])
        for way, found in by_way.items()
    }
    lines = [
        f"{len(common)} photographs",
        "| way | median rank | mean change of log p | higher than by the gradient |",
        "|---|---|---|---|",
    ]
    for way, found in by_way.items():
        ranks = np.array([float(found[name]["rank"]) for name in common])
        wins = (changes[way] > changes["gradient"]).astype(float)
        cells = [
            f"{statistic(values):.3g} ({low:.3g} to {high:.3g})"
            for values, statistic in ((ranks, np.median), (changes[way], np.mean), (wins, np.mean))
            for low, high in [interval(values, statistic, rng)]
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the experiment from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--yolox", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    files = sorted(options.photographs.iterdir())[: options.count]
    pixels = Preprocessing((0.0,) * 3, (1 / 255,) * 3, size=SIZE, order="BGR", fit="letterbox")
    network, judge = je.load(options.yolox, preprocessing=pixels), je.load("efficientnet_lite0")
    calibration = pixels.load_images([square(path) for path in files[:20]])
    chosen = ways(network, list(calibration[:, None]))
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "transfer.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    done = {(row["photograph"], row["way"]) for row in rows}
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not rows:
            writer.writeheader()
        for path, target in zip(files, targets(files), strict=True):
            (x,) = pixels.load_images([square(path)])
            before = np.asarray(judged(judge, jnp.asarray(x)))
            for way, gating in chosen.items():
                if (path.name, way) in done:
                    continue
                after = np.asarray(judged(judge, jnp.asarray(raised(network, x, target, gating))))
                rank, change = score(before, after, CLASSES[target][1])
                row = dict(zip(COLUMNS, (path.name, target, way, rank, change), strict=True))
                writer.writerow(row)
                rows.append({name: str(value) for name, value in row.items()})
            file.flush()
            print(path.name, CLASSES[target][0], flush=True)
    summary = summarise(rows)
    (options.out / "transfer.md").write_text(summary + "\n")
    print(summary)


if __name__ == "__main__":
    main()
