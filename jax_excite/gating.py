"""`Gating`: how each kind of gate is softened in the backward pass."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_excite.errors import GatingError

GateName = Literal["sigmoid", "normal_cdf", "softsign", "hard", "leaky"]
UpperGate = Literal["pass", "hard", "soft"]
PoolWeights = Literal["through", "detached"]
PoolPadding = Literal["zero", "-inf"]
Cotangents = Literal["all", "positive"]
Statistics = Literal["own", "constant"]
AttentionForm = Literal["own", "through", "detached"]
# The fields of `Gating` that are temperatures of a kind of gate.
TemperatureName = Literal[
    "temperature",
    "pool_temperature",
    "silu_temperature",
    "gelu_temperature",
    "hard_swish_temperature",
    "attention_temperature",
]

GateFunction = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _sigmoid(z: jax.Array, temperature: jax.Array, slope: jax.Array) -> jax.Array:
    """`sigmoid(z / T)`: the paper's gate, section 4.2 and Listing 1."""
    return jax.nn.sigmoid(z / temperature)


def _normal_cdf(z: jax.Array, temperature: jax.Array, slope: jax.Array) -> jax.Array:
    """The standard normal distribution function of `z / T` (named in section 4.2)."""
    return jax.scipy.special.ndtr(z / temperature)


def _softsign(z: jax.Array, temperature: jax.Array, slope: jax.Array) -> jax.Array:
    """`(1 + softsign(z / T)) / 2`, softsign rescaled to [0, 1] (named in section 4.2)."""
    return 0.5 * (1 + z / (temperature + jnp.abs(z)))


def _hard(z: jax.Array, temperature: jax.Array, slope: jax.Array) -> jax.Array:
    """`z > 0`: the plain gradient (equation 1)."""
    return (z > 0).astype(z.dtype)


def _leaky(z: jax.Array, temperature: jax.Array, slope: jax.Array) -> jax.Array:
    """1 where `z > 0`, `slope` elsewhere (section 6.1, after Linse et al., 2024)."""
    return jnp.where(z > 0, jnp.ones_like(z), slope)


GATE_FUNCTIONS: dict[GateName, GateFunction] = {
    "sigmoid": _sigmoid,
    "normal_cdf": _normal_cdf,
    "softsign": _softsign,
    "hard": _hard,
    "leaky": _leaky,
}


