import functools

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.experimental.ode import odeint
from jax.sharding import AxisType, PartitionSpec

from jax_excite import GateWarning, Gating, GatingError, excite, gated_relu, recipes, sites
from tests.networks import Network, images, relative_error, soft_max_pool, soft_relu

T = 0.4
GATING = Gating(temperature=T, pool_temperature=T)
# Weights, such that their transposes are others.
X = jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, (2, 8, 8, 3)), jnp.float32)
A = X[0, 0, :3]


def lax_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


@jax.custom_jvp
def own_relu(x):
    return jnp.maximum(x, 0)


own_relu.defjvps(lambda g, _, x: g * (x > 0))

RELUS = {
    "jax.nn.relu": jax.nn.relu,
    "nnx.relu": nnx.relu,
    "jnp.maximum(x, 0)": lambda x: jnp.maximum(x, 0),
    "jnp.maximum(0, x)": lambda x: jnp.maximum(0, x),
    "jnp.maximum(x, zeros_like)": lambda x: jnp.maximum(x, jnp.zeros_like(x)),
    "lax.max": lambda x: lax.max(x, 0.0),
    "jnp.clip(x, 0)": lambda x: jnp.clip(x, 0),
    "lax.clamp to infinity": lambda x: lax.clamp(0.0, x, np.float32(np.inf)),
    "where(x > 0, x, 0)": lambda x: jnp.where(x > 0, x, 0),
    "where(x >= 0, x, 0)": lambda x: jnp.where(x >= 0, x, 0),
    "where(x < 0, 0, x)": lambda x: jnp.where(x < 0, 0, x),
    "select(0 < x, x, zeros)": lambda x: lax.select(
        lax.lt(0.0, x), x, np.zeros(x.shape, np.float32)
    ),
    "where(~(x > 0), 0, x)": lambda x: jnp.where(~(x > 0), 0, x),
    "x * (x > 0)": lambda x: x * (x > 0),
}
CLIPPED = {
    "jax.nn.relu6": jax.nn.relu6,
    "jnp.clip(x, 0, 6)": lambda x: jnp.clip(x, 0, 6),
    "lax.clamp(0, x, 6)": lambda x: lax.clamp(0.0, x, 6.0),
    "minimum(relu(x), 6)": lambda x: jnp.minimum(jax.nn.relu(x), 6),
    "maximum(minimum(x, 6), 0)": lambda x: jnp.maximum(jnp.minimum(x, 6), 0),
}
POOLS = {
    "nnx.max_pool": lambda x: nnx.max_pool(x, (2, 2), (2, 2)),
    "lax.reduce_window": lax_pool,
}
WAYS = (
    [(name, fn, "relu", lambda z: soft_relu(z, T)) for name, fn in RELUS.items()]
    + [(name, fn, "clipped_relu", lambda z: soft_relu(z, T, 6.0)) for name, fn in CLIPPED.items()]
    + [(name, fn, "max_pool", lambda z: soft_max_pool(z, T)) for name, fn in POOLS.items()]
)


def in_jit(fn):
    return jax.jit(lambda x: jax.tree.map(lambda y: 2 * y, fn(x)))


def in_scan(fn):
    return lambda x: lax.scan(lambda c, s: (c + fn(x * s).mean(), fn(s * x)), 0.0, jnp.arange(3.0))


def in_cond(fn):
    mapped = jax.tree.map
    return lambda x: lax.cond(
        x[0, 0, 0, 0] < 9, lambda x: mapped(lambda y: 3 * y, fn(x)), lambda x: fn(-x), x
    )


def in_while(fn):
    # No reverse-mode derivative goes through `while`; one goes around it.
    def run(x):
        count = lax.while_loop(lambda n: fn(n * jnp.ones_like(x)).sum() < 1e3, lambda n: n + 1, 1.0)
        return lax.stop_gradient(count) * fn(x)

    return run


def in_shard_map(fn):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    batch = PartitionSpec("data")
    # Compiled, since JAX takes minutes to run these equations one by one on two devices.
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=batch, out_specs=batch))


def in_custom_vjp(fn):
    wrapped = jax.custom_vjp(lambda x: fn(x) + x)
    wrapped.defvjp(lambda x: (wrapped(x), None), lambda _, g: (g,))
    return wrapped


CONTEXTS = {
    "plain": lambda fn: fn,
    "jit": in_jit,
    "scan": in_scan,
    "cond": in_cond,
    "while": in_while,
    "remat": jax.checkpoint,
    "vmap": lambda fn: jax.vmap(lambda x: fn(x[None])),
    "shard_map": in_shard_map,
    "nested": lambda fn: in_jit(in_cond(jax.checkpoint(in_scan(fn)))),
}


