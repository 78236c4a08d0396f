"""Self-gated activations `z * g(z)`: a gate times its input, as ReLU is (paper, section 2.2).

In the backward pass the gate is a constant, softened by a temperature: the cotangent is multiplied
by `g(z / T)`, and there is no term from the derivative of the gate itself. `silu.py`, `gelu.py` and
`hard_swish.py` define the activations; this module recognises them by the values that they compute.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jax_excite.gates.gate import AtSite, Found, Gate
from jax_excite.gates.reading import Reading
from jax_excite.gates.surrogates import batched_with, compute_dtype, with_derivative_of
from jax_excite.gating import Gating, is_zero
from jax_excite.graphs.graph import Node
from jax_excite.graphs.profiles import PRODUCTS, SAMPLES, SUMS, Profile, is_same

# Values are compared at these points. The tolerances let constants pass that were rounded to
# bfloat16, and tell the two forms of GELU apart.
_POINTS = np.flatnonzero(np.abs(SAMPLES) < 1e6)
_RELATIVE, _ABSOLUTE = 2e-3, 2e-4
# The slope of a gate is read off at the sample point nearest to this one.
_PROBE = np.abs(SAMPLES - 0.5).argmin()


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation `z * gate(z)`.

    Attributes:
        form: its name, as the reason of a site states it.
        gate: its gate, from 0 to 1.
        soft: the gate that a temperature softens; another one only where `gate` approximates it.
        in_numpy: `gate`, in NumPy.
        inverse: the inverse of `gate`, in NumPy.
        primitives: the primitives of which at least one computes the gate.
    """

    form: str
    gate: Callable[[jax.Array], jax.Array]
    soft: Callable[[jax.Array], jax.Array]
    in_numpy: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]
    primitives: frozenset[str]

    def scales_of(self, profile: Profile) -> tuple[float, float] | None:
        """The slope and the factor of `factor * z * gate(slope * z)`, or None if it is not that."""
        if profile.names.isdisjoint(self.primitives):
            return None
        values = profile.samples
        if values.dtype.kind != "f" or not np.array_equal(values[0], values[-1], equal_nan=True):
            return None
        z, found = SAMPLES[_POINTS], values[0, _POINTS]
        with np.errstate(all="ignore"):
            factor = found[-1] / z[-1]
            slope = self.inverse(values[0, _PROBE] / (factor * SAMPLES[_PROBE])) / SAMPLES[_PROBE]
            wanted = factor * z * self.in_numpy(slope * z)
        if not (factor > 0 and 0 < slope < np.inf):
            return None
        tolerance = {"rtol": _RELATIVE, "atol": _ABSOLUTE * factor / slope}
        if not np.allclose(found, wanted, **tolerance):
            return None
        return _rounded(float(slope)), _rounded(float(factor))


def _rounded(scale: float) -> float:
    """1 for a scale that is 1 up to the rounding of the constants of the activation."""
    return 1.0 if abs(scale - 1) < _RELATIVE else scale


@dataclasses.dataclass(frozen=True)
class Softened:
    """`factor * z * g`, with the gate `g` as a constant: `soft(slope * z / T)`."""

    kind: str
    activation: Activation
    slope: float = 1.0
    factor: float = 1.0

    def gate(self, z: Float[jax.Array, "*Z"], temperature: jax.Array) -> Float[jax.Array, "*Z"]:
        """The gate at `z`; 1 where z > 0 and 0 elsewhere for T = 0, `soft(0)` for T = inf."""
        zero = is_zero(temperature)
        divisor = jnp.where(zero, jnp.ones_like(temperature), temperature)
        soft = self.activation.soft(self.slope * z / divisor)
        return jnp.where(zero, (z > 0).astype(z.dtype), soft)

    def __call__(self, z: jax.Array, temperature: jax.Array) -> jax.Array:
        """The product whose ordinary derivative is the soft-gated one."""
        wide = z.astype(temperature.dtype)
        gate = lax.stop_gradient(self.factor * self.gate(wide, temperature))
        return (gate * wide).astype(z.dtype)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SelfGated(Gate):
    """A self-gated activation; each subclass is one kind.

    Attributes:
        activation: the activation, one of `activations`.
        slope: the factor of `z` inside of the gate, such as 1.702 in "quick GELU".
        factor: the factor of the whole, which is often multiplied separately.
    """

    activation: Activation
    slope: float = 1.0
    factor: float = 1.0
    activations: ClassVar[tuple[Activation, ...]]
    # The gate has a scale of its own, which the deviation of `z` improves no further
    # (docs/calibration.md).
    is_calibrated: ClassVar[bool] = False
    is_activation: ClassVar[bool] = True

    @classmethod
    def find(cls, reading: Reading, value: int, node: Node) -> Found | None:
        """See `Gate.find`."""
        if node.name not in (*PRODUCTS, *SUMS) and not node.bodies:
            return None
        facts = reading.facts
        own = facts.views.get(value, {})
        views = facts.inner_views.get(value) or own
        for base in sorted(views, reverse=True):
            if base == value or views[base].is_identity():
                continue
            for activation in cls.activations:
                scales = activation.scales_of(views[base])
                if scales is None:
                    continue
                z = facts.local(base, facts.homes[value]) if base in own else None
                if z is None or _is_multiple_of_a_gate(reading, own):
                    return None
                form = node.params.get("name") or activation.form
                slope, factor = scales
                kind = cls.kinds[0]
                return cls(kind, node, z, form, activation=activation, slope=slope, factor=factor)
        return None

    def soften(self, at: AtSite, gating: Gating) -> jax.Array:
        """The output with the derivative of `Softened`."""
        temperature = at.temperature(gating)
        hard = batched_with(at.hard, temperature)
        return with_derivative_of(self._softened, hard, at.z, temperature)

    def value(self, at: AtSite, gating: Gating) -> tuple[jax.Array, jax.Array | None]:
        """The gate, shaped like `z`; the activation's own gate if the gating leaves it."""
        z = at.z.astype(compute_dtype(at.z.dtype))
        if at.is_left(gating):
            return self.activation.gate(self.slope * z).astype(at.z.dtype), None
        return self._softened.gate(z, at.temperature(gating)).astype(at.z.dtype), None

    def value_shape(self, at: AtSite) -> tuple[int, ...]:
        """The shape of the pre-activation."""
        return at.z.shape

    def held(self, at: AtSite, value: jax.Array, stopped: jax.Array | None) -> jax.Array:
        """The gate times the pre-activation."""
        return self.factor * value.astype(at.z.dtype) * at.z

    @property
    def _softened(self) -> Softened:
        return Softened(self.kind, self.activation, self.slope, self.factor)


def _is_multiple_of_a_gate(reading: Reading, views: Mapping[int, Profile]) -> bool:
    """Whether a value with these views is a self-gated activation times a number, or a copy."""
    return any(
        _is_multiple(view) and isinstance(reading.gate(base), SelfGated)
        for base, view in views.items()
        if view.depth  # otherwise it is the value itself
    )


def _is_multiple(profile: Profile) -> bool:
    """Whether a profile is its base times a number."""
    if profile.kinked or profile.samples.dtype.kind != "f":
        return False
    z, values = SAMPLES[_POINTS], profile.samples[:, _POINTS]
    with np.errstate(all="ignore"):
        return is_same(values, values[0, -1] / z[-1] * z)
