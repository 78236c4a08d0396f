"""An imported ONNX network against our own module with the same weights: `--help` has the options.

    python -m benchmarks.imported

torchvision's ResNet50 with random weights is exported by PyTorch and loaded as an ONNX network, and
converted to our own module. Both compute the same jobs in turns, in one process; the ratios are
those of medians. It also prints the time that loading the file takes.
"""

import functools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jax_excite as je
from jax_excite.data.preprocessing import Preprocessing

CLASSES = [0, 217, 491, 497, 569, 574]


def main(
    model: Annotated[str, typer.Option(help="A model of torchvision.")] = "resnet50",
    rounds: Annotated[int, typer.Option(min=1, help="How often each job is timed.")] = 5,
    size: Annotated[int, typer.Option(min=32, help="Pixels of an image's side.")] = 224,
) -> None:
    """Print the time of each job for both networks, and the ratio of the medians."""
    own, imported, seconds = networks(model)
    print(f"load {model}.onnx: {seconds:.2f} s")
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (5, size, size, 3)).astype(np.float32)
    ascent = je.Ascent(steps=5)
    jobs: dict[str, Callable[[Any], Any]] = {
        "grid, 5 images, 6 classes": lambda network: je.pullback_grid(network, x, CLASSES),
        "PGA, 2 images, 3 classes, 5 steps": lambda network: je.pga_grid(
            network, x[:2], CLASSES[:3], ascent
        ),
    }
    for name, job in jobs.items():
        runs = [functools.partial(job, own), functools.partial(job, imported)]
        first, second = (np.asarray(run()) for run in runs)
        error = np.linalg.norm(first - second) / np.linalg.norm(first)
        times: list[list[float]] = [[], []]
        for _ in range(rounds):
            for run, found in zip(runs, times, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(run())
                found.append(time.perf_counter() - start)
        ours, theirs = map(statistics.median, times)
        print(
            f"{name}: own module {ours:.2f} s, imported {theirs:.2f} s, ratio {theirs / ours:.2f} "
            f"(relative difference of the results {error:.1e})"
        )


def networks(model: str) -> tuple[Any, Any, float]:
    """Our module, the imported network with the same weights, and the seconds to load it."""
    import torch

    from tests import torch_reference as reference

    module = reference.reference(model, seed=0, dtype=torch.float32)
    own = reference.to_jax(model, module)
    p = own.preprocessing
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{model}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.net,
                (torch.zeros(2, 3, 224, 224),),
                str(path),
                dynamo=False,
                input_names=["x"],
                dynamic_axes={"x": {0: "batch"}},
            )
        start = time.perf_counter()
        imported = je.load(path, preprocessing=Preprocessing(p.mean, p.std))
        return own, imported, time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
