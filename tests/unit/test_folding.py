"""BatchNorm and its like, folded into the convolution before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_excite
from jax_excite.graphs.graph import trace
from jax_excite.kernels.convolutions import prepare
from tests.networks import Network, images, relative_error

V = np.random.default_rng(0).uniform(0.5, 2, (4, 3))  # vectors of channels


def convolution(x):
    w = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 3)))
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def batch_norm(y):
    mean, var, scale, bias = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in V)
    return (y - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias


# Name: what follows the convolution, and how many equations of it are folded.
MAPS = {
    "nothing": (lambda y: y, 0),
    "bias": (lambda y: y + V[0], 1),
    "bias first": (lambda y: V[0] + y, 1),
    "BatchNorm": (batch_norm, 3),
    "bias, BatchNorm": (lambda y: batch_norm(y + V[0]), 4),
    "numbers": (lambda y: (2 * y - 1) / 3, 3),
    "division": (lambda y: y / V[0] * V[1] - V[2], 3),
    "from a number": (lambda y: 1 - y, 0),
    "under a number": (lambda y: 1 / (y**2 + 1), 0),
    "by position": (lambda y: y + np.arange(8.0)[:, None, None] + V[0], 0),
    "read twice": (lambda y: y * V[0] + jnp.sin(y), 0),
    "read twice later": (lambda y: (z := y + V[0]) * V[1] + jnp.sin(z), 1),
    "by itself": (lambda y: y * y, 0),
    "another dtype": (lambda y: (y + V[0]).astype(jnp.float32) * 2.0, 1),
}


@pytest.mark.parametrize("name", MAPS)
def test_what_follows_a_convolution(name, x64):
    follow, absorbed = MAPS[name]

    def fn(x):
        return jax.nn.relu(follow(convolution(x))).sum((1, 2))

    x = images(dtype=jnp.float64)
    assert len(prepare(trace(fn, x)[0]).absorbed) == absorbed
    gating = jax_excite.Gating(temperature=0.5)
    logits, field = jax_excite.value_and_pullback(fn, x, 1, gating=gating)
    exact, pull = jax.vjp(jax.jit(jax_excite.excite(fn, gating)), x)
    tolerance = 1e-6 if name == "another dtype" else 1e-13
    assert relative_error(logits, exact) < tolerance
    wanted = pull(jnp.zeros_like(exact).at[:, 1].set(1))[0]
    assert relative_error(field, wanted) < tolerance


def test_the_batch_norm_of_flax():
    model = Network()
    rng = np.random.default_rng(0)
    for name in ("mean", "var", "scale", "bias"):
        value = jnp.asarray(rng.uniform(0.5, 2, 6), jnp.float32)
        setattr(
            model.norm,
            name,
            nnx.Param(value) if name in ("scale", "bias") else nnx.BatchStat(value),
        )
    x = images()
    assert len(prepare(trace(model, x)[0]).absorbed) == 5  # two biases and BatchNorm
    wanted = jax.grad(lambda x: jax_excite.excite(model)(x)[:, 2].sum())(x)
    assert relative_error(jax_excite.pullback(model, x, 2), wanted) < 1e-5


def test_inside_of_calls(x64):
    def fn(x):
        inner = jax.checkpoint(lambda x: jax.nn.relu(batch_norm(convolution(x))))
        return jax.jit(inner)(x).sum((1, 2))

    x = images(dtype=jnp.float64)
    assert len(prepare(trace(fn, x)[0]).absorbed) == 3
    wanted = jax.grad(lambda x: jax_excite.excite(fn)(x)[:, 1].sum())(x)
    assert relative_error(jax_excite.pullback(fn, x, 1), wanted) < 1e-13
