"""`jax-excite figures`: the class grids of the paper's Figures 1 to 4, for any of the networks.

Section 5.1: one photograph of each of five classes (rows), pulled towards these classes and one
more (columns). As in the authors' figures, each cell is scaled separately, including the
photographs.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jax_excite import recipes
from jax_excite.cli.class_grid import Along, ClassGrid
from jax_excite.cli.console import announce, errors_in_one_line
from jax_excite.cli.gatings import Recipe, excitation_gating, with_stored_temperatures
from jax_excite.cli.manifest import appear_together, describe_file, describe_run, save_manifest
from jax_excite.cli.networks import DEFAULT_MODEL, Weights, open_images
from jax_excite.data.class_names import class_index
from jax_excite.data.datasets import SEED, Example, image_folder, imagenette, select
from jax_excite.errors import ExciteError
from jax_excite.gating import Gating
from jax_excite.models import Classifier, ModelSpec, model_spec
from jax_excite.weights.loading import load_model
from jax_excite.weights.published import PRETRAINED, find_weights

TARGETS = ("tench", "cassette player", "church", "garbage truck", "golf ball", "ostrich")
PHOTOGRAPHED = TARGETS[:5]

# The published figures keep these sites hard: torchvision's DenseNet applies its last ReLU by a
# function call, which the authors' replacement of modules does not affect.
HARD_AS_PUBLISHED = {"densenet": ("final/relu",)}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the paper, for one network.

    Attributes:
        shows: what the cells are.
        along: the vector fields, from top to bottom.
        steps: the number of steps of projected gradient ascent along them; None to show the fields
            themselves.
        perturbed: whether the perturbed images are shown, to the left of the differences.
    """

    shows: str
    along: tuple[Along, ...]
    steps: int | None = None
    perturbed: bool = False


FIGURES = {
    1: Figure("what 5 steps along excitation pullbacks add", (Along.EXCITATION,), 5),
    2: Figure(
        "vanilla gradients (top) and excitation pullbacks (bottom)",
        (Along.VANILLA, Along.EXCITATION),
    ),
    3: Figure(
        "10 steps along excitation pullbacks: perturbed images (left), differences (right)",
        (Along.EXCITATION,),
        10,
        perturbed=True,
    ),
    4: Figure(
        "10 steps along vanilla gradients: perturbed images (left), differences (right)",
        (Along.VANILLA,),
        10,
        perturbed=True,
    ),
}


def figures(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Names of networks, comma-separated or repeated. Default: efficientnet_lite0."
        ),
    ] = None,
    weights: Weights = None,
    figure: Annotated[
        list[int] | None,
        typer.Option(help="Figure to draw, 1 to 4; may be repeated. Default: all."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs. Default: Imagenette's validation split."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of photographs.")] = SEED,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of ReLUs. Default: the model's.")
    ] = None,
    pool_temperature: Annotated[
        float | None, typer.Option(help="Temperature of max-pools. Default: the model's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for pictures and manifests.")] = Path("out"),
) -> None:
    """Draw the paper's Figures 1 to 4 for a network, and write a manifest beside each."""
    with errors_in_one_line():
        from jax_excite import pictures

        wanted = _figures(figure or list(FIGURES))
        specs = _specs(model or [DEFAULT_MODEL], weights)
        gatings = [
            excitation_gating(spec, temperature=temperature, pool_temperature=pool_temperature)
            for spec in specs
        ]
        files = [find_weights(spec, weights or PRETRAINED) for spec in specs]
        examples = _examples(images, seed)
        out.mkdir(parents=True, exist_ok=True)
        for spec, gating, file in zip(specs, gatings, files, strict=True):
            announce(f"Loading {spec.name}")
            network = load_model(spec.name, weights=file)
            gating = with_stored_temperatures(
                gating, spec, network, Recipe.EXCITATION, temperature, pool_temperature
            )
            grid = _class_grid(network, spec, gating, examples)
            about = {
                "model": spec.name,
                "weights": describe_file(file),
                "images": [_describe(example) for example in examples],
                "source": "Imagenette, validation split" if images is None else str(images),
                "seed": seed,
                **describe_run(),
            }
            for number in wanted:
                announce(f"Figure {number} of {spec.name}")
                this = FIGURES[number]
                cells, seconds = figure_cells(this, grid)
                described = {"figure": number, **_describe_grid(this, grid), **about}
                path = out / f"figure{number}_{spec.name}.png"
                with appear_together(path, path.with_suffix(".json")) as (picture, manifest):
                    title = f"Figure {number}, {spec.name}, seed {seed}: {this.shows}"
                    pictures.draw_grid(picture, pictures.scale(cells), *_titles(this), title=title)
                    save_manifest(manifest, {**described, "seconds": round(seconds, 1)})
                typer.echo(path)


