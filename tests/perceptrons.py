"""The equations of perceptrons by slow NumPy formulae that share no code with the library."""

import functools
import itertools
import math

import numpy as np

from jax_excite import recipes
from jax_excite.theory.induced_networks import Gates, gates, induced_pullback, preactivations

CLASS = 1


def one(v):
    """A vector with the coordinate that is 1 (section 2.1)."""
    return np.append(v, 1.0)


@functools.cache
def tilde(net):
    """The augmented matrices, and y of the class."""
    matrices = [
        np.block(
            [[np.array(w), np.array(b)[:, None]], [np.zeros((1, w.shape[1])), np.ones((1, 1))]]
        )
        for w, b in zip(net.weights, net.biases, strict=True)
    ]
    return matrices, np.append(net.head[CLASS], net.head_bias[CLASS])


def slow_z(net, x):
    """Pre-activations of one input, layer by layer."""
    found = []
    for w, b in zip(net.weights, net.biases, strict=True):
        found.append(np.array([np.dot(row, x) + bias for row, bias in zip(w, b, strict=True)]))
        x = np.maximum(found[-1], 0)
    return found


def slow_matrix(net, lambdas):
    """Equation 5 for the gates of one input: the product of matrices, one after the other."""
    matrices, _ = tilde(net)
    product = np.eye(matrices[0].shape[1])
    for w, gate in zip(matrices, lambdas, strict=True):
        product = np.diag(one(gate)) @ w @ product
    return product


def slow_matrix_before_gates(net, gate):
    """The pullbacks of the neurons of layer L, one a row."""
    open_gates = (*gate[:-1], np.ones_like(gate[-1]))
    return slow_matrix(net, open_gates)


def slow_paths(net, start):
    return list(itertools.product(*map(range, net.widths[start:])))


def slow_weight(net, path):
    """The product of y and the weights along a path, whose last entries are those of layer L."""
    matrices, y = tilde(net)
    product = y[path[-1]]
    for i in range(1, len(path)):
        product *= matrices[-i][path[-i], path[-i - 1]]
    return product


def slow_atom(net, path):
    return slow_weight(net, path) * tilde(net)[0][0][path[0]]


def slow_activities(net, gate):
    augmented = [one(g) for g in gate]
    return [
        math.prod(g[i] for g, i in zip(augmented, path, strict=True)) for path in slow_paths(net, 1)
    ]


def random_gates(net, x):
    """A gating function like no other: random numbers in [0, 1]."""
    generator = np.random.default_rng(1)
    values = {name: generator.uniform(size=z.shape) for name, z in preactivations(net, x).items()}
    return Gates(values, {})


def three_gatings(net, x):
    return {
        "G": gates(net, x, recipes.VANILLA),
        "Gamma": gates(net, x),
        "random": random_gates(net, x),
    }


def layers(lambdas):
    return list(lambdas.values.values())


def each(lambdas):
    """The gates of one input after another, in NumPy."""
    return list(zip(*map(np.array, layers(lambdas)), strict=True))


def random_tensor(net, x):
    """Tensors in [0, 1], of full rank."""
    return np.random.default_rng(2).uniform(size=(len(x), math.prod(net.widths[1:])))


def field_of(net, x, lambdas):
    """The pullback with its bias coordinate last, as `paths` has it."""
    field, bias = induced_pullback(net, x, CLASS, lambdas)
    return np.column_stack([field, bias])