_CHOICES = {
    "gate": GateName,
    "upper": UpperGate,
    "pool_weights": PoolWeights,
    "pool_padding": PoolPadding,
    "cotangents": Cotangents,
    "normalisation": Statistics,
    "attention": AttentionForm,
    "squeeze_excitation": Statistics,
}
_TEMPERATURES: tuple[TemperatureName, ...] = get_args(TemperatureName)
_TRACED = (*_TEMPERATURES[:2], "site_temperatures", "slope", *_TEMPERATURES[2:])
_STATIC = tuple(_CHOICES)


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Gating:
    """How each gate of a network is softened in the backward pass.

    This class is a pytree. Temperatures are traced leaves, so changing one does not trigger
    recompilation, and a sweep can be vmapped. The other fields are static.

    Temperatures are >= 0. Those of ReLUs and max-pools are in units of the pre-activation. A
    temperature of 0 is exactly the hard gate: the plain gradient, with relu'(0) = 0 as in
    `jax.nn.relu`, even where `jnp.maximum` has 1/2. An infinite temperature is the constant 1/2.
    Each temperature is a scalar or an array that broadcasts to the site's pre-activation. For
    max-pooling it may vary over channels and images only.

    Smooth activations are gates too: SiLU is `z * sigmoid(z)`. Their temperature stretches the gate
    along `z`, and their gate is a constant in the backward pass: it has no derivative of its own.
    With None, the default, these activations keep their own derivatives, as in the paper.

    Attributes:
        temperature: temperature of the ReLU sites (paper: 0.3).
        pool_temperature: temperature of the softmax at max-pool sites (paper: 0.3).
        silu_temperature: temperature of SiLU sites, also known as swish (successor: 1.6), or None.
        gelu_temperature: temperature of GELU sites (successor: 1.0), or None.
        hard_swish_temperature: temperature of hard-swish sites, or None.
        attention_temperature: temperature of attention, for the forms `through` and `detached`
            (successor: 1.0).
        site_temperatures: temperatures of single sites, by name or index as `sites` lists them;
            they replace those of their kinds.
        slope: the gate of `z <= 0` for `gate="leaky"` (section 6.1).
        gate: `sigmoid`, `normal_cdf`, `softsign` (rescaled), `hard` or `leaky`.
        upper: the upper bound of clipped ReLUs such as ReLU6: `pass` lets the gradient through
            above it (a unit there is maximally excited), `hard` stops it, `soft` multiplies by
            the gate of `bound - z`. The bound is always hard if the gate is hard or T = 0.
        pool_weights: `through` also differentiates the softmax weights of max-pooling (the paper's
            Listing 2), `detached` holds them constant.
        pool_padding: padding cells take part in that softmax as zeros (`zero`, as in Listing 2)
            or not at all (`-inf`, as in the hard pool).
        cotangents: the part of the incoming cotangent that a ReLU multiplies by its gate: `all` of
            it, or only its `positive` part, as in deconvolution and guided backpropagation.
        normalisation: hold the mean and the variance in layer, group, instance and RMS
            normalisation `constant` in the backward pass, or keep their `own` derivative.
        attention: the derivative of attention: its `own`; that of a second attention whose query
            and key inputs are divided by the temperature (`through`); or that of the values alone,
            with attention weights at the temperature (`detached`).
        squeeze_excitation: hold the gates of channels that squeeze-and-excitation computes from the
            means of a map `constant`, or keep their `own` derivative, as published.

    Raises:
        GatingError: a temperature is negative or NaN, or a field is not one of its choices.
    """

    temperature: ArrayLike = 0.3
    pool_temperature: ArrayLike = 0.3
    site_temperatures: Mapping[str | int, ArrayLike] = FrozenDict()
    slope: ArrayLike = 0.3
    gate: GateName = "sigmoid"
    upper: UpperGate = "pass"
    pool_weights: PoolWeights = "through"
    pool_padding: PoolPadding = "zero"
    cotangents: Cotangents = "all"
    silu_temperature: ArrayLike | None = None
    gelu_temperature: ArrayLike | None = None
    hard_swish_temperature: ArrayLike | None = None
    attention_temperature: ArrayLike = 1.0
    normalisation: Statistics = "own"
    attention: AttentionForm = "own"
    squeeze_excitation: Statistics = "own"

    def __post_init__(self) -> None:
        if not isinstance(self.site_temperatures, Mapping):
            raise GatingError(
                f"site_temperatures is {self.site_temperatures!r}: give a mapping from the names "
                "or indices of sites to temperatures"
            )
        by_text = {str(site): t for site, t in self.site_temperatures.items()}
        object.__setattr__(self, "site_temperatures", FrozenDict(by_text))
        for site, value in by_text.items():
            check_temperature(value, f"site_temperatures[{site!r}]")
        for field in (*_TEMPERATURES, "slope"):
            check_temperature(getattr(self, field), field)
        for field, choices in _CHOICES.items():
            check_choice(getattr(self, field), get_args(choices), field)

    def tree_flatten_with_keys(self) -> tuple[list[Any], tuple[str, ...]]:
        """The temperatures with their names, and the settings that are static."""
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in _TRACED]
        return leaves, tuple(getattr(self, name) for name in _STATIC)

    @property
    def is_plain(self) -> bool:
        """Whether every derivative is that of the plain function."""
        smooth = (self.silu_temperature, self.gelu_temperature, self.hard_swish_temperature)
        return (
            self.gate == "hard"
            and self.cotangents == "all"
            and all(temperature is None for temperature in smooth)
            and self.normalisation == self.attention == self.squeeze_excitation == "own"
        )

    @classmethod
    def tree_unflatten(cls, static: Any, leaves: Any) -> "Gating":
        """The inverse of flattening; nothing is checked, because JAX may pass placeholders."""
        gating = object.__new__(cls)
        for name, value in zip((*_TRACED, *_STATIC), (*leaves, *static), strict=True):
            object.__setattr__(gating, name, value)
        return gating


def check_gating(gating: object) -> None:
    """Raise `GatingError` unless this is a `Gating`."""
    if not isinstance(gating, Gating):
        raise GatingError(f"gating is {gating!r}: give a Gating, such as Gating(temperature=0.3)")


def check_temperature(value: object, what: str = "temperature") -> None:
    """Raise `GatingError` if a temperature is negative or NaN; traced values are not checked."""
    if isinstance(value, (str, list, tuple, Mapping)):
        raise GatingError(f"{what} is {value!r}: give a number or an array")
    concrete = isinstance(value, (int, float, np.ndarray, np.generic, jax.Array))
    if not concrete or isinstance(value, Tracer):
        return
    array = np.asarray(value)
    if not np.all(array >= 0):
        worst = np.nanmin(array) if not np.isnan(array).all() else np.nan
        raise GatingError(
            f"{what} is {worst:g}: a temperature is 0 (hard gate), positive, or infinite "
            "(the constant 1/2)"
        )


def check_choice(value: object, choices: tuple[str, ...], what: str) -> None:
    """Raise `GatingError` unless `value` is one of `choices`."""
    if value not in choices:
        raise GatingError(f"{what} is {value!r}: choose one of {', '.join(map(repr, choices))}")


def is_zero(temperature: jax.Array) -> jax.Array:
    """Where a temperature is 0, or too small to divide by."""
    return temperature < jnp.finfo(temperature.dtype).tiny


def gate_values(
    gate: GateName, z: Float[jax.Array, "*Z"], temperature: jax.Array, slope: jax.Array
) -> Float[jax.Array, "*Z"]:
    """The gate at pre-activation `z`, in [0, 1], shaped and typed like `z`.

    `temperature` and `slope` broadcast to `z` and have its dtype. For a finite `z`, no
    `temperature` in [0, inf] produces a NaN.
    """
    zero = is_zero(temperature)
    divisor = jnp.where(zero, jnp.ones_like(temperature), temperature)
    return jnp.where(zero, _hard(z, divisor, slope), GATE_FUNCTIONS[gate](z, divisor, slope))
