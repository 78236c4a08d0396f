"""The sanity checks see what they should: weights, classes and gates that matter or do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_excite import ExciteError, load
from jax_excite.callables.pytree import named_leaves
from jax_excite.evaluation.sanity import compare, randomisation_cascade, temperature_limits
from jax_excite.metrics.randomisation import layers, randomise
from tests.networks import Network, images


@pytest.fixture(scope="module")
def net():
    return Network()


def test_layers_from_the_top(net):
    assert list(layers(net, images())) == ["head", "conv2", "norm", "conv1"]
    assert layers(net, images())["head"] == ["head.bias", "head.kernel"]


def test_layers_of_a_published_network():
    found = list(layers(load("squeezenet1_0", weights=None), jnp.zeros((1, 64, 64, 3))))
    assert found[0].startswith("classifier")
    assert found[-1] == "features.0"
    assert found[1:-1] == [f"features.{i}" for i in (12, 10, 9, 8, 7, 5, 4, 3)]


def test_layers_of_a_network_under_jit_and_partial(net):
    """Linen comes as a `Partial`, and its weights as a dictionary."""

    @jax.jit
    def apply(variables, x):
        hidden = jax.nn.relu(x @ variables["zeroth"]["kernel"])
        return (hidden @ variables["first"]["kernel"]).mean(axis=(1, 2))

    variables = {name: {"kernel": jnp.eye(3)} for name in ("first", "zeroth")}
    found = layers(jax.tree_util.Partial(apply, variables), images())
    assert list(found) == ["first", "zeroth"]
    swapped = {"zeroth": variables["first"], "first": variables["zeroth"]}
    assert list(layers(jax.tree_util.Partial(apply, swapped), images())) == ["first", "zeroth"]


def test_no_weights_are_refused():
    with pytest.raises(ExciteError, match="no weights to randomise"):
        layers(lambda x: jax.nn.relu(x).mean(axis=(1, 2)), images())


def test_randomise_shuffles_the_named_leaves_only(net):
    changed = named_leaves(randomise(net, ["conv1.kernel"], seed=1))
    for name, leaf in named_leaves(net).items():
        if name == "conv1.kernel":
            assert not np.array_equal(changed[name], leaf)
            np.testing.assert_array_equal(np.sort(changed[name].ravel()), np.sort(leaf.ravel()))
        else:
            np.testing.assert_array_equal(changed[name], leaf)
    again = named_leaves(randomise(net, ["conv1.kernel"], seed=1))
    np.testing.assert_array_equal(changed["conv1.kernel"], again["conv1.kernel"])


def test_cascade_changes_the_map(net):
    cascade = randomisation_cascade(net, images()[0], 1)
    assert [row.name for row in cascade] == ["head", "conv2", "norm", "conv1"]
    assert all(row.cosine < 0.99 for row in cascade)


def test_cascade_catches_a_map_that_ignores_the_weights(net):
    """Weights that are used but do not matter leave the map as it is."""

    @jax.tree_util.register_pytree_node_class
    class Ignores:
        def __init__(self, net):
            self.net = net

        def tree_flatten(self):
            return (self.net,), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

        def __call__(self, x):
            return jax.nn.relu(x).mean(axis=(1, 2)) + 0 * self.net(x).sum()

    rows = randomisation_cascade(Ignores(net), images()[0], 1)
    np.testing.assert_allclose([row.cosine for row in rows], 1, atol=1e-6)


def test_limits(net):
    limits = temperature_limits(net, images()[0], 1)
    assert list(limits) == [
        "T = 0 and the gradient",
        "T = 1e-12 and T = 0",
        "T = inf at two images",
    ]
    assert max(limits.values()) < 1e-5


def test_limits_of_a_clipped_network():
    def net(x):
        return jnp.clip(9 * x, 0, 6).mean(axis=(1, 2))

    assert max(temperature_limits(net, images()[0], 1).values()) < 1e-5


def test_compare():
    a = np.random.default_rng(0).normal(size=(8, 8, 3))
    same = compare("same", a, 2 * a)
    np.testing.assert_allclose((same.cosine, same.rank_correlation), 1)
    opposite = compare("opposite", a, -a)
    np.testing.assert_allclose((opposite.cosine, opposite.rank_correlation), (-1, 1))
    assert compare("zero", a, 0 * a).cosine == 0
    assert np.isnan(compare("zero", a, 0 * a).rank_correlation)
