"""Data parallelism: images are spread over devices, and each device has some rows of the batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from jax_excite.errors import ImageError


def sharding_of(x: Any, sharding: NamedSharding | None) -> NamedSharding | None:
    """The sharding of the rows of a batch: the requested one, or if there is none, their own.

    Returns:
        A sharding of the first axis only; None if `x` is on one device or replicated on all. The
        first array of a pytree decides.

    Raises:
        ImageError: the requested sharding does not spread the batch axis.
    """
    asked = sharding is not None
    first = jax.tree.leaves(x)[0]
    if not asked and isinstance(first, jax.Array):
        # The sharding of a traced array is known if the mesh has axes of the type Explicit.
        found = jax.typeof(first).sharding if isinstance(first, Tracer) else first.sharding
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
    """Place rows of pytrees on their devices, padded with the last row to divide evenly.

    Callable operands are returned unchanged.
    """
    if sharding is None:
        return operands
    shards = shards_of(sharding)

    def placed(operand: Any) -> Any:
        count = len(operand)
        if count % shards:
            filled = math.ceil(count / shards) * shards
            operand = operand[np.minimum(np.arange(filled), count - 1)]
        return jax.device_put(operand, sharding)

    return tuple(o if callable(o) else jax.tree.map(placed, o) for o in operands)


def gathered(sharding: NamedSharding | None, results: Any, count: int, single: bool) -> Any:
    """The first `count` rows of results `[rows, ...]`, or only the first row, without its axis.

    If no row is left out, results stay where they are. Otherwise they are replicated on all
    devices.
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
    """Call `compute(*shared, *operands)` on each device for its own rows of the operands.

    There is no communication between devices: each device computes its results from its own rows
    and from `shared`, which is available on all devices.
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
    """The number of parts that the rows are spread over."""
    if sharding is None:
        return 1
    axes = sharding.spec[0]
    names = axes if isinstance(axes, tuple) else (axes,)
    return math.prod(sharding.mesh.shape[name] for name in names)