def outputs(fn, x):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(fn(x))])


def weighted_grad(fn, x):
    return jax.grad(lambda x: jnp.vdot(outputs(fn, x), jnp.cos(jnp.arange(outputs(fn, x).size))))(x)


@pytest.mark.parametrize(("name", "fn", "kind", "soft"), WAYS, ids=[way[0] for way in WAYS])
def test_every_way_to_write_a_gate(name, fn, kind, soft):
    x = 8 * images()
    np.testing.assert_array_equal(excite(fn, GATING)(x), fn(x))
    assert relative_error(weighted_grad(excite(fn, GATING), x), weighted_grad(soft, x)) < 1e-6
    assert [(site.kind, site.gated) for site in sites(fn, x)] == [(kind, True)]


def all_ways(index):
    """One function that uses every gate, with a different weight for each."""

    def fn(x):
        total = jnp.zeros(x.shape)
        for weight, way in enumerate(WAYS, 1):
            out = way[index](x)
            total += weight * (out if out.shape == x.shape else out.repeat(2, 1).repeat(2, 2))
        return total

    return fn


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_gate_inside_a_transformation(context):
    wrap, x = CONTEXTS[context], 8 * images()
    hard, soft = wrap(all_ways(1)), wrap(all_ways(3))
    np.testing.assert_array_equal(outputs(excite(hard, GATING), x), outputs(hard, x))
    ours = jax.jit(functools.partial(weighted_grad, excite(hard, GATING)))(x)
    reference = jax.jit(functools.partial(weighted_grad, soft))(x)
    assert relative_error(ours, reference) < 5e-6
    found = sites(hard, x)
    found = [site for site in found if site.kind != "branch"]  # what `cond` depends on
    assert all(site.gated for site in found)
    kinds = [site.kind for site in found]
    assert kinds == [way[2] for way in WAYS] * (len(kinds) // len(WAYS))


@pytest.mark.parametrize("fn", [*RELUS.values(), *CLIPPED.values(), *POOLS.values()])
def test_zero_temperature_is_the_plain_gradient(fn):
    x = 8 * images()
    np.testing.assert_array_equal(
        weighted_grad(excite(fn, recipes.VANILLA), x), weighted_grad(fn, x)
    )
    zero = Gating(temperature=0.0, pool_temperature=0.0)
    np.testing.assert_array_equal(weighted_grad(excite(fn, zero), x), weighted_grad(fn, x))


@jax.custom_vjp
def twice(x):
    return jax.nn.relu(x) + x


twice.defvjp(lambda x: (twice(x), None), lambda _, g: (5 * g,))


def test_derivative_rules_are_kept_unless_they_are_named():
    x = images()
    for fn in (own_relu, twice):
        (site,) = sites(fn, x)
        assert (site.kind, site.gated) == ("relu", False)
        assert f"the derivative rule of `{fn.__name__}` is kept" in site.reason
        with pytest.warns(GateWarning, match=f"left hard: relu .*enter='{fn.__name__}'"):
            gradient = weighted_grad(excite(fn, GATING), x)
        np.testing.assert_array_equal(gradient, weighted_grad(fn, x))
    gradient = weighted_grad(excite(twice, GATING, enter="twice"), x)
    expected = weighted_grad(lambda x: soft_relu(x, T) + x, x)
    assert relative_error(gradient, expected) < 1e-6
    assert [site.gated for site in sites(twice, x, enter=["twice"])] == [True]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.maximum(jnp.int32(3) * jnp.ones((2, 2), jnp.int32), 0) + x.sum(),
        jax.nn.softplus,
        jax.nn.elu,
        jax.nn.celu,
        jax.nn.soft_sign,
        jax.nn.mish,
    ],
)
def test_what_is_no_gate_is_untouched(fn):
    check_untouched(fn, [])


