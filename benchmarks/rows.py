"""Computes the rows of the table from measurements."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from benchmarks import variants
from benchmarks.check import Accuracy, complaint
from benchmarks.contest import Measurement, Setup
from benchmarks.jobs import JobName, describe, gflop, pullbacks

REFERENCES = {
    "A": variants.PUBLISHED,
    "B": variants.TUNED,
    "B shared": variants.SHARED,
    "B compiled": variants.COMPILED,
}


@dataclasses.dataclass
class Row:
    """One line of the table.

    Attributes:
        model: the network.
        job: the job in words.
        environment: a key of `workers.ENVIRONMENTS`.
        variant: the name of the variant.
        batch_size: cells or images per batch; None means all in PyTorch, automatic in this library.
        complaint: why the row is invalid; empty if it is valid.
        failed: whether the complaint fails the run.
        seconds: the duration of each round; empty, like all that follows, if the variant did not
            run.
        ratios: for each reference, its seconds divided by these, by round.
        per_second: vector fields per second; in PGA, cells per second.
        peak: the peak resident memory of the process in bytes; on a GPU, of the GPU's memory.
        imported: bytes resident after the imports.
        cold: seconds until the first run had begun, minus those of a later run: compilation.
        cached: the same with a filled cache of compiled programs, if there is one.
        gflop: the work; where forward passes are shared, without those that are saved.
        unshared_gflop: the work of the plain algorithm.
        share: the rate of this work, as a fraction of that of matrix products in the same dtype.
        error: the error of `Accuracy`.
        rise: the rise of `Accuracy`.
    """

    model: str
    job: str
    environment: str
    variant: str
    batch_size: int | None
    complaint: str
    failed: bool
    seconds: list[float] = dataclasses.field(default_factory=list)
    ratios: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    per_second: float | None = None
    peak: int = 0
    imported: int = 0
    cold: float = 0.0
    cached: float | None = None
    gflop: float = 0.0
    unshared_gflop: float = 0.0
    share: float = 0.0
    error: float | None = None
    rise: float | None = None


def make_rows(
    setup: Setup,
    job: JobName,
    environment: str,
    measurements: Sequence[Measurement],
    accuracies: Mapping[Measurement, Accuracy],
    rates: Mapping[str, float],
    forward: float,
) -> list[Row]:
    """One row per measurement of one job in one environment.

    Args:
        setup: the setup of the model.
        job: the job.
        environment: the environment.
        measurements: the measurements of all variants.
        accuracies: the accuracies of the measurements that have a result.
        rates: GFLOP/s of matrix products by dtype.
        forward: GFLOP of one image's forward pass.
    """
    by_name = {measurement.variant.name: measurement for measurement in measurements}
    rows = []
    for measurement in measurements:
        variant = measurement.variant
        row = Row(
            setup.model,
            describe(job, setup.sizes),
            environment,
            variant.name,
            measurement.batch_size,
            measurement.failure,
            bool(measurement.failure) and not variant.optional,
        )
        rows.append(row)
        if measurement.failure:
            continue
        reference = by_name.get(variants.reference_name(variants.PUBLISHED, variant))
        accuracy = accuracies[measurement]
        known = accuracies.get(reference) if reference is not None else None
        row.complaint = complaint(
            accuracy, known, precision(setup, variant), is_ours=variant.framework == "jax"
        )
        row.failed = bool(row.complaint)
        row.error, row.rise = accuracy.error, accuracy.rise
        row.seconds = measurement.seconds
        row.ratios = ratios(measurement, by_name)
        seconds = statistics.median(measurement.seconds)
        row.per_second = pullbacks(job, setup.sizes) / seconds
        row.peak, row.imported = measurement.peak, measurement.imported
        begun = statistics.median(measurement.begun)
        row.cold = max(0.0, measurement.first - begun)
        if measurement.cached is not None:
            row.cached = max(0.0, measurement.cached - begun)
        row.gflop = gflop(job, setup.sizes, forward, job in variant.shares)
        row.unshared_gflop = gflop(job, setup.sizes, forward, shared=False)
        row.share = row.gflop / seconds / rates[variant.dtype]
    return rows


def precision(setup: Setup, variant: variants.Variant) -> str:
    """The arithmetic that a variant uses, a key of `check.LIMITS`."""
    return "TF32" if setup.device == "gpu" and variant.dtype == "float32" else variant.dtype


def ratios(measurement: Measurement, by_name: Mapping[str, Measurement]) -> dict[str, list[float]]:
    """The seconds of each reference divided by those of a measurement, by round."""
    found = {}
    for name, reference in REFERENCES.items():
        other = by_name.get(variants.reference_name(reference, measurement.variant))
        if other is not None and other is not measurement and not other.failure:
            pairs = zip(other.seconds, measurement.seconds, strict=True)
            found[name] = [theirs / own for theirs, own in pairs]
    return found
