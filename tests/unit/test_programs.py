"""Generated networks, see tests/programs.py."""

import jax
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.programs import (
    CLIPPED,
    HARD,
    LEAKY,
    NORMS,
    PLAIN,
    POOLS,
    RELUS,
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
    "smooth": SMOOTH,
    "hard": HARD,
    "plain": PLAIN,
}
LAYERS = [(family, name) for family, names in FAMILIES.items() for name in names]


@pytest.mark.parametrize("layer", LAYERS, ids=" ".join)
def test_each_layer_among_gates(layer, x64):
    check([("relu", "where"), ("plain", "conv"), layer, ("plain", "conv"), ("relu", "relu")])


# A network takes three to five seconds, so there are as many as the default run has time for.
@settings(
    max_examples=40,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(networks())
def test_generated_networks(x64, layers):
    check(layers)
    jax.clear_caches()
