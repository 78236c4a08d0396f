"""Times metrics against Quantus: `python -m benchmarks.evaluation [--model MODEL] [--out FILE]`.

Both get the same images, network and maps (of one method or of eleven), and run in turns, each in
its own process. Ratios are ratios of medians. The settings that both have in common are equal. The
values are compared in tests/parity/test_metrics.py, where both draw the same random numbers.
"""

import functools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.workers import Worker, answers

METRICS = (
    "faithfulness_correlation",
    "faithfulness_estimate",
    "deletion",
    "max_sensitivity",
    "random_logit",
)
METHODS = 11  # the number that `jax-excite evaluate` compares, without the controls
IMAGES, RUNS, STEPS, SAMPLES, SIZE = 4, 50, 12, 4, 224


def main(
    model: Annotated[str, typer.Option(help="By name, with random weights.")] = "squeezenet1_0",
    metric: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    images: Annotated[int, typer.Option(min=2)] = IMAGES,
    out: Annotated[Path | None, typer.Option(help="A Markdown file.")] = None,
) -> None:
    """Print a table of medians and ratios, and write it if a file is given."""
    lines = ["| metric | methods | Quantus, s | here, s | ratio |", "|---|---|---|---|---|"]
    for name in metric or METRICS:
        for methods in (1, METHODS):
            task = json.dumps({"model": model, "metric": name, "n": images, "methods": methods})
            seconds: dict[str, list[float]] = {"quantus": [], "here": []}
            with (
                Worker("benchmarks.evaluation", ["serve", "quantus", task], {}) as theirs,
                Worker("benchmarks.evaluation", ["serve", "here", task], {}) as own,
            ):
                sides = {"quantus": theirs, "here": own}
                for worker in sides.values():
                    worker.answer()
                    worker.tell("run")
                for _ in range(rounds):
                    for side, worker in sides.items():
                        seconds[side].append(worker.tell("run")["seconds"])
            quantus, here = (statistics.median(each) for each in seconds.values())
            cells = (name, str(methods), f"{quantus:.2f}", f"{here:.2f}", f"{quantus / here:.1f}")
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr, flush=True)
    text = f"{model}, {images} images, {rounds} rounds\n\n" + "\n".join(lines) + "\n"
    print(text)
    if out is not None:
        out.write_text(text)


def serve(side: str, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Report that the worker is ready, then time one run per line of standard input."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (task["n"], SIZE, SIZE, 3)).astype(np.float32)
    maps = rng.normal(size=(task["methods"], *x.shape)).astype(np.float32)
    build = quantus_run if side == "quantus" else our_run
    run = build(task["model"], task["metric"], x, np.arange(task["n"]), maps)
    yield {"ready": True}
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        yield {"seconds": time.perf_counter() - start}


def our_run(
    model: str, metric: str, x: np.ndarray, c: np.ndarray, maps: np.ndarray
) -> Callable[[], Any]:
    """A function that computes the metric of all maps with this library."""
    import jax

    import jax_excite
    from jax_excite import attributions, metrics

    params, key = jax_excite.load(model, weights=None), jax.random.key(0)
    free = functools.partial(attributions.gradient, bounds=None)
    on_maps: dict[str, Callable[[], Any]] = {
        "faithfulness_correlation": lambda: metrics.faithfulness_correlation(
            params, x, c, maps, key=key, runs=RUNS
        ),
        "faithfulness_estimate": lambda: metrics.faithfulness_estimate(
            params, x, c, maps, steps=STEPS
        ),
        "deletion": lambda: metrics.deletion(params, x, c, maps, steps=STEPS, softmax=False),
    }
    on_method: dict[str, Callable[[], Any]] = {
        "max_sensitivity": lambda: metrics.max_sensitivity(
            free, params, x, c, key=key, samples=SAMPLES, maps=maps[0]
        ),
        "random_logit": lambda: metrics.random_logit(free, params, x, c, key=key, maps=maps[0]),
    }
    if metric in on_maps:
        return on_maps[metric]
    return lambda: [on_method[metric]() for _ in maps]


def quantus_run(
    model: str, metric: str, x: np.ndarray, c: np.ndarray, maps: np.ndarray
) -> Callable[[], Any]:
    """A function that computes the metric in Quantus, one set of maps after the other."""
    warnings.simplefilter("ignore")
    import captum.attr
    import quantus
    import torch

    from tests import torch_reference as reference

    module = reference.reference(model, dtype=torch.float32)
    saliency = captum.attr.Saliency(module)

    def explain(model: Any, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        image = torch.as_tensor(np.asarray(inputs, np.float32))
        return saliency.attribute(image, torch.as_tensor(targets), abs=False).numpy()

    quiet: dict[str, Any] = {"disable_warnings": True, "display_progressbar": False}
    group = 3 * SIZE**2 // STEPS
    chosen = {
        "faithfulness_correlation": lambda: quantus.FaithfulnessCorrelation(
            nr_runs=RUNS, subset_size=224, return_aggregate=False, **quiet
        ),
        "faithfulness_estimate": lambda: quantus.FaithfulnessEstimate(
            features_in_step=group, **quiet
        ),
        "deletion": lambda: quantus.PixelFlipping(features_in_step=group, **quiet),
        "max_sensitivity": lambda: quantus.MaxSensitivity(nr_samples=SAMPLES, **quiet),
        "random_logit": lambda: quantus.RandomLogit(num_classes=1000, **quiet),
    }[metric]()
    images, explained = np.moveaxis(x, -1, 1), np.moveaxis(maps, -1, 2)

    def run() -> None:
        for own in explained:
            chosen(
                model=module,
                x_batch=images,
                y_batch=c,
                a_batch=own,
                explain_func=explain,
                channel_first=True,
                device="cpu",
            )

    return run


def worker() -> None:
    """Serve one side, given on the command line as `serve SIDE TASK`."""
    stream = answers()
    for answer in serve(sys.argv[2], json.loads(sys.argv[3])):
        print(json.dumps(answer), file=stream)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        worker()
    else:
        typer.run(main)
