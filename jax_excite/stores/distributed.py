"""Several processes of one run, on one host or on many, by JAX's own runtime."""

import time

import jax

from jax_excite.errors import ExciteError
from jax_excite.stores.filling import Job

_SECONDS_BETWEEN_LOOKS = 0.5


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the other processes; has to come before any computation.

    Args:
        coordinator: `HOST:PORT` of process 0; without it the scheduler (SLURM, Open MPI) or the
            cloud tells all three.
        processes: how many there are.
        process: which one this is, from 0.

    Raises:
        ExciteError: some of the three are missing, or do not fit.
    """
    given = (coordinator, processes, process)
    if any(each is None for each in given) and any(each is not None for each in given):
        raise ExciteError("give --coordinator, --processes and --process together, or none of them")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ExciteError(f"--process is {process}: there are {processes}, from 0")
    jax.distributed.initialize(coordinator, processes, process)


def part_of_process(shard: int, shards: int) -> tuple[int, int]:
    """The part of a store that is this process's, of how many: a shard is cut once more."""
    count = jax.process_count()
    return (shard - 1) + jax.process_index() * shards + 1, shards * count


def wait_for_others(job: Job, shard: int, shards: int) -> None:
    """Wait until all processes of a shard are done: JAX ends them all where one ends early.

    A process that is lost ends this one too, by JAX's own heartbeat.
    """
    while jax.process_count() > 1 and job.left(shard, shards):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
