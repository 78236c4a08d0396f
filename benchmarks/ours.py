"""This library's side of the comparison, with public functions only and without torch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jax_excite
from benchmarks.jobs import RADIUS, STEP_SIZE, JobName, as_cells
from benchmarks.variants import Device, Task


def prepare(device: Device) -> None:
    """Select the device, and TF32 for matrix products on a GPU.

    Raises:
        RuntimeError: JAX finds no GPU.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    else:
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")
        jax.devices("gpu")


class Runner:
    """A network and images on the device, and one job to do with them."""

    def __init__(self, task: Task):
        self.job: JobName = task.job
        self.batch_size = task.batch_size
        dtype = jnp.dtype(task.variant.dtype)
        folder = Path(task.folder)
        weights = folder / "weights.safetensors"
        self.params = jax_excite.load(task.model, weights=weights, dtype=dtype)
        images, self.classes = np.load(folder / "images.npy"), np.load(folder / "classes.npy")
        cells, self.targets = as_cells(images, self.classes)
        self.images = jnp.asarray(images, dtype)
        self.cells = jnp.asarray(cells, dtype) if task.job == "throughput" else self.images

    def run(self, steps: int) -> jax.Array:
        """Start the job; compilation has finished when this returns."""
        params, images, batch_size = self.params, self.images, self.batch_size
        if self.job == "grid":
            return jax_excite.pullback_grid(params, images, self.classes, batch_size=batch_size)
        if self.job == "pga":
            return jax_excite.pga_grid(
                params,
                images,
                self.classes,
                jax_excite.Ascent(steps, STEP_SIZE, RADIUS),
                batch_size=batch_size,
            )
        if self.job == "latency":
            return jax_excite.pullback(params, images[0], int(self.classes[0]))
        return jax_excite.pullback(params, self.cells, self.targets, batch_size=batch_size)

    def wait(self, result: jax.Array) -> None:
        """Return when the job is done."""
        jax.block_until_ready(result)

    def fetch(self, result: jax.Array) -> np.ndarray:
        """The result as float32, one row per cell."""
        array = np.asarray(result.astype(jnp.float32))
        return array.reshape(-1, *array.shape[-3:])


def device_peak(device: Device) -> int | None:
    """Peak bytes of the device's memory, or None if it has no memory of its own."""
    if device == "cpu":
        return None
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
