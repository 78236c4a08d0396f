import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from scipy import special

from jax_excite import GatingError, gated_relu, surrogate_max_pool
from tests.networks import images, relative_error, soft_max_pool, soft_relu

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]


def grad(fn, *args):
    return jax.grad(
        lambda *a: jnp.sum(fn(*a) * jnp.cos(jnp.arange(fn(*a).size).reshape(fn(*a).shape)))
    )(*args)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_relu_keeps_bits_and_dtype(dtype):
    z = jnp.linspace(-3, 3, 31).astype(dtype)
    out, transpose = jax.vjp(lambda z: gated_relu(z, 0.3), z)
    np.testing.assert_array_equal(out, jax.nn.relu(z))
    cotangent = transpose(jnp.ones_like(out))[0]
    assert out.dtype == cotangent.dtype == dtype
    exact = special.expit(np.asarray(z, np.float64) / 0.3)
    np.testing.assert_allclose(
        np.asarray(cotangent, np.float64), exact, rtol=2 * float(jnp.finfo(dtype).eps), atol=1e-7
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
def test_surrogate_max_pool_keeps_bits_and_dtype(dtype):
    x = images(dtype=jnp.float32).astype(dtype)
    pool = functools.partial(surrogate_max_pool, window_shape=(2, 2), strides=(2, 2))
    out, transpose = jax.vjp(pool, x)
    np.testing.assert_array_equal(out, x.reshape(2, 4, 2, 4, 2, 3).max(axis=(2, 4)))
    assert out.dtype == transpose(jnp.ones_like(out))[0].dtype == dtype


def test_plain_gradient_at_zero_temperature_is_that_of_relu():
    z = jnp.array([-1.0, -0.0, 0.0, 1e-38, 2.0, jnp.inf])
    soft = jax.vmap(jax.grad(lambda z: gated_relu(z, 0.0)))(z)
    np.testing.assert_array_equal(soft, jax.vmap(jax.grad(jax.nn.relu))(z))


def test_temperature_may_differ_for_each_channel():
    z = images(1)[0]
    temperature = jnp.array([0.1, 0.0, jnp.inf])
    gradient = jax.grad(lambda z: gated_relu(z, temperature).sum())(z)
    np.testing.assert_allclose(gradient[..., 0], jax.nn.sigmoid(z[..., 0] / 0.1), rtol=1e-6)
    np.testing.assert_array_equal(gradient[..., 1], z[..., 1] > 0)
    np.testing.assert_array_equal(gradient[..., 2], jnp.full(z.shape[:2], 0.5))


def test_leaky_gate_is_a_constant_below_zero():
    z = jnp.array([-1.0, 0.0, 1.0])
    gradient = jax.grad(lambda z: gated_relu(z, 1.0, gate="leaky", slope=0.25).sum())(z)
    np.testing.assert_array_equal(gradient, [0.25, 0.25, 1.0])


def test_temperature_has_no_gradient():
    assert jax.grad(lambda t: gated_relu(jnp.ones(3), t).sum())(0.3) == 0
    x = images(1)
    assert jax.grad(lambda t: surrogate_max_pool(x, (2, 2), temperature=t).sum())(0.3) == 0


RELU = (lambda x, t: gated_relu(x, t), lambda x, t: soft_relu(x, t))
POOL = (
    lambda x, t: surrogate_max_pool(x, (2, 2), (2, 2), temperature=t),
    lambda x, t: soft_max_pool(x, t),
)


def under_scan(fn):
    def run(x, t):
        return lax.scan(
            lambda carry, _: (carry + 0.1 * fn(x * carry, t).mean(), None), 1.0, None, length=3
        )[0]

    return run


def under_fori_loop(fn):
    def run(x, t):
        return lax.fori_loop(0, 3, lambda _, carry: carry + 0.1 * fn(x * carry, t).mean(), 1.0)

    return run


CONTEXTS = {
    "jit": jax.jit,
    "vmap over inputs": lambda fn: jax.vmap(lambda x, t: fn(x[None], t), in_axes=(0, None)),
    "vmap over temperatures": lambda fn: (
        lambda x, t: jax.vmap(fn, in_axes=(None, 0))(x, t * jnp.array([0.5, 1.0, 2.0]))
    ),
    "scan": under_scan,
    "fori_loop": under_fori_loop,
    "remat": jax.checkpoint,
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("pair", [RELU, POOL], ids=["relu", "pool"])
def test_gradient_under_transformations(pair, context):
    x, temperature = images(), jnp.float32(0.4)
    ours, reference = (CONTEXTS[context](fn) for fn in pair)
    np.testing.assert_allclose(ours(x, temperature), reference(x, temperature), rtol=1e-6)
    assert relative_error(grad(ours, x, temperature), grad(reference, x, temperature)) < 2e-6


@pytest.mark.parametrize("pair", [RELU, POOL], ids=["relu", "pool"])
def test_gradient_under_shard_map(pair):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    batch = PartitionSpec("data")
    x, temperature = images(4), jnp.float32(0.4)

    def sharded(fn):
        return jax.shard_map(fn, mesh=mesh, in_specs=(batch, PartitionSpec()), out_specs=batch)

    ours = grad(sharded(pair[0]), x, temperature)
    assert relative_error(ours, grad(pair[1], x, temperature)) < 2e-6


@pytest.mark.usefixtures("strict_promotion")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_no_implicit_promotion(dtype):
    x, t = images().astype(dtype), jnp.asarray(0.3, jnp.float32)
    for soft in (
        lambda x: gated_relu(x, t),
        lambda x: surrogate_max_pool(x, (3, 3), padding="SAME", temperature=t),
    ):
        out, transpose = jax.vjp(soft, x)
        assert transpose(out)[0].dtype == dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: gated_relu(x, -1.0), "temperature is -1"),
        (lambda x: gated_relu(x, jnp.ones(4)), r"shape \(4,\) does not broadcast"),
        (lambda x: gated_relu(x, jnp.ones((9, 2, 8, 8, 3))), "does not broadcast"),
        (lambda x: surrogate_max_pool(x, (2, 2), temperature=-1.0), "temperature is -1"),
        (lambda x: surrogate_max_pool(x, (2, 2), temperature=jnp.ones((8, 1))), "does not broad"),
        (lambda x: surrogate_max_pool(x, (2,)), "a window of 1 axes needs 1 spatial axes"),
        (lambda x: gated_relu(x, 0.3, gate="tanh"), "gate is 'tanh'"),
        (lambda x: surrogate_max_pool(x, (2, 2), weights="half"), "weights is 'half'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(GatingError, match=message):
        call(images())
