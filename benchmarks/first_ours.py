"""A fresh process with this library: see `benchmarks.first_answer`."""

import sys
from pathlib import Path

import numpy as np

import jax_excite
from benchmarks.stopwatch import Stopwatch


def main(start: str, folder: str, model: str, job: str, steps: str, out: str) -> None:
    """Load the network, compute the answer, and report the seconds of each part."""
    watch = Stopwatch(float(start))
    watch.stop("import")
    params = jax_excite.load(model, weights=Path(folder, "weights.safetensors"))
    image = np.load(Path(folder, "images.npy"))[0]
    classes = np.load(Path(folder, "classes.npy"))
    watch.stop("load")
    if job == "pullback":
        answer = jax_excite.pullback(params, image, int(classes[0]))
    elif job == "ascent":
        answer = jax_excite.pga(params, image, int(classes[0]), jax_excite.Ascent(int(steps)))
    else:
        answer = jax_excite.pullback_grid(params, image, classes)
    array = np.asarray(answer)
    watch.stop("answer")
    np.save(out, array.reshape(-1, *image.shape))
    watch.report()


if __name__ == "__main__":
    main(*sys.argv[1:])
