"""The theory of paths where gates are not in {0, 1}: activations, statistics, attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_excite as je
from jax_excite import recipes, theory

D = 8
# Every kind but attention, and then attention in the form whose weights are constant.
DETACHED = dataclasses.replace(
    recipes.SEMANTIC,
    attention="detached",
    attention_temperature=1.5,
    squeeze_excitation="constant",
)


class Mixed(nnx.Module):
    """Tokens `[N, 5, 8]` to logits `[N, 3]`, with a gate of each kind."""

    def __init__(self, attends):
        rngs = nnx.Rngs(0)
        options = {"rngs": rngs, "param_dtype": jnp.float64}
        random = {"bias_init": nnx.initializers.normal(0.3), **options}
        self.layers = nnx.List(nnx.Linear(D, D, **random) for _ in range(5))
        self.norms = nnx.List([nnx.LayerNorm(D, **random), nnx.RMSNorm(D, **options)])
        self.attention = nnx.MultiHeadAttention(2, D, D, decode=False, **random)
        self.head = nnx.Linear(D, 3, **random)
        self.attends = attends

    def __call__(self, x):
        x = jax.nn.silu(self.layers[0](x))
        x = self.norms[0](x)
        x = x + jax.nn.gelu(self.layers[1](x), approximate=False)
        x = x + self.attention(x) if self.attends else x
        x = self.norms[1](jax.nn.hard_swish(self.layers[2](x)) + 0.5)
        x = x * jax.nn.sigmoid(self.layers[4](x.mean(1, keepdims=True)))
        x = jax.nn.gelu(jax.nn.relu(self.layers[3](x)) - 0.2)
        return self.head(x.mean(1))


@pytest.fixture(params=[False, True], ids=["without attention", "with attention"])
def network(request, x64):
    return Mixed(request.param)


@pytest.fixture
def x(x64):
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, D)))


def close(a, b, tolerance=1e-12):
    assert np.linalg.norm(np.asarray(a) - b) <= tolerance * np.linalg.norm(np.asarray(b))


def test_the_networks_own_gates_reproduce_it(network, x):
    gates = theory.gates(network, x, recipes.VANILLA)
    kinds = {"silu", "gelu", "hard_swish", "relu", "normalisation", "squeeze_excitation"}
    found = {site.kind for site in je.sites(network, x)}
    assert found == (kinds | {"attention"} if network.attends else kinds)
    assert set(gates.values) == {site.name for site in je.sites(network, x)}
    close(theory.induced(network, x, gates), network(x))


@pytest.mark.parametrize("gating", [DETACHED, recipes.VANILLA], ids=["soft", "own"])
def test_the_induced_network_is_affine_and_equation_7_holds(network, x, gating):
    gates = theory.gates(network, x, gating)
    other = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    f = lambda x: theory.induced(network, x, gates)  # noqa: E731
    close(f(0.3 * x + 0.7 * other), 0.3 * f(x) + 0.7 * f(other))
    field, bias = theory.induced_pullback(network, x, 1, gates)
    close(theory.induced_value(network, x, 1, gates), (field * x).sum((1, 2)) + bias)
    matrix, column = theory.induced_matrix(network, x, gates)
    close(jnp.einsum("nktd,ntd->nk", matrix, other) + column, f(other))


def test_the_induced_pullback_is_the_pullback(network, x):
    field, _ = theory.induced_pullback(network, x, 1, theory.gates(network, x, DETACHED))
    tolerance = 1e-6 if network.attends else 1e-12  # JAX computes attention weights in float32
    ours = je.pullback(network, x, 1, gating=DETACHED, bounds=None, batched=True)
    close(field, ours, tolerance)


def test_through_is_not_the_pullback_of_constant_weights(x):
    network = Mixed(True)
    field, _ = theory.induced_pullback(network, x, 1, theory.gates(network, x, recipes.SEMANTIC))
    ours = je.pullback(network, x, 1, gating=recipes.SEMANTIC, bounds=None, batched=True)
    assert np.linalg.norm(field - ours) > 1e-3 * np.linalg.norm(ours)


def test_preactivations_and_the_path_kernel(network, x):
    z = theory.preactivations(network, x)
    assert {name: value.shape for name, value in z.items()} == {
        site.name: site.shape for site in je.sites(network, x)
    }
    kernel = theory.gram(network, x, gating=DETACHED)
    gates = theory.gates(network, x, DETACHED).values
    assert kernel.names == ("input", *gates)
    for name, factor in zip(kernel.names[1:], kernel.products[1:], strict=True):
        flat = np.asarray(gates[name])
        # One entry at a time: the first axis of these gates counts the entries.
        rows = [
            np.asarray(theory.gates(network, x[i : i + 1], DETACHED).values[name]) for i in (0, 1)
        ]
        assert flat.size == sum(row.size for row in rows)
        close(np.stack([row.ravel() for row in rows]) @ rows[0].ravel() + 1, factor[:, 0], 1e-6)
