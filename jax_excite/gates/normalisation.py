"""Layer, group, instance and RMS normalisation: affine maps with constant statistics.

The mean and the variance are constants in the backward pass: the cotangent is multiplied by the
scale and divided by the deviation, and nothing is centred. The rule for layer normalisation is that
of the paper's 2026 successor; those for the others follow for the same reason.
`normalisation_forms.py` recognises normalisations in a graph.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jax_excite.gates.gate import AtSite, Found, Gate
from jax_excite.gates.normalisation_forms import Normalisations, Normalised
from jax_excite.gates.reading import Reading
from jax_excite.gates.surrogates import compute_dtype, with_derivative_of
from jax_excite.gating import Gating
from jax_excite.graphs.graph import Node, Operand


def surrogate_normalisation(
    x: jax.Array,
    axes: int | Sequence[int] = -1,
    *,
    epsilon: float = 1e-6,
    centred: bool = True,
) -> Float[jax.Array, "*X"]:
    """Normalisation whose mean and variance are constants in the backward pass.

    The rule for layer normalisation is that of the paper's 2026 successor.

    Args:
        x: any shape, any float dtype.
        axes: the axes over which the statistics are taken: the last one for layer normalisation.
        epsilon: added to the variance.
        centred: subtract the mean; False is RMS normalisation.

    Returns:
        `(x - mean) / sqrt(variance + epsilon)`, without a scale and an offset, shaped like `x`. The
        cotangent of `x` is that of the output divided by the root.
    """
    x = jnp.asarray(x)
    wide = lax.stop_gradient(x).astype(compute_dtype(x.dtype))
    mean = jnp.mean(wide, axes, keepdims=True) if centred else jnp.zeros((), wide.dtype)
    square = jnp.mean((wide - mean) ** 2, axes, keepdims=True)
    return ((x - mean) * lax.rsqrt(square + epsilon)).astype(x.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class _Held:
    """A normalisation whose statistics are constants."""

    form: Normalised
    kind: ClassVar[str] = "normalisation"

    def __call__(self, z: jax.Array, *operands: jax.Array) -> jax.Array:
        """The normalised value; the operands are those of `Normalisation`."""
        count = len(self.form.statistics)
        statistics = map(lax.stop_gradient, operands[:count])
        return self.form.part([z, *statistics], operands[count:])


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Normalisation(Gate):
    """A normalisation by the statistics of its own input."""

    whole: Normalised
    kinds: ClassVar[tuple[str, ...]] = ("normalisation",)
    setting: ClassVar[str] = ""
    is_calibrated: ClassVar[bool] = False

    @classmethod
    def find(cls, reading: Reading, value: int, node: Node) -> Found | None:
        """See `Gate.find`."""
        known = reading.once(Normalisations, reading.facts.homes[value], reading)
        if (whole := known.whole.get(value)) is not None:
            form = "x / rms(x)" if not whole.sums else "(x - mean(x)) / deviation(x)"
            return cls("normalisation", node, whole.x, form, whole=whole)
        if value in known.broken:
            reason = "a deviation that does not only normalise: left with its own derivative"
            return Found("normalisation", node, known.broken[value], node.name, reason)
        return None

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The statistics, and the other values, such as scales, that its nodes use."""
        return *self.whole.statistics, *self.whole.part.others

    @property
    def sources(self) -> tuple[Operand, ...]:
        """What is normalised, and the other values that its nodes use."""
        return self.z, *self.whole.part.others

    def is_left(self, gating: Gating, *, named: bool = False) -> bool:
        """Whether the gating leaves the statistics their own derivative."""
        return gating.normalisation == "own"

    def soften(self, at: AtSite, gating: Gating) -> jax.Array:
        """The output with the derivative for constant statistics."""
        return with_derivative_of(_Held(self.whole), at.hard, at.z, *at.operands)

    def value(self, at: AtSite, gating: Gating) -> tuple[jax.Array, jax.Array | None]:
        """The inverse of the deviation, and the mean, which is a constant of the affine map."""
        root, *sums = at.operands[: len(self.whole.statistics)]
        inverse = root if self.whole.is_inverse else 1 / root
        return inverse, sums[0] / self.whole.counts[0] if sums else None

    def value_shape(self, at: AtSite) -> tuple[int, ...]:
        """The shape of the deviation."""
        return at.operands[0].shape

    def held(self, at: AtSite, value: jax.Array, stopped: jax.Array | None) -> jax.Array:
        """The output with the given inverse deviation and mean."""
        root = value if self.whole.is_inverse else 1 / value
        sums = [] if stopped is None else [stopped * count for count in self.whole.counts]
        others = at.operands[len(self.whole.statistics) :]
        return self.whole.part([at.z, root, *sums], others)
