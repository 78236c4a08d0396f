"""Generated networks: what `excite` makes of each, against the same network softened by hand.

`python -m tests.programs --count 2000` checks as many, tests/unit/test_programs.py a hundred.
A network is a list of layers of feature maps `[N, H, W, 6]`; layers that hold others wrap them.
"""

import argparse
import contextlib
import dataclasses
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jax import lax

import jax_excite as je
from jax_excite.gates.kinds import GATE_KINDS
from tests.networks import soft_relu

T, POOL_T, SILU_T, GELU_T, SWISH_T, ATTENTION_T = 0.4, 0.7, 1.3, 0.8, 1.7, 1.4
GATING = je.Gating(
    temperature=T,
    pool_temperature=POOL_T,
    silu_temperature=SILU_T,
    gelu_temperature=GELU_T,
    hard_swish_temperature=SWISH_T,
    attention_temperature=ATTENTION_T,
    normalisation="constant",
    attention="through",
    squeeze_excitation="constant",
)
CHANNELS = 6


@jax.custom_vjp
def straight_through(x):
    return jnp.round(jnp.clip(x, 0, 1) * 15) / 15


straight_through.defvjp(lambda x: (straight_through(x), x), lambda x, g: (g * ((x > 0) & (x < 1)),))


@jax.custom_jvp
def safe_root(x):
    return jnp.sqrt(jnp.maximum(x, 0))


@safe_root.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return safe_root(x), jnp.where(x > 0, t / (2 * jnp.sqrt(jnp.where(x > 0, x, 1))), 0)


def apart(h):
    """Ends the ties between numbers whose derivative a rule has made other than 0.

    At a tie of a max-pool or at 0 the hard gate is one choice of several, see `Gating`.
    """
    return h + 0.01 * np.random.default_rng(h.size).normal(size=h.shape)


def weights(*shape):
    """The same numbers for the same shape."""
    return np.random.default_rng(sum(shape)).normal(size=shape) / np.sqrt(np.prod(shape[:-1]))


A = np.linspace(0.1, 0.4, CHANNELS)  # learned slopes, by channel

