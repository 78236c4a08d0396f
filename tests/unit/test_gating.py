import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jax_excite import Ascent, Gating, GatingError, recipes
from jax_excite.gating import GATE_FUNCTIONS, gate_values

FORMULAS = {
    "sigmoid": lambda z, t: special.expit(z / t),
    "normal_cdf": lambda z, t: special.ndtr(z / t),
    "softsign": lambda z, t: (1 + (z / t) / (1 + np.abs(z / t))) / 2,
    "hard": lambda z, t: (z > 0) * 1.0,
    "leaky": lambda z, t: np.where(z > 0, 1.0, 0.3),
}
Z = np.linspace(-4, 4, 81)


def values(gate, z, temperature, slope=0.3):
    return gate_values(gate, jnp.asarray(z), jnp.asarray(temperature), jnp.asarray(slope))


def test_every_gate_has_a_formula_here():
    assert set(FORMULAS) == set(GATE_FUNCTIONS)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 20.0])
@pytest.mark.parametrize("gate", GATE_FUNCTIONS)
def test_gate_follows_its_formula(gate, temperature):
    np.testing.assert_allclose(
        values(gate, Z, temperature), FORMULAS[gate](Z, temperature), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("gate", GATE_FUNCTIONS)
@pytest.mark.parametrize("temperature", [0.0, 1e-45])
def test_zero_temperature_is_the_hard_gate(gate, temperature):
    z = jnp.array([-2.0, -1e-30, 0.0, 1e-30, 3.0])
    np.testing.assert_array_equal(values(gate, z, jnp.float32(temperature)), [0, 0, 0, 1, 1])


@pytest.mark.parametrize("gate", ["sigmoid", "normal_cdf", "softsign"])
def test_infinite_temperature_is_one_half(gate):
    np.testing.assert_array_equal(values(gate, Z, np.inf), np.full(Z.shape, 0.5))


@pytest.mark.parametrize("gate", GATE_FUNCTIONS)
def test_gate_stays_in_range_at_extreme_inputs(gate):
    z = jnp.array([-3e38, -1.0, 0.0, 1.0, 3e38])
    for temperature in (0.0, 1e-38, 1.0, 3e38, np.inf):
        gates = values(gate, z, jnp.float32(temperature))
        assert bool(jnp.all((gates >= 0) & (gates <= 1))), (temperature, gates)


def test_temperatures_are_leaves_and_the_rest_is_static():
    gating = Gating(0.1, 0.2, {3: 0.4, "a/relu": 0.5}, slope=0.6)
    assert jax.tree.leaves(gating) == [0.1, 0.2, 0.4, 0.5, 0.6, 1.0]
    doubled = jax.tree.map(lambda t: 2 * t, gating)
    assert (doubled.temperature, doubled.gate) == (0.2, "sigmoid")
    other = Gating(gate="hard")
    assert jax.tree.structure(other) != jax.tree.structure(Gating())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.3}, "temperature is -0.3: a temperature is 0"),
        ({"temperature": np.array([0.3, -1.0])}, "temperature is -1"),
        ({"temperature": jnp.array([0.3, -1.0])}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"pool_temperature": -2}, "pool_temperature is -2"),
        ({"site_temperatures": {"relu": -2}}, r"site_temperatures\['relu'\] is -2"),
        ({"temperature": [-1.0]}, r"temperature is \[-1.0\]: give a number or an array"),
        ({"temperature": "0.3"}, "temperature is '0.3'"),
        ({"slope": -5}, "slope is -5"),
        ({"gate": "relu"}, "gate is 'relu': choose one of 'sigmoid', 'normal_cdf'"),
        ({"upper": "open"}, "upper is 'open'"),
        ({"pool_weights": "x"}, "pool_weights is 'x'"),
        ({"pool_padding": "ones"}, "pool_padding is 'ones'"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(GatingError, match=message):
        Gating(**arguments)


def test_recipes_are_the_published_ones():
    paper, successor = recipes.EXCITATION, recipes.SEMANTIC
    assert (paper.gate, paper.temperature, paper.pool_temperature) == ("sigmoid", 0.3, 0.3)
    assert (paper.pool_weights, paper.pool_padding) == ("through", "zero")
    assert (successor.gate, successor.temperature) == ("normal_cdf", 0.6)
    assert (successor.pool_weights, successor.pool_temperature) == ("detached", 0.3)
    assert Ascent(steps=10, step_size=20.0, radius=100.0) == recipes.EXCITATION_PGA
    assert Ascent(steps=5, step_size=20.0, radius=None, clip="never") == recipes.SEMANTIC_PGA


def test_a_gating_is_a_pytree_like_any_other():
    gating = Gating(site_temperatures={"relu": 0.5, 3: 1.0})
    placeholders = jax.tree.map(lambda _: object(), gating)
    assert isinstance(placeholders, Gating)
    assert jax.tree.structure(placeholders) == jax.tree.structure(gating)
    assert jax.tree.map(lambda leaf: leaf, gating) == gating
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(gating)]
    assert names[:2] == [".temperature", ".pool_temperature"]
    assert ".site_temperatures['relu']" in names


def test_a_gating_can_be_hashed_and_nobody_changes_that_of_others():
    assert hash(Gating(0.5)) == hash(Gating(0.5))
    assert {Gating(0.5): "found"}[Gating(0.5)] == "found"
    with pytest.raises(ValueError, match="immutable"):
        recipes.EXCITATION.site_temperatures["relu"] = 7
    own = {"relu": 0.5}
    gating = Gating(site_temperatures=own)
    own["relu"] = 9.0
    assert gating.site_temperatures["relu"] == 0.5
    with pytest.raises(GatingError, match="site_temperatures is 3: give a mapping from"):
        Gating(site_temperatures=3)


def test_unflattening_brings_nothing_to_the_host():
    leaves, tree = jax.tree.flatten(Gating(jnp.asarray(0.5), jnp.asarray(0.3)))
    with jax.transfer_guard_device_to_host("disallow"):
        assert jax.tree.unflatten(tree, leaves).temperature is leaves[0]
