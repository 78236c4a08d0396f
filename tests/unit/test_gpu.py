"""The same numbers on a GPU as on the CPU."""

import jax
import numpy as np
import pytest

from jax_excite import Ascent, load, pga_grid, pullback, pullback_grid
from tests.networks import Network, images, relative_error


def gpu():
    try:
        return jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU on this machine: nothing to compare with the CPU")


@pytest.mark.gpu
@pytest.mark.parametrize("build", [Network, lambda: load("efficientnet_lite0", weights=None)])
def test_gpu_agrees_with_cpu(build):
    device, model = gpu(), build()
    x = np.asarray(images(2, size=64))
    expected = pullback(model, x, 0), pullback_grid(model, x, [0, 1])
    with jax.default_device(device):
        on_gpu = jax.device_put(model, device)
        found = pullback(on_gpu, x, 0), pullback_grid(on_gpu, x, [0, 1])
        climbed = pga_grid(on_gpu, x, [0, 1], Ascent(2))
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.devices() == {device}
        assert relative_error(np.asarray(ours), np.asarray(wanted)) < 1e-4
    reference = pga_grid(model, x, [0, 1], Ascent(2))
    assert (
        relative_error(np.asarray(climbed - x[:, None]), np.asarray(reference) - x[:, None]) < 1e-2
    )