@pytest.mark.parametrize(
    ("fn", "kinds"),
    [
        (lambda x: jnp.maximum(x, 2 * x), ["max"]),
        (lambda x: jnp.maximum(x, 1e-3), ["max"]),
        (lambda x: jnp.maximum(x, x[::-1]), ["max"]),
        (lambda x: jnp.where(x > 0, jnp.cos(x), 0), ["select"]),
        (lambda x: jnp.where(x > x[::-1], x, 2 * x), ["select"]),
        (lambda x: jnp.sqrt(jnp.maximum(x, 0) + 1), ["max"]),
        (lambda x: jax.nn.mish(x) + 0 * jnp.argmax(x), ["argmax"]),
        (lambda x: lax.cond(x[0, 0, 0, 0] > 9, jnp.sin, jnp.cos, x), ["branch"]),
        (jax.nn.hard_sigmoid, ["hard_sigmoid"]),
        (jax.nn.hard_tanh, ["select"]),
        (jax.nn.selu, ["select"]),
        (jnp.abs, ["abs"]),
        (jnp.sign, ["sign"]),
        (jnp.floor, ["round"]),
        (lambda x: jnp.sort(x, axis=1), ["sort"]),
        (lambda x: x + (x > 0.1), ["step"]),
        (lambda x: jnp.clip(x, -0.5, 0.5) ** 3, ["min"]),
        (lambda x: jnp.where((x > 0.02) & (x < 0.08), 0, jnp.sin(x)), ["select"]),
        (lambda x: jnp.where(x > 1e-4, x, 0), ["select"]),
        (lambda x: jnp.where(x > 0, 5e-4 * x, 0), ["select"]),
        (lambda x: jnp.clip(x, -32768.0, 32767.0), ["min"]),
        (lambda x: jnp.maximum(x + X, X.swapaxes(1, 2)) - X.swapaxes(1, 2), ["max"]),
        (lambda x: x - (x * 3).astype(int), ["step"]),
        (lambda x: jnp.where(jnp.argmax(x, -1)[..., None] == jnp.arange(3), x, 0), ["select"]),
        (
            lambda x: lax.cond(x.sum() > 9, lambda x: (x, 2 * x), lambda x: (-x, x), x)[1],
            ["branch"],
        ),
    ],
)
def test_what_is_left_hard_is_listed(fn, kinds):
    check_untouched(fn, kinds)


@pytest.mark.parametrize(
    ("fn", "kinds"),
    [
        (lambda x: jnp.maximum(x**2 + X[0, 0], 0), ["relu"]),
        (lambda x: jnp.maximum((x**2).sum(-1) - 3.0, 0), ["relu"]),
        (lambda x: jnp.maximum((x - 1) ** 2 - (x @ A) ** 2, 0), ["relu"]),
        (lambda x: jnp.where(x > 0, x, X.swapaxes(1, 2) * x) + X, ["leaky_relu"]),
        (lambda x: jnp.maximum(x, jax.nn.relu(x.mean(-1, keepdims=True))), ["relu", "max"]),
        (lambda x: jnp.maximum((x**2).mean() - x.mean() ** 2, 0), []),
        (lambda x: jnp.maximum(x.var(where=X > 0), 0) + jnp.maximum(x.var(), 0), []),
    ],
)
def test_gates_beside_guards_and_unknown_constants(fn, kinds):
    x = 2 * images()
    assert [site.kind for site in sites(fn, x)] == kinds
    ours, plain = weighted_grad(excite(fn, recipes.VANILLA), x), weighted_grad(fn, x)
    assert jnp.linalg.norm(ours - plain) <= 1e-5 * jnp.linalg.norm(plain)


def check_untouched(fn, kinds):
    x = images()
    assert [(site.kind, site.gated) for site in sites(fn, x)] == [(kind, False) for kind in kinds]
    both = lambda x: jax.nn.relu(fn(x)).sum() + fn(x).sum()  # noqa: E731
    soft = lambda x: soft_relu(fn(x), T).sum() + fn(x).sum()  # noqa: E731
    gradient = jax.grad(excite(both, GATING))(x)
    expected = jax.grad(soft)(x)
    assert jnp.linalg.norm(gradient - expected) <= 5e-5 * jnp.linalg.norm(expected)


@pytest.mark.parametrize(
    ("upper", "factor"),
    [
        ("pass", lambda z: jnp.ones_like(z)),
        ("hard", lambda z: (z < 6).astype(z.dtype)),
        ("soft", lambda z: jax.nn.sigmoid((6 - z) / T)),
    ],
)
def test_upper_bound_of_relu6(upper, factor):
    z = jnp.linspace(-10, 10, 41)
    gradient = jax.grad(lambda z: excite(jax.nn.relu6, Gating(T, upper=upper))(z).sum())(z)
    np.testing.assert_allclose(gradient, jax.nn.sigmoid(z / T) * factor(z), rtol=1e-6)