# Ways to write each: the function of z, the kind of site, and the same softened by hand.
RELUS = {
    "relu": jax.nn.relu,
    "maximum": lambda z: jnp.maximum(z, 0),
    "fmax": lambda z: jnp.fmax(z, 0.0),
    "clip": lambda z: jnp.clip(z, 0),
    "where": lambda z: jnp.where(z > 0, z, 0),
    "where 0 z": lambda z: jnp.where(z > 0, z, 0 * z),
    "where not": lambda z: jnp.where(~(z > 0), 0, z),
    "mask": lambda z: z * (z > 0),
    "number mask": lambda z: jnp.where(z > 0, 1.0, 0.0) * z,
    "held mask": lambda z: z * lax.stop_gradient((z > 0).astype(z.dtype)),
    "heaviside": lambda z: z * jnp.heaviside(z, 0.0),
    "sign": lambda z: 0.5 * z * (1 + jnp.sign(z)),
    "abs": lambda z: (z + jnp.abs(z)) / 2,
    "select": lambda z: jnp.select([z > 0], [z], 0.0),
    "minus min": lambda z: -jnp.minimum(-z, 0),
    "less its min": lambda z: z - jnp.minimum(z, 0),
    "stack": lambda z: jnp.max(jnp.stack([z, jnp.zeros_like(z)]), 0),
    "jit": jax.jit(lambda z: jnp.maximum(z, 0.0)),
}
LEAKY = {
    "leaky_relu": (jax.nn.leaky_relu, 0.01),
    "leaky max": (lambda z: jnp.maximum(z, 0.2 * z), 0.2),
    "leaky where": (lambda z: jnp.where(z >= 0, z, 0.3 * z), 0.3),
    "max and min": (lambda z: jnp.maximum(z, 0) + 0.25 * jnp.minimum(z, 0), 0.25),
    "two relus": (lambda z: jax.nn.relu(z) - 0.1 * jax.nn.relu(-z), 0.1),
    "of abs": (lambda z: 0.6 * z + 0.4 * jnp.abs(z), 0.2),
    "prelu": (lambda z: jnp.where(z > 0, z, A * z), A),
    "prelu max min": (lambda z: jnp.maximum(z, 0) + A * jnp.minimum(z, 0), A),
}
CLIPPED = {
    "relu6": (jax.nn.relu6, 6.0),
    "clip 2": (lambda z: jnp.clip(z, 0, 2), 2.0),
    "clamp": (lambda z: lax.clamp(0.0, z, 3.0), 3.0),
    "min of relu": (lambda z: jnp.minimum(jax.nn.relu(z), 1.5), 1.5),
    "max of min": (lambda z: jnp.maximum(jnp.minimum(z, 2.5), 0), 2.5),
}
# Self-gated activations: the function, its kind, and its gate at a temperature.
SILU = ("silu", lambda z: jax.nn.sigmoid(z / SILU_T))
GELU = ("gelu", lambda z: jax.scipy.special.ndtr(z / GELU_T))
SWISH = ("hard_swish", lambda z: jnp.clip(z / SWISH_T + 3, 0, 6) / 6)
SELF_GATED = {
    "silu": (jax.nn.silu, *SILU),
    "z sigmoid": (lambda z: z * lax.logistic(z), *SILU),
    "z over 1 plus exp": (lambda z: z / (1 + jnp.exp(-z)), *SILU),
    "sigmoid of tanh": (lambda z: 0.5 * z + 0.5 * z * jnp.tanh(z / 2), *SILU),
    "silu in jit": (jax.jit(lambda z: z * jax.nn.sigmoid(z)), *SILU),
    "quick gelu": (
        lambda z: z * jax.nn.sigmoid(1.702 * z),
        "silu",
        lambda z: jax.nn.sigmoid(1.702 * z / SILU_T),
    ),
    "gelu": (jax.nn.gelu, *GELU),
    "gelu of pow": (
        lambda z: 0.5 * z * (1 + jnp.tanh(0.7978845608 * (z + 0.044715 * jnp.power(z, 3.0)))),
        *GELU,
    ),
    "exact gelu": (lambda z: jax.nn.gelu(z, approximate=False), *GELU),
    "gelu of erf": (lambda z: z * (1 + lax.erf(z / 1.4142135)) * 0.5, *GELU),
    "hard_swish": (jax.nn.hard_swish, *SWISH),
    "hard swish of clip": (lambda z: z * jnp.clip(z / 6 + 0.5, 0, 1), *SWISH),
    "hard swish of relu6": (lambda z: z * jax.nn.relu6(z + 3) * (1 / 6), *SWISH),
}
SMOOTH = {
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "celu 2": lambda z: jax.nn.celu(z, 2.0),
    "softplus": jax.nn.softplus,
    "softplus by hand": lambda z: jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z))),
    "soft_sign": jax.nn.soft_sign,
    "log_sigmoid": jax.nn.log_sigmoid,
    "mish": jax.nn.mish,
    "squareplus": jax.nn.squareplus,
    "sparse_plus": jax.nn.sparse_plus,
    "tanh": jnp.tanh,
    "identity": jax.nn.identity,
    "glu": lambda z: jax.nn.glu(jnp.concatenate([z, z], -1)),
    "quiet nan": lambda z: jnp.nan_to_num(z),
}
HARD = {
    "hard_sigmoid": (jax.nn.hard_sigmoid, ["hard_sigmoid"]),
    "sparse_sigmoid": (jax.nn.sparse_sigmoid, ["hard_sigmoid"]),
    "hard_tanh": (jax.nn.hard_tanh, ["select"]),
    "selu": (jax.nn.selu, ["select"]),
    "abs": (jnp.abs, ["abs"]),
    "maxout": (lambda z: jnp.maximum(z, z[..., ::-1]), ["max"]),
    "straight through": (lambda z: apart(straight_through(z)), ["clipped_relu"]),
    "safe root": (lambda z: safe_root(z) + z, []),
    "shrink": (lambda z: jnp.where(jnp.abs(z) > 0.5, z, 0), ["select"]),
    "top": (lambda z: z + 0.1 * lax.top_k(z, 2)[0].sum(-1, keepdims=True), ["sort"]),
}


