"""`jax-excite sweep`: the pullback of one class over temperatures, from hard gates to none."""

import dataclasses
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import typer

from jax_excite.cli.columns import At, Channel, check_columns, columns_of
from jax_excite.cli.console import announce, errors_in_one_line
from jax_excite.cli.gatings import Recipe, RecipeName, recipe_of
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
    Prepared,
    Weights,
    open_images,
    open_network,
)
from jax_excite.errors import ExciteError
from jax_excite.gating import TemperatureName, check_choice
from jax_excite.pullbacks.calibration import HARD_GATES, calibrate, temperature_sweep

TEMPERATURES = "0,0.05,0.15,0.3,0.5,1,2,inf"


def sweep(
    images: Annotated[list[Path], typer.Argument(help="Photographs.")],
    out: Annotated[
        Path, typer.Option(help="PNG file to write; the arrays are written beside it, as .npz.")
    ],
    classes: Annotated[
        str | None, typer.Option(help="One class, or one per photograph, separated by commas.")
    ] = None,
    at: At = None,
    channel: Channel = None,
    model: ModelName = DEFAULT_MODEL,
    weights: Weights = None,
    classes_file: ClassesFile = None,
    preprocessing: Prepared = None,
    temperatures: Annotated[
        str,
        typer.Option(
            help="Comma-separated temperatures; those stored with the weights are not used."
        ),
    ] = TEMPERATURES,
    recipe: RecipeName = Recipe.EXCITATION,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="Temperature to vary; may be repeated: "
            f"{', '.join(get_args(TemperatureName))}. Default: the first two."
        ),
    ] = None,
    calibrated: Annotated[
        bool,
        typer.Option(help="Give temperatures in units of each site's spread over the photographs."),
    ] = False,
) -> None:
    """Draw photographs (rows) and pullbacks at several temperatures (columns)."""
    with errors_in_one_line():
        from jax_excite import pictures

        check_picture(out, images)
        check_columns(classes, at, channel)
        values = [_temperature(text) for text in temperatures.split(",")]
        varied = vary or HARD_GATES
        for name in varied:
            check_choice(name, get_args(TemperatureName), "--vary")
        path, network = open_network(model, weights, classes_file, preprocessing)
        columns = columns_of(network.class_names, classes, at, channel)
        if len(columns.indices) not in (1, len(images)):
            raise ExciteError(
                f"{'--classes' if at is None else '--channel'} is {classes or channel}: give one "
                f"{'class' if at is None else 'channel'}, or one per photograph ({len(images)})"
            )
        photographs = open_images(network, images)
        gating, _ = recipe_of(recipe, None)
        if calibrated:
            gating = calibrate(network, photographs, scale=1, gating=gating)
        targets = np.broadcast_to(columns.indices, len(images))
        explained = dict(zip(columns.indices, columns.names, strict=True))
        with appear_together(out, out.with_suffix(".npz")) as (picture, archive):
            announce(f"Pulling back at {len(values)} temperatures")
            fields = np.asarray(
                temperature_sweep(
                    network, photographs, targets, values, vary=varied, at=at, gating=gating
                )
            )
            names = [
                f"{image.stem}\n{explained[c]}" for image, c in zip(images, targets, strict=True)
            ]
            unit = " spreads" if calibrated else ""
            titles = ["photograph", *(f"T = {t:g}{unit}" for t in values)]
            pictures.draw_grid(picture, _cells(photographs, fields), names, titles)
            manifest = {
                "recipe": recipe,
                "gating": dataclasses.asdict(gating),
                "vary": varied,
                "model": model,
                "weights": describe_file(path),
                "preprocessing": dataclasses.asdict(network.preprocessing),
                "images": [describe_file(image) for image in images],
                "classes": targets,
                "at": at,
                **describe_run(),
            }
            arrays = {"temperatures": np.asarray(values), "pullbacks": fields}
            save_arrays(archive, arrays, manifest)
        typer.echo(f"{out}\n{out.with_suffix('.npz')}")


def _cells(photographs: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """One row per photograph: the photograph, and its pullbacks `[T, N, H, W, 3]`, scaled."""
    from jax_excite.pictures import in_colour, scale

    rows = zip(in_colour(photographs), in_colour(fields.swapaxes(0, 1)), strict=True)
    return np.asarray([[(image + 1) / 2, *scale(row)] for image, row in rows], np.float32)


def _temperature(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ExciteError(f"--temperatures has {text!r}: give numbers, or inf") from None
