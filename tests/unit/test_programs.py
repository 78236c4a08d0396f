"""Generated networks, see tests/programs.py."""

import itertools

import jax
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.programs import (
    ATTENTION,
    CLIPPED,
    HARD,
    LEAKY,
    NORMS,
    PLAIN,
    POOLS,
    RELUS,
    SCALES,
    SELF_GATED,
    SMOOTH,
    check,
    networks,
)

FAMILIES = {
    "relu": RELUS,
    "leaky": LEAKY,
    "clipped": CLIPPED,
    "pool": POOLS,
    "norm": NORMS,
    "squeeze-excitation": SCALES,
    "self-gated": SELF_GATED,
    "attention": ATTENTION,
    "smooth": SMOOTH,
    "hard": HARD,
    "plain": PLAIN,
}
COMPILE_QUICKLY = True
LAYERS = [(family, name) for family, names in FAMILIES.items() for name in names]
THREES = [LAYERS[start : start + 3] for start in range(0, len(LAYERS), 3)]


@pytest.mark.parametrize("three", THREES, ids=str)
def test_each_layer_among_gates(three, x64):
    between = [part for layer in three for part in (("plain", "conv"), layer)]
    check([("relu", "where"), *between, ("plain", "conv"), ("relu", "relu")])


FOUND = [
    # What is pooled is computed anew in the backward pass, with other rounding, when compiled.
    [("norm", "GroupNorm"), ("pool", "overlapping")],
    # BatchNorm subtracts 0: what it makes of a clip inside of a call is no clip of its own.
    [("jit", [("relu", "held mask"), ("clipped", "relu6")]), ("plain", "BatchNorm")],
    # Inside of `remat` is a PReLU of what a ReLU before it gives: both together are that ReLU.
    [("relu", "number mask"), ("remat", [("leaky", "prelu max min")])],
    # A smooth function of an `abs` is not what jumps.
    [("hard", "abs"), ("smooth", "celu 2")],
]


@pytest.mark.parametrize("layers", FOUND, ids=str)
def test_what_was_wrong(layers, x64):
    check(layers)


CHECKED = itertools.count(1)


@settings(
    max_examples=100,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(networks())
def test_generated_networks(x64, layers):
    check(layers)
    if next(CHECKED) % 25 == 0:
        jax.clear_caches()
