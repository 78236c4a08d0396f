import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_excite import ExciteError, sites
from jax_excite.theory.path_space import Perceptron, atoms, omega, paths, phi, tensor_field

WIDTHS = (3, 4, 2, 5)


@pytest.fixture
def net():
    return Perceptron.random(WIDTHS)


def test_perceptron_computes_its_layers(net):
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    hidden = np.maximum(x @ np.array(net.weights[0]).T + np.array(net.biases[0]), 0)
    hidden = np.maximum(hidden @ np.array(net.weights[1]).T + np.array(net.biases[1]), 0)
    logits = hidden @ np.array(net.head).T + np.array(net.head_bias)
    assert logits.shape == (6, 5)
    np.testing.assert_allclose(net(x), logits, rtol=1e-5, atol=1e-6)


def test_perceptron_is_a_pytree_whose_gates_are_found(net):
    x = jnp.ones((2, 3))
    assert [(site.kind, site.shape) for site in sites(net, x)] == [
        ("relu", (2, 4)),
        ("relu", (2, 2)),
    ]
    gradient = jax.jit(jax.grad(lambda net: net(x).sum()))(net)
    assert isinstance(gradient, Perceptron)
    np.testing.assert_allclose(gradient.head_bias, 2 * np.ones(5))


def test_perceptron_is_the_same_for_the_same_seed_and_bias_can_be_left_out(net):
    np.testing.assert_array_equal(Perceptron.random(WIDTHS).weights[1], net.weights[1])
    assert np.any(Perceptron.random(WIDTHS, seed=1).weights[1] != net.weights[1])
    plain = Perceptron.random(WIDTHS, bias=False)
    assert not any(map(np.any, (*plain.biases, plain.head_bias)))


@pytest.mark.parametrize("widths", [(3, 2), (3, 0, 2), ()])
def test_perceptron_needs_a_hidden_layer(widths):
    with pytest.raises(ExciteError, match="widths are"):
        Perceptron.random(widths)


def test_paths_are_all_tuples_of_indices_in_the_order_of_an_array(net):
    assert net.widths == (4, 5, 3)
    np.testing.assert_array_equal(paths(net, 1), list(np.ndindex(5, 3)))
    np.testing.assert_array_equal(paths(net, 0), list(np.ndindex(4, 5, 3)))
    np.testing.assert_array_equal(paths(net, 2), [[0], [1], [2]])


def test_too_many_paths_are_counted_not_listed():
    net = Perceptron.random((9, 99, 99, 99, 2))
    with pytest.raises(ExciteError, match="there are 10000000 paths through layers of 10, 100, "):
        omega(net, 0)
    assert len(paths(net, 1)) == 1_000_000


def test_leading_axes_and_dtype_are_kept(net):
    gates = [jnp.ones((7, 2, width), jnp.float32) for width in (4, 2)]
    tau = tensor_field(gates)
    assert tau.shape == (7, 2, 15)
    assert phi(tau, jnp.ones((7, 2, 3))).shape == (7, 2, 60)
    assert atoms(net, 1).shape == (15, 4)
    assert {array.dtype for array in (tau, atoms(net, 1), omega(net, 1))} == {jnp.dtype("float32")}
