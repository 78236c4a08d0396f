"""Plots how the cost of a class grid grows: `python -m benchmarks.growth [MODEL] [--out FOLDER]`.

One size varies at a time around a grid of 4 images x 4 classes at 224 x 224. Each point runs in its
own process, so that the peak memory of the process is that of the job.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.worker import memory
from benchmarks.workers import ROOT

BASE = {"images": 4, "classes": 4, "steps": 1, "pixels": 224, "batch_size": 6}
VARIED: dict[str, tuple[int, ...]] = {
    "images": (1, 2, 4, 8, 16),
    "classes": (1, 2, 4, 8, 16, 32),
    "steps": (1, 2, 5, 10, 20),
    "pixels": (96, 160, 224, 320, 448),
    "batch_size": (1, 2, 3, 6, 12, 16),
}


def main(
    model: Annotated[str, typer.Argument(help="A model by name, with random weights.")] = (
        "efficientnet_lite0"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="How often each point is timed.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder of the plot and its numbers.")] = (
        ROOT / "benchmarks" / "results"
    ),
) -> None:
    """Measure, and write growth-MODEL.json and growth-MODEL.png."""
    points = [
        {"varied": what, "value": value, **measured(model, rounds, {**BASE, what: value})}
        for what, values in VARIED.items()
        for value in values
    ]
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"model": model, "base": BASE, "rounds": rounds, "points": points}, indent=1)
    (out / f"growth-{model}.json").write_text(text + "\n")
    plot(points, model, out / f"growth-{model}.png")


def measured(model: str, rounds: int, sizes: dict[str, int]) -> dict[str, Any]:
    """The median seconds of a job of the given sizes, and the peak bytes of its process."""
    task = json.dumps({"model": model, "rounds": rounds, **sizes})
    command = [sys.executable, "-c", "from benchmarks import growth; growth.work()", task]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    typer.echo(f"{sizes}: {found.stdout.strip()}", err=True)
    return json.loads(found.stdout)


def work() -> None:
    """Do the task on the command line, in a separate process, and print the measurements."""
    import jax

    import jax_excite

    task = json.loads(sys.argv[1])
    params = jax_excite.load(task["model"], weights=None)
    shape = (task["images"], task["pixels"], task["pixels"], 3)
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    classes = np.linspace(0, 999, task["classes"]).astype(int)
    seconds = []
    for _ in range(task["rounds"] + 1):
        start = time.perf_counter()
        jax.block_until_ready(
            jax_excite.pga_grid(
                params, x, classes, jax_excite.Ascent(task["steps"]), batch_size=task["batch_size"]
            )
        )
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "peak": memory("VmHWM")}))


def plot(points: list[dict[str, Any]], model: str, path: Path) -> None:
    """Plot one column per size that varies: seconds at the top, peak memory at the bottom."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.5), layout="constrained")
    axes = figure.subplots(2, len(VARIED))
    for column, what in enumerate(VARIED):
        chosen = [point for point in points if point["varied"] == what]
        values = [point["value"] for point in chosen]
        axes[0, column].plot(values, [point["seconds"] for point in chosen], marker="o")
        axes[1, column].plot(values, [point["peak"] / 1e9 for point in chosen], marker="o")
        axes[1, column].set_xlabel(what.replace("_", " "))
        for axis in axes[:, column]:
            axis.set_ylim(0, 1.1 * axis.dataLim.y1)
            axis.set_xlim(0, 1.1 * axis.dataLim.x1)
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory of the process, GB")
    around = ", ".join(f"{value} {what.replace('_', ' ')}" for what, value in BASE.items())
    figure.suptitle(f"{model}: one size varies around {around}")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    typer.run(main)