def test_scalars():
    assert excite(jax.nn.relu, GATING)(-1.0) == 0
    assert jax.grad(excite(jax.nn.relu, Gating(0.5)))(1.0) == pytest.approx(jax.nn.sigmoid(2.0))


@pytest.mark.parametrize(
    ("fn", "plain"),
    [
        (jax.nn.relu, 0.0),
        (lambda x: jnp.maximum(x, 0), 0.5),
        (lambda x: jnp.where(x >= 0, x, 0), 1.0),
    ],
)
def test_zero_temperature_has_the_derivative_of_jax_nn_relu_at_the_kink(fn, plain):
    """However the ReLU is written, and whatever JAX makes of that."""
    assert jax.grad(fn)(0.0) == plain
    assert jax.grad(excite(fn, recipes.VANILLA))(0.0) == 0


def test_excited_function_takes_any_arguments():
    def fn(x, scale, *, flag, name="n"):
        assert name == "n"
        return {"a": jax.nn.relu(x) * scale if flag else x, "b": [x.sum()]}

    x = images()
    out = excite(fn, GATING)(x, 2, flag=True)
    np.testing.assert_array_equal(out["a"], 2 * jax.nn.relu(x))
    assert len(sites(fn, x, 2, flag=True)) == 1
    with pytest.raises(GatingError, match="no gate"):
        excite(fn, GATING)(x, 2, flag=False)
    with pytest.raises(GatingError, match=r"gating is 0.3: give a Gating"):
        excite(fn, 0.3)


def test_closed_over_tracers_keep_their_gradients():
    def loss(w, x):
        return excite(lambda x: jax.nn.relu(w * x).sum(), GATING)(x)

    x = images()
    expected = jax.grad(lambda w, x: soft_relu(w * x, T).sum())(1.5, x)
    np.testing.assert_allclose(jax.grad(loss)(1.5, x), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(1.5, x), expected, rtol=1e-5)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(4, (3, 3))(x))
        x = linen.max_pool(x, (2, 2), (2, 2))
        return linen.Dense(5)(linen.relu(linen.Conv(4, (3, 3))(x)).mean(axis=(1, 2)))


class Equinox(eqx.Module):
    conv: eqx.nn.Conv2d
    mlp: eqx.nn.MLP

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.conv = eqx.nn.Conv2d(3, 4, 3, key=keys[0])
        self.mlp = eqx.nn.MLP(4 * 36, 5, 16, 2, activation=jax.nn.relu, key=keys[1])

    def __call__(self, x):
        return jax.vmap(lambda x: self.mlp(jax.nn.relu(self.conv(x.T)).ravel()))(x)


def linen_network():
    model = Linen()
    variables = model.init(jax.random.key(0), images())
    return jax.tree_util.Partial(model.apply, variables)


@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        (Network, ["relu", "max_pool", "relu"]),
        (linen_network, ["relu", "max_pool", "relu"]),
        (Equinox, ["relu"] * 3),
        (lambda: lambda x: jax.nn.relu(x).mean(axis=(1, 2)), ["relu"]),
    ],
    ids=["nnx", "linen", "equinox", "plain"],
)
def test_frameworks(build, kinds, monkeypatch):
    model, x = build(), images()
    assert [site.kind for site in sites(model, x)] == kinds
    np.testing.assert_array_equal(excite(model, GATING)(x), model(x))
    gradient = jax.grad(lambda x: excite(model, GATING)(x)[:, 1].sum())(x)

    # The same by patching the framework's functions, as module replacement would.
    monkeypatch.setattr(jax.nn, "relu", functools.partial(soft_relu, temperature=T))
    monkeypatch.setattr(linen, "relu", functools.partial(soft_relu, temperature=T))
    monkeypatch.setattr(linen, "max_pool", lambda x, *_: soft_max_pool(x, T))
    monkeypatch.setattr(nnx, "max_pool", lambda x, *_: soft_max_pool(x, T))
    patched = build() if isinstance(model, Equinox) else model
    expected = jax.grad(lambda x: patched(x)[:, 1].sum())(x)
    assert relative_error(gradient, expected) < 2e-6


def reused(x):
    act = jax.nn.relu
    with jax.named_scope("stem"):
        x = act(x - 0.1)
        x = act(x - 0.2)
    with jax.named_scope("body"):
        x = nnx.max_pool(x, (2, 2), (2, 2))
    return jnp.clip(x.astype(jnp.bfloat16), 0, 6)


