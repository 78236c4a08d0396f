"""Whatever the settings, projected gradient ascent stays in its ball and within its bounds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_excite import Ascent, Gating, pga
from tests.networks import Network

MODEL = Network()
temperatures = st.one_of(st.sampled_from([0.0, np.inf]), st.floats(1e-3, 1e3))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31 - 1),
    spread=st.floats(0, 1),
    c=st.integers(0, 4),
    step_size=st.floats(-100, 100),
    radius=st.floats(1e-3, 200),
    low=st.floats(-2, -1),
    high=st.floats(1, 2),
    temperature=temperatures,
    pool_temperature=temperatures,
)
def test_result_is_in_the_ball_and_in_bounds(
    seed, spread, c, step_size, radius, low, high, temperature, pool_temperature
):
    x = np.random.default_rng(seed).uniform(-spread, spread, (1, 8, 8, 3)).astype(np.float32)
    gating = Gating(temperature, pool_temperature)
    perturbed = np.asarray(
        pga(
            MODEL,
            x,
            c,
            Ascent(steps=3, step_size=step_size, radius=radius, bounds=(low, high)),
            gating=gating,
        )
    )
    assert np.isfinite(perturbed).all()
    assert perturbed.min() >= np.float32(low)
    assert perturbed.max() <= np.float32(high)
    # The ball, up to the rounding of the image's own entries.
    rounding = np.finfo(np.float32).eps * np.sqrt(x.size) * 2
    distance = np.linalg.norm((perturbed - x).astype(np.float64))
    assert distance <= radius * (1 + 1e-6) + rounding
