"""Compares this library with PyTorch on one NVIDIA GPU within minutes: `python -m benchmarks.gpu`.

`python -m benchmarks --device gpu` measures the same with a process for each variant, which takes
an hour. Here three kinds of processes do everything: one with this library, one with eager PyTorch,
and one per model with compiled PyTorch. First all of them run each of their jobs once, at the same
time, since compiling takes longest; a job that does not begin within `--limit` is left out and has
a row that says so. Then the results are compared with float64. Then the variants of each job are
timed in turns. The files are written after each job.

Exit codes: 0 success; 1 a check failed, or a required variant did not run; 2 wrong input.
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import table, variants
from benchmarks.__main__ import ask_referee, check, pick, require_gpu
from benchmarks.contest import Measurement, Setup, noting_failure, working
from benchmarks.jobs import JobName, Sizes
from benchmarks.rows import Row, make_rows
from benchmarks.variants import Device, Task, Variant
from benchmarks.workers import ROOT, Worker, caching
from jax_excite.models import MODELS

DEFAULT_MODELS = ("resnet50", "vgg11_bn", "densenet121")
JOBS: tuple[JobName, ...] = ("grid", "throughput", "pga")
# Of torch.compile, per process: several of them must not take all cores from the rest.
THREADS = {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
FLOAT32 = (variants.PUBLISHED, variants.COMPILED, variants.OURS)
ENVIRONMENT = "default"


def entered(device: Device) -> list[Variant]:
    """The variants in the order of the table; on a CPU, whose bfloat16 is slow, in float32."""
    if device == "cpu":
        return list(FLOAT32)
    return [each for variant in FLOAT32 for each in (variant, variants.in_bfloat16(variant))]


@dataclasses.dataclass(eq=False)
class Entry:
    """One variant of one job of one model, in one of the processes.

    Attributes:
        setup: the model, its files and the sizes of the job.
        job: the job.
        measurement: what is measured.
        number: the number of its task in its process.
    """

    setup: Setup
    job: JobName
    measurement: Measurement
    number: int

    @property
    def group(self) -> tuple[str, JobName]:
        """What it is compared with."""
        return self.setup.model, self.job


class Crew:
    """One process that runs its entries, one after the other."""

    def __init__(self, device: Device, cache: Path):
        self.device: Device = device
        self.cache = cache
        self.entries: list[Entry] = []

    def add(self, setup: Setup, job: JobName, variant: Variant) -> None:
        """Add a variant of a job."""
        self.entries.append(Entry(setup, job, Measurement(variant), len(self.entries)))

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Start the process; end it on leaving."""
        with Worker("benchmarks.worker", [], {**caching(self.cache), **THREADS}) as self.worker:
            yield

    def warm_up(self, deadline: float) -> None:
        """Build and run each entry that begins before the deadline, in seconds of the clock."""
        for entry in self.entries:
            measurement = entry.measurement
            if measurement.failure:
                continue
            if time.monotonic() > deadline:
                measurement.failure = "not begun within the limit"
                continue
            with noting_failure(measurement):
                setup = entry.setup
                folder, steps = str(setup.folder), setup.sizes.steps
                task = Task(
                    measurement.variant, entry.job, setup.model, folder, self.device, None, steps
                )
                self.worker.tell(task.text())
                measurement.first, _ = self.worker.run(entry.number)
                measurement.result = setup.folder / f"{entry.job}-{measurement.variant.name}.npz"
                self.worker.finish(measurement.result, entry.number, first_step=False)

    def time(self, entry: Entry) -> None:
        """Time one entry."""
        with noting_failure(entry.measurement):
            begun, seconds = self.worker.run(entry.number)
            entry.measurement.begun.append(begun)
            entry.measurement.seconds.append(seconds)