def norm(name):
    """A normalisation of Flax or Equinox, made anew so that nothing is shared."""
    made = {
        "LayerNorm": lambda: nnx.LayerNorm(CHANNELS, rngs=nnx.Rngs(0)),
        "GroupNorm": lambda: nnx.GroupNorm(CHANNELS, num_groups=2, rngs=nnx.Rngs(0)),
        "InstanceNorm": lambda: nnx.InstanceNorm(CHANNELS, rngs=nnx.Rngs(0)),
        "RMSNorm": lambda: nnx.RMSNorm(CHANNELS, rngs=nnx.Rngs(0)),
        "BatchNorm": lambda: nnx.BatchNorm(CHANNELS, use_running_average=True, rngs=nnx.Rngs(0)),
        "eqx LayerNorm": lambda: eqx.nn.LayerNorm(CHANNELS),
        "eqx RMSNorm": lambda: eqx.nn.RMSNorm(CHANNELS),
        "eqx GroupNorm": lambda: eqx.nn.GroupNorm(2, CHANNELS),
    }[name]
    if name == "eqx GroupNorm":
        return lambda h: jnp.moveaxis(jax.vmap(made())(jnp.moveaxis(h, -1, 1)), 1, -1)
    if name.startswith("eqx"):
        return lambda h: jax.vmap(jax.vmap(jax.vmap(made())))(h)
    return lambda h: made()(h)


def by_hand(h):
    centred = h - h.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def by_deviation(h):
    return (h - jnp.mean(h, (1, 2), keepdims=True)) / jnp.std(h, (1, 2), keepdims=True)


def folded(h):
    mean, var = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
    inverse = lax.rsqrt(var + 1e-5)
    return h * inverse - mean * inverse


# Ways to write each: the function, the axes of the statistics, the constant, whether it is centred.
NORMS = {
    "LayerNorm": (norm("LayerNorm"), (-1,), 1e-6, True),
    "InstanceNorm": (norm("InstanceNorm"), (1, 2), 1e-6, True),
    "RMSNorm": (norm("RMSNorm"), (-1,), 1e-6, False),
    "GroupNorm": (norm("GroupNorm"), "groups", 1e-6, True),
    "eqx LayerNorm": (norm("eqx LayerNorm"), (-1,), 1e-5, True),
    "eqx RMSNorm": (norm("eqx RMSNorm"), (-1,), 1e-5, False),
    "eqx GroupNorm": (norm("eqx GroupNorm"), "groups", 1e-5, True),
    "standardize": (jax.nn.standardize, (-1,), 1e-5, True),
    "norm by hand": (by_hand, (-1,), 1e-5, True),
    "norm by deviation": (by_deviation, (1, 2), 0.0, True),
    "folded norm": (folded, (-1,), 1e-5, True),
}


def soft_norm(h, axes, constant, centred):
    """Normalisation with constant statistics."""
    groups = h.reshape(*h.shape[:3], 2, -1) if axes == "groups" else h
    axes = (1, 2, 4) if axes == "groups" else axes
    mean = groups.mean(axes, keepdims=True) if centred else 0.0
    square = ((groups - mean) ** 2).mean(axes, keepdims=True)
    inverse = lax.stop_gradient(1 / jnp.sqrt(square + constant))
    return ((groups - lax.stop_gradient(mean)) * inverse).reshape(h.shape)


