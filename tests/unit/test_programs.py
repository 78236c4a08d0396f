"""Generated networks, see tests/programs.py."""

import itertools

import jax
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import jax_excite as je
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
    build,
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
    # The input of the second is the output of the first, with nothing between.
    [("self-gated", "z sigmoid"), ("self-gated", "quick gelu")],
    # The second multiplies the output of the first, a copy, by 0.5 twice: no gates of their own.
    [("self-gated", "exact gelu"), ("self-gated", "sigmoid of tanh")],
    # GELU ends in a product with 0.5: with the sum of two branches after it, that is a leaky ReLU.
    [("self-gated", "gelu of erf"), ("residual", [("relu", "where not")])],
    # Both together compute a clipped ReLU, but the first is left as a whole.
    [("hard", "hard_tanh"), ("relu", "minus min")],
]


@pytest.mark.parametrize("layers", FOUND, ids=str)
def test_what_was_wrong(layers, x64):
    check(layers)


ACTIVATIONS = [
    *(("relu", name) for name in ("relu", "where", "minus min")),
    *(("leaky", name) for name in ("leaky max", "of abs", "prelu max min")),
    *(("clipped", name) for name in ("relu6", "min of relu", "max of min")),
    *(("self-gated", name) for name in ("silu", "quick gelu", "sigmoid of tanh", "exact gelu")),
    *(("self-gated", name) for name in ("gelu of pow", "hard swish of relu6")),
    *(("hard", name) for name in ("hard_sigmoid", "hard_tanh", "abs", "shrink")),
    *(("smooth", name) for name in ("celu 2", "softplus by hand")),
]


@pytest.mark.parametrize("first", ACTIVATIONS, ids=str)
def test_activations_of_activations(first):
    """The sites are those of both; their derivatives are checked in generated networks."""
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")
    for second in ACTIVATIONS:
        network, mode = build([first, second], soft=False)
        found = sorted((site.kind, site.gated) for site in je.sites(network, x))
        assert found == sorted(mode.sites), second


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
