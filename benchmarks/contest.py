"""The processes that compete in one job: started, run in turns, one at a time, and ended."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.jobs import JobName, Sizes
from benchmarks.variants import Device, Task, Variant
from benchmarks.workers import ENVIRONMENTS, Worker, WorkerError, available_memory, caching

USABLE = 0.7  # part of the available memory that idle workers may fill

# A variant, and cells or images at a time: None for all in PyTorch, for its own choice here.
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
        batch_size: cells or images at a time; None for all in PyTorch, for its own choice here.
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
        """A worker that has its network, and a folder for what it compiles."""
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
        """Start and run each; where memory cannot hold them all, they rest between runs."""
        limit = USABLE * available_memory()
        needed = 0
        for measurement in self.measurements:
            with noting_failure(measurement):
                worker = self.workers[measurement] = self.start(measurement)
                measurement.first, _ = worker.run()
                needed += worker.rest()
        self.crowded = needed > limit
        # A long ascent warms itself.
        warm = self.crowded or self.job == "pga"
        for measurement in [] if warm else working(self.measurements):
            with noting_failure(measurement):
                self.workers[measurement].run()

    def run_each(self) -> None:
        """One round: each once, after a run that gets it its memory back if it had to rest."""
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
        """Take results and memory, and end each."""
        for number, measurement in enumerate(self.measurements):
            if measurement.failure:
                continue
            with noting_failure(measurement):
                name = f"{self.job}-{self.environment}-{number}.npz"
                measurement.result = self.setup.folder / name
                finish = {"do": "finish", "out": str(measurement.result)}
                answer = self.workers[measurement].tell(json.dumps(finish))
                measurement.peak, measurement.imported = answer["peak"], answer["imported"]
            self.workers[measurement].close()

    def measure_cached(self) -> None:
        """The first run of another process, which finds what the first one compiled."""
        for measurement in working(self.measurements):
            if measurement.variant.compiles:
                with noting_failure(measurement), self.start(measurement) as worker:
                    measurement.cached, _ = worker.run()


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