def test_site_report():
    found = sites(reused, images())
    assert [site.index for site in found] == [0, 1, 2, 3]
    assert [site.name for site in found] == [
        "stem/relu",
        "stem/relu_1",
        "body/max_pool",
        "clipped_relu",
    ]
    assert [site.kind for site in found] == ["relu", "relu", "max_pool", "clipped_relu"]
    assert [site.shape for site in found] == [(2, 8, 8, 3)] * 3 + [(2, 4, 4, 3)]
    assert [str(site.dtype) for site in found] == ["float32"] * 3 + ["bfloat16"]
    assert all(site.gated for site in found)
    first = reused.__code__.co_firstlineno
    lines = [3, 4, 6, 7]
    assert [site.source for site in found] == [f"{__file__}:{first + n} (reused)" for n in lines]
    assert found[0].reason == "computed by `relu`"


def test_source_is_the_line_of_the_caller_even_where_jax_traced_before():
    def one(x):
        return jnp.where(x > 0, x, 0)

    def other(x):
        return jnp.where(x > 0, x, 0)

    for fn in (one, other):
        line = fn.__code__.co_firstlineno + 1
        assert sites(fn, images())[0].source.split(".py:")[1].startswith(f"{line} (")


@pytest.mark.parametrize(
    ("selection", "gated"),
    [
        ({"skip": 1}, [True, False, True, True]),
        ({"skip": np.int64(1)}, [True, False, True, True]),
        ({"skip": "body/max_pool"}, [True, True, False, True]),
        ({"skip": ("stem/relu", 3)}, [False, True, True, False]),
        ({"only": [0, "stem/relu_1"]}, [True, True, False, False]),
        ({"only": [0, 1], "skip": [1]}, [True, False, False, False]),
    ],
)
def test_selected_sites_are_softened(selection, gated):
    x = images()
    found = sites(reused, x, **selection)
    assert [site.gated for site in found] == gated
    assert all(("caller" in site.reason) == (not site.gated) for site in found)

    def expected(x):
        relus = [functools.partial(soft_relu, temperature=T) if g else jax.nn.relu for g in gated]
        pool = functools.partial(soft_max_pool, temperature=T) if gated[2] else lax_pool
        x = pool(relus[1](relus[0](x - 0.1) - 0.2)).astype(jnp.bfloat16)
        return excite(jax.nn.relu6, GATING)(x) if gated[3] else jnp.clip(x, 0, 6)

    ours = jax.grad(lambda x: excite(reused, GATING, **selection)(x).astype(jnp.float32).sum())(x)
    theirs = jax.grad(lambda x: expected(x).astype(jnp.float32).sum())(x)
    assert relative_error(ours, theirs) < 1e-5


def test_one_temperature_for_each_site():
    def fn(x):
        return jax.nn.relu(jax.nn.relu(x) - 0.2)

    x = images()
    channels = jnp.array([0.1, 0.5, jnp.inf])
    gating = Gating(temperature=0.3, site_temperatures={1: 0.7, "relu": channels})
    expected = jax.grad(lambda x: soft_relu(gated_relu(x, channels) - 0.2, 0.7).sum())(x)
    gradient = jax.grad(lambda x: excite(fn, gating)(x).sum())(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("fn", "settings", "message"),
    [
        (jnp.sin, {}, "no gate to soften"),
        (
            jax.nn.relu,
            {"skip": 1},
            r"skip names no site of the function: \[1\]; its sites: 0 \(relu\)",
        ),
        (jax.nn.relu, {"only": ["a"]}, r"only names no site of the function: \['a'\]"),
        (
            jax.nn.relu,
            {"gating": Gating(site_temperatures={"b": 1.0})},
            "site_temperatures names no",
        ),
        (
            jax.nn.relu,
            {"gating": Gating(jnp.ones(7))},
            r"site 0 \(relu\): a temperature of shape \(7,\)",
        ),
    ],
)
def test_wrong_settings_are_named(fn, settings, message):
    with pytest.raises(GatingError, match=message):
        excite(fn, **settings)(images())


