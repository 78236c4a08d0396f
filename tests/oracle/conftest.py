"""Networks, inputs and the comparison of the tests named after the paper's equations."""

import numpy as np
import pytest

from jax_excite.theory.path_space import Perceptron


@pytest.fixture(
    params=[  # widths, whether biases, and a seed with which no layer is dead
        ((3, 5, 2), True, 1),
        ((4, 4, 3, 2), False, 1),
        ((4, 5, 3, 2), True, 2),
        ((3, 3, 4, 3, 3, 2), True, 22),
    ],
    ids=lambda param: f"{'-'.join(map(str, param[0]))}{'' if param[1] else ' without biases'}",
)
def net(request, x64):
    widths, bias, seed = request.param
    return Perceptron.random(widths, bias=bias, seed=seed)


@pytest.fixture
def x(net):
    return np.random.default_rng(0).normal(size=(6, net.widths[0] - 1))


@pytest.fixture
def check(record_property, request):
    number = request.function.__name__.split("_")[2]

    def compare(what, ours, wanted, limit=1e-12):
        ours, wanted = np.asarray(ours), np.asarray(wanted)
        assert ours.shape == wanted.shape
        assert ours.dtype == np.float64
        error = np.linalg.norm(ours - wanted) / np.linalg.norm(wanted)
        record_property("equation", (number, what, float(error)))
        assert error <= limit

    return compare
