"""`jax-excite grid`: a class grid of photographs, as a picture and as arrays."""

import dataclasses
import enum
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jax_excite.ascent import Ascent
from jax_excite.cli.columns import At, Channel, Classes, Columns, check_columns, columns_of
from jax_excite.cli.console import errors_in_one_line, with_progress
from jax_excite.cli.gatings import (
    Recipe,
    RecipeName,
    options,
    recipe_of,
    with_stored_temperatures,
)
from jax_excite.cli.manifest import (
    appear_together,
    check_picture,
    describe_file,
    describe_run,
    save_arrays,
)
from jax_excite.cli.networks import (
    DEFAULT_MODEL,
    ClassesFile,
    ModelName,
    Network,
    Prepared,
    Weights,
    find_spec,
    logits,
    open_images,
    open_network,
)
from jax_excite.cli.preview import Arrays, previewed
from jax_excite.errors import ExciteError
from jax_excite.gating import GATE_FUNCTIONS
from jax_excite.pullbacks.pga import pga_grid
from jax_excite.pullbacks.pullback import pullback_grid


class What(enum.StrEnum):
    """What the cells show."""

    ASCENT = "ascent"
    PULLBACK = "pullback"


def grid(
    images: Annotated[list[Path], typer.Argument(help="Photographs.")],
    out: Annotated[
        Path, typer.Option(help="PNG file to write; the arrays are written beside it, as .npz.")
    ],
    classes: Classes = None,
    at: At = None,
    channel: Channel = None,
    model: ModelName = DEFAULT_MODEL,
    weights: Weights = None,
    classes_file: ClassesFile = None,
    preprocessing: Prepared = None,
    what: Annotated[
        What, typer.Option(help="Draw gradient ascents, or the pullbacks themselves.")
    ] = What.ASCENT,
    recipe: RecipeName = Recipe.EXCITATION,
    temperature: Annotated[
        float | None,
        typer.Option(help="Temperature of ReLUs. Default: the model's, or the recipe's."),
    ] = None,
    pool_temperature: Annotated[
        float | None,
        typer.Option(help="Temperature of max-pools. Default: the model's, or the recipe's."),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(help=f"Gate function: {', '.join(GATE_FUNCTIONS)}. Default: the recipe's."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps. Default: 10.")] = None,
    step_size: Annotated[
        float | None, typer.Option(help="L2 norm of each step. Default: 20.")
    ] = None,
    radius: Annotated[
        str | None,
        typer.Option(
            help="Radius of the L2 ball around each photograph, or none for no ball. Default: 100."
        ),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Site whose gates stay hard; may be repeated.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Number of cells computed together, to limit memory.")
    ] = None,
) -> None:
    """Draw ascents or pullbacks of photographs (rows) towards classes (columns)."""
    with errors_in_one_line():
        from jax_excite import pictures

        check_picture(out, images)
        check_columns(classes, at, channel)
        settings = {"temperature": temperature, "pool_temperature": pool_temperature, "gate": gate}
        spec = find_spec(model)
        gating, ascent = recipe_of(recipe, spec, **settings)
        ascent = dataclasses.replace(
            ascent, **_ascent(what, steps=steps, step_size=step_size, radius=radius)
        )
        if batch_size is not None and batch_size < 1:
            raise ExciteError(f"--batch-size is {batch_size}: give a number of at least 1")
        path, network = open_network(model, weights, classes_file, preprocessing)
        given = temperature, pool_temperature
        gating = with_stored_temperatures(gating, spec, network, recipe, *given)
        columns = columns_of(network.class_names, classes, at, channel)
        photographs = open_images(network, images)

        def draw(path: Path, arrays: Arrays) -> None:
            _draw(pictures, path, arrays, [path.stem for path in images], columns.names)

        with (
            appear_together(out, out.with_suffix(".npz")) as (picture, archive),
            previewed(out, draw) as show,
        ):
            manifest = {
                "what": what,
                "recipe": recipe,
                "gating": dataclasses.asdict(gating),
                "ascent": dataclasses.asdict(ascent) if what is What.ASCENT else None,
                "skip": skip or [],
                "model": model,
                "weights": describe_file(path),
                "preprocessing": dataclasses.asdict(network.preprocessing),
                "images": [describe_file(path) for path in images],
                "at": at,
                "classes": columns.described(),
                **describe_run(),
            }
            options = {"gating": gating, "skip": skip or (), "batch_size": batch_size}
            if what is What.ASCENT:
                arrays = _climb(network, photographs, columns, ascent, show, **options)
            else:
                arrays = _pull_back(network, photographs, columns, show, **options)
            draw(picture, arrays)
            save_arrays(archive, arrays, manifest)
        typer.echo(f"{out}\n{out.with_suffix('.npz')}")


def _ascent(
    what: What, *, steps: int | None, step_size: float | None, radius: str | None
) -> dict[str, Any]:
    """The settings of ascent that the caller gives, checked before anything is loaded."""
    given: dict[str, Any] = {"steps": steps, "step_size": step_size}
    settings = {name: value for name, value in given.items() if value is not None}
    if radius is not None:
        size = math.inf if radius == "none" else _number(radius)
        if not size > 0:
            raise ExciteError(f"--radius is {radius}: give a positive number, or none")
        settings["radius"] = None if size == math.inf else size
    if what is What.PULLBACK and settings:
        raise ExciteError(f"--what pullback makes no ascent: leave out {options(settings)}")
    if settings.get("steps", 0) < 0:
        raise ExciteError(f"--steps is {steps}: give a number of at least 0")
    if not math.isfinite(settings.get("step_size", 0)):
        raise ExciteError(f"--step-size is {step_size}: give a finite number")
    return settings


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _climb(
    network: Network,
    photographs: np.ndarray,
    columns: Columns,
    ascent: Ascent,
    show: Callable[[Arrays], None],
    batch_size: int | None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Arrays: images `[N, H, W, 3]`, perturbed `[N, C, H, W, 3]`, and what they make of logits.

    Cells are computed one at a time, so that progress is visible, unless `batch_size` is given.
    """
    options = {**options, "at": columns.at, "batch_size": batch_size, "trajectory": True}
    at_once = [[i] for i in columns.indices] if batch_size is None else [columns.indices]
    jobs = [(image, indices) for image in photographs for indices in at_once]
    shape = len(photographs), len(columns.indices)
    cells = np.repeat(photographs, shape[1], axis=0)
    perturbed = cells.reshape(*shape, *photographs.shape[1:])
    found, done = [], 0
    for image, indices in with_progress(jobs, "Climbing towards each column"):
        climbed, values = pga_grid(network, image, indices, ascent, **options)
        cells[done : done + len(indices)] = climbed
        found.append(np.asarray(values))
        done += len(indices)
        show({"images": photographs, "perturbed": perturbed})
    arrays = {**_common(network, photographs, columns), "perturbed": perturbed}
    if columns.at is None:
        arrays["logits_after"] = np.stack([logits(network, row) for row in perturbed])
    else:
        values = np.concatenate(found).reshape(*shape, -1)
        arrays |= {"values": values[..., 0], "values_after": values[..., -1]}
    return arrays


def _pull_back(
    network: Network,
    photographs: np.ndarray,
    columns: Columns,
    show: Callable[[Arrays], None],
    **options: Any,
) -> dict[str, np.ndarray]:
    """Arrays: images `[N, H, W, 3]`, pullbacks `[N, C, H, W, 3]`, logits `[N, K]`."""
    fields = np.zeros_like(np.repeat(photographs[:, None], len(columns.indices), axis=1))
    for number, image in enumerate(with_progress([*photographs], "Pulling each column back")):
        fields[number] = pullback_grid(network, image, columns.indices, at=columns.at, **options)
        show({"images": photographs, "pullbacks": fields})
    return {**_common(network, photographs, columns), "pullbacks": fields}


def _common(network: Network, photographs: np.ndarray, columns: Columns) -> dict[str, np.ndarray]:
    arrays = {"images": photographs, "classes": np.asarray(columns.indices)}
    return arrays if columns.at else {**arrays, "logits": logits(network, photographs)}


def _draw(
    pictures: Any, path: Path, arrays: Arrays, names: list[str], columns: Sequence[str]
) -> None:
    """Draw rows of photographs and cells; cells that are not computed yet are grey or unchanged."""
    rows, row_titles = [], []
    for number, name in enumerate(names):
        image = pictures.in_colour(arrays["images"][number])
        original = (image + 1) / 2
        if "perturbed" in arrays:
            perturbed = pictures.in_colour(arrays["perturbed"][number])
            rows.append([original, *((perturbed + 1) / 2).clip(0, 1)])
            rows.append([original, *pictures.scale(perturbed - image)])
            row_titles += [name, f"{name}\ndifference"]
        else:
            fields = pictures.in_colour(arrays["pullbacks"][number])
            rows.append([original, *pictures.scale(fields)])
            row_titles.append(name)
    pictures.draw_grid(path, np.asarray(rows, np.float32), row_titles, ["original", *columns])
