"""The first answer of fresh processes, against the published code: `--help` has the options.

    python -m benchmarks.first_answer

Each process imports its library, loads a network from a file of weights, and computes one answer:
the pullback of one image, an ascent of one class, or a class grid of one image. This library starts
once with an empty folder of compiled programs (*cold*) and once with the folder which that has
filled (*warm*); PyTorch computes the same with the paper's Listings 1 and 2. The three run in
turns. The time is that from the start of the process to its answer. Ratios are PyTorch's time over
this library's, medians of paired rounds with their range; above 1, this library is faster.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.jobs import Sizes
from benchmarks.table import spread
from benchmarks.workers import ENVIRONMENTS, ROOT, Worker, caching

JOBS: dict[str, str] = {
    "pullback": "pullback, 1 image, 1 class",
    "ascent": "ascent, 1 image, 1 class, {steps} steps",
    "grid": "grid, 1 image, {classes} classes",
}
SIDES = "published", "cold", "warm"
PARTS = "import", "load", "answer", "in all"
# Float32 rounding; the images of ascents diverge, so the answers of these are not compared.
TOLERANCE = 2e-2


@dataclasses.dataclass
class Runs:
    """The seconds of each part, by side and round."""

    seconds: dict[str, list[dict[str, float]]] = dataclasses.field(
        default_factory=lambda: {side: [] for side in SIDES}
    )
    error: float | None = None

    def median(self, side: str, part: str) -> float:
        """The median over the rounds."""
        return statistics.median(run[part] for run in self.seconds[side])

    def ratios(self, side: str) -> list[float]:
        """PyTorch's time over that of a side, by round."""
        pairs = zip(self.seconds["published"], self.seconds[side], strict=True)
        return [theirs["in all"] / own["in all"] for theirs, own in pairs]


def main(
    model: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    job: Annotated[
        list[str] | None,
        typer.Option(help=f"May be repeated: {', '.join(JOBS)}; all if not given."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each process is started.")] = 3,
    size: Annotated[int, typer.Option(min=32, help="Pixels of an image's side.")] = 224,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the ascent.")] = 10,
    environment: Annotated[str, typer.Option(help=f"One of {', '.join(ENVIRONMENTS)}.")] = (
        "default"
    ),
    out: Annotated[Path, typer.Option(help="The table to write.")] = (
        ROOT / "benchmarks" / "results" / "first_answer.md"
    ),
) -> None:
    """Print and write the table; exit with 1 if two answers differ."""
    if environment not in ENVIRONMENTS:
        raise typer.BadParameter(f"no environment {environment!r}")
    unknown = set(job or ()) - set(JOBS)
    if unknown:
        raise typer.BadParameter(f"no job {unknown.pop()!r}: there are {', '.join(JOBS)}")
    sizes = Sizes(1, 6, size, steps)
    lines: list[str] = []
    is_right = True
    for name in model or ["resnet50", "efficientnet_lite0"]:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), name, sizes)
            for each in [known for known in JOBS if known in (job or JOBS)]:
                runs = measure(Path(folder), name, each, sizes, rounds, environment)
                is_right &= runs.error is None or runs.error < TOLERANCE
                lines += rows(name, JOBS[each].format(**dataclasses.asdict(sizes)), runs)
                out.write_text("\n".join([*HEAD, *lines]) + "\n")
    typer.echo(out.read_text())
    raise typer.Exit(not is_right)


def prepare(folder: Path, model: str, sizes: Sizes) -> None:
    """Write the network's weights in both formats, and an image."""
    command = {"do": "prepare", "folder": str(folder), "model": model, "device": "cpu"}
    with Worker("benchmarks.referee", [], {}) as worker:
        worker.tell(json.dumps({**command, "sizes": dataclasses.asdict(sizes)}))


def measure(
    folder: Path, model: str, job: str, sizes: Sizes, rounds: int, environment: str
) -> Runs:
    """Start the processes of one job in turns."""
    runs = Runs()
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as programs:
            for side in SIDES:
                module = "first_torch" if side == "published" else "first_ours"
                out = folder / f"{side}.npy"
                given = [str(time.time()), str(folder), model, job, str(sizes.steps), str(out)]
                variables = {**ENVIRONMENTS[environment], **caching(Path(programs))}
                with Worker(f"benchmarks.{module}", given, variables) as worker:
                    runs.seconds[side].append(worker.answer())
    if job != "ascent":
        found, wanted = np.load(folder / "warm.npy"), np.load(folder / "published.npy")
        runs.error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return runs


HEAD = [
    "| model | answer | | import, s | load, s | answer, s | in all, s | published / ours |",
    "|---|---|---|---|---|---|---|---|",
]


def rows(model: str, job: str, runs: Runs) -> list[str]:
    """The lines of one job in the table."""
    lines = []
    for side in SIDES:
        parts = [f"{runs.median(side, part):.2f}" for part in PARTS]
        parts.append("" if side == "published" else spread(runs.ratios(side), ".2f"))
        name = "PyTorch, as published" if side == "published" else f"ours, {side}"
        lines.append("| " + " | ".join([model, job, name, *parts]) + " |")
    return lines


if __name__ == "__main__":
    typer.run(main)
