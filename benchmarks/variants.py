"""What is compared: the references in PyTorch and this library, each under its settings."""

import dataclasses
import json
from typing import Literal

from benchmarks.jobs import JobName

GRIDS: tuple[JobName, ...] = ("grid", "pga")
SINGLES: tuple[JobName, ...] = ("latency", "throughput")

Device = Literal["cpu", "gpu"]
Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to do a job.

    Attributes:
        name: what the table and the command line call it.
        framework: whose process it runs in.
        method: which of the framework's ways it is.
        jobs: the jobs that it is for.
        shares: those of them in which the classes of an image share a forward pass.
        batch_size: cells at a time in a grid; None for all in PyTorch, for what it chooses here.
        dtype: of weights and images.
        compiles: it has something to compile, and a cache for it.
        optional: that it cannot run is a row of the table, not a failure of the run.
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

# Batch sizes that `throughput` tries beside all images at once; the best is measured.
BATCH_SIZES: dict[Device, tuple[int, ...]] = {"cpu": (1, 6), "gpu": (8, 32, 128)}

_FLOAT32 = (*REFERENCES, OURS, OURS_WHOLE)


def variants(device: Device) -> tuple[Variant, ...]:
    """All variants: in bfloat16 too on a GPU, which has fast arithmetic for it.

    On a CPU compiling gains PyTorch little in a grid, so that it is left out of PGA, which is long.
    """
    if device == "cpu":
        short = dataclasses.replace(COMPILED, jobs=("grid", *SINGLES))
        return tuple(short if variant is COMPILED else variant for variant in _FLOAT32)
    return (*_FLOAT32, *(in_bfloat16(variant) for variant in _FLOAT32))


def in_bfloat16(variant: Variant) -> Variant:
    """The same in bfloat16."""
    return dataclasses.replace(variant, name=f"{variant.name}, bfloat16", dtype="bfloat16")


def reference_name(reference: Variant, variant: Variant) -> str:
    """What the reference of a variant is called: the one in its dtype."""
    return (reference if variant.dtype == "float32" else in_bfloat16(reference)).name


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker is to do.

    Attributes:
        variant: how.
        job: what.
        model: with which network.
        folder: where its weights, images and classes are.
        device: on what.
        batch_size: cells or images at a time; None as for `Variant`.
        steps: of PGA.
    """

    variant: Variant
    job: JobName
    model: str
    folder: str
    device: Device
    batch_size: int | None
    steps: int

    def text(self) -> str:
        """The task as a line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def parse(line: str) -> "Task":
        """The task that `text` made the line of."""
        fields = json.loads(line)
        return Task(**{**fields, "variant": Variant(**fields["variant"])})
