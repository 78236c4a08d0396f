"""Does the path kernel group photographs by what they show?

The experiment computes the normalised product kernel (equation 23) between photographs of different
ImageNet classes, for two real networks. It compares the kernel with plain baselines: pixels, and
the network's penultimate features. No class has two photographs, so the evaluation uses groups of
classes (dogs, birds, food, ...). How often does the nearest neighbour belong to the same group? How
well does similarity distinguish pairs of the same group from other pairs (the area under the ROC
curve; 0.5 is chance)?

    python -m experiments.kernel PHOTOGRAPHS --squeezenet squeezenet1_0.pth --out DIR

PHOTOGRAPHS is a folder of files whose names begin with the class index.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

import jax_excite as je
from jax_excite import pictures
from jax_excite.data.class_names import CLASS_NAMES
from jax_excite.data.datasets import image_folder
from jax_excite.models import Classifier
from jax_excite.theory.induced_networks import preactivations
from jax_excite.theory.path_kernel import gram

REST = "things"
# The last index of each run of consecutive ImageNet classes, and the group of the run.
GROUPS = (
    (6, "fish"),
    (24, "birds"),
    (68, "reptiles and amphibians"),
    (79, "insects and spiders"),
    (100, "birds"),
    (126, "sea life and marsupials"),
    (146, "birds"),
    (150, "sea life and marsupials"),
    (268, "dogs"),
    (299, "wild carnivores and cats"),
    (326, "insects and spiders"),
    (388, "other mammals"),
    (397, "fish"),
    (923, REST),
    (969, "food"),
    (980, "landscapes"),
    (983, "people"),
    (999, "plants and fungi"),
)
GATINGS = {
    "path kernel of Gamma": je.recipes.EXCITATION,
    "path kernel of G": je.recipes.VANILLA,
}
# The ReLUs whose outputs, averaged over positions, are the penultimate features.
FEATURES = {
    "efficientnet_lite0": ("head/clipped_relu",),
    "squeezenet1_0": ("features.12/relu_1", "features.12/relu_2"),
}
QUERIES = 4
MIN_LABELLED = 4
NEIGHBOURS = 4
AT_ONCE = 8


def group(index: int) -> str:
    """The group of a class: what its photographs show."""
    return next(name for last, name in GROUPS if index <= last)


def cosine(vectors: np.ndarray) -> np.ndarray:
    """The cosines between all rows of `[N, D]`."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def features(model: Classifier, name: str, x: np.ndarray) -> np.ndarray:
    """The penultimate features `[N, D]`."""
    rows = []
    for batch in np.split(x, range(AT_ONCE, len(x), AT_ONCE)):
        z = preactivations(model, batch)
        outputs = [jax.nn.relu(z[site]).mean(axis=(1, 2)) for site in FEATURES[name]]
        rows.append(np.concatenate(outputs, axis=1))
    return np.concatenate(rows)


