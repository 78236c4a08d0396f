"""SiLU, also known as swish: `z * sigmoid(z)`."""

import dataclasses
from typing import ClassVar

import jax
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_excite.gates.self_gated import Activation, SelfGated, Softened
from jax_excite.gates.surrogates import surrogate
from jax_excite.graphs.profiles import special

SILU = Activation(
    form="z * sigmoid(z)",
    gate=jax.nn.sigmoid,
    soft=jax.nn.sigmoid,
    in_numpy=special("expit"),
    inverse=special("logit"),
    primitives=frozenset({"logistic", "exp", "exp2", "tanh"}),
)


def gated_silu(z: jax.Array, temperature: ArrayLike = 1.6) -> Float[jax.Array, "*Z"]:
    """SiLU whose gradient is multiplied by `sigmoid(z / T)`, without the gate's own derivative.

    The rule and the default are those of the paper's 2026 successor.

    Args:
        z: pre-activation, any shape, any float dtype.
        temperature: at least 0, traced, broadcastable to `z`; 0 is the hard gate.

    Returns:
        `jax.nn.silu(z)`, bit for bit; the cotangent of `z` has its shape and dtype.

    Raises:
        GatingError: the temperature is negative or does not broadcast to `z`.
    """
    return surrogate(Softened("silu", SILU), jax.nn.silu, z, temperature)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Silu(SelfGated):
    """SiLU, with any slope: `z * sigmoid(slope * z)`."""

    kinds: ClassVar[tuple[str, ...]] = ("silu",)
    setting: ClassVar[str] = "silu_temperature"
    activations: ClassVar[tuple[Activation, ...]] = (SILU,)
