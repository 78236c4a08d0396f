"""Writes a grid larger than memory to disk: `python -m benchmarks.streaming [--classes 1000]`."""

import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer

import jax_excite
from benchmarks.worker import memory


def main(
    model: str = "resnet50",
    images: int = 10,
    classes: int = 1000,
    limit: Annotated[float, typer.Option(help="GB that the process may take.")] = 4.0,
    folder: Annotated[Path | None, typer.Option(help="Where to write; a temporary one.")] = None,
) -> None:
    """Compute the pullbacks of many classes for some images within a memory limit."""
    # The limit applies to allocated memory, not to pages of the file that are mapped into memory.
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e9), int(limit * 1e9)))
    params = jax_excite.load(model, weights=None)
    x = np.random.default_rng(0).uniform(-1, 1, (images, 224, 224, 3)).astype(np.float32)
    chosen = np.linspace(0, 999, classes).astype(int)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary, "grid.npy")
        out = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float32, shape=(images, classes, 224, 224, 3)
        )
        start = time.perf_counter()
        jax_excite.pullback_grid(params, x, chosen, out=out)
        seconds = time.perf_counter() - start
        out.flush()
        size = path.stat().st_size
        cells = [(0, 0), (images - 1, classes - 1), (images // 2, classes // 3)]
        for image, column in cells:
            wanted = jax_excite.pullback(params, x[image], int(chosen[column]))
            error = np.linalg.norm(out[image, column] - wanted) / np.linalg.norm(wanted)
            assert error < 1e-4, (image, column, error)
    typer.echo(
        f"{model}, {images} images x {classes} classes: {seconds:.0f} s, {size / 1e9:.2f} GB "
        f"written, limit {limit} GB kept; allocated at most {memory('VmData') / 1e9:.2f} GB, "
        f"anonymous memory at the end {memory('RssAnon') / 1e9:.2f} GB, on {jax.devices()[0]}"
    )


if __name__ == "__main__":
    typer.run(main)
