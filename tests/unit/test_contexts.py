"""What an equation carries is kept: names and shardings of `jit`, platforms, contexts, scopes."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.compute_on import compute_on
from jax.sharding import NamedSharding, PartitionSpec

from jax_excite import GateWarning, Gating, excite, sites, theory
from jax_excite.graphs.graph import origin, trace
from tests.networks import images, relative_error, soft_relu

GATING = Gating(temperature=0.4)


def test_names_and_shardings_of_jit():
    mesh = jax.make_mesh((2,), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))

    def my_block(x):
        return jax.nn.relu(jnp.sin(x)) * 2

    fn = jax.jit(my_block, out_shardings=spread)
    out = excite(fn, GATING)(images())
    assert out.sharding.is_equivalent_to(spread, out.ndim)
    assert "my_block" in str(jax.make_jaxpr(excite(fn, GATING))(images()))


def test_a_branch_for_another_platform():
    def fn(x):
        def elsewhere(x):
            return jax.nn.relu(lax.approx_max_k(x, 1)[0] + x)

        return lax.platform_dependent(x, tpu=elsewhere, default=lambda x: jax.nn.relu(x - 0.1))

    def only_here(x):
        return lax.platform_dependent(x, cpu=lambda x: jax.nn.relu(x - 0.1))

    x = images()
    expected = jax.grad(lambda x: soft_relu(x - 0.1, 0.4).sum())(x)
    for each in (fn, only_here):
        np.testing.assert_array_equal(excite(each, GATING)(x), each(x))
        gradient = jax.grad(lambda x, each=each: excite(each, GATING)(x).sum())(x)
        assert relative_error(gradient, expected) < 1e-6


CALLS = "out_memory_spaces" in inspect.signature(compute_on).parameters  # from JAX 0.12 on


@pytest.mark.skipif(CALLS, reason="in this version of JAX, compute_on is a call")
def test_compute_on_is_kept():
    def fn(x):
        with compute_on("device_host"):
            y = jax.nn.relu(x) * 2
        return y + 1

    def types(fn):
        return [
            e.ctx.compute_type
            for e in jax.make_jaxpr(fn)(images()).eqns
            if str(e.primitive) in ("mul", "add")
        ]

    assert types(fn) == types(excite(fn, GATING)) == ["device_host", None]


@pytest.mark.skipif(not CALLS, reason="in this version of JAX, compute_on is a context")
def test_compute_on_is_not_entered():
    inner = compute_on(
        jax.nn.relu, compute_type="device_host", out_memory_spaces=jax.memory.Space.Device
    )
    (site,) = sites(inner, images())
    assert not site.gated
    assert "inside `compute_on`" in site.reason
    with pytest.warns(GateWarning, match="inside `compute_on`"):
        outputs = excite(inner, GATING)(images())
    np.testing.assert_array_equal(outputs, inner(images()))


def test_scopes_of_nested_excite():
    def fn(x):
        with jax.named_scope("outer"):
            inner = jax.jit(lambda x: jax.nn.relu(2 * x))
            with jax.named_scope("inner"):
                return inner(x) + jax.nn.relu(x)

    x = images()
    names = [site.name for site in sites(fn, x)]
    assert names == ["outer/inner/relu", "outer/inner/relu_1"]
    assert [site.name for site in sites(excite(fn, GATING), x)] == names
    assert [site.name for site in sites(excite(excite(fn, GATING), GATING), x)] == names


@jax.custom_vjp
def soften_relu(x):
    return jax.nn.relu(x)


soften_relu.defvjp(lambda x: (soften_relu(x), None), lambda _, g: (g,))


def test_a_function_of_a_user_that_has_the_name_of_ours():
    (site,) = sites(soften_relu, images())
    assert "the derivative rule of `soften_relu` is kept" in site.reason


def test_a_relu_that_is_used_plainly_and_clipped(x64):
    x = jnp.linspace(-2.0, 9.0, 24).reshape(2, 12)

    def fn(x):
        y = jax.nn.relu(x)
        return y @ jnp.ones((12, 3)) + jnp.minimum(y, 6) @ jnp.ones((12, 3))

    assert [site.kind for site in sites(fn, x)] == ["relu", "clipped_relu"]
    held = theory.gates(fn, x, Gating(temperature=0.0, pool_temperature=0.0))
    np.testing.assert_allclose(theory.induced(fn, x, held), fn(x), rtol=1e-12)
    gradient = jax.grad(lambda x: excite(fn, GATING)(x)[:, 0].sum())(x)
    np.testing.assert_allclose(gradient, 2 * jax.nn.sigmoid(x / 0.4), rtol=1e-12)


@pytest.mark.parametrize("upper", ["pass", "hard", "soft"])
def test_learned_slopes_have_their_own_gradient(upper, x64):
    x, slopes = images(dtype=jnp.float64), jnp.array([0.1, -0.2, 0.3])

    def fn(slopes, x):
        return jnp.where(x > 0, x, slopes * x) ** 2

    def by_hand(slopes, x):
        value = slopes * x + (1 - slopes) * soft_relu(x, 0.4)
        hard = lax.stop_gradient(fn(slopes, x))
        root = jnp.where(x > 0, x, lax.stop_gradient(slopes) * x)
        root = lax.stop_gradient(root) + value - lax.stop_gradient(value)
        return root**2 + hard - lax.stop_gradient(root**2)

    def total(fn):
        return lambda x: fn(slopes, x).sum()

    gating = Gating(temperature=0.4, upper=upper)
    ours = jax.grad(total(excite(fn, gating)))(x)
    assert relative_error(ours, jax.grad(total(by_hand))(x)) < 1e-12
    by_slopes = jax.grad(lambda slopes: excite(fn, gating)(slopes, x).sum())(slopes)
    plain = jax.grad(lambda slopes: fn(slopes, x).sum())(slopes)
    assert relative_error(by_slopes, plain) < 1e-12


def test_what_calls_and_loops_only_pass_on():
    def fn(x, y, test):
        through_jit = jax.jit(lambda x, y: (2 * y, x))(x, y)[1]
        one_of_two = lax.cond(test, lambda x, y: (x + 1, x), lambda x, y: (x, y), x, y)[1]
        either = lax.cond(test, lambda x, y: (x + 1, x), lambda x, y: (y, x), x, y)[1]
        carried = lax.scan(lambda c, s: ((c[0], c[1] + s), s), (x, 0.0), y)[0]
        return through_jit, one_of_two, either, carried[0], carried[1]

    graph, _ = trace(fn, images()[0, 0, 0], images()[0, 0, 1], jnp.asarray(True))
    x = graph.inputs[0]
    passed = [origin(graph, output) == x for output in graph.outputs]
    assert passed == [True, False, True, True, False]