def _figures(numbers: Sequence[int]) -> list[int]:
    for number in numbers:
        if number not in FIGURES:
            raise ExciteError(f"--figure is {number}: choose one of {', '.join(map(str, FIGURES))}")
    return sorted(set(numbers))


def _specs(models: Sequence[str], weights: str | None) -> list[ModelSpec]:
    names = dict.fromkeys(name.strip() for names in models for name in names.split(","))
    if weights is not None and len(names) > 1:
        raise ExciteError(
            f"--weights is {weights}, which is for one network: give only one --model"
        )
    return [model_spec(name) for name in names]


def _examples(folder: Path | None, seed: int) -> list[Example]:
    """One photograph of each of the five classes, in their order."""
    if seed < 0:
        raise ExciteError(f"--seed is {seed}: give a number of at least 0")
    data = imagenette() if folder is None else image_folder(folder)
    return select(data, PHOTOGRAPHED, seed=seed)


def _class_grid(
    network: Classifier, spec: ModelSpec, gating: Gating, examples: Sequence[Example]
) -> ClassGrid:
    photographs = open_images(network, [example.image for example in examples])
    return ClassGrid(
        network,
        photographs,
        [class_index(name, network.class_names) for name in TARGETS],
        {Along.EXCITATION: gating, Along.VANILLA: recipes.VANILLA},
        HARD_AS_PUBLISHED.get(spec.family, ()),
    )


def figure_cells(figure: Figure, grid: ClassGrid) -> tuple[np.ndarray, float]:
    """The cells of a figure, before scaling.

    Returns:
        An array `[R, K, H, W, 3]`, and the time to compute it in seconds, including compilation.
        There is one row per vector field and photograph. A row begins with the photograph, and the
        targets follow: where perturbed images and differences are both shown, all perturbed images
        come first.
    """
    photographs = grid.photographs[:, None]
    blocks, total = [], 0.0
    for along in figure.along:
        if figure.steps is None:
            shown, seconds = grid.pull_back(along)
        else:
            perturbed, seconds = grid.climb(along, figure.steps)
            shown = perturbed - photographs
            if figure.perturbed:
                shown = np.concatenate([perturbed, shown], axis=1)
        blocks.append(np.concatenate([photographs, shown], axis=1))
        total += seconds
    return np.concatenate(blocks), total


def _titles(figure: Figure) -> tuple[list[str], list[str]]:
    """Titles of rows and of columns."""
    several = len(figure.along) > 1
    rows = [
        f"{name}\n{along}" if several else name for along in figure.along for name in PHOTOGRAPHED
    ]
    differences = [f"{name}\n(difference)" for name in TARGETS] if figure.perturbed else []
    return rows, ["photograph", *TARGETS, *differences]


def _describe(example: Example) -> dict[str, Any]:
    """The original photograph: its digest covers the pixels `[H, W, 3]` before any resizing."""
    return {
        "name": example.name,
        "class": example.label,
        "shape": example.image.shape,
        "sha256_of_pixels": hashlib.sha256(example.image.tobytes()).hexdigest(),
    }


def _describe_grid(figure: Figure, grid: ClassGrid) -> dict[str, Any]:
    ascent = None
    if figure.steps is not None:
        ascent = dataclasses.asdict(dataclasses.replace(recipes.EXCITATION_PGA, steps=figure.steps))
    return {
        "shows": figure.shows,
        "gatings": {along: dataclasses.asdict(grid.gatings[along]) for along in figure.along},
        "ascent": ascent,
        "skip": list(grid.skip),
        "targets": [
            {"index": int(index), "name": name}
            for index, name in zip(grid.targets, TARGETS, strict=True)
        ],
    }