def similarities(model: Classifier, name: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """The similarities to compare, `[N, N]` each; only their order matters."""
    found = {"pixels": cosine(x.reshape(len(x), -1))}
    found["penultimate features"] = cosine(features(model, name, x))
    batches = np.split(x, range(AT_ONCE, len(x), AT_ONCE))
    calibrated = je.calibrate(model, batches)
    for what, gating in {**GATINGS, "path kernel, calibrated": calibrated}.items():
        start = time.perf_counter()
        kernel = gram(model, x, gating=gating, batch_size=AT_ONCE)
        cosines = kernel.cosines()
        with np.errstate(divide="ignore", invalid="ignore"):
            found[what] = np.log(np.maximum(cosines, 1e-300)).sum(axis=0)
        if what == "path kernel, calibrated":
            found["its last factor alone"] = cosines[-1]
            found["its factors without the input"] = np.log(cosines[1:]).sum(axis=0)
        print(name, what, f"{time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return found


def nearest(similarity: np.ndarray) -> np.ndarray:
    """The indices of the other photographs `[N, N - 1]`, the most similar first."""
    apart = np.where(np.eye(len(similarity), dtype=bool), -np.inf, similarity)
    return np.argsort(-apart, axis=1)[:, :-1]


def scores(similarity: np.ndarray, groups: list[str]) -> tuple[float, float]:
    """How often the nearest neighbour is in the same group, and the area under the ROC curve.

    The group "things" contains half of the photographs, which have nothing in common. They are
    therefore never queries: they only serve as negatives for the other groups.
    """
    names = np.asarray(groups)
    asked = names != REST
    same = names[:, None] == names
    hits = same[np.arange(len(names)), nearest(similarity)[:, 0]][asked]
    upper = np.triu(asked[:, None] | asked, 1)
    labels, ranks = same[upper], rankdata(similarity[upper])
    positives = labels.sum()
    area = ranks[labels].sum() - positives * (positives + 1) / 2
    return float(hits.mean()), float(area / (positives * (~labels).sum()))


def chance(groups: list[str]) -> float:
    """How often a random neighbour belongs to the same group."""
    asked = [name for name in groups if name != REST]
    return sum(groups.count(name) - 1 for name in asked) / (len(asked) * (len(groups) - 1))


def draw_heat_maps(path: Path, found: dict[str, dict[str, np.ndarray]], groups: list[str]) -> None:
    """Draw the similarities as heat maps, with the photographs ordered by group."""
    order = sorted(range(len(groups)), key=lambda i: groups[i])
    shown = ("pixels", "penultimate features", "path kernel, calibrated")
    figure = Figure(figsize=(4.4 * len(shown), 3.7 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), len(shown), squeeze=False)
    starts = [i for i, g in enumerate(order) if i == 0 or groups[g] != groups[order[i - 1]]]
    for row, (name, kinds) in zip(axes, found.items(), strict=True):
        for axis, what in zip(row, shown, strict=True):
            ranks = kinds[what][np.ix_(order, order)].copy()
            off = ~np.eye(len(ranks), dtype=bool)
            ranks[off] = rankdata(ranks[off]) / off.sum()
            np.fill_diagonal(ranks, 1)
            axis.imshow(ranks, cmap="viridis", vmin=0, vmax=1)
            axis.set_title(f"{name}\n{what}", fontsize=10)
            large = [i for i in starts if groups.count(groups[order[i]]) >= MIN_LABELLED]
            axis.set_yticks(large, [groups[order[i]] for i in large], fontsize=7, va="top")
            axis.set_xticks([])
            for start in starts[1:]:
                axis.axhline(start - 0.5, color="white", linewidth=0.5)
                axis.axvline(start - 0.5, color="white", linewidth=0.5)
    figure.savefig(path, dpi=110)


def draw_neighbours(
    path: Path, kinds: dict[str, np.ndarray], x: np.ndarray, labels: list[int], groups: list[str]
) -> None:
    """Draw some photographs with their nearest neighbours by each similarity."""
    counts = {name: groups.count(name) for name in groups}
    several = [i for i, name in enumerate(groups) if counts[name] > 2 and name != REST]
    queries = several[:: max(1, len(several) // QUERIES)][:QUERIES]
    shown = ("pixels", "penultimate features", "path kernel, calibrated")
    rows, titles = [], []
    for query in queries:
        for what in shown:
            others = nearest(kinds[what])[query, :NEIGHBOURS]
            rows.append((x[[query, *others]] + 1) / 2)
            titles.append(f"{CLASS_NAMES[labels[query]]}\nby {what}")
    small = np.asarray(rows)[:, :, ::2, ::2]
    columns = ["photograph", *(f"neighbour {n}" for n in range(1, NEIGHBOURS + 1))]
    pictures.draw_grid(path, small, titles, columns)


def main() -> None:
    """Run the experiment; write scores.json, a table and pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--squeezenet", type=Path, required=True, help="its PyTorch checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = [example for example in image_folder(arguments.photographs) if example.label is not None]
    labels = [int(example.label or 0) for example in data]
    groups = [group(label) for label in labels]
    x = je.load_images([example.image for example in data])
    models = {
        "efficientnet_lite0": je.load("efficientnet_lite0"),
        "squeezenet1_0": je.load("squeezenet1_0", weights=arguments.squeezenet),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = {name: similarities(model, name, x) for name, model in models.items()}
    table = [
        "| network | similarity | nearest of the same group | area under ROC |",
        "|---|---|---|---|",
    ]
    table.append(f"| | chance | {chance(groups):.0%} | 0.500 |")
    results = {}
    for name, kinds in found.items():
        for what, similarity in kinds.items():
            hits, area = scores(similarity, groups)
            results[f"{name}: {what}"] = {"nearest": hits, "area": area}
            table.append(f"| {name} | {what} | {hits:.0%} | {area:.3f} |")
        draw_neighbours(arguments.out / f"neighbours_{name}.png", kinds, x, labels, groups)
    draw_heat_maps(arguments.out / "kernel.png", found, groups)
    for name, kinds in found.items():
        path = arguments.out / f"similarities_{name}.npz"
        np.savez_compressed(path, allow_pickle=False, **kinds)
    (arguments.out / "scores.json").write_text(json.dumps(results, indent=1))
    (arguments.out / "scores.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
