"""Attention: `softmax(logits) v`, a gate that weighs values.

The paper's 2026 successor publishes two forms. `through` takes the derivative of a second attention
whose query and key inputs are divided by the temperature, and takes that of the division as 1.
`detached` holds the weights constant, at the temperature: only the values receive a cotangent.
`attention_forms.py` recognises attention in a graph.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from jax_excite.gates.attention_forms import Attended, Broken, find_attention
from jax_excite.gates.gate import AtSite, Found, Gate
from jax_excite.gates.reading import Reading
from jax_excite.gates.surrogates import (
    batched_with,
    check_broadcasts,
    parameters,
    with_derivative_of,
)
from jax_excite.gating import (
    AttentionForm,
    Gating,
    check_choice,
    check_temperature,
    is_zero,
)
from jax_excite.graphs.graph import Node, Operand, bind

# The smallest divisor of queries and keys: the softmax of their products is that of T = 0 then.
_SMALLEST = 1e-6


def surrogate_attention(
    query: Float[jax.Array, "N T H D"],
    key: Float[jax.Array, "N S K D"],
    value: Float[jax.Array, "N S K D"],
    temperature: ArrayLike = 1.0,
    *,
    form: AttentionForm = "through",
    mask: Bool[jax.Array, "..."] | None = None,
    query_bias: ArrayLike = 0.0,
    key_bias: ArrayLike = 0.0,
) -> Float[jax.Array, "N T H D"]:
    """Attention with a soft backward pass, in the two forms of the paper's 2026 successor.

    Args:
        query: the queries of `H` heads.
        key: the keys; `H` is a multiple of `K`, as in grouped attention.
        value: the values.
        temperature: at least 0, traced, a scalar; for `through`, 1 is the ordinary derivative.
        form: `through` or `detached`, as in `Gating`.
        mask: the pairs that take part, broadcastable to `[N, H, T, S]`.
        query_bias: the part of `query` that is not divided by the temperature: the bias of the
            projection, broadcastable to `query`. Only for `through`.
        key_bias: the same for `key`.

    Returns:
        `jax.nn.dot_product_attention(query, key, value, mask=mask)`, bit for bit.

    Raises:
        GatingError: the temperature is negative or not a scalar, or `form` is not one of the two.
    """
    check_temperature(temperature)
    check_choice(form, ("through", "detached"), "form")
    (t,) = parameters(query, temperature)
    check_broadcasts(t, ())
    arrays = (query, key, value)
    hard = jax.nn.dot_product_attention(*map(lax.stop_gradient, arrays), mask=mask)
    hard = batched_with(hard, t)
    if form == "detached":
        weights = _dot_product_weights(query, key, mask, t)
        return with_derivative_of(_DotProduct(), hard, value, weights)
    biases = (jnp.asarray(query_bias, query.dtype), jnp.asarray(key_bias, key.dtype))
    return with_derivative_of(_DotProductThrough(), hard, *arrays, mask, *biases, t)


class _DotProduct:
    kind: ClassVar[str] = "attention"

    def __call__(self, value: jax.Array, weights: jax.Array) -> jax.Array:
        """The product of constant weights `[N, H, T, S]` with the values."""
        return _of_weights(lax.stop_gradient(weights), value)


class _DotProductThrough:
    kind: ClassVar[str] = "attention"

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None,
        query_bias: jax.Array,
        key_bias: jax.Array,
        temperature: jax.Array,
    ) -> jax.Array:
        """The attention of cooled queries and keys."""
        cooled = (_cooled(query, query_bias, temperature), _cooled(key, key_bias, temperature))
        return jax.nn.dot_product_attention(*cooled, value, mask=mask)


def _dot_product_weights(
    query: jax.Array, key: jax.Array, mask: jax.Array | None, temperature: jax.Array
) -> jax.Array:
    """The weights `[N, H, T, S]` at a temperature."""
    repeated = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)
    logits = jnp.einsum("nthd,nshd->nhts", query, repeated) / math.sqrt(query.shape[-1])
    taken = jnp.ones_like(logits)
    if mask is not None:
        taken = jnp.broadcast_to(mask, logits.shape).astype(logits.dtype)
    return _weights_at(logits, taken, -1, temperature)


def _of_weights(weights: jax.Array, value: jax.Array) -> jax.Array:
    repeated = jnp.repeat(value, weights.shape[1] // value.shape[2], axis=2)
    return jnp.einsum("nhts,nshd->nthd", weights, repeated).astype(value.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class _Soft:
    """Attention with the ordinary derivative of another one."""

    form: Attended
    product: Node
    kind: ClassVar[str] = "attention"

    def output(self, weights: jax.Array, value: jax.Array, others: Sequence[Any]) -> jax.Array:
        """The product of weights, shaped like the softmax's, with the values."""
        arranged = self.form.of_weights([weights], others)
        pair = [value, value]
        pair[self.form.operand], pair[1 - self.form.operand] = arranged, value
        return bind(self.product, pair)[0]


