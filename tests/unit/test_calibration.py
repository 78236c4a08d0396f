"""Temperatures from spreads, streamed; sweeps over temperatures in one compiled call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jax_excite import (
    ExciteError,
    Gating,
    GatingError,
    ImageError,
    calibrate,
    pullback,
    recipes,
    temperature_sweep,
)
from jax_excite.theory.induced_networks import gates, induced, preactivations
from tests.networks import Network, images


@pytest.fixture(scope="module")
def net():
    return Network()


def test_temperatures_are_multiples_of_the_deviation(net):
    x = images(7)
    gating = calibrate(net, [x[:2], x[2:4], x[4:6], x[6:]], scale=0.5)
    wanted = {name: 0.5 * np.std(np.asarray(z)) for name, z in preactivations(net, x).items()}
    assert list(gating.site_temperatures) == list(wanted) == ["relu", "max_pool", "relu_1"]
    for name, value in wanted.items():
        np.testing.assert_allclose(gating.site_temperatures[name], value, rtol=1e-5)


def test_one_for_each_channel(net):
    x = images(6)
    gating = calibrate(net, [x[:4], x[4:]], scale=1, per_channel=True)
    for name, z in preactivations(net, x).items():
        wanted = np.std(np.asarray(z), axis=(0, 1, 2))
        np.testing.assert_allclose(gating.site_temperatures[name], wanted, rtol=1e-5)
    assert pullback(net, x, 1, gating=gating).shape == x.shape


def test_large_means_lose_no_digits():
    def net(x):
        return jax.nn.relu(x + 1000).mean(axis=(1, 2))

    x = images(16)
    gating = calibrate(net, np.split(np.asarray(x), 4), scale=1)
    np.testing.assert_allclose(gating.site_temperatures["relu"], np.std(x), rtol=1e-3)


def test_scale_of_the_network_does_not_matter(net):
    """What a network without BatchNorm needs: its units drop out."""
    x, factor = images(3), 250.0

    def small(x):
        return jax.nn.relu(net.conv1(x)).mean(axis=(1, 2))

    def large(x):
        return jax.nn.relu(factor * net.conv1(x)).mean(axis=(1, 2))

    fields = [pullback(f, x, 1, gating=calibrate(f, x)) for f in (small, large)]
    np.testing.assert_allclose(fields[1], factor * fields[0], rtol=1e-4, atol=1e-6)
    plain = [pullback(f, x, 1) for f in (small, large)]
    assert not np.allclose(plain[1], factor * plain[0], rtol=0.1)


def test_steps_of_a_scan_share_a_temperature():
    w = jax.random.normal(jax.random.key(0), (4, 3, 3))

    def net(x):
        step = lambda x, w: (jax.nn.relu(x @ w), None)  # noqa: E731
        return lax.scan(step, x, w)[0].mean(axis=(1, 2))

    x = images(2)
    gating = calibrate(net, x, scale=1)
    wanted = np.std(np.asarray(preactivations(net, x)["relu"]))
    np.testing.assert_allclose(gating.site_temperatures["relu"], wanted, rtol=1e-5)
    assert np.isfinite(pullback(net, x, 0, gating=gating)).all()


def test_other_settings_stay(net):
    gating = calibrate(net, images(), gating=recipes.SEMANTIC)
    assert (gating.gate, gating.pool_weights) == ("normal_cdf", "detached")


def test_a_generator_of_batches_will_do(net):
    one = calibrate(net, (images(seed=s) for s in range(3)))
    other = calibrate(net, [images(seed=s) for s in range(3)])
    assert one.site_temperatures == other.site_temperatures


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "no batches"),
        (images(), {"scale": 0}, "scale is 0: give a positive number"),
        (images(), {"scale": np.nan}, "scale is nan"),
        (images() * np.inf, {}, "holds NaN or infinity"),
    ],
    ids=["none", "zero", "nan", "infinite"],
)
def test_refusals(net, batches, options, message):
    with pytest.raises(ExciteError, match=message):
        calibrate(net, batches, **options)


def test_overflow_is_refused():
    with pytest.raises(ExciteError, match="pre-activations of relu are not finite"):
        calibrate(lambda x: jax.nn.relu(x * 1e38 * 1e10).mean(axis=(1, 2)), images())


def test_images_are_checked(net):
    with pytest.raises(ImageError, match=r"values 0\.\.255"):
        calibrate(net, np.float32(255) * (images() > 0))
    single = calibrate(net, images()[0])
    assert single.site_temperatures == calibrate(net, images()[:1]).site_temperatures


def test_a_branch_that_never_runs_keeps_the_other_temperature():
    def net(x):
        bright = lambda x: jax.nn.relu(x) + 1  # noqa: E731
        dark = lambda x: jax.nn.relu(x - 1)  # noqa: E731
        return lax.cond(x.mean() > 0, bright, dark, x).mean(axis=(1, 2))

    batch = jnp.abs(images())
    gating = calibrate(net, [batch, batch])
    assert len(gating.site_temperatures) == 1
    both = calibrate(net, [batch, -batch, -batch])
    assert len(both.site_temperatures) == 2


def test_padding_by_hand_does_not_count():
    def net(x, low=-jnp.inf):
        h = jax.nn.relu(x)
        h = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=low)
        return nnx.max_pool(h, (3, 3), (1, 1)).mean(axis=(1, 2))

    x = images()
    gating = calibrate(net, x, scale=1)
    wanted = np.std(np.maximum(x, 0))
    np.testing.assert_allclose(gating.site_temperatures["max_pool"], wanted, rtol=1e-5)
    for t in (0.0, 0.3, np.inf):
        field = pullback(net, x, 1, gating=Gating(t, t, pool_padding="-inf"))
        padded = pullback(
            lambda x: nnx.max_pool(jax.nn.relu(x), (3, 3), (1, 1), "SAME").mean(axis=(1, 2)),
            x,
            1,
            gating=Gating(t, t, pool_padding="-inf"),
        )
        np.testing.assert_allclose(field, padded, rtol=1e-5, atol=1e-8)
    held = gates(net, x, recipes.VANILLA)
    np.testing.assert_allclose(induced(net, x, held), net(x), rtol=1e-5)


def test_no_gate_is_refused():
    with pytest.raises(GatingError, match="no gate to soften"):
        calibrate(lambda x: x.mean(axis=(1, 2)), images())


def test_sweep_is_the_pullback_at_each_temperature(net):
    x, values = images(), [0.0, 0.15, 0.5, np.inf]
    swept = temperature_sweep(net, x, jnp.array([1, 4]), values)
    assert swept.shape == (4, *x.shape)
    for field, t in zip(swept, values, strict=True):
        wanted = pullback(net, x, jnp.array([1, 4]), gating=Gating(t, t))
        np.testing.assert_allclose(field, wanted, rtol=1e-5, atol=1e-8)
    single = temperature_sweep(net, x[0], 1, values)
    np.testing.assert_allclose(single, swept[:, 0], rtol=1e-5, atol=1e-8)


def test_sweep_in_units_of_the_spread(net):
    x = images()
    unit = calibrate(net, x, scale=1)
    swept = temperature_sweep(net, x, 1, [0.0, 0.6, np.inf], gating=unit)
    wanted = [
        pullback(net, x, 1, gating=recipes.VANILLA),
        pullback(net, x, 1, gating=calibrate(net, x, scale=0.6)),
        pullback(net, x, 1, gating=Gating(np.inf, np.inf)),
    ]
    for field, same in zip(swept, wanted, strict=True):
        np.testing.assert_allclose(field, same, rtol=1e-4, atol=1e-7)


def test_sweep_compiles_once():
    traced = []

    def net(x):
        traced.append(1)
        return jax.nn.relu(x).mean(axis=(1, 2))

    temperature_sweep(net, images(), 0, [0.1, 0.2])
    count = len(traced)
    temperature_sweep(net, images(seed=1), 2, [0.3, np.inf])
    assert len(traced) == count


@pytest.mark.parametrize("values", [[], 0.3, [[0.3]], [-1.0], [np.nan]], ids=str)
def test_sweep_refuses(net, values):
    with pytest.raises(GatingError):
        temperature_sweep(net, images(), 1, values)
