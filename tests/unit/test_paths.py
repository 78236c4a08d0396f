"""Gates and induced networks through control flow, clipped ReLUs and pools; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jax_excite import Gating, GatingError, TargetError, excite, recipes, sites
from jax_excite.theory.induced_networks import (
    gates,
    induced,
    induced_matrix,
    induced_pullback,
    induced_value,
    preactivations,
)
from jax_excite.theory.path_kernel import gram
from tests.networks import Network, images, relative_error

pytestmark = pytest.mark.usefixtures("x64")
D = 4
GATINGS = {
    "G": recipes.VANILLA,
    "hard bound": Gating(0.5, upper="hard"),
    "soft bound": Gating(0.5, upper="soft"),
}


def weights(*shape):
    return jax.random.normal(jax.random.key(len(shape)), shape) / np.sqrt(shape[-2])


def through_scan(x):
    step = lambda x, w: (jax.nn.relu(x @ w + 0.1), None)  # noqa: E731
    return lax.scan(step, x, weights(3, D, D))[0]


def through_cond(x):
    return lax.cond(x.sum() > 0, lambda x: jax.nn.relu(x @ weights(D, D)), lambda x: 2 * x, x)


def through_calls(x):
    @jax.checkpoint
    def body(x):
        return jax.jit(lambda x: jnp.maximum(x @ weights(D, D), 0))(x)

    return jax.vmap(body)(x)


def through_relu6(x):
    return jax.nn.relu6(8 * x @ weights(D, D))


def through_clip(x):
    return jnp.clip(8 * x @ weights(D, D), 0, 3)


def through_max_pool(x):
    spatial = (x @ weights(D, 32)).reshape(len(x), 4, 4, 2)
    return nnx.max_pool(spatial, (3, 3), (2, 2), ((1, 1), (1, 1))).reshape(len(x), -1)


NETWORKS = [
    through_scan,
    through_cond,
    through_calls,
    through_relu6,
    through_clip,
    through_max_pool,
]


@pytest.fixture(params=NETWORKS, ids=lambda fn: fn.__name__)
def net(request):
    def network(x):
        hidden = jax.nn.relu(request.param(x))
        return hidden @ weights(hidden.shape[-1], 5) + 0.3

    return network


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (3, D)) + 0.5


def check_representation(net, x, gating):
    """The field is the pullback, and with the bias it represents an affine function (6, 7)."""
    held = gates(net, x, gating)
    field, bias = induced_pullback(net, x, 2, held)
    direct = jax.grad(lambda x: excite(net, gating)(x)[:, 2].sum())(x)
    assert relative_error(field, direct) < 1e-13
    represented = jnp.sum(field * x, axis=1) + bias
    np.testing.assert_allclose(induced_value(net, x, 2, held), represented, rtol=1e-12, atol=1e-12)
    at_zero = induced_value(net, 1e-9 * x, 2, held)
    np.testing.assert_allclose(bias, at_zero, rtol=1e-7, atol=1e-7)
    y = x[::-1] * 3 + 1
    middle = induced(net, 0.25 * x + 0.75 * y, held)
    between = 0.25 * induced(net, x, held) + 0.75 * induced(net, y, held)
    np.testing.assert_allclose(middle, between, rtol=1e-11)


def test_pullback_represents_the_induced_network(net, x):
    check_representation(net, x, Gating(0.5))


@pytest.mark.parametrize("gating", GATINGS.values(), ids=GATINGS)
def test_every_gating_of_a_clipped_relu(x, gating):
    check_representation(lambda x: through_relu6(x) @ weights(D, 5) + 0.3, x, gating)


@pytest.mark.parametrize(
    "pool", [recipes.SEMANTIC, Gating(pool_padding="-inf")], ids=["detached", "no padding"]
)
def test_other_weights_of_a_max_pool(x, pool):
    check_representation(lambda x: through_max_pool(x) @ weights(8, 5), x, pool)


def test_hard_gates_make_the_network_itself(net, x):
    held = gates(net, x, recipes.VANILLA)
    np.testing.assert_allclose(induced(net, x, held), net(x), rtol=1e-12)
    gradient = jax.grad(lambda x: net(x)[:, 2].sum())(x)
    assert relative_error(induced_pullback(net, x, 2, held)[0], gradient) < 1e-13


def test_matrix_has_a_row_for_each_logit(x):
    def net(x):
        return through_scan(x) @ weights(D, 5) + 0.3

    held = gates(net, x)
    matrix, bias = induced_matrix(net, x, held)
    assert matrix.shape == (3, 5, D)
    logits = jnp.einsum("nkd,nd->nk", matrix, x) + bias
    np.testing.assert_allclose(logits, induced(net, x, held), rtol=1e-12)


def test_sites_keep_their_order_and_shape(net, x):
    listed = {site.name: site.shape for site in sites(net, x) if site.gated}
    found = preactivations(net, x)
    assert list(found) == list(listed)
    for name, z in found.items():
        assert z.shape[-len(listed[name]) :] == listed[name]
    assert list(gates(net, x).values) == list(listed)


def test_a_scan_has_gates_for_each_step(x):
    def net(x):
        return through_scan(x) @ weights(D, 5)

    values = gates(net, x, recipes.VANILLA).values["relu"]
    hidden = x
    for step in range(3):
        z = hidden @ weights(3, D, D)[step] + 0.1
        np.testing.assert_array_equal(values[step], z > 0)
        hidden = jax.nn.relu(z)
    assert gram(net, x).names == ("input", "relu[0]", "relu[1]", "relu[2]")


def test_a_branch_that_does_not_run_has_no_gates(x):
    def net(x):
        return through_cond(x) @ weights(D, 5)

    assert jnp.sum(x) > 0
    assert jnp.any(gates(net, x).values["relu"] != 0)
    assert jnp.all(gates(net, -x).values["relu"] == 0)


def test_gates_of_another_time(x):
    """The weights of one network with the gates of another, as Hypothesis 1 needs them."""
    first, last = Network(seed=0), Network(seed=1)
    batch = images()
    held = gates(last, batch, Gating(0.3))
    value = induced_value(first, batch, 1, held)
    assert value.shape == (2,)
    assert not np.allclose(value, induced_value(last, batch, 1, held))


def test_cotangents_and_one_class_an_entry(x):
    def net(x):
        return through_relu6(x) @ weights(D, 5) + 0.3

    held = gates(net, x)
    classes = jnp.array([0, 3, 4])
    fields, biases = induced_pullback(net, x, classes, held)
    for i, c in enumerate(classes):
        field, bias = induced_pullback(net, x, int(c), held)
        np.testing.assert_allclose(fields[i], field[i], rtol=1e-12)
        np.testing.assert_allclose(biases[i], bias[i], rtol=1e-12)
    difference = jax.nn.one_hot(jnp.full(3, 1), 5) - jax.nn.one_hot(jnp.full(3, 2), 5)
    contrast, _ = induced_pullback(net, x, difference, held)
    apart = induced_pullback(net, x, 1, held)[0] - induced_pullback(net, x, 2, held)[0]
    np.testing.assert_allclose(contrast, apart, atol=1e-12)


def test_nothing_compiles_twice(x):
    traced = []

    def net(x):
        traced.append(1)
        return jax.nn.relu(x) @ weights(D, 5)

    for temperature in (0.3, 0.5):
        held = gates(net, x, Gating(temperature))
        induced_pullback(net, x, 1, held)
        induced_value(net, x, 2, held)
    count = len(traced)
    held = gates(net, x + 1, Gating(0.7))
    induced_pullback(net, x + 1, 3, held)
    assert len(traced) == count


def test_refusals(x):
    def net(x):
        return jax.nn.relu(x) @ weights(D, 5)

    with pytest.raises(GatingError, match="inside `while`"):
        gates(lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: jax.nn.relu(x) + 1, x), x)
    with pytest.raises(GatingError, match="no gate to soften"):
        preactivations(lambda x: jax.nn.gelu(x), x)
    with pytest.raises(GatingError, match="gates are given for the sites relu, but the function"):
        induced(lambda x: jnp.maximum(jax.nn.relu(x), 0), x, gates(net, x))
    with pytest.raises(GatingError, match=r"have shape \(3, 4\), but the site needs \(2, 4\)"):
        induced(net, x[:2], gates(net, x))
    with pytest.raises(GatingError, match=r"cannot be fixed: relu \(its gradient is soft already"):
        gates(lambda x: jnp.maximum(excite(net)(x), 0), x)
    with pytest.raises(TargetError, match="objective"):
        induced_pullback(net, x, lambda y: y[0] ** 2, gates(net, x))
    with pytest.raises(TargetError, match="each output has to count the items, 3"):
        induced(lambda x: jax.nn.relu(x).sum(), x, gates(net, x))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_gram_in_tiles(batch_size):
    net = jax.tree.map(lambda leaf: leaf.astype(float), Network())
    batch = images(5, dtype=jnp.float64)
    whole = gram(net, batch, batch_size=16)
    tiled = gram(net, batch, batch_size=batch_size)
    between = gram(net, batch[:3], batch, batch_size=batch_size)
    np.testing.assert_allclose(tiled.log, whole.log, rtol=1e-12)
    np.testing.assert_allclose(between.log, whole.log[:3], rtol=1e-12)
    np.testing.assert_allclose(between.normalised(), whole.normalised()[:3], rtol=1e-12)
    np.testing.assert_allclose(np.diag(whole.normalised()), 1)
    np.testing.assert_allclose(whole.log, whole.log.T)
    assert whole.names == ("input", "relu", "max_pool", "relu_1")
    product = np.prod(list(whole.factors.values()), axis=0)
    np.testing.assert_allclose(whole.sign * np.exp(whole.log), product, rtol=1e-12)


def test_gram_of_narrow_numbers():
    net = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), Network())
    kernel = gram(net, images(3, dtype=jnp.bfloat16))
    np.testing.assert_allclose(np.diag(kernel.normalised()), 1, rtol=1e-5)


def test_gram_refuses(x):
    net = Network()
    with pytest.raises(ValueError, match="batch_size is 0"):
        gram(net, images(), batch_size=0)
    with pytest.raises(ValueError, match="give at least one of each"):
        gram(net, images()[:0])
    with pytest.raises(ValueError, match="they may differ only in axis 0"):
        gram(net, images(2), images(2, size=10))
