"""Times the variants of one job: a process each, run in turns, one at a time."""

import contextlib
import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.jobs import JobName, Sizes
from benchmarks.variants import BATCH_SIZES, Device, Task, Variant
from benchmarks.workers import ENVIRONMENTS, Worker, WorkerError, caching

# A variant, and cells or images at a time: None for all at once.
Contestant = tuple[Variant, int | None]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all variants of a model have in common: the folder of its files, sizes and rounds."""

    model: str
    folder: Path
    device: Device
    sizes: Sizes
    rounds: int


@dataclasses.dataclass(eq=False)
class Measurement:
    """What was measured of one variant.

    Attributes:
        variant: which.
        batch_size: cells or images at a time; None for all.
        seconds: of each round.
        begun: seconds of each round until the job had begun; in PyTorch on a CPU, until its end.
        first: the same in the first run of a process without a cache, which compiles.
        cached: the same with the cache that that process left, if it keeps one.
        peak: bytes, the most that the process had resident; on a GPU, of the GPU's memory.
        imported: bytes resident after the imports.
        result: the file with its results, if there is no failure.
        failure: why there is no measurement.
    """

    variant: Variant
    batch_size: int | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    begun: list[float] = dataclasses.field(default_factory=list)
    first: float = 0.0
    cached: float | None = None
    peak: int = 0
    imported: int = 0
    result: Path = Path()
    failure: str = ""


def measure(
    setup: Setup,
    job: JobName,
    environment: str,
    contestants: Sequence[Contestant],
) -> tuple[list[Measurement], dict[str, float]]:
    """Time a job.

    Args:
        setup: the model's.
        job: the job.
        environment: a key of `ENVIRONMENTS`.
        contestants: variants, each with its batch size.

    Returns:
        A measurement of each contestant, and the rate of matrix products in GFLOP/s by dtype, the
        best of all rounds.
    """
    measurements = [Measurement(variant, size) for variant, size in contestants]
    workers: dict[Measurement, Worker] = {}
    rates: list[dict[str, float]] = []
    with contextlib.ExitStack() as stack:
        caches = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start(measurement: Measurement) -> Worker:
            """A worker that has its network, and a folder for what it compiles."""
            cache = caching(caches / str(measurements.index(measurement)))
            variables = {**ENVIRONMENTS[environment], **cache}
            worker = stack.enter_context(Worker("benchmarks.worker", [], variables))
            task = Task(
                measurement.variant,
                job,
                setup.model,
                str(setup.folder),
                setup.device,
                measurement.batch_size,
                setup.sizes.steps,
            )
            worker.tell(task.text())
            return worker

        arguments = [setup.device]
        products = Worker("benchmarks.work", arguments, ENVIRONMENTS[environment])
        stack.enter_context(products).answer()
        for measurement in measurements:
            with noting_failure(measurement):
                workers[measurement] = start(measurement)
                measurement.first, _ = workers[measurement].run()
        for _ in range(setup.rounds):
            rates.append(products.tell("rates"))
            for measurement in working(measurements):
                with noting_failure(measurement):
                    begun, seconds = workers[measurement].run()
                    measurement.begun.append(begun)
                    measurement.seconds.append(seconds)
        for measurement in working(measurements):
            with noting_failure(measurement):
                number = measurements.index(measurement)
                measurement.result = setup.folder / f"{job}-{environment}-{number}.npz"
                finish = {"do": "finish", "out": str(measurement.result)}
                answer = workers[measurement].tell(json.dumps(finish))
                measurement.peak, measurement.imported = answer["peak"], answer["imported"]
            workers[measurement].close()
        for measurement in working(measurements):
            if measurement.variant.compiles:
                with noting_failure(measurement), start(measurement) as worker:
                    measurement.cached, _ = worker.run()
    return measurements, {dtype: max(rate[dtype] for rate in rates) for dtype in rates[0]}


def working(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Those without a failure."""
    return [measurement for measurement in measurements if not measurement.failure]


@contextlib.contextmanager
def noting_failure(measurement: Measurement) -> Iterator[None]:
    """If a worker fails, write down why, and go on."""
    try:
        yield
    except WorkerError as error:
        measurement.failure = str(error)


def contestants(
    setup: Setup, job: JobName, environment: str, variants: Sequence[Variant]
) -> list[Contestant]:
    """The variants that do a job, each with its batch size: in `throughput`, the fastest tried."""
    able = [variant for variant in variants if job in variant.jobs]
    if job != "throughput":
        return [(variant, variant.batch_size) for variant in able]
    return [_best_batch_size(setup, environment, variant) for variant in able]


def _best_batch_size(setup: Setup, environment: str, variant: Variant) -> Contestant:
    sizes = [size for size in BATCH_SIZES[setup.device] if size < setup.sizes.cells]
    candidates: list[Contestant] = [(variant, size) for size in (*sizes, None)]
    once = dataclasses.replace(setup, rounds=1)
    tried, _ = measure(once, "throughput", environment, candidates)
    best = min(tried, key=lambda trial: min(trial.seconds, default=math.inf))
    return variant, best.batch_size
