import jax.numpy as jnp
import numpy as np
import pytest

from jax_excite.kernels.phases import interleave, phases, shifted


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 3), (4, 2)])
@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (1, 2)])
def test_an_array_from_its_phases(strides, shape):
    whole = np.random.default_rng(0).normal(size=shape)
    sizes = [-(-n // s) for n, s in zip(shape, strides, strict=True)]
    parts = {}
    for phase in phases(strides):
        part = whole[tuple(slice(a, None, s) for a, s in zip(phase, strides, strict=True))]
        filled = [(0, size - n) for size, n in zip(sizes, part.shape, strict=True)]
        parts[phase] = jnp.asarray(np.pad(part, filled, constant_values=np.nan))
    np.testing.assert_array_equal(interleave(parts, strides, shape), whole.astype(np.float32))


def test_a_phase_that_is_not_there_is_zero():
    found = interleave({(1,): jnp.ones(3)}, (2,), (5,))
    np.testing.assert_array_equal(found, [0, 1, 0, 1, 0])


@pytest.mark.parametrize("offset", [-3, -1, 0, 2, 5])
def test_shifted(offset):
    part = np.arange(1.0, 5)
    wanted = np.zeros(6)
    for i, value in enumerate(part):
        if 0 <= i + offset < 6:
            wanted[i + offset] = value
    np.testing.assert_array_equal(shifted(jnp.asarray(part), [offset], [6]), wanted)
