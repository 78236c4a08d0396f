"""The jobs that are timed, their sizes, and their work in multiply-adds."""

import dataclasses
import math
from typing import Literal

import numpy as np

JobName = Literal["grid", "pga", "latency", "throughput"]

JOBS: dict[JobName, str] = {
    "grid": "one-step class grid",
    "pga": "PGA grid",
    "latency": "pullback of a single image",
    "throughput": "pullbacks of a stream of images",
}

STEP_SIZE, RADIUS = 20.0, 100.0  # of PGA


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of a job: images, classes per image, pixels per side, and steps of PGA."""

    images: int = 5
    classes: int = 6
    size: int = 224
    steps: int = 10

    @property
    def cells(self) -> int:
        """The number of images times the number of classes."""
        return self.images * self.classes

    def class_indices(self) -> list[int]:
        """The chosen classes, spread evenly over ImageNet's 1000 classes."""
        return [int(c) for c in np.linspace(0, 999, self.classes).round()]


def describe(job: JobName, sizes: Sizes) -> str:
    """The job in words, with its size."""
    if job == "latency":
        return JOBS[job]
    if job == "throughput":
        return f"{JOBS[job]}, {sizes.cells} images"
    steps = f"{sizes.steps}-step " if job == "pga" else ""
    return f"{steps}{JOBS[job]}, {sizes.images} images x {sizes.classes} classes"


def pullbacks(job: JobName, sizes: Sizes) -> int:
    """The number of vector fields in the job; all PGA steps of one cell count as one."""
    return 1 if job == "latency" else sizes.cells


def rounds_of(job: JobName, rounds: int) -> int:
    """How often a job is timed: half as often for PGA, whose steps repeat a pullback."""
    return math.ceil(rounds / 2) if job == "pga" else rounds


def gflop(job: JobName, sizes: Sizes, forward: float, shared: bool) -> float:
    """The work of a job in GFLOP, two for each multiply-add of a convolution or matrix product.

    Args:
        job: the job.
        sizes: its size.
        forward: the GFLOP of one image's forward pass. The input gradient costs the same: it has
            the same multiply-adds in a different order.
        shared: whether the classes of an image share one forward pass (in PGA, that of the first
            step).
    """
    steps = sizes.steps if job == "pga" else 1
    saved = sizes.cells - sizes.images if shared else 0
    return forward * (2 * steps * pullbacks(job, sizes) - saved)


def as_cells(images: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image once per class `[N * C, H, W, 3]`, and the class of each cell `[N * C]`."""
    return np.repeat(images, len(classes), axis=0), np.tile(classes, len(images))
