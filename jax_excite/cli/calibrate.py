"""`jax-excite calibrate`: weights with temperatures measured on photographs, in one file."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from jax_excite.cli.console import errors_in_one_line, with_progress
from jax_excite.cli.manifest import check_folder
from jax_excite.cli.networks import (
    DEFAULT_MODEL,
    ModelName,
    Prepared,
    Weights,
    open_images,
    open_network,
)
from jax_excite.data.photographs import packaged_photographs
from jax_excite.errors import ExciteError
from jax_excite.onnx.network import TEMPERATURES, is_onnx
from jax_excite.onnx.writing import copy_with_metadata
from jax_excite.pullbacks.calibration import SCALE
from jax_excite.pullbacks.calibration import calibrate as measure
from jax_excite.weights.files import read_any, write

AT_ONCE = 8


def calibrate(
    out: Annotated[
        Path,
        typer.Option(
            help="The file to write: .safetensors, for use with --weights, or .onnx for an ONNX "
            "file, for use with --model."
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Photographs to measure on; a hundred are enough. Default: four that come with "
            "scikit-image."
        ),
    ] = None,
    model: ModelName = DEFAULT_MODEL,
    weights: Weights = None,
    preprocessing: Prepared = None,
    scale: Annotated[
        float, typer.Option(help="Temperature in units of the standard deviation.")
    ] = SCALE,
    per_channel: Annotated[
        bool, typer.Option(help="Measure one temperature per channel instead of one per site.")
    ] = False,
) -> None:
    """Measure the spread of each site, and write weights with temperatures derived from it."""
    with errors_in_one_line():
        suffix = ".onnx" if is_onnx(model) else ".safetensors"
        if out.suffix != suffix:
            raise ExciteError(f"--out is {out}: give a file name that ends in {suffix}")
        check_folder(out)
        photographs = images or packaged_photographs()
        path, network = open_network(model, weights, preprocessing=preprocessing)
        parts = [
            photographs[start : start + AT_ONCE] for start in range(0, len(photographs), AT_ONCE)
        ]
        batches = (open_images(network, part) for part in with_progress(parts, "Measuring spreads"))
        gating = measure(network, batches, scale=scale, per_channel=per_channel)
        measured = {site: np.asarray(t).tolist() for site, t in gating.site_temperatures.items()}
        if is_onnx(model):
            copy_with_metadata(path, out, {TEMPERATURES: json.dumps(measured)})
        else:
            tensors, metadata = read_any(path, model)
            write(out, tensors, {**metadata, "temperatures": json.dumps(measured)})
        for site, values in measured.items():
            typer.echo(f"{np.mean(values):10.4g}  {site}")
        typer.echo(out)
