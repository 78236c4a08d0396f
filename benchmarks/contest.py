"""Starts the processes that compete in one job, runs them in turns, and ends them."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.jobs import JobName, Sizes
from benchmarks.variants import Device, Task, Variant
from benchmarks.workers import ENVIRONMENTS, Worker, WorkerError, available_memory, caching

USABLE = 0.7  # fraction of the available memory that idle workers may use

# A variant and its cells or images per batch: None for all in PyTorch, automatic in this library.
Contestant = tuple[Variant, int | None]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all variants of a model have in common, such as files, device, sizes and rounds."""

    model: str
    folder: Path
    device: Device
    sizes: Sizes
    rounds: int


@dataclasses.dataclass(eq=False)
class Measurement:
    """The measurements of one variant.

    Attributes:
        variant: the variant.
        batch_size: cells or images per batch; None means all in PyTorch, automatic in this library.
        seconds: the duration of each round.
        begun: seconds of each round until the job had begun; in PyTorch on a CPU, until its end.
        first: the same for the first run of a process without a cache, which compiles.
        cached: the same with the cache of that process, if the variant has a cache.
        peak: the peak resident memory of the process in bytes; on a GPU, of the GPU's memory.
        imported: bytes resident after the imports.
        result: the file with the results, if there is no failure.
        failure: why there is no measurement; empty if there is one.
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


class Contest:
    """The workers of a job, all alive until `stack` closes."""

    def __init__(
        self,
        setup: Setup,
        job: JobName,
        environment: str,
        contestants: Sequence[Contestant],
        stack: contextlib.ExitStack,
    ):
        self.setup, self.environment, self.stack = setup, environment, stack
        self.job: JobName = job
        self.measurements = [Measurement(variant, size) for variant, size in contestants]
        self.workers: dict[Measurement, Worker] = {}
        self.crowded = False
        self.caches = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        variables = ENVIRONMENTS[environment]
        self.products = stack.enter_context(Worker("benchmarks.work", [setup.device], variables))
        self.products.answer()

    def start(self, measurement: Measurement) -> Worker:
        """A worker that has loaded its network and has a folder for compiled programs."""
        cache = caching(self.caches / str(self.measurements.index(measurement)))
        variables = {**ENVIRONMENTS[self.environment], **cache}
        worker = self.stack.enter_context(Worker("benchmarks.worker", [], variables))
        setup = self.setup
        task = Task(
            measurement.variant,
            self.job,
            setup.model,
            str(setup.folder),
            setup.device,
            measurement.batch_size,
            setup.sizes.steps,
        )
        worker.tell(task.text())
        return worker

    def warm_up(self) -> None:
        """Start and run each worker; if memory cannot hold all of them, they rest between runs."""
        limit = USABLE * available_memory()
        needed = 0
        for measurement in self.measurements:
            with noting_failure(measurement):
                worker = self.workers[measurement] = self.start(measurement)
                measurement.first, _ = worker.run()
                needed += worker.rest()
        self.crowded = needed > limit
        # A long ascent needs no further warm-up.
        warm = self.crowded or self.job == "pga"
        for measurement in [] if warm else working(self.measurements):
            with noting_failure(measurement):
                self.workers[measurement].run()

    def run_each(self) -> None:
        """Time each worker once; a worker that had to rest first runs untimed, to regain memory."""
        for measurement in working(self.measurements):
            with noting_failure(measurement):
                worker = self.workers[measurement]
                if self.crowded:
                    worker.run()
                begun, seconds = worker.run()
                measurement.begun.append(begun)
                measurement.seconds.append(seconds)
                if self.crowded:
                    worker.rest()

    def finish(self) -> None:
        """Collect the result and the memory use of each worker, and end it."""
        for number, measurement in enumerate(self.measurements):
            if measurement.failure:
                continue
            with noting_failure(measurement):
                name = f"{self.job}-{self.environment}-{number}.npz"
                measurement.result = self.setup.folder / name
                worker = self.workers[measurement]
                measurement.peak, measurement.imported = worker.finish(measurement.result)
            self.workers[measurement].close()

    def measure_cached(self) -> None:
        """Time the first run of a new process that reuses what the first process compiled."""
        for measurement in working(self.measurements):
            if measurement.variant.compiles:
                with noting_failure(measurement), self.start(measurement) as worker:
                    measurement.cached, _ = worker.run()


def working(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The measurements without a failure."""
    return [measurement for measurement in measurements if not measurement.failure]


@contextlib.contextmanager
def noting_failure(measurement: Measurement) -> Iterator[None]:
    """If a worker fails, record the reason and continue."""
    try:
        yield
    except WorkerError as error:
        measurement.failure = str(error)
