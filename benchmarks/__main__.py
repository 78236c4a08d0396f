"""Compares this library with PyTorch on this machine: `python -m benchmarks --help`.

Exit codes: 0 success; 1 a check failed, or a required variant did not run; 2 wrong input.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from benchmarks import table
from benchmarks.check import Accuracy, error_of
from benchmarks.contest import Measurement, Setup, working
from benchmarks.jobs import JOBS, JobName, Sizes, rounds_of
from benchmarks.measure import contestants, measure
from benchmarks.rows import Row, make_rows
from benchmarks.variants import Device, Variant, variants
from benchmarks.workers import ENVIRONMENTS, ROOT, USUAL, Worker
from jax_excite.models import MODELS

DEFAULT_MODELS = ("resnet50", "vgg11_bn", "densenet121", "efficientnet_lite0")

Result = TypeVar("Result")


Names = Annotated[list[str] | None, typer.Option(help="May be repeated; all if not given.")]


def main(
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"May be repeated; {', '.join(DEFAULT_MODELS)} if not given."),
    ] = None,
    job: Names = None,
    variant: Names = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            help=f"May be repeated; {', '.join(USUAL)} if not given. There are "
            f"{', '.join(ENVIRONMENTS)}; those with avx2 hold both to AVX2 where they can be."
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where both frameworks compute.")] = "cpu",
    rounds: Annotated[
        int, typer.Option(min=1, help="How often each variant is timed; in PGA half as often.")
    ] = 3,
    images: Annotated[int, typer.Option(min=1, help="Images of a grid.")] = 5,
    classes: Annotated[int, typer.Option(min=1, max=1000, help="Classes for each image.")] = 6,
    size: Annotated[int, typer.Option(min=32, help="Pixels of an image's side.")] = 224,
    steps: Annotated[int, typer.Option(min=1, help="Steps of PGA.")] = 10,
    out: Annotated[
        Path | None,
        typer.Option(help="Files to write, without ending; benchmarks/results/DEVICE if none."),
    ] = None,
) -> None:
    """Time jobs, check their results, and print and write one table.

    Variants run in turns, each in its own process. All processes of a job are alive at the same
    time. If they do not all fit into memory, each process releases its free memory after a run, and
    runs once untimed before the next timed run. The table is written after each job.
    """
    models = pick("model", {name: name for name in MODELS}, model, DEFAULT_MODELS)
    jobs: list[JobName] = pick("job", {str(name): name for name in JOBS}, job)
    chosen = pick("variant", {each.name: each for each in variants(device)}, variant)
    environments = pick("environment", {name: name for name in ENVIRONMENTS}, environment, USUAL)
    if device == "gpu":
        require_gpu()
    sizes = Sizes(images, classes, size, steps)
    out = out or ROOT / "benchmarks" / "results" / device
    out.parent.mkdir(parents=True, exist_ok=True)
    about = table.circumstances(device)
    rows: list[Row] = []
    rates: list[dict[str, Any]] = []
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            setup = Setup(name, Path(folder), device, sizes, rounds)
            forward = ask_referee(setup, "prepare", sizes=dataclasses.asdict(sizes), device=device)
            for each in jobs:
                compete(setup, each, environments, chosen, forward, rows, rates)
                out.with_name(f"{out.name}.md").write_text(table.markdown(rows, rates, about))
                out.with_name(f"{out.name}.json").write_text(table.as_json(rows, rates, about))
    typer.echo(table.markdown(rows, rates, about))
    raise typer.Exit(any(row.failed for row in rows))


def pick(
    what: str,
    known: Mapping[str, Result],
    names: Sequence[str] | None,
    default: Sequence[str] | None = None,
) -> list[Result]:
    """The named items of `known`, in its order; if no names are given, the default, or all."""
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(f"no {what} {name!r}: there are {', '.join(known)}")
    wanted = names or default or list(known)
    return [known[name] for name in known if name in wanted]


def require_gpu() -> None:
    """Raise `typer.BadParameter` unless JAX and PyTorch both find a GPU."""
    for side in ("ours", "torch_variants"):
        code = f"from benchmarks import {side}; {side}.prepare('gpu')"
        command = [sys.executable, "-c", code]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if found.returncode:
            raise typer.BadParameter(f"--device gpu: {found.stderr.strip().splitlines()[-1]}")


def compete(
    setup: Setup,
    job: JobName,
    environments: Sequence[str],
    chosen: Sequence[Variant],
    forward: float,
    rows: list[Row],
    rates: list[dict[str, Any]],
) -> None:
    """Measure and check one job in each environment; add to the rows and rates."""
    setup = dataclasses.replace(setup, rounds=rounds_of(job, setup.rounds))
    entered = contestants(setup, job, environments[0], chosen)
    for environment in environments:
        typer.echo(f"{setup.model}, {job}, {environment}", err=True)
        measurements, best = measure(setup, job, environment, entered)
        accuracies = check(setup, job, working(measurements))
        rows += make_rows(setup, job, environment, measurements, accuracies, best, forward)
        rates.append({"model": setup.model, "job": job, "environment": environment, "gflops": best})


def check(
    setup: Setup, job: JobName, measurements: Sequence[Measurement]
) -> dict[Measurement, Accuracy]:
    """The accuracy of each measurement."""
    results = [str(measurement.result) for measurement in measurements]
    rises = (
        ask_referee(setup, "mean_rises", results=results) if job == "pga" else [None] * len(results)
    )
    return {
        measurement: Accuracy(error_of(job, measurement.result, setup.folder), rise)
        for measurement, rise in zip(measurements, rises, strict=True)
    }


def ask_referee(setup: Setup, what: str, **details: Any) -> Any:
    """The answer of `benchmarks.referee`, which runs in a process of its own and then ends."""
    command = {"do": what, "folder": str(setup.folder), "model": setup.model, **details}
    with Worker("benchmarks.referee", [], {}) as worker:
        return worker.tell(json.dumps(command))["answer"]


if __name__ == "__main__":
    typer.run(main)