def test_what_cannot_be_entered_is_left_and_reported():
    def solved(x, relu):
        return lax.custom_linear_solve(
            lambda v: (1 + relu(x)) * v, x, lambda mv, b: b / mv(jnp.ones_like(b)), symmetric=True
        )

    def fn(x, relu=jax.nn.relu):
        return relu(solved(x, jax.nn.relu) - 0.1)

    x = images()
    *inside, outside = sites(fn, x)
    assert inside
    assert outside.gated
    for site in inside:
        assert not site.gated
        assert "inside `custom_linear_solve`, which excite does not enter" in site.reason
    with pytest.warns(GateWarning, match="inside `custom_linear_solve`"):
        np.testing.assert_array_equal(excite(fn, GATING)(x), fn(x))
    with pytest.warns(GateWarning):
        gradient = jax.grad(lambda x: excite(fn, GATING)(x).sum())(x)
    expected = jax.grad(lambda x: fn(x, functools.partial(soft_relu, temperature=T)).sum())(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_gates_that_are_soft_already_are_left():
    def fn(x):
        return (
            gated_relu(x, 2.0).sum()
            + excite(jax.nn.relu, Gating(3.0))(x).sum()
            + jax.nn.relu(x).sum()
        )

    x = images()
    assert [site.gated for site in sites(fn, x)] == [False, False, True]
    assert sites(fn, x)[0].reason == "its gradient is soft already"
    gradient = jax.grad(excite(fn, GATING))(x)
    expected = sum(jax.nn.sigmoid(x / t) for t in (2.0, 3.0, T))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.usefixtures("strict_promotion")
def test_no_implicit_promotion():
    x = images().astype(jnp.bfloat16)
    gradient = jax.grad(lambda x: excite(reused, GATING)(x).astype(jnp.float32).sum())(x)
    assert gradient.dtype == jnp.bfloat16


def test_temperature_sweep_under_vmap_equals_one_by_one():
    model, x = Network(), images()
    temperatures = jnp.array([0.0, 0.15, 0.5, jnp.inf])

    @jax.jit
    def field(t):
        return jax.grad(lambda x: excite(model, Gating(t, t))(x)[:, 0].sum())(x)

    for swept, t in zip(jax.vmap(field)(temperatures), temperatures, strict=True):
        assert relative_error(swept, field(t)) < 1e-6


@pytest.mark.parametrize("size", [3, 9])
def test_hard_pool_with_an_initial_value(size):
    def pooled(x, initial):
        sizes, steps = (1, size, size, 1), (1, 1, 1, 1)
        return lax.reduce_window(x, initial, lax.max, sizes, steps, "SAME")

    w = jax.random.normal(jax.random.key(1), (9, 9, 3))
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 3)) - 1.5
    got = jax.grad(lambda x: jnp.sum(w * excite(pooled, recipes.VANILLA)(x, 0.2)))(x)
    wanted = jax.grad(lambda x: jnp.sum(w * jnp.maximum(pooled(x, -jnp.inf), 0.2)))(x)
    assert relative_error(got, wanted) < 1e-6


def test_gates_of_a_function_that_a_rule_of_jax_calls():
    def step(y, t):
        return jax.nn.relu(y @ A) - 0.1 * jnp.maximum(y, 0.0)

    def fn(x):
        h = odeint(step, x.mean((1, 2)), jnp.array([0.0, 0.5]))[-1]
        return jax.nn.relu(h) + jax.nn.softplus(h) + jax.nn.logsumexp(h, axis=1, keepdims=True)

    listed = [site for site in sites(fn, X) if site.kind == "relu"]
    left = [site for site in listed if not site.gated]
    assert len(listed) == len(left) + 1
    assert len(left) > 1
    assert all("_odeint" in site.reason and ".step)" in site.source for site in left)
    with pytest.warns(GateWarning, match="_odeint"):
        got = jax.grad(lambda x: excite(fn, recipes.EXCITATION)(x).sum())(X)
    assert jnp.isfinite(got).all()


def test_sites_of_shapes():
    """Shapes can stand for arrays, also for those of a network that is not made yet."""
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    network = Network(classes=5)
    wanted = sites(network, jnp.zeros(x.shape))
    assert any(site.gated for site in wanted)
    assert sites(network, x) == wanted
    assert sites(jax.eval_shape(lambda: network), x) == wanted
    assert [site.name for site in sites(lambda *, z: jax.nn.relu(z), z=x)] == ["relu"]
    assert sites(lambda x, mode: jax.nn.relu(x) if mode else x, x, "on")[0].shape == x.shape


def test_an_error_in_sites_says_that_no_batch_axis_is_added():
    network = Network(classes=5)
    with pytest.raises(TypeError, match="shape") as error:
        sites(network, jnp.zeros((8, 8, 3)))
    (note,) = [each for each in error.value.__notes__ if each.startswith("sites called")]
    assert "of shape (8, 8, 3); one image of a network that takes batches is x[None]" in note
    assert sites(network, jnp.zeros((1, 8, 8, 3)))
