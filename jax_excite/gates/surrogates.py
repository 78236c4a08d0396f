"""Shared parts of surrogate gradients: a mark, dtypes, temperature shapes, `vmap` outputs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from jax_excite.errors import GatingError
from jax_excite.graphs.graph import Node

# A surrogate gives its output a name: this prefix, followed by the kind of gate.
_MARK = "jax_excite.surrogate:"


def parameters(z: jax.Array, *values: ArrayLike) -> tuple[jax.Array, ...]:
    """Temperatures and slopes as arrays of the dtype in which the gates of `z` are computed."""
    return tuple(jnp.asarray(value).astype(compute_dtype(z.dtype)) for value in values)


def compute_dtype(dtype: Any) -> Any:
    """The dtype in which gates are computed: at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def batched_with(hard: jax.Array, *parameters: jax.Array) -> jax.Array:
    """`hard`, as an output that depends on the parameters.

    Without this dependence, `vmap` over temperatures treats the output as one that all
    temperatures share, and sums their cotangents before they reach the backward pass.
    """
    for parameter in parameters:
        known = jnp.broadcast_to(parameter >= 0, hard.shape)
        hard = lax.select(known, hard, hard)
    return hard


def check_broadcasts(temperature: jax.Array, shape: tuple[int, ...]) -> None:
    """Raise `GatingError` unless a temperature broadcasts to the pre-activation's shape."""
    try:
        fits = np.broadcast_shapes(temperature.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise GatingError(
            f"a temperature of shape {temperature.shape} does not broadcast to its site's "
            f"shape {shape}"
        )


def marked(output: jax.Array, kind: str) -> jax.Array:
    """The output of a surrogate, with a mark by which a later trace recognises it as soft."""
    return checkpoint_name(output, _MARK + kind)


def marked_kind(node: Node) -> str | None:
    """The kind of gate that a surrogate node computes; None for any other node."""
    if not node.has_derivative_rule:
        return None
    names = [inner.params["name"] for inner in node.bodies[0].nodes if inner.name == "name"]
    kinds = [name.removeprefix(_MARK) for name in names if name.startswith(_MARK)]
    return kinds[0] if kinds else None