class _Through(_Soft):
    """Attention of queries and keys whose inputs are divided by the temperature."""

    def __call__(self, query: jax.Array, *operands: Any) -> jax.Array:
        """The output; the operands are those of `Attention`, then the temperature."""
        key, value, _, *others, temperature = operands
        of_scores, of_weights, *of_each = _split(others, self.form)
        cooled = [
            _cooled(array, projection.at_zero(own), temperature)
            for array, projection, own in zip(
                (query, key), self.form.projections, of_each, strict=True
            )
        ]
        return self.output(self.form.of_scores(cooled, of_scores), value, of_weights)


class _Detached(_Soft):
    """Attention with constant weights."""

    def __call__(self, value: jax.Array, weights: jax.Array, *others: jax.Array) -> jax.Array:
        """The output."""
        return self.output(lax.stop_gradient(weights), value, others)


def _split(others: Sequence[Any], form: Attended) -> list[list[Any]]:
    """The other values of the scores, of the weights, of the queries and of the keys."""
    found, left = [], list(others)
    for part in (form.of_scores, form.of_weights, *form.projections):
        count = len(part.others)
        found.append(left[:count])
        left = left[count:]
    return found


def _cooled(array: jax.Array, offset: jax.Array | float, temperature: jax.Array) -> jax.Array:
    """Queries or keys whose projected input is divided by a temperature, with a derivative of 1."""
    wide = array.astype(temperature.dtype)
    divided = (wide - offset) / jnp.maximum(temperature, _SMALLEST) + offset
    return array + lax.stop_gradient(divided.astype(array.dtype) - array)


def _weights_at(
    logits: jax.Array, weights: jax.Array, axis: int, temperature: jax.Array
) -> jax.Array:
    """The softmax of `logits / T`; entries that have no weight, such as masked ones, keep none.

    For T = 0 the largest entries share the weight.
    """
    wide = logits.astype(temperature.dtype)
    zero = is_zero(temperature)
    cooled = wide / jnp.where(zero, jnp.ones_like(temperature), temperature)
    largest = wide == jnp.max(wide, axis=axis, keepdims=True)
    cooled = jnp.where(zero, jnp.where(largest, 0.0, -jnp.inf), cooled)
    cooled = jnp.where(weights > 0, cooled, -jnp.inf)
    return jax.nn.softmax(cooled, axis=axis).astype(weights.dtype)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Attention(Gate):
    """Attention, in any layout, with any mask and any number of heads."""

    whole: Attended
    kinds: ClassVar[tuple[str, ...]] = ("attention",)
    setting: ClassVar[str] = "attention_temperature"
    is_calibrated: ClassVar[bool] = False

    @classmethod
    def find(cls, reading: Reading, value: int, node: Node) -> Found | None:
        """See `Gate.find`."""
        whole = find_attention(reading, node)
        if isinstance(whole, Broken):
            reason = f"{whole.reason}: left with its own derivative"
            return Found("attention", node, whole.logits, node.name, reason)
        if whole is None:
            return None
        form = "softmax(logits) v"
        if any(projection.part is None for projection in whole.projections):
            form += ", whose queries or keys are no projection: T divides themselves"
        return cls("attention", node, whole.logits, form, whole=whole)

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Queries, keys, values, weights, and the other values that its nodes use."""
        whole = self.whole
        return whole.query, whole.key, whole.value, whole.weights, *self._others

    @property
    def sources(self) -> tuple[Operand, ...]:
        """The logits, queries, keys, values, and the other values that its nodes use."""
        whole = self.whole
        return self.z, whole.query, whole.key, whole.value, *self._others

    @property
    def _others(self) -> list[int]:
        whole = self.whole
        parts = (whole.of_scores, whole.of_weights, *whole.projections)
        return [number for part in parts for number in part.others]

    def temperature_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A scalar."""
        return ()

    def is_left(self, gating: Gating, *, named: bool = False) -> bool:
        """Whether the gating leaves attention its own derivative."""
        return gating.attention == "own"

    def soften(self, at: AtSite, gating: Gating) -> jax.Array:
        """The output with the derivative of the form that the gating names."""
        temperature = at.temperature(gating)
        hard = batched_with(at.hard, temperature)
        if gating.attention == "through":
            soft = _Through(self.whole, self.node)
            return with_derivative_of(soft, hard, *at.operands, temperature)
        _, _, value, weights, *others = at.operands
        own = _split(others, self.whole)[1]
        cooled = _weights_at(at.z, weights, self.whole.axis, temperature)
        return with_derivative_of(_Detached(self.whole, self.node), hard, value, cooled, *own)

    def value(self, at: AtSite, gating: Gating) -> tuple[jax.Array, jax.Array | None]:
        """The weights, at the temperature unless the gating leaves them."""
        weights = at.operands[3]
        if at.is_left(gating):
            return weights, None
        temperature = at.temperature(gating)
        return _weights_at(at.z, weights, self.whole.axis, temperature), None

    def value_shape(self, at: AtSite) -> tuple[int, ...]:
        """The shape of the weights."""
        return at.operands[3].shape

    def held(self, at: AtSite, value: jax.Array, stopped: jax.Array | None) -> jax.Array:
        """The product of the given weights with the values."""
        own = _split(at.operands[4:], self.whole)[1]
        return _Detached(self.whole, self.node).output(value, at.operands[2], own)
