"""The paper's equations in path space (section 3), in float64, with every path listed."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_excite import recipes
from jax_excite.theory import path_space
from jax_excite.theory.induced_networks import gates, induced_value
from tests.perceptrons import (
    CLASS,
    each,
    field_of,
    layers,
    one,
    random_tensor,
    slow_activities,
    slow_atom,
    slow_matrix_before_gates,
    slow_paths,
    slow_weight,
    three_gatings,
    tilde,
)

pytestmark = pytest.mark.usefixtures("x64")


def test_equation_09_pullback_over_paths(net, x, check):
    _, y = tilde(net)
    for name, lambdas in three_gatings(net, x).items():
        by_neuron, by_path = [], []
        for gate in each(lambdas):
            weights = y * one(gate[-1])
            by_neuron.append(weights @ slow_matrix_before_gates(net, gate))
            terms = zip(slow_activities(net, gate), slow_paths(net, 1), strict=True)
            by_path.append(sum(activity * slow_atom(net, path) for activity, path in terms))
        field = field_of(net, x, lambdas)
        check(f"v_Lambda as a sum over the neurons of layer L, {name}", field, by_neuron)
        check(f"v_Lambda as a sum over paths, {name}", field, by_path)


def test_equation_10_path_activity(net, x, check):
    path = np.array([n // 2 for n in net.widths[1:]])
    for name, lambdas in three_gatings(net, x).items():
        ours = path_space.path_activity(layers(lambdas), path)
        wanted = [math.prod(one(g)[i] for g, i in zip(v, path, strict=True)) for v in each(lambdas)]
        if any(wanted):
            check(f"Lambda^p(x), {name}", ours, wanted)
    assert set(np.ravel(path_space.path_activity(layers(three_gatings(net, x)["G"]), path))) <= {
        0,
        1,
    }


def test_equation_11_pullback_as_a_sum_of_atoms(net, x, check):
    fields = path_space.atoms(net, CLASS)
    check("atoms", fields, [slow_atom(net, path) for path in slow_paths(net, 1)])
    for name, lambdas in three_gatings(net, x).items():
        activity = path_space.path_activity(layers(lambdas), path_space.paths(net))
        check(f"v_Lambda as a sum of atoms, {name}", activity @ fields, field_of(net, x, lambdas))


def test_equation_12_tensor_field(net, x, check):
    for name, lambdas in three_gatings(net, x).items():
        ours = path_space.path_activity(layers(lambdas), path_space.paths(net))
        check(f"path activities, {name}", ours, [slow_activities(net, g) for g in each(lambdas)])


def test_equation_13_tensor_field_is_an_outer_product(net, x, check):
    for lambdas in three_gatings(net, x).values():
        tensor = path_space.tensor_field(layers(lambdas))
        wanted = [
            functools.reduce(np.multiply.outer, map(one, gate)).ravel() for gate in each(lambdas)
        ]
        check("tensor product of the gates", tensor, wanted)
        activities = path_space.path_activity(layers(lambdas), path_space.paths(net))
        check("equals the path activities", tensor, activities)
        for entry in np.array(tensor).reshape(len(x), *net.widths[1:]):
            for axis in range(entry.ndim):  # rank 1: so is every way to lay it out as a matrix
                flat = np.moveaxis(entry, axis, 0).reshape(entry.shape[axis], -1)
                singular = np.linalg.svd(flat, compute_uv=False)
                assert np.all(singular[1:] <= 1e-14 * singular[0])


def test_equation_14_tensor_pullback(net, x, check):
    tau = random_tensor(net, x)
    wanted = [
        sum(t * slow_atom(net, path) for t, path in zip(entry, slow_paths(net, 1), strict=True))
        for entry in tau
    ]
    check("v_tau, random tau", path_space.tensor_pullback(net, CLASS, tau), wanted)
    for name, lambdas in three_gatings(net, x).items():
        tensor = path_space.tensor_field(layers(lambdas))
        ours = path_space.tensor_pullback(net, CLASS, tensor)
        check(f"v_tau = v_Lambda, {name}", ours, field_of(net, x, lambdas))


def test_equation_15_tensor_induced_function(net, x, check):
    tau = random_tensor(net, x)
    field = np.array(path_space.tensor_pullback(net, CLASS, tau))
    wanted = [np.dot(v, one(entry)) for v, entry in zip(field, x, strict=True)]
    check("f_tau(x) = <v_tau(x), x>", path_space.tensor_value(net, x, CLASS, tau), wanted)
    for name, lambdas in three_gatings(net, x).items():
        ours = path_space.tensor_value(net, x, CLASS, path_space.tensor_field(layers(lambdas)))
        check(f"f_tau = f_Lambda, {name}", ours, induced_value(net, x, CLASS, lambdas))


def test_equation_16_weights_in_path_space(net, check):
    assert len(path_space.paths(net, 0)) == math.prod(net.widths)
    wanted = [slow_weight(net, path) for path in slow_paths(net, 0)]
    check("omega", path_space.omega(net, CLASS), wanted)


def test_equation_17_feature_function(net, x, check):
    tau = random_tensor(net, x)
    place = {path: i for i, path in enumerate(slow_paths(net, 1))}
    wanted = [
        [t[place[path[1:]]] * one(entry)[path[0]] for path in slow_paths(net, 0)]
        for t, entry in zip(tau, x, strict=True)
    ]
    check("phi_tau(x)", path_space.phi(tau, x), wanted, limit=0)


def test_equation_18_linear_in_path_space(net, x, check):
    tau = random_tensor(net, x)
    ours = path_space.path_space_value(net, x, CLASS, tau)
    wanted = [
        sum(
            t * slow_atom(net, path) @ one(entry)
            for t, path in zip(row, slow_paths(net, 1), strict=True)
        )
        for row, entry in zip(tau, x, strict=True)
    ]
    check("f_tau(x) = <phi_tau(x), omega>, random tau", ours, wanted)
    hard = path_space.tensor_field(layers(gates(net, x, recipes.VANILLA)))
    check(
        "f(x) = <phi_G(x), omega>",
        path_space.path_space_value(net, x, CLASS, hard),
        net(x)[:, CLASS],
    )


def test_equation_19_pullback_from_path_space(net, x, check):
    tau = random_tensor(net, x)
    omega = path_space.omega(net, CLASS)
    ours = path_space.phi(tau, x) @ omega
    check("<omega, phi> = <v_tau(x), x>", ours, path_space.tensor_value(net, x, CLASS, tau))
    _, transpose = jax.vjp(lambda x: path_space.phi(tau, x), jnp.asarray(x))
    (field,) = transpose(jnp.broadcast_to(omega, (len(x), len(omega))))
    check(
        "v_tau is omega pulled back through phi",
        field,
        path_space.tensor_pullback(net, CLASS, tau)[:, :-1],
    )


def test_equation_22_pullback_of_a_constant_tensor_is_the_gradient(net, x, check):
    def pi(x):
        """Piecewise constant and binary, of any rank: the most excited third of all paths."""
        excited = path_space.tensor_field(layers(gates(net, x)))
        return (excited > jnp.quantile(excited, 2 / 3, axis=1, keepdims=True)).astype(x.dtype)

    x = jnp.asarray(x)
    if len(net.widths) > 2:  # one matrix an input: its first layer by the others
        ranks = np.linalg.matrix_rank(np.array(pi(x)).reshape(len(x), net.widths[1], -1))
        assert np.any(ranks > 1)
    gradient = jax.grad(lambda x: path_space.tensor_value(net, x, CLASS, pi(x)).sum())(x)
    field = path_space.tensor_pullback(net, CLASS, pi(x))
    check("gradient of f_pi = v_pi", gradient, field[:, :-1])
