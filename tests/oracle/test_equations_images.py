"""The paper's equations for a convolutional network with BatchNorm and a max-pool, in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jax_excite import pullback, recipes
from jax_excite.theory.induced_networks import (
    Gates,
    gates,
    induced,
    induced_pullback,
    induced_value,
)
from jax_excite.theory.path_kernel import gram
from tests.networks import Network, images

pytestmark = pytest.mark.usefixtures("x64")
CLASS = 2
GATINGS = {"G": recipes.VANILLA, "Gamma": recipes.EXCITATION, "its successor": recipes.SEMANTIC}


@pytest.fixture
def net(x64):
    """A network in float64 whose BatchNorm is not the identity."""
    network = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), Network())
    norm, generator = network.norm, np.random.default_rng(0)
    for parameter in (norm.mean, norm.bias):
        parameter[...] = generator.normal(size=6)
    for parameter in (norm.var, norm.scale):
        parameter[...] = generator.uniform(0.3, 2, size=6)
    return network


@pytest.fixture
def x(x64):
    return images(3, dtype=jnp.float64)


def gatings(net, x):
    found = {name: gates(net, x, gating) for name, gating in GATINGS.items()}
    generator = np.random.default_rng(1)
    values = {name: generator.uniform(size=v.shape) for name, v in found["G"].values.items()}
    return {**found, "random": Gates(values, {})}


def held(net, x, lambdas):
    """The induced network, by multiplying with gates where the network has its ReLUs and pool."""
    first, pool, second = lambdas.values.values()
    relus = iter([first, second])

    def weighted(x):
        n, h, w, c = x.shape
        cells = jnp.moveaxis(x.reshape(n, h // 2, 2, w // 2, 2, c), (2, 4), (0, 1))
        return jnp.sum(pool.reshape(cells.shape) * cells, axis=(0, 1))

    return net.run(x, lambda z: next(relus) * z, weighted)


def products(field, x):
    return jnp.sum(field * x, axis=(1, 2, 3))


def test_equation_04_induced_network(net, x, check):
    for name, lambdas in gatings(net, x).items():
        check(f"images: M_Lambda(x), {name}", induced(net, x, lambdas), held(net, x, lambdas))


def test_equation_06_pullback(net, x, check):
    for name, lambdas in gatings(net, x).items():
        wanted = jax.grad(lambda x, lambdas=lambdas: held(net, x, lambdas)[:, CLASS].sum())(x)
        field, bias = induced_pullback(net, x, CLASS, lambdas)
        check(f"images: v_Lambda, {name}", field, wanted)
        offset = held(net, jnp.zeros_like(x), lambdas)[:, CLASS]
        check(f"images: its bias coordinate, {name}", bias, offset)


def test_equation_07_pullback_represents_the_function(net, x, check):
    for name, lambdas in gatings(net, x).items():
        field, bias = induced_pullback(net, x, CLASS, lambdas)
        value = induced_value(net, x, CLASS, lambdas)
        check(f"images: f_Lambda(x) = <v_Lambda(x), x>, {name}", products(field, x) + bias, value)
    hard = gates(net, x, recipes.VANILLA)
    check("images: f_G = f", induced_value(net, x, CLASS, hard), net(x)[:, CLASS])


def test_equation_08_pullback_of_g_is_the_gradient(net, x, check):
    gradient = jax.grad(lambda x: net(x)[:, CLASS].sum())(x)
    field, _ = induced_pullback(net, x, CLASS, gates(net, x, recipes.VANILLA))
    check("images: v_G = gradient", field, gradient)


def clipped(weights, x):
    return jax.nn.relu6(4 * convolve(weights, x) + 1).mean(axis=(1, 2))


def pooled(weights, x):
    return nnx.max_pool(convolve(weights, x), (3, 3), (2, 2), "SAME").mean(axis=(1, 2))


def repeated(weights, x):
    small = x.reshape(len(x), -1)[:, : weights.shape[-1]]
    return lax.scan(lambda h, w: (jax.nn.relu(h @ w) - 0.1, None), small, weights[0])[0]


def convolve(weights, x):
    return lax.conv_general_dilated(
        x, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("function", [clipped, pooled, repeated])
def test_equation_07_of_other_gates(x, check, function):
    shape = (4, 4, 6, 6) if function is repeated else (3, 3, 3, 6)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=shape))
    net = jax.tree_util.Partial(function, weights)
    for name, gating in GATINGS.items():
        lambdas = gates(net, x, gating)
        field, bias = induced_pullback(net, x, CLASS, lambdas)
        value = induced_value(net, x, CLASS, lambdas)
        what = f"images: {function.__name__}"
        check(f"{what}, f_Lambda(x) = <v_Lambda(x), x>, {name}", products(field, x) + bias, value)
        check(f"{what}, v_Lambda = pullback(...)", pullback(net, x, CLASS, gating=gating), field)
    hard = gates(net, x, recipes.VANILLA)
    check(f"{what}, f_G = f", induced_value(net, x, CLASS, hard), net(x)[:, CLASS])


@pytest.mark.parametrize("gating", GATINGS.values(), ids=GATINGS)
def test_equation_21_pullback_of_gamma_is_what_pullback_returns(net, x, check, gating):
    field, _ = induced_pullback(net, x, CLASS, gates(net, x, gating))
    check("images: v_Gamma = pullback(...)", pullback(net, x, CLASS, gating=gating), field)


@pytest.mark.parametrize("name", ["G", "Gamma"])
def test_equation_23_kernel_is_a_product_of_dot_products(net, x, check, name):
    others = images(2, seed=5, dtype=jnp.float64)
    kernel = gram(net, x, others, gating=GATINGS[name], batch_size=2)
    weights = dataclasses.replace(GATINGS[name], pool_weights="detached")  # in [0, 1]
    wanted = np.zeros((3, 2))
    for i, j in np.ndindex(3, 2):
        mine = gates(net, x[i : i + 1], weights).values.values()
        theirs = gates(net, others[j : j + 1], weights).values.values()
        vectors = [(x[i], others[j]), *zip(mine, theirs, strict=True)]
        dots = [float(np.dot(np.ravel(a), np.ravel(b))) + 1 for a, b in vectors]
        wanted[i, j] = math.prod(dots)
    ours = kernel.sign * np.exp(kernel.log)
    check(f"images: K = product of dot products, {name}", ours, wanted)
