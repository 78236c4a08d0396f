"""`jax-excite calibrate`: weights with temperatures measured on photographs, in one file."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from jax_excite.cli.console import errors_in_one_line, with_progress
from jax_excite.cli.manifest import check_folder
from jax_excite.cli.networks import DEFAULT_MODEL, ModelName, Weights, open_images, open_network
from jax_excite.errors import ExciteError
from jax_excite.models import model_spec
from jax_excite.pullbacks.calibration import SCALE
from jax_excite.pullbacks.calibration import calibrate as measure
from jax_excite.weights.files import read_any, write

AT_ONCE = 8


def calibrate(
    images: Annotated[
        list[Path], typer.Argument(help="Photographs to measure on; a hundred are enough.")
    ],
    out: Annotated[
        Path, typer.Option(help="The .safetensors file to write, for use with --weights.")
    ],
    model: ModelName = DEFAULT_MODEL,
    weights: Weights = None,
    scale: Annotated[
        float, typer.Option(help="Temperature in units of the standard deviation.")
    ] = SCALE,
    per_channel: Annotated[
        bool, typer.Option(help="Measure one temperature per channel instead of one per site.")
    ] = False,
) -> None:
    """Measure the spread of each site, and write weights with temperatures derived from it."""
    with errors_in_one_line():
        if out.suffix != ".safetensors":
            raise ExciteError(f"--out is {out}: give a file name that ends in .safetensors")
        check_folder(out)
        spec = model_spec(model)
        path, network = open_network(spec.name, weights)
        parts = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
        batches = (open_images(network, part) for part in with_progress(parts, "Measuring spreads"))
        gating = measure(network, batches, scale=scale, per_channel=per_channel)
        measured = {site: np.asarray(t).tolist() for site, t in gating.site_temperatures.items()}
        tensors, metadata = read_any(path, model)
        write(out, tensors, {**metadata, "temperatures": json.dumps(measured)})
        for site, values in measured.items():
            typer.echo(f"{np.mean(values):10.4g}  {site}")
        typer.echo(out)
