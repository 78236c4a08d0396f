"""Times the variants of one job, and finds the best batch size of each."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence

from benchmarks.contest import Contest, Contestant, Measurement, Setup
from benchmarks.jobs import JobName
from benchmarks.variants import BATCH_SIZES, Variant


def measure(
    setup: Setup,
    job: JobName,
    environment: str,
    contestants: Sequence[Contestant],
) -> tuple[list[Measurement], dict[str, float]]:
    """Time a job.

    Args:
        setup: the setup of the model.
        job: the job.
        environment: a key of `ENVIRONMENTS`.
        contestants: the variants, each with its batch size.

    Returns:
        One measurement per contestant, and the rate of matrix products in GFLOP/s by dtype (the
        best of all rounds).
    """
    with contextlib.ExitStack() as stack:
        contest = Contest(setup, job, environment, contestants, stack)
        contest.warm_up()
        best: dict[str, float] = {}
        for _ in range(setup.rounds):
            for dtype, rate in contest.products.tell("rates").items():
                best[dtype] = max(rate, best.get(dtype, 0.0))
            contest.run_each()
        contest.finish()
        contest.measure_cached()
    return contest.measurements, best


def contestants(
    setup: Setup, job: JobName, environment: str, variants: Sequence[Variant]
) -> list[Contestant]:
    """The variants for a job, each with its batch size (in `throughput`, the fastest tried)."""
    able = [variant for variant in variants if job in variant.jobs]
    if job != "throughput":
        return [(variant, variant.batch_size) for variant in able]
    return [_best_batch_size(setup, environment, variant) for variant in able]


def _best_batch_size(setup: Setup, environment: str, variant: Variant) -> Contestant:
    sizes = [size for size in BATCH_SIZES[setup.device] if size < setup.sizes.cells]
    candidates: list[Contestant] = [(variant, size) for size in (*sizes, setup.sizes.cells)]
    once = dataclasses.replace(setup, rounds=1)
    tried, _ = measure(once, "throughput", environment, candidates)
    best = min(tried, key=lambda trial: min(trial.seconds, default=math.inf))
    return variant, best.batch_size
