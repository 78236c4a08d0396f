"""Shared parts of surrogate gradients: a mark, dtypes, temperature shapes, `vmap` outputs."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from jax_excite.errors import GatingError
from jax_excite.gating import check_temperature
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


@runtime_checkable
class Soft(Protocol):
    """A function whose ordinary derivative is the soft-gated one of a site; it is hashable."""

    @property
    def kind(self) -> str:
        """The kind of gate."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        """The output, whose value is not used."""
        ...


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def with_derivative_of(soft: Soft, hard: jax.Array, z: jax.Array, *args: Any) -> jax.Array:
    """`hard`, with the derivative of `soft(z, *args)`.

    If there is a temperature among the arguments, `hard` has to be `batched_with` it.
    """
    return marked(hard, soft.kind)


def _with_derivative_of_fwd(
    soft: Soft, hard: jax.Array, *args: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return with_derivative_of(soft, hard, *args), args


def _with_derivative_of_bwd(
    soft: Soft, args: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[Any, ...]:
    output, transpose = jax.vjp(soft, *args)
    return None, *transpose(cotangent.astype(output.dtype))


with_derivative_of.defvjp(_with_derivative_of_fwd, _with_derivative_of_bwd)


def surrogate(
    soft: Soft, plain: Callable[[jax.Array], jax.Array], z: jax.Array, temperature: ArrayLike
) -> jax.Array:
    """`plain(z)`, bit for bit, with the derivative of `soft(z, temperature)`."""
    z = jnp.asarray(z)
    check_temperature(temperature)
    (temperature,) = parameters(z, temperature)
    check_broadcasts(temperature, z.shape)
    hard = batched_with(plain(lax.stop_gradient(z)), temperature)
    return with_derivative_of(soft, hard, z, temperature)