def main(
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"May be repeated; {', '.join(DEFAULT_MODELS)} if not given."),
    ] = None,
    device: Annotated[Device, typer.Option(help="`cpu` is for a test of this command.")] = "gpu",
    rounds: Annotated[int, typer.Option(min=1, help="How often each variant is timed.")] = 7,
    images: Annotated[int, typer.Option(min=1, help="Images of a grid.")] = 5,
    classes: Annotated[int, typer.Option(min=1, max=1000, help="Classes for each image.")] = 6,
    stream: Annotated[int, typer.Option(min=1, help="Images of throughput, in one batch.")] = 128,
    size: Annotated[int, typer.Option(min=32, help="Pixels of an image's side.")] = 224,
    steps: Annotated[int, typer.Option(min=1, help="Steps of PGA.")] = 10,
    limit: Annotated[
        float, typer.Option(min=0, help="Seconds after which no further job is compiled.")
    ] = 180.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Files to write, without ending; benchmarks/results/DEVICE if none."),
    ] = None,
) -> None:
    """Time the jobs in float32 (TF32) and bfloat16, check the results, print and write a table."""
    models = pick("model", {name: name for name in MODELS}, model, DEFAULT_MODELS)
    if device == "gpu":
        require_gpu()
    out = out or ROOT / "benchmarks" / "results" / device
    out.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + limit
    grid, batch = Sizes(images, classes, size, steps), Sizes(stream, 1, size, steps)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        setups: dict[tuple[str, JobName], Setup] = {
            (name, job): Setup(
                name,
                folder / f"{name}-{'stream' if job == 'throughput' else 'grid'}",
                device,
                batch if job == "throughput" else grid,
                rounds,
            )
            for name in models
            for job in JOBS
        }
        forward = prepare(list(setups.values()))
        crews = crews_for(setups, folder)
        products = stack.enter_context(Worker("benchmarks.work", [device], {}))
        for crew in crews:
            stack.enter_context(crew.working())
        together(lambda crew: crew.warm_up(deadline), crews)
        products.answer()
        rows: list[Row] = []
        rates: list[dict[str, Any]] = []
        about = table.circumstances(device)
        for (name, job), setup in setups.items():
            typer.echo(f"{name}, {job}", err=True)
            entries = of_group(crews, (name, job))
            measurements = [entry.measurement for _, entry in entries]
            accuracies = check(setup, job, working(measurements))
            best = products.tell("rates")
            time_in_turns(entries, rounds)
            rows += make_rows(
                setup, job, ENVIRONMENT, measurements, accuracies, best, forward[name]
            )
            rates.append({"model": name, "job": job, "environment": ENVIRONMENT, "gflops": best})
            out.with_name(f"{out.name}.md").write_text(table.markdown(rows, rates, about))
            out.with_name(f"{out.name}.json").write_text(table.as_json(rows, rates, about))
    typer.echo(table.markdown(rows, rates, about))
    raise typer.Exit(any(row.failed for row in rows))


def prepare(setups: Sequence[Setup]) -> dict[str, float]:
    """Write the inputs and reference results; return GFLOP of a forward pass, by model."""
    forward: dict[str, float] = {}

    def one(setup: Setup) -> None:
        sizes = dataclasses.asdict(setup.sizes)
        answer = ask_referee(setup, "prepare", sizes=sizes, device=setup.device)
        forward[setup.model] = answer

    distinct = {setup.folder: setup for setup in setups}
    for folder in distinct:
        folder.mkdir()
    together(one, distinct.values())
    return forward


def crews_for(setups: dict[tuple[str, JobName], Setup], folder: Path) -> list[Crew]:
    """The processes, with all variants of all jobs."""
    device = next(iter(setups.values())).device
    ours, eager = Crew(device, folder / "ours"), Crew(device, folder / "eager")
    compiled = {name: Crew(device, folder / f"compiled-{name}") for name, _ in setups}
    # The most telling jobs first, in case the limit leaves some out.
    for job in JOBS:
        for variant in entered(device):
            for name in compiled if job in variant.jobs else ():
                crew = {"ours": ours, "compiled": compiled[name]}.get(variant.method, eager)
                crew.add(setups[name, job], job, variant)
    return [ours, eager, *compiled.values()]


def together(function: Callable[[Any], Any], arguments: Iterable[Any]) -> None:
    """Call a function with each argument, all at once; raise the first error."""
    arguments = list(arguments)
    with ThreadPoolExecutor(len(arguments)) as pool:
        list(pool.map(function, arguments))


def of_group(crews: Sequence[Crew], group: tuple[str, JobName]) -> list[tuple[Crew, Entry]]:
    """The entries of one job of one model, in the order of the table, with their processes."""
    found = [(crew, entry) for crew in crews for entry in crew.entries if entry.group == group]
    order = [variant.name for variant in entered(crews[0].device)]
    return sorted(found, key=lambda each: order.index(each[1].measurement.variant.name))


def time_in_turns(entries: Sequence[tuple[Crew, Entry]], rounds: int) -> None:
    """Time the entries of one job of one model in turns, after an untimed run of each."""
    for crew, entry in entries:
        if not entry.measurement.failure:
            with noting_failure(entry.measurement):
                crew.worker.run(entry.number)
    for _ in range(rounds):
        for crew, entry in entries:
            if not entry.measurement.failure:
                crew.time(entry)


if __name__ == "__main__":
    typer.run(main)
