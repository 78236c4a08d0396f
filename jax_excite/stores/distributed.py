"""Several processes of one run, on one or several hosts, through the distributed runtime of JAX."""

import time

import jax

from jax_excite.errors import ExciteError
from jax_excite.stores.filling import Job

_SECONDS_BETWEEN_LOOKS = 0.5


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the other processes. Call this before any computation.

    Args:
        coordinator: `HOST:PORT` of process 0. If None, all three values come from the scheduler
            (SLURM, Open MPI) or the cloud.
        processes: the number of processes.
        process: the index of this process, from 0.

    Raises:
        ExciteError: only some of the three are given, or `process` is out of its range.
    """
    given = (coordinator, processes, process)
    if any(each is None for each in given) and any(each is not None for each in given):
        raise ExciteError("give --coordinator, --processes and --process together, or none of them")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ExciteError(
            f"--process is {process}: there are {processes} processes, numbered from 0"
        )
    jax.distributed.initialize(coordinator, processes, process)


def part_of_process(shard: int, shards: int) -> tuple[int, int]:
    """This process's part of a store, and the number of parts: each shard is split by process."""
    count = jax.process_count()
    return (shard - 1) + jax.process_index() * shards + 1, shards * count


def wait_for_others(job: Job, shard: int, shards: int) -> None:
    """Wait until all processes of a shard are done, because JAX ends all if one ends early.

    If a process is lost, the heartbeat of JAX ends this process too.
    """
    while jax.process_count() > 1 and job.left(shard, shards):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