# Squeeze-and-excitation: the gates, and the kinds of sites in them that are left hard.
SCALES = {
    "sigmoid of means": (
        lambda h: jax.nn.sigmoid(h.mean((1, 2), keepdims=True) @ weights(CHANNELS, CHANNELS)),
        (),
    ),
    "of sums, without axes": (
        lambda h: jax.nn.sigmoid(0.1 * jnp.tanh(h.sum((1, 2))))[:, None, None],
        (),
    ),
    "hard sigmoid": (
        lambda h: jax.nn.hard_sigmoid(h.mean((1, 2), keepdims=True) @ weights(CHANNELS, CHANNELS)),
        ("hard_sigmoid",),
    ),
    "one gate for all channels": (
        lambda h: lax.logistic(jnp.mean(h, axis=(1, 2, 3), keepdims=True)),
        (),
    ),
}


def window_pool(h, size, stride, pad):
    pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    sizes, steps = (1, size, size, 1), (1, stride, stride, 1)
    return lax.reduce_window(h, -jnp.inf, lax.max, sizes, steps, pads)


def soft_pool(h, size, stride, pad):
    """Softmax-pooling with the output of max-pooling; padding takes part as zeros (Listing 2)."""
    hard = window_pool(lax.stop_gradient(h), size, stride, pad)
    padded = jnp.pad(h, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = hard.shape[1:3]
    cells = jnp.stack(
        [
            padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride][
                :, :rows, :columns
            ]
            for i in range(size)
            for j in range(size)
        ]
    )
    soft = jnp.sum(cells * jax.nn.softmax(cells / POOL_T, axis=0), axis=0)
    return hard + soft - lax.stop_gradient(soft)


