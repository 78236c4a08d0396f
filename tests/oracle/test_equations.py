"""The paper's equations of gates, pullbacks and the kernel (sections 2 and 4), in float64.

Networks are small perceptrons, computed again in NumPy; `check` holds an error below 1e-12 and
records it for the table at the end of a run. Equations in path space and those of convolutional
networks are in the files beside this one.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy.special import expit, ndtr

from jax_excite import Gating, recipes
from jax_excite.theory import path_space
from jax_excite.theory.induced_networks import (
    gates,
    induced,
    induced_matrix,
    induced_pullback,
    induced_value,
    preactivations,
)
from jax_excite.theory.path_kernel import gram
from tests.perceptrons import (
    CLASS,
    each,
    field_of,
    layers,
    one,
    slow_matrix,
    slow_z,
    three_gatings,
    tilde,
)

pytestmark = pytest.mark.usefixtures("x64")


def test_equation_01_gating_function(net, x, check):
    hard = gates(net, x, recipes.VANILLA)
    for ours, wanted in zip(
        layers(hard), zip(*[slow_z(net, entry) for entry in x], strict=True), strict=True
    ):
        check("G(x)", ours, (np.array(wanted) > 0).astype(float), limit=0)
    output = [slow_matrix(net, g) @ one(entry) for g, entry in zip(each(hard), x, strict=True)]
    check("M = G_L W_L ... G_1 W_1 x", net(x)[:, CLASS], np.array(output) @ tilde(net)[1])


def test_equation_02_preactivation_function(net, x, check):
    wanted = zip(*[slow_z(net, entry) for entry in x], strict=True)
    for ours, layer in zip(preactivations(net, x).values(), wanted, strict=True):
        check("Z(x)", ours, np.array(layer))


def test_equation_03_gates_lie_between_0_and_1(net, x, check):
    choices = [recipes.VANILLA, recipes.EXCITATION, recipes.SEMANTIC, Gating(gate="softsign")]
    for gating in [*choices, Gating(gate="leaky"), Gating(np.inf)]:
        found = layers(gates(net, x, gating))
        assert [gate.shape for gate in found] == [(len(x), n - 1) for n in net.widths[1:]]
        for gate in found:
            check("Lambda(x), clipped to [0, 1]", gate, np.clip(gate, 0, 1), limit=0)


def test_equation_04_induced_network(net, x, check):
    _, y = tilde(net)
    for name, lambdas in three_gatings(net, x).items():
        wanted = [y @ slow_matrix(net, g) @ one(v) for g, v in zip(each(lambdas), x, strict=True)]
        check(f"M_Lambda(x), {name}", induced(net, x, lambdas)[:, CLASS], wanted)
    check("M_G(x) = M(x)", induced(net, x, gates(net, x, recipes.VANILLA)), net(x))


def test_equation_05_matrix_field(net, x, check):
    for name, lambdas in three_gatings(net, x).items():
        matrix, bias = induced_matrix(net, x, lambdas)
        _, y = tilde(net)
        wanted = np.array([y @ slow_matrix(net, g) for g in each(lambdas)])
        ours = np.column_stack([matrix[:, CLASS], bias[:, CLASS]])
        check(f"matrix of M_Lambda, {name}", ours, wanted)
        product = np.einsum("nkd,nd->nk", matrix, x) + bias
        check("M_Lambda(x) = matrix times x", product, induced(net, x, lambdas))


def test_equation_06_pullback(net, x, check):
    _, y = tilde(net)
    for name, lambdas in three_gatings(net, x).items():
        wanted = np.array([slow_matrix(net, g).T @ y for g in each(lambdas)])
        check(f"v_Lambda, {name}", field_of(net, x, lambdas), wanted)


def test_equation_07_pullback_represents_the_function(net, x, check):
    _, y = tilde(net)
    for name, lambdas in three_gatings(net, x).items():
        value = induced_value(net, x, CLASS, lambdas)
        wanted = [y @ slow_matrix(net, g) @ one(v) for g, v in zip(each(lambdas), x, strict=True)]
        check("f_Lambda(x) = y M_Lambda(x)", value, wanted)
        inner = np.sum(field_of(net, x, lambdas) * np.column_stack([x, np.ones(len(x))]), axis=1)
        check(f"f_Lambda(x) = <v_Lambda(x), x>, {name}", inner, value)
    check("f_G = f", induced_value(net, x, CLASS, three_gatings(net, x)["G"]), net(x)[:, CLASS])


def test_equation_08_pullback_of_g_is_the_gradient(net, x, check):
    gradient = jax.grad(lambda x: net(x)[:, CLASS].sum())(jnp.asarray(x))
    hard = gates(net, x, recipes.VANILLA)
    check("v_G = gradient", induced_pullback(net, x, CLASS, hard)[0], gradient)
    step = 1e-5 * np.eye(x.shape[1])  # f is affine as far as this
    slope = [(net(x + h)[:, CLASS] - net(x - h)[:, CLASS]) / 2e-5 for h in step]
    np.testing.assert_allclose(np.transpose(slope), gradient, rtol=1e-8, atol=1e-9)


def test_equation_20_jump_of_the_pullback_is_orthogonal_to_the_input(net, x, check):
    def pattern(entry):
        return np.concatenate(slow_z(net, entry)) > 0

    jumps = 0
    for a, b in itertools.combinations(x, 2):
        start = pattern(a)
        if np.array_equal(pattern(b), start):
            continue
        for _ in range(60):  # to the boundary of the linear region of a
            middle = (a + b) / 2
            a, b = (middle, b) if np.array_equal(pattern(middle), start) else (a, middle)
        pair = np.stack([a, b])
        at_a, at_b = field_of(net, pair, gates(net, pair, recipes.VANILLA))
        if np.linalg.norm(at_a - at_b) > 0.1 * np.linalg.norm(at_a):
            jumps += 1
            check("<v_G(x_a), x> = <v_G(x_b), x>", at_b @ one(a), at_a @ one(a))
    assert jumps > 0


@pytest.mark.parametrize(
    ("gating", "sigma"),
    [
        (recipes.EXCITATION, lambda z: expit(z / 0.3)),
        (recipes.SEMANTIC, lambda z: ndtr(z / 0.6)),
        (Gating(0.2, gate="softsign"), lambda z: 0.5 + 0.5 * (z / 0.2) / (1 + np.abs(z / 0.2))),
        (Gating(0.0), lambda z: (z > 0).astype(float)),
        (Gating(np.inf), lambda z: np.full_like(z, 0.5)),
    ],
    ids=["sigmoid", "normal CDF", "softsign", "T = 0", "T = inf"],
)
def test_equation_21_excitation_function(net, x, check, gating, sigma):
    wanted = zip(*[slow_z(net, entry) for entry in x], strict=True)
    for ours, z in zip(layers(gates(net, x, gating)), wanted, strict=True):
        check("Gamma(x) = sigma(Z(x))", ours, sigma(np.array(z)))


def test_equation_21_excitation_function_of_each_neuron(net, x, check):
    temperatures = np.linspace(0.1, 2, net.widths[1] - 1)
    first = layers(gates(net, x, Gating(site_temperatures={0: temperatures})))[0]
    wanted = [expit(slow_z(net, entry)[0] / temperatures) for entry in x]
    check("a sigma for each neuron", first, wanted)


def test_equation_23_kernel_is_a_product_in_path_space(net, x, check):
    others = np.random.default_rng(3).normal(size=(4, x.shape[1]))
    for name, gating in (("G", recipes.VANILLA), ("Gamma", recipes.EXCITATION)):
        features = [
            np.array(path_space.phi(path_space.tensor_field(layers(gates(net, v, gating))), v))
            for v in (x, others)
        ]
        kernel = gram(net, x, others, gating=gating, batch_size=4)
        ours = kernel.sign * np.exp(kernel.log)
        check(f"K = <phi, phi'>, {name}", ours, features[0] @ features[1].T)
        lengths = [np.linalg.norm(feature, axis=1) for feature in features]
        cosines = features[0] @ features[1].T / np.outer(*lengths)
        check(f"cosine in path space, {name}", kernel.normalised(), cosines)


def test_equation_23_kernel_of_a_network_too_deep_for_its_product(check):
    generator = np.random.default_rng(3)
    depth, width = 140, 400
    weights = generator.normal(size=(depth, width, width)) * math.sqrt(2 / width)
    x = generator.normal(size=(3, width))

    def deep(weights, x):
        return lax.scan(lambda x, w: (jax.nn.relu(x @ w.T), None), x, weights)[0]

    kernel = gram(jax.tree_util.Partial(deep, jnp.asarray(weights)), x, gating=recipes.VANILLA)
    with np.errstate(over="ignore"):
        assert np.all(np.isinf(np.prod(kernel.products, axis=0)))

    hidden, shared = x, []
    for w in weights:
        z = hidden @ w.T
        hidden = np.maximum(z, 0)
        shared.append([int(np.sum((a > 0) & (b > 0))) + 1 for a in z for b in z])
    wholes = [math.prod(counts) for counts in zip(*shared, strict=True)]  # exact
    first = np.ravel(x @ x.T + 1)
    wanted = [math.log(abs(k)) + math.log(n) for k, n in zip(first, wholes, strict=True)]
    check("log K beyond the range of float64", kernel.log.ravel(), wanted)
    np.testing.assert_array_equal(kernel.sign.ravel(), np.sign(first))
