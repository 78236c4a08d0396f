"""Images spread over devices: data-parallel, each device with rows of the batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from jax_excite.errors import ImageError


def sharding_of(x: Any, sharding: NamedSharding | None) -> NamedSharding | None:
    """How the rows of a batch are to be spread: as asked for, or else as they are.

    Returns:
        A sharding of the first axis alone; None where it is on one device, or the same on all.

    Raises:
        ImageError: the batch axis of what is asked for is not spread.
    """
    asked = sharding is not None
    if not asked and isinstance(x, jax.Array):
        # Of a traced array this is known where the mesh has axes of the type Explicit.
        found = jax.typeof(x).sharding if isinstance(x, Tracer) else x.sharding
        sharding = found if isinstance(found, NamedSharding) else None
    if sharding is None:
        return None
    axis = sharding.spec[0] if sharding.spec else None
    if axis is None:
        if asked:
            raise ImageError(
                f"sharding is {sharding}, which does not spread the batch: name a mesh axis "
                'first, as in NamedSharding(mesh, PartitionSpec("data"))'
            )
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(axis))


def spread(sharding: NamedSharding | None, *operands: Any) -> tuple[Any, ...]:
    """The rows of the arrays on their devices, filled up with the last row to divide evenly.

    Operands that are callable stay as they are.
    """
    if sharding is None:
        return operands
    shards = shards_of(sharding)

    def placed(operand: Any) -> Any:
        if callable(operand):
            return operand
        count = len(operand)
        if count % shards:
            filled = math.ceil(count / shards) * shards
            operand = operand[np.minimum(np.arange(filled), count - 1)]
        return jax.device_put(operand, sharding)

    return tuple(map(placed, operands))


def gathered(sharding: NamedSharding | None, results: Any, count: int, single: bool) -> Any:
    """The first rows of results `[rows, ...]`, or the first alone, without its axis.

    Results of which none is left out stay where they are; else all devices get all.
    """

    def pick(part: jax.Array) -> jax.Array:
        if len(part) == count and not single:
            return part
        if sharding is not None:
            part = jax.device_put(part, NamedSharding(sharding.mesh, PartitionSpec()))
        return part[0] if single else part[:count]

    return jax.tree.map(pick, results)


def on_each(
    compute: Callable[..., Any],
    sharding: NamedSharding | None,
    shared: Sequence[Any],
    operands: Sequence[Any],
) -> Any:
    """`compute(*shared, *operands)`, by each device for its own rows of the operands.

    Nothing passes between devices: what a device computes it computes from its rows and from
    `shared`, which all have.
    """
    if sharding is None:
        return compute(*shared, *operands)
    everywhere, rows = PartitionSpec(), sharding.spec
    specs = (
        *(everywhere for _ in shared),
        *(everywhere if callable(operand) else rows for operand in operands),
    )
    return jax.shard_map(
        compute, mesh=sharding.mesh, in_specs=specs, out_specs=rows, check_vma=False
    )(*shared, *operands)


def shards_of(sharding: NamedSharding | None) -> int:
    """Into how many parts the rows are spread."""
    if sharding is None:
        return 1
    axes = sharding.spec[0]
    names = axes if isinstance(axes, tuple) else (axes,)
    return math.prod(sharding.mesh.shape[name] for name in names)
