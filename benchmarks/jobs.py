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
    """How large a job is: images, classes for each, pixels of a side, and steps of PGA."""

    images: int = 5
    classes: int = 6
    size: int = 224
    steps: int = 10

    @property
    def cells(self) -> int:
        """Images times classes."""
        return self.images * self.classes

    def class_indices(self) -> list[int]:
        """That many of ImageNet's 1000 classes, spread evenly."""
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
    """How many vector fields the job computes; those of one cell's PGA steps count once."""
    return 1 if job == "latency" else sizes.cells


def rounds_of(job: JobName, rounds: int) -> int:
    """How often a job is timed: PGA, whose steps repeat a pullback, half as often as others."""
    return math.ceil(rounds / 2) if job == "pga" else rounds


def gflop(job: JobName, sizes: Sizes, forward: float, shared: bool) -> float:
    """The work of a job in GFLOP, two for each multiply-add of a convolution or matrix product.

    Args:
        job: the job.
        sizes: its size.
        forward: the GFLOP of one image's forward pass. The input gradient costs the same: it has
            the same multiply-adds, in another order.
        shared: the classes of an image share one forward pass, in PGA that of the first step.
    """
    steps = sizes.steps if job == "pga" else 1
    saved = sizes.cells - sizes.images if shared else 0
    return forward * (2 * steps * pullbacks(job, sizes) - saved)


def as_cells(images: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image once for each class `[N * C, H, W, 3]`, and the class of each `[N * C]`."""
    return np.repeat(images, len(classes), axis=0), np.tile(classes, len(images))