def by_reshape(h):
    n, rows, columns, c = h.shape
    return h.reshape(n, rows // 2, 2, columns // 2, 2, c).max((2, 4))


def by_slices(h):
    a, b, c, d = (h[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def by_stack(h):
    return jnp.max(jnp.stack([h[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]), 0)


def by_equinox(h):
    return jnp.moveaxis(jax.vmap(eqx.nn.MaxPool2d(2, 2))(jnp.moveaxis(h, -1, 1)), 1, -1)


POOLS = {
    "reduce_window": (lambda h: window_pool(h, 2, 2, 0), (2, 2, 0)),
    "padded": (lambda h: window_pool(h, 3, 2, 1), (3, 2, 1)),
    "overlapping": (lambda h: window_pool(h, 3, 1, 1), (3, 1, 1)),
    "flax": (lambda h: nnx.max_pool(h, (2, 2), (2, 2)), (2, 2, 0)),
    "reshape": (by_reshape, (2, 2, 0)),
    "slices": (by_slices, (2, 2, 0)),
    "stacked": (by_stack, (2, 2, 0)),
    "equinox": (by_equinox, (2, 2, 0)),
}


def convolve(h):
    w = weights(3, 3, h.shape[-1], CHANNELS)
    return (
        lax.conv_general_dilated(h, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        + weights(1, CHANNELS)[0] * 0.3
    )


def attend(h, normalise, t=1.0):
    tokens = h.reshape(len(h), -1, CHANNELS)
    q, k, v = (
        part @ weights(CHANNELS, CHANNELS + i) + weights(1, CHANNELS + i)[0]
        for i, part in enumerate((divided(tokens, t), divided(tokens, t), tokens))
    )
    q, k, v = q[..., :6], k[..., :6], v[..., :6]
    return (normalise(q @ jnp.swapaxes(k, 1, 2)) @ v).reshape(h.shape)


def dot_product_attention(h, t=1.0):
    q = jnp.tanh(h).reshape(len(h), -1, 2, CHANNELS // 2)  # no projection comes before
    return jax.nn.dot_product_attention(divided(q, t), divided(2 * q, t), q).reshape(h.shape)


def divided(h, t):
    """A value divided by a temperature, with a derivative of 1."""
    return h + lax.stop_gradient(h / t - h)


def softmax_by_hand(s):
    e = jnp.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def dropout(h):
    key = jax.random.key(3)
    return nnx.Dropout(0.3, deterministic=False)(h, rngs=nnx.Rngs(key))


PLAIN = {
    "conv": (convolve, []),
    "dense": (lambda h: h @ weights(CHANNELS, CHANNELS), []),
    "average": (lambda h: nnx.avg_pool(h, (3, 3), (1, 1), "SAME"), []),
    "BatchNorm": (norm("BatchNorm"), []),
    "dropout": (dropout, []),
    "dropout in eval": (lambda h: nnx.Dropout(0.3, deterministic=True)(h), []),
    "noise": (lambda h: h + 0.1 * jax.random.uniform(jax.random.key(0), h.shape), []),
    "resize": (lambda h: jax.image.resize(h, h.shape, "cubic"), []),
}


ATTENTION = {
    "attention": lambda h, t=1.0: attend(h, jax.nn.softmax, t),
    "attention by hand": lambda h, t=1.0: attend(h, softmax_by_hand, t),
    "dot_product_attention": dot_product_attention,
}


@dataclasses.dataclass
class Softened:
    """Which of its functions a layer takes, and what sites it says it has."""

    soft: bool
    sites: list
    mapped: bool = False

    def gate(self, kind, hard, soft):
        self.sites.append((kind, True))
        return soft if self.soft else hard

    def left(self, kinds):
        self.sites += [(kind, False) for kind in kinds]


def run_leaf(name, h, mode):
    family, way = name
    if family == "relu":
        return mode.gate("relu", RELUS[way], lambda z: soft_relu(z, T))(h)
    if family == "leaky":
        hard, slope = LEAKY[way]
        soft = lambda z: slope * z + (1 - slope) * soft_relu(z, T)  # noqa: E731
        return mode.gate("leaky_relu", hard, lambda z: keep(hard, soft, z))(h)
    if family == "clipped":
        hard, bound = CLIPPED[way]
        # Of `max(min(max(z, 0), b), 0)` either pair is a clipped ReLU, so no ReLU comes before.
        h = h @ weights(CHANNELS, CHANNELS) if way == "max of min" else h
        return mode.gate("clipped_relu", hard, lambda z: soft_relu(z, T, bound))(h)
    if family == "pool":
        hard, (size, stride, pad) = POOLS[way]
        if h.shape[1] % 2 or h.shape[1] < 4:
            return h
        return mode.gate("max_pool", hard, lambda z: soft_pool(z, size, stride, pad))(h)
    if family == "self-gated":
        hard, kind, gate = SELF_GATED[way]
        soft = lambda z: lax.stop_gradient(gate(z)) * z  # noqa: E731
        return mode.gate(kind, hard, lambda z: keep(hard, soft, z))(h)
    if family == "norm":
        hard, *statistics = NORMS[way]
        soft = lambda h: soft_norm(h, *statistics)  # noqa: E731
        return mode.gate("normalisation", hard, lambda h: keep(hard, soft, h))(h)
    if family == "squeeze-excitation":
        gates, kinds = SCALES[way]
        mode.left(kinds)
        held = lambda h: h * lax.stop_gradient(gates(h))  # noqa: E731
        whole = lambda h: keep(lambda h: gates(h) * h, held, h)  # noqa: E731
        return mode.gate("squeeze_excitation", lambda h: h * gates(h), whole)(h)
    if family == "attention":
        hard = ATTENTION[way]
        soft = lambda h: hard(h, ATTENTION_T)  # noqa: E731
        return mode.gate("attention", hard, lambda h: keep(hard, soft, h))(h)
    function, kinds = {"smooth": {k: (f, []) for k, f in SMOOTH.items()}, "hard": HARD}.get(
        family, PLAIN
    )[way]
    mode.left(kinds)
    # After a ReLU a hard tanh is a clipped ReLU, so what is left hard has a layer before it.
    return function(h @ weights(CHANNELS, CHANNELS) if family == "hard" else h)


def keep(hard, soft, z):
    """The value of one function with the derivative of another."""
    value = soft(z)
    return lax.stop_gradient(hard(z)) + value - lax.stop_gradient(value)


def run(layers, h, mode):
    for layer in layers:
        h = run_leaf(layer, h, mode) if isinstance(layer[1], str) else run_around(*layer, h, mode)
    return h


def run_around(wrapper, inner, h, mode):
    def fn(h):
        return run(inner, h, mode)

    if wrapper in ("jit", "remat"):
        return {"jit": jax.jit, "remat": jax.checkpoint}[wrapper](fn)(h)
    if wrapper == "vmap":
        before, mode.mapped = mode.mapped, True  # here `cond` on the input becomes a `select`
        out = jax.vmap(lambda one: fn(one[None])[0])(h)
        mode.mapped = before
        return out
    if wrapper == "residual":
        out = fn(h)
        return out + h if out.shape == h.shape else out
    if wrapper == "concatenate":
        out = fn(h)
        both = jnp.concatenate([out, out[..., ::-1]], -1)
        return both @ weights(2 * CHANNELS, CHANNELS)
    if wrapper == "scan":
        if not keeps_shape(inner):
            return fn(h)
        return lax.scan(lambda c, s: (fn(s * c), None), h, jnp.array([1.0, 0.7]))[0]
    if wrapper == "cond":
        place = len(mode.sites)
        on_input = len(inner) % 2 == 0 and not mode.mapped
        test = h[0, 0, 0, 0] < 0.1 if on_input else jnp.asarray(True)
        out = lax.cond(test, lambda h: fn(1.1 * h), fn, h)
        if on_input:
            mode.sites.insert(place, ("branch", False))
        return out
    if wrapper == "while":
        # No derivative goes through a loop without a fixed number of steps, so none is asked for.
        inside = Softened(mode.soft, [], mode.mapped)
        start = lax.stop_gradient(h)
        step = lambda n: n + 1 + jnp.abs(run(inner, start, inside)).mean()  # noqa: E731
        return h * lax.while_loop(lambda n: n < 3, step, jnp.zeros(()))
    assert wrapper == "custom rule"
    inside = Softened(False, [], mode.mapped)

    @jax.custom_vjp
    def own(h):
        return run(inner, h, inside)

    shape = h.shape
    own.defvjp(lambda h: (own(h), None), lambda _, g: (jax.image.resize(g, shape, "nearest"),))
    out = own(h)
    mode.left(kind for kind, _ in inside.sites if kind in GATE_KINDS)
    return apart(out)


def keeps_shape(layers):
    return not any(
        layer[0] == "pool" if isinstance(layer[1], str) else not keeps_shape(layer[1])
        for layer in layers
    )


def leaves():
    def of(family, names):
        return st.tuples(st.just(family), st.sampled_from(sorted(names)))

    return st.one_of(
        of("relu", RELUS),
        of("leaky", LEAKY),
        of("clipped", CLIPPED),
        of("pool", POOLS),
        of("norm", NORMS),
        of("squeeze-excitation", SCALES),
        of("self-gated", SELF_GATED),
        of("attention", ATTENTION),
        of("smooth", SMOOTH),
        of("hard", HARD),
        of("plain", PLAIN),
        st.just(("plain", "conv")),
    )


WRAPPERS = (
    "jit",
    "remat",
    "vmap",
    "residual",
    "concatenate",
    "scan",
    "cond",
    "while",
    "custom rule",
)


def networks():
    """Lists of layers, nested up to three deep."""
    return st.lists(
        st.recursive(
            leaves(),
            lambda inner: st.tuples(
                st.sampled_from(WRAPPERS), st.lists(inner, min_size=1, max_size=3)
            ),
            max_leaves=6,
        ),
        min_size=1,
        max_size=6,
    )


def build(layers, soft):
    """The network as a function of images `[N, 8, 8, 3]`, and the sites that it was given."""
    mode = Softened(soft, [])

    def network(x):
        mode.sites.clear()
        h = run(layers, convolve(x), mode)
        places = 1 + jnp.cos(jnp.arange(h.shape[1] * h.shape[2])).reshape(h.shape[1:3])
        return (h * places[..., None]).mean((1, 2)) @ weights(CHANNELS, 5)

    return network, mode


def gradients(fns, x):
    """The gradient of some sum of the outputs of each."""
    cotangent = jnp.cos(jnp.arange(10.0)).reshape(2, 5)
    return [jax.grad(lambda x, fn=fn: jnp.vdot(fn(x), cotangent))(x) for fn in fns]


def check(layers):
    """Check all that is claimed of one network."""
    x = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3), jnp.float64, minval=-1, maxval=1)
    # `jax.nn.dot_product_attention` computes in float32 whatever it is given.
    is_float32 = "dot_product_attention" in str(layers)
    hard, mode = build(layers, soft=False)
    wanted_outputs = hard(x)
    wanted_sites = sorted(mode.sites)
    if not jnp.isfinite(wanted_outputs).all():
        return
    found = sorted((site.kind, site.gated) for site in je.sites(hard, x))
    assert found == wanted_sites, (found, wanted_sites)
    pairs = [(je.excite(hard, je.recipes.VANILLA), hard, 1e-5 if is_float32 else 1e-12)]
    with contextlib.ExitStack() as stack:
        if any(gated for _, gated in wanted_sites):
            if any(kind in GATE_KINDS and not gated for kind, gated in wanted_sites):
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", je.GateWarning)
            excited = je.excite(hard, GATING)
            np.testing.assert_array_equal(excited(x), wanted_outputs)
            pairs.append((excited, build(layers, soft=True)[0], 1e-5 if is_float32 else 1e-9))
        fns = [fn for *both, _ in pairs for fn in both]
        # Compilation takes most of the time: what is alike in the functions is compiled once.
        found = jax.jit(lambda x: gradients(fns, x))(x)
    for at, (_, twin, tolerance) in enumerate(pairs):
        compare(found[2 * at], found[2 * at + 1], twin, x, tolerance)


def compare(gradient, wanted, twin, x, tolerance):
    """Check that gradients are equal, as far as rounding lets the twin's be told.

    A GroupNorm of a few equal numbers, say, makes a sum of large ones that cancel: there the twin
    differs from itself by more than the tolerance, compiled as a whole or an operation at a time.
    JAX's own derivative of `max` divides by the number of entries that equal the largest: none do
    where XLA computes them anew with other rounding.
    """

    def an_operation_at_a_time():
        with jax.disable_jit():
            return gradients([twin], x)[0]

    if jnp.isnan(wanted).any():
        wanted = an_operation_at_a_time()
    error, size = distance(gradient, wanted), jnp.linalg.norm(jnp.nan_to_num(wanted))
    if error > tolerance * size + 1e-300:
        doubt = distance(an_operation_at_a_time(), wanted)
        assert error <= 10 * doubt, (float(error / size), float(doubt / size))


def distance(a, b):
    np.testing.assert_array_equal(jnp.isnan(a), jnp.isnan(b))
    return jnp.linalg.norm(jnp.ravel(jnp.nan_to_num(a) - jnp.nan_to_num(b)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # most of the time is compilation
    done, wrong = [], []

    @seed(options.seed)
    @settings(
        max_examples=options.count,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a network takes seconds, and making it smaller many of them
        suppress_health_check=list(HealthCheck),
    )
    @given(networks())
    def every(layers):
        try:
            with jax.enable_x64(True):
                check(layers)
        except Exception as error:  # the rest is of interest too
            wrong.append(layers)
            print(f"{layers}\n    {type(error).__name__}: {error}", flush=True)
        done.append(layers)
        if len(done) % 100 == 0:
            print(f"{len(done)} programs, {len(wrong)} wrong", flush=True)
            jax.clear_caches()

    every()
    gates = sum(name[0] not in ("smooth", "hard", "plain") for name in flat(done))
    layers = sum(1 for _ in flat(done))
    print(f"{len(done)} programs of {layers} layers, {gates} gates: {len(wrong)} wrong")
    sys.exit(bool(wrong))


def flat(tree):
    """All leaves of nested lists of layers."""
    for layer in tree:
        if isinstance(layer, tuple) and isinstance(layer[1], str):
            yield layer
        elif isinstance(layer, tuple):
            yield from flat(layer[1])
        else:
            yield from flat(layer)


if __name__ == "__main__":
    main()
