"""Targets at a site inside of a network: units, channels, cotangents and objectives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jax_excite as je
from jax_excite import Ascent, TargetError
from tests.networks import Network, images, relative_error

STEPS = 3


def weights(dtype):
    def draw(seed, *shape):
        return jax.random.normal(jax.random.key(seed), shape, dtype)

    return {
        "conv": 0.4 * draw(0, 3, 3, 3, 4),
        "steps": 0.5 * draw(1, STEPS, 4, 4),
        "mixed": draw(2, 4, 9),
        "head": draw(3, 9, 6),
    }


def hidden(w, x):
    """The output of each site in order, with the items along axis 0, and the logits last."""
    conv = lax.conv_general_dilated(
        x, w["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    first = jnp.maximum(conv, 0)
    pooled = lax.reduce_window(first, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def step(h, m):
        gated = jax.nn.relu(h @ m)
        return h + gated, gated

    h, each = lax.scan(step, pooled, w["steps"])
    clipped = jax.nn.relu6(0.5 * h.mean(axis=(1, 2)) @ w["mixed"])
    leaky = jax.nn.leaky_relu(clipped - 1)
    size = abs(leaky - 0.5)
    return first, pooled, jnp.moveaxis(each, 1, 0), clipped, leaky, size, size @ w["head"]


@pytest.fixture(scope="module")
def case():
    with jax.enable_x64(True):
        w = weights(jnp.float64)
        network = functools.partial(lambda w, x: hidden(w, x)[-1], w)
        x = images(3, dtype=jnp.float64)
        yield w, network, x


KINDS = ["relu", "max_pool", "relu", "clipped_relu", "leaky_relu", "abs"]


def test_the_network_has_a_site_of_each_kind(case):
    _, network, x = case
    assert [site.kind for site in je.sites(network, x)] == KINDS


@pytest.mark.parametrize("index", range(len(KINDS)))
def test_a_hidden_unit_is_that_of_the_truncated_network(case, index, x64):
    w, network, x = case
    name = je.sites(network, x)[index].name
    truncated = functools.partial(lambda w, x: hidden(w, x)[index], w)
    output = truncated(x)
    generator = np.random.default_rng(index)
    unit = tuple(int(generator.integers(n)) for n in output.shape[1:])
    cotangent = generator.normal(size=output.shape)
    channel = int(generator.integers(output.shape[-1]))
    rows = (unit[0], *(np.full(3, n) for n in unit[1:]))
    targets = [  # of a batch, of its second item, and for the truncated network
        (unit, unit, unit),
        (rows, unit, unit),
        (cotangent, cotangent[1], cotangent),
        (lambda a: jnp.sum(a**2), lambda a: jnp.sum(a**2), lambda a: jnp.sum(a**2)),
        (channel, channel, lambda a: a[..., channel].sum()),
    ]
    for target, of_one, same in targets:
        value, field = je.value_and_pullback(network, x, target, at=name)
        wanted_value, wanted = je.value_and_pullback(truncated, x, same)
        assert jnp.linalg.norm(wanted) > 0
        assert relative_error(value, wanted_value) < 1e-12
        assert relative_error(field, wanted) < 1e-12
        assert relative_error(je.pullback(network, x[1], of_one, at=index), wanted[1]) < 1e-12


def test_plain_gradients_of_hidden_units(case, x64):
    w, network, x = case
    for index in range(len(KINDS)):
        weights = np.random.default_rng(index).normal(size=hidden(w, x)[index].shape)
        wanted = jax.grad(lambda x, i=index, r=weights: (hidden(w, x)[i] * r).sum())(x)
        field = je.pullback(network, x, weights, at=index, gating=je.recipes.VANILLA)
        assert relative_error(field, wanted) < 1e-12


def test_grids_ascents_and_sweeps_take_a_site(case, x64):
    w, network, x = case
    ascent = Ascent(3, 0.5, 1.0)
    channels = [2, 0]
    grid = je.pullback_grid(network, x, channels, at=2)
    perturbed, values = je.pga_grid(network, x, channels, ascent, at=2, trajectory=True)
    for column, channel in enumerate(channels):
        wanted = je.pullback(network, x, channel, at=2)
        assert relative_error(grid[:, column], wanted) < 1e-12
        end, along = je.pga(network, x, channel, ascent, at=2, trajectory=True)
        assert relative_error(perturbed[:, column], end) < 1e-12
        assert relative_error(values[:, column], along) < 1e-12
        np.testing.assert_allclose(along[:, 0], hidden(w, x)[2][..., channel].sum((1, 2, 3)))
        np.testing.assert_allclose(along[:, -1], hidden(w, end)[2][..., channel].sum((1, 2, 3)))
    sweep = je.temperature_sweep(network, x, 0, [0.3], at=2)
    assert relative_error(sweep[0], grid[:, 1]) < 1e-12
    units = je.pullback_grid(network, x, [(0, 1, 1, 3), (2, 0, 0, 1)], at=2)
    assert relative_error(units[:, 1], je.pullback(network, x, (2, 0, 0, 1), at=2)) < 1e-12


def test_blocks_of_items_change_nothing(case, x64):
    _, network, x = case
    many = jnp.concatenate([x] * 5)
    whole = je.pullback(network, many, 1, at=2, batch_size=15)
    for size in (None, 1, 4):
        assert relative_error(je.pullback(network, many, 1, at=2, batch_size=size), whole) < 1e-12
    out = np.zeros((15, 2, *x.shape[1:]))
    je.pullback_grid(network, many, [1, 2], at=2, out=out, batch_size=4)
    assert relative_error(out[:, 0], whole) < 1e-12


def test_the_rest_of_the_network_is_not_computed():
    model, x = Network(), images(2)
    whole = jax.jit(lambda x: je.pullback(model, x, 0)).lower(x).compile().cost_analysis()
    part = jax.jit(lambda x: je.pullback(model, x, 0, at=0)).lower(x).compile().cost_analysis()
    assert part["flops"] < 0.6 * whole["flops"]


def test_a_network_of_single_items_under_vmap(case, x64):
    w, network, x = case
    mapped = jax.vmap(lambda x: hidden(w, x[None])[-1][0])
    sites = je.sites(mapped, x)
    assert [site.kind for site in sites] == KINDS
    for index, output in enumerate(hidden(w, x)[:-1]):
        last = output.shape[-1] - 1
        field = je.pullback(mapped, x, lambda a, c=last: a[..., c].sum(), at=index)
        wanted = je.pullback(network, x, last, at=index)
        assert relative_error(field, wanted) < 1e-12


@pytest.mark.parametrize(
    ("at", "target", "said"),
    [
        ("nothing", 0, r"at names no site of the function: \['nothing'\]; its sites: 0 \(relu\)"),
        (0, 6, r"channel 6 of relu is out of range: there are 6, so give 0 to 5"),
        (0, (0, 0), r"2 indices do not name one entry of an array \(8, 8, 6\)"),
        (0, np.zeros((2, 3)), r"a cotangent has the structure and shape of the outputs, \(2, 8, 8"),
        (0, 1.5, "the target is a float array of shape"),
    ],
)
def test_errors(at, target, said):
    with pytest.raises((TargetError, je.GatingError), match=said):
        je.pullback(Network(), images(2), target, at=at)


def test_sites_whose_output_cannot_be_taken_out():
    def mixing(x):
        flat = jax.nn.relu(x.reshape(-1, 3))  # items and positions share an axis
        return flat.reshape(len(x), -1)[:, :4]

    with pytest.raises(TargetError, match=r"which axis holds the items cannot be determined"):
        je.pullback(mixing, images(2), 0, at=0)

    def looped(x):
        flat = x.reshape(len(x), -1)
        return lax.while_loop(lambda h: h.sum() > 1e9, jax.nn.relu, jax.nn.relu(flat))[:, :4]

    inside = je.sites(looped, images(2))[3].name
    with pytest.raises(TargetError, match="which is inside `while`"):
        je.pullback(looped, images(2), 0, at=inside)
