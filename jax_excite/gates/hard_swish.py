"""Hard swish, also known as hard SiLU: `z * relu6(z + 3) / 6`."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_excite.gates.self_gated import Activation, SelfGated, Softened
from jax_excite.gates.surrogates import surrogate


def _gate_in_numpy(z: np.ndarray) -> np.ndarray:
    return np.clip(z / 6 + 0.5, 0, 1)


def _gate_inverse(gate: np.ndarray) -> np.ndarray:
    return np.where((gate > 0) & (gate < 1), 6 * gate - 3, np.nan)


HARD_SWISH = Activation(
    form="z * relu6(z + 3) / 6",
    gate=jax.nn.hard_sigmoid,
    soft=jax.nn.hard_sigmoid,
    in_numpy=_gate_in_numpy,
    inverse=_gate_inverse,
    primitives=frozenset({"max", "min", "clamp", "select_n"}),
)


def gated_hard_swish(z: jax.Array, temperature: ArrayLike = 1.0) -> Float[jax.Array, "*Z"]:
    """Hard swish whose gradient is multiplied by `relu6(z / T + 3) / 6`.

    There is no term from the derivative of the gate itself. The rule is ours, for the reason that
    the paper's 2026 successor gives for SiLU.

    Args:
        z: pre-activation, any shape, any float dtype.
        temperature: at least 0, traced, broadcastable to `z`; 0 is the hard gate.

    Returns:
        `jax.nn.hard_swish(z)`, bit for bit; the cotangent of `z` has its shape and dtype.

    Raises:
        GatingError: the temperature is negative or does not broadcast to `z`.
    """
    return surrogate(Softened("hard_swish", HARD_SWISH), jax.nn.hard_swish, z, temperature)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class HardSwish(SelfGated):
    """Hard swish, with any slope: Keras and others divide by another number than 6."""

    kinds: ClassVar[tuple[str, ...]] = ("hard_swish",)
    setting: ClassVar[str] = "hard_swish_temperature"
    activations: ClassVar[tuple[Activation, ...]] = (HARD_SWISH,)
