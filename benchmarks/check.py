"""Checks results: their distance to float64, compared with that of the published reference."""

import dataclasses
from pathlib import Path

import numpy as np

from benchmarks.jobs import RADIUS, STEP_SIZE, JobName, as_cells

# Our distance to the float64 result may be FACTOR times that of the reference, plus SLACK.
FACTOR, SLACK = 1.5, 1e-6
# The largest error of any variant, by precision.
LIMITS = {"float32": 1e-4, "TF32": 0.1, "bfloat16": 0.5}
# On average, PGA must raise the logits of the classes by this fraction of the reference's rise.
RISE = 0.9


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The accuracy of a result.

    Attributes:
        error: relative L2 distance to float64, of the vector fields; for PGA, of its first step,
            because rounding differences make further steps diverge chaotically, or None if the
            worker did not write that step.
        rise: for PGA, the mean rise of the logits of the classes.
    """

    error: float | None
    rise: float | None = None


def error_of(job: JobName, result: Path, folder: Path) -> float | None:
    """The error of a worker's results, as in `Accuracy`.

    Args:
        job: the job that gave the results.
        result: the worker's file.
        folder: the folder with the images, classes and fields in float64.
    """
    fields = np.load(folder / "fields.npy")
    with np.load(result) as arrays:
        if job == "latency":
            return relative_error(arrays["result"], fields[:1])
        if job != "pga":
            return relative_error(arrays["result"], fields)
        cells, _ = as_cells(np.load(folder / "images.npy"), np.load(folder / "classes.npy"))
        if not is_inside(arrays["result"], cells):
            return float("inf")
        if "first_step" not in arrays:
            return None
        return relative_error(arrays["first_step"] - cells, first_step(cells, fields) - cells)


def is_inside(found: np.ndarray, x: np.ndarray) -> bool:
    """Whether ascended images are in the ball around `x` and in the bounds, up to rounding."""
    distances = np.linalg.norm((found - x).reshape(len(x), -1), axis=1)
    return bool(distances.max() <= RADIUS * 1.001 and np.abs(found).max() <= 1.001)


def first_step(x: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """Images after one step of PGA along vector fields `[N, H, W, 3]`."""
    assert STEP_SIZE <= RADIUS
    norms = np.linalg.norm(fields.reshape(len(fields), -1), axis=1)
    return np.clip(x + STEP_SIZE * fields / norms[:, None, None, None], -1, 1)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """L2 norm of the difference, relative to `wanted`; infinite if the shapes differ."""
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.linalg.norm(found - wanted.astype(np.float64)) / np.linalg.norm(wanted))


def complaint(found: Accuracy, reference: Accuracy | None, precision: str, *, is_ours: bool) -> str:
    """A description of what is wrong with a result; empty if nothing is wrong.

    Args:
        found: its accuracy.
        reference: the accuracy of the published reference in the same precision, if it ran.
        precision: a key of `LIMITS`.
        is_ours: whether the result must be as accurate as the reference. PyTorch's kernels differ
            from each other by more, so its other variants only have to meet `LIMITS`.
    """
    limit = LIMITS[precision]
    if is_ours and reference is not None and reference.error is not None:
        limit = min(limit, FACTOR * reference.error + SLACK)
    if found.error is not None and not found.error <= limit:
        return f"error {found.error:.1e} is above {limit:.1e}"
    if found.rise is None or reference is None or reference.rise is None:
        return ""
    if not found.rise >= RISE * reference.rise:
        return f"logits rose by {found.rise:.2f}, those of the reference by {reference.rise:.2f}"
    return ""
