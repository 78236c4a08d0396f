"""GELU: `z * Phi(z)`, with the standard normal distribution function, and its tanh form."""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_excite.gates.self_gated import Activation, SelfGated, Softened
from jax_excite.gates.surrogates import surrogate
from jax_excite.graphs.profiles import special

# Hendrycks & Gimpel, "Gaussian Error Linear Units" (2016), section 2.
_CUBIC = 0.044715
_SCALE = math.sqrt(2 / math.pi)


def _soft(z: jax.Array) -> jax.Array:
    """`Phi(z)`, with the absolute accuracy of a gate in (0, 1).

    `ndtr` is accurate relative to values near 0 too, which takes three times as long.
    """
    return 0.5 * (1 + jax.lax.erf(z * math.sqrt(0.5)))


def _tanh_gate(z: jax.Array) -> jax.Array:
    return 0.5 * (1 + jnp.tanh(_SCALE * (z + _CUBIC * z**3)))


def _tanh_gate_in_numpy(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(_SCALE * (z + _CUBIC * z**3)))


def _tanh_gate_inverse(gate: np.ndarray) -> np.ndarray:
    """The real root of the cubic (Cardano's formula)."""
    half = np.arctanh(2 * gate - 1) / _SCALE / (2 * _CUBIC)
    root = np.sqrt(half**2 + 1 / (3 * _CUBIC) ** 3)
    return np.cbrt(half + root) + np.cbrt(half - root)


GELU = Activation(
    form="z * Phi(z)",
    gate=jax.scipy.special.ndtr,
    soft=_soft,
    in_numpy=special("ndtr"),
    inverse=special("ndtri"),
    primitives=frozenset({"erf", "erfc", "exp"}),
)
GELU_TANH = Activation(
    form="the tanh form of z * Phi(z)",
    gate=_tanh_gate,
    soft=_soft,
    in_numpy=_tanh_gate_in_numpy,
    inverse=_tanh_gate_inverse,
    primitives=frozenset({"tanh", "logistic", "exp"}),
)


def gated_gelu(
    z: jax.Array, temperature: ArrayLike = 1.0, *, approximate: bool = True
) -> Float[jax.Array, "*Z"]:
    """GELU whose gradient is multiplied by `Phi(z / T)`, without the gate's own derivative.

    The rule and the default are those of the paper's 2026 successor, for both forms.

    Args:
        z: pre-activation, any shape, any float dtype.
        temperature: at least 0, traced, broadcastable to `z`; 0 is the hard gate.
        approximate: the tanh form, as in `jax.nn.gelu`.

    Returns:
        `jax.nn.gelu(z, approximate)`, bit for bit; the cotangent of `z` has its shape and dtype.

    Raises:
        GatingError: the temperature is negative or does not broadcast to `z`.
    """
    plain = functools.partial(jax.nn.gelu, approximate=approximate)
    return surrogate(Softened("gelu", GELU), plain, z, temperature)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Gelu(SelfGated):
    """GELU in its exact and in its tanh form."""

    kinds: ClassVar[tuple[str, ...]] = ("gelu",)
    setting: ClassVar[str] = "gelu_temperature"
    activations: ClassVar[tuple[Activation, ...]] = (GELU, GELU_TANH)
