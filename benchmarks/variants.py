"""The compared variants: the PyTorch references and this library, each with its settings."""

import dataclasses
import json
from typing import Any, Literal

from benchmarks.jobs import JobName

GRIDS: tuple[JobName, ...] = ("grid", "pga")
SINGLES: tuple[JobName, ...] = ("latency", "throughput")

Device = Literal["cpu", "gpu"]
Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to do a job.

    Attributes:
        name: its name in the table and on the command line.
        framework: the framework of its process.
        method: which of the framework's methods it uses.
        jobs: the jobs that it supports.
        shares: the jobs in which the classes of an image share a forward pass.
        batch_size: cells per batch in a grid; None means all in PyTorch, automatic in this library.
        dtype: the dtype of weights and images.
        compiles: whether it compiles programs and caches them.
        optional: if it cannot run, the table has a row for this, and the run does not fail.
    """

    name: str
    framework: Literal["torch", "jax"]
    method: str
    jobs: tuple[JobName, ...] = (*GRIDS, *SINGLES)
    shares: tuple[JobName, ...] = ()
    batch_size: int | None = None
    dtype: Dtype = "float32"
    compiles: bool = False
    optional: bool = False


PUBLISHED = Variant("A as published", "torch", "published")
TUNED = Variant("B tuned", "torch", "tuned")
SHARED = Variant("B shared", "torch", "shared", jobs=GRIDS, shares=GRIDS)
COMPILED = Variant("B compiled", "torch", "compiled", compiles=True, optional=True)
REFERENCES = (PUBLISHED, TUNED, SHARED, COMPILED)

OURS = Variant("ours", "jax", "ours", shares=GRIDS, compiles=True)
OURS_WHOLE = dataclasses.replace(OURS, name="ours, all at once", jobs=("grid",), batch_size=1000)

# Batch sizes that `throughput` tries, besides all images in one batch; the best is measured.
BATCH_SIZES: dict[Device, tuple[int, ...]] = {"cpu": (1, 6), "gpu": (8, 32, 128)}

_FLOAT32 = (*REFERENCES, OURS, OURS_WHOLE)


def variants(device: Device) -> tuple[Variant, ...]:
    """All variants; on a GPU, which has fast bfloat16 arithmetic, also in bfloat16.

    On a CPU, compilation makes a PyTorch grid only slightly faster. Compiled PyTorch is therefore
    left out of PGA, which takes long.
    """
    if device == "cpu":
        short = dataclasses.replace(COMPILED, jobs=("grid", *SINGLES))
        return tuple(short if variant is COMPILED else variant for variant in _FLOAT32)
    return (*_FLOAT32, *(in_bfloat16(variant) for variant in _FLOAT32))


def in_bfloat16(variant: Variant) -> Variant:
    """The same variant in bfloat16."""
    return dataclasses.replace(variant, name=f"{variant.name}, bfloat16", dtype="bfloat16")


def reference_name(reference: Variant, variant: Variant) -> str:
    """The name of a reference in the dtype of a variant."""
    return (reference if variant.dtype == "float32" else in_bfloat16(reference)).name


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of a worker.

    Attributes:
        variant: the variant to run.
        job: the job to do.
        model: the name of the network.
        folder: the folder with its weights, images and classes.
        device: the device to run on.
        batch_size: cells or images per batch; None as for `Variant`.
        steps: the number of steps of PGA.
    """

    variant: Variant
    job: JobName
    model: str
    folder: str
    device: Device
    batch_size: int | None
    steps: int

    def text(self) -> str:
        """The command to build the task, as a line of JSON."""
        return json.dumps({"do": "task", **dataclasses.asdict(self)})

    @staticmethod
    def parse(command: dict[str, Any]) -> "Task":
        """The task of a command that `text` wrote."""
        fields = {name: value for name, value in command.items() if name != "do"}
        return Task(**{**fields, "variant": Variant(**fields["variant"])})
