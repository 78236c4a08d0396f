"""Gates without a jump: SiLU, GELU, hard swish, normalisation, attention.

Each published rule is written out here a second time, as a function with stopped gradients.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jax_excite as je
from jax_excite import recipes
from tests.programs import GELU, SELF_GATED, divided

RNG = np.random.default_rng(0)
Z = np.concatenate([RNG.normal(scale=3, size=60), [0.0, -9.0, 9.0, 30.0, -30.0]])
WEIGHTS = np.cos(np.arange(Z.size))


def field(fn, x, gating, cotangent=None):
    """The gradient of a weighted sum of the outputs of an excited function."""
    outputs = jax.eval_shape(fn, x)
    weights = jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape).astype(outputs.dtype)
    cotangent = weights if cotangent is None else cotangent
    return jax.grad(lambda x: jnp.vdot(je.excite(fn, gating)(x), cotangent))(x)


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def at(kind, temperature):
    return dataclasses.replace(recipes.SEMANTIC, **{f"{kind}_temperature": temperature})


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("name", SELF_GATED)
def test_an_activation_in_each_form_and_dtype(name, dtype, tolerance):
    fn, kind, _ = SELF_GATED[name]
    z = jnp.asarray(Z, dtype)
    slope = 1.702 if name == "quick gelu" else 1.0
    assert [(site.kind, site.gated) for site in je.sites(fn, z)] == [(kind, True)]
    gates = {
        "silu": jax.nn.sigmoid,
        "gelu": jax.scipy.special.ndtr,
        "hard_swish": lambda u: jnp.clip(u + 3, 0, 6) / 6,
    }
    for temperature in (0.4, 1.0, 2.5):
        wanted = WEIGHTS * gates[kind](slope * np.asarray(z, np.float32) / temperature)
        found = field(fn, z, at(kind, temperature), jnp.asarray(WEIGHTS, dtype))
        assert found.dtype == z.dtype
        assert relative(found, wanted) < tolerance
    np.testing.assert_array_equal(je.excite(fn, recipes.SEMANTIC)(z), fn(z))


@pytest.mark.parametrize("fn", [jax.nn.silu, jax.nn.gelu, jax.nn.hard_swish])
def test_the_limits_of_the_temperature(fn, x64):
    kind = {"silu": "silu", "gelu": "gelu"}.get(fn.__name__, "hard_swish")
    z = jnp.asarray(Z)
    np.testing.assert_array_equal(field(fn, z, at(kind, 0.0), WEIGHTS), WEIGHTS * (Z > 0))
    np.testing.assert_array_equal(field(fn, z, at(kind, jnp.inf), WEIGHTS), WEIGHTS / 2)
    near = Z != 0
    small = field(fn, z, at(kind, 1e-9), WEIGHTS)
    np.testing.assert_allclose(small[near], (WEIGHTS * (Z > 0))[near], atol=1e-12)


def test_temperatures_are_traced_and_may_be_mapped():
    z = jnp.asarray(Z)
    temperatures = jnp.array([0.0, 0.5, 1.6])
    mapped = jax.jit(jax.vmap(lambda t: field(jax.nn.silu, z, at("silu", t))))(temperatures)
    for row, temperature in zip(mapped, temperatures, strict=True):
        single = field(jax.nn.silu, z, at("silu", float(temperature)))
        np.testing.assert_allclose(row, single, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "fn",
    [jax.nn.silu, jax.nn.gelu, jax.nn.hard_swish, jax.nn.standardize],
)
def test_the_default_recipe_leaves_them(fn):
    x = jnp.asarray(RNG.normal(size=(3, 8)), jnp.float32)
    with pytest.raises(je.GatingError, match=r"gating=recipes\.SEMANTIC, which softens them"):
        je.excite(fn)(x)
    both = lambda x: jax.nn.relu(fn(x))  # noqa: E731
    wanted = jax.grad(
        lambda x: jnp.vdot(je.gated_relu(fn(x), 0.3), jnp.cos(jnp.arange(24.0)).reshape(3, 8))
    )(x)
    np.testing.assert_allclose(field(both, x, recipes.EXCITATION), wanted, rtol=1e-6, atol=1e-7)
    plain = jax.grad(lambda x: jnp.vdot(fn(x), jnp.cos(jnp.arange(24.0)).reshape(3, 8)))(x)
    np.testing.assert_array_equal(field(fn, x, recipes.VANILLA), plain)


def test_a_site_of_its_own_temperature():
    def fn(x):
        return jax.nn.silu(jax.nn.silu(x) * 2 - 1)

    x = jnp.asarray(Z, jnp.float32)
    names = [site.name for site in je.sites(fn, x)]
    assert names == ["silu", "silu_1"]
    one = dataclasses.replace(recipes.EXCITATION, site_temperatures={"silu_1": 0.7})
    inner = 2 * jax.nn.silu(x) - 1
    gate = jax.nn.sigmoid(inner / 0.7)
    wanted = jax.grad(lambda x: jnp.vdot(lax.stop_gradient(gate) * (2 * jax.nn.silu(x)), WEIGHTS))
    assert relative(field(fn, x, one, WEIGHTS), wanted(x)) < 1e-6


def test_a_normalisation_has_no_temperature():
    gating = dataclasses.replace(recipes.SEMANTIC, site_temperatures={"normalisation": 1.0})
    with pytest.raises(je.GatingError, match="normalisation, which has no temperature"):
        je.excite(jax.nn.standardize, gating)(jnp.ones((2, 5)))


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (
            lambda x: jnp.concatenate([x, jnp.broadcast_to(jnp.sqrt(x.var(-1)), (5, 3)).T], -1),
            "a deviation that does not only normalise",
        ),
        (
            lambda x: x * jnp.sqrt(x.var(-1, keepdims=True) + 1e-5),
            "a deviation that does not only normalise",
        ),
        (lambda x: jax.nn.softmax(jnp.sin(x), -1) @ (x.T @ x), "no product of queries and keys"),
        (
            lambda x: jax.nn.softmax(x @ x.T + jnp.sin(x) @ x.T, -1) @ x,
            "not one product of queries and keys",
        ),
    ],
)
def test_what_is_almost_one_is_listed_and_left(fn, reason):
    x = jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32)
    (site,) = je.sites(fn, x)
    assert not site.gated
    assert reason in site.reason
    both = lambda x: jax.nn.silu(fn(x))  # noqa: E731
    gate = jax.nn.sigmoid(fn(x) / 1.6)
    cotangent = jnp.cos(jnp.arange(gate.size)).reshape(gate.shape)
    wanted = jax.grad(lambda x: jnp.vdot(fn(x) * gate, cotangent))(x)
    assert relative(field(both, x, recipes.SEMANTIC), wanted) < 1e-5


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x / jnp.sqrt((x**2).sum(-1, keepdims=True)),
        lambda x: x * jax.nn.sigmoid(x[..., ::-1]),
        lambda x: x * jax.nn.sigmoid(x + 0.5),
        lambda x: jax.nn.softmax(x, -1) * x,
        jax.nn.mish,
        lambda x: x * jnp.exp(-(x**2)),
    ],
)
def test_what_only_resembles_one_is_no_site(fn):
    assert je.sites(fn, jnp.ones((3, 5))) == []


# Attention. `MASK` is causal, and one query sees nothing but itself.

D, HEADS = 8, 2
MATRICES = [RNG.normal(size=(D, D)) for _ in range(3)]
BIASES = [RNG.normal(size=D) for _ in range(3)]
MASK = np.tril(np.ones((5, 5), bool))


def project(part, place):
    return (part @ MATRICES[place] + BIASES[place]).reshape(*part.shape[:2], HEADS, -1)


def softmax_of(q, k, mask, bias=0.0, temperature=1.0):
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D / HEADS) + bias
    logits = logits if mask is None else jnp.where(mask, logits, -1e9)
    return jax.nn.softmax(logits / temperature, -1)


def attend(xq, xk, xv, mask=None, bias=0.0):
    weights = softmax_of(project(xq, 0), project(xk, 1), mask, bias)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, project(xv, 2)).reshape(xq.shape)


def detached(temperature, xq, xk, xv, mask=None, bias=0.0):
    weights = softmax_of(project(xq, 0), project(xk, 1), mask, bias, temperature)
    weights = lax.stop_gradient(weights)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, project(xv, 2)).reshape(xq.shape)


CONTEXT = RNG.normal(size=(2, 7, D))
POSITIONS = RNG.normal(size=(5, 5))
ARGUMENTS = {
    "self": (lambda x: (x, x, x), {}),
    "masked": (lambda x: (x, x, x), {"mask": MASK}),
    "with positions": (lambda x: (x, x, x), {"bias": POSITIONS}),
    "cross, from queries": (lambda x: (x, CONTEXT, CONTEXT), {}),
    "cross, from keys": (lambda x: (CONTEXT, x, x), {}),
    "fixed weights": (lambda x: (CONTEXT, CONTEXT[:, :5], x), {}),
}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_attention_in_both_forms(name, temperature, x64):
    arguments, options = ARGUMENTS[name]
    x = jnp.asarray(RNG.normal(size=(2, 5, D)))

    def fn(x):
        return attend(*arguments(x), **options)

    def through(x):
        xq, xk, xv = arguments(x)
        return attend(divided(xq, temperature), divided(xk, temperature), xv, **options)

    assert [(site.kind, site.gated) for site in je.sites(fn, x)] == [("attention", True)]
    gating = at("attention", temperature)
    outputs = jnp.cos(jnp.arange(fn(x).size)).reshape(fn(x).shape)
    wanted = jax.grad(lambda x: jnp.vdot(through(x), outputs))(x)
    assert relative(field(fn, x, gating), wanted) < 1e-12
    constant = jax.grad(
        lambda x: jnp.vdot(detached(temperature, *arguments(x), **options), outputs)
    )
    gating = dataclasses.replace(gating, attention="detached")
    if name == "cross, from queries":
        assert not field(fn, x, gating).any()
    else:
        assert relative(field(fn, x, gating), constant(x)) < 1e-12
    np.testing.assert_array_equal(je.excite(fn, gating)(x), fn(x))


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_limits_of_attention(mask, x64):
    x = jnp.asarray(RNG.normal(size=(2, 5, D)))

    def fn(x):
        return attend(x, x, x, mask)

    def of(choose):
        seen = np.ones((5, 5), bool) if mask is None else mask
        logits = jnp.einsum("bqhd,bkhd->bhqk", project(x, 0), project(x, 1))
        weights = choose(jnp.where(seen, logits, -jnp.inf), seen)
        cotangent = jnp.cos(jnp.arange(x.size)).reshape(x.shape)

        def product(x):
            values = project(x, 2)
            return jnp.vdot(
                jnp.einsum("bhqk,bkhd->bqhd", weights, values).reshape(x.shape), cotangent
            )

        return jax.grad(product)(x)

    one_hot = lambda s, _: (s == s.max(-1, keepdims=True)).astype(float)  # noqa: E731
    uniform = lambda s, seen: jnp.broadcast_to(seen / seen.sum(-1, keepdims=True), s.shape)  # noqa: E731
    for temperature, choose in ((0.0, one_hot), (jnp.inf, uniform)):
        gating = dataclasses.replace(at("attention", temperature), attention="detached")
        assert relative(field(fn, x, gating), of(choose)) < 1e-12
    assert jnp.isfinite(field(fn, x, at("attention", 0.0))).all()
    assert jnp.isfinite(field(fn, x, at("attention", jnp.inf))).all()


@pytest.mark.parametrize("form", ["through", "detached"])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_attention_and_the_function_of_its_own(form, masked):
    q = jnp.asarray(RNG.normal(size=(2, 5, 4, 6)), jnp.float32)
    k, v = (jnp.asarray(RNG.normal(size=(2, 5, 2, 6)), jnp.float32) for _ in range(2))
    mask = jnp.asarray(MASK) if masked else None
    cotangent = jnp.cos(jnp.arange(q.size)).reshape(q.shape)
    gating = dataclasses.replace(at("attention", 1.7), attention=form)

    def fn(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask)

    def own(q, k, v):
        return je.surrogate_attention(q, k, v, 1.7, form=form, mask=mask)

    excited = jax.grad(lambda *a: jnp.vdot(je.excite(fn, gating)(*a), cotangent), (0, 1, 2))(
        q, k, v
    )
    written = jax.grad(lambda *a: jnp.vdot(own(*a), cotangent), (0, 1, 2))(q, k, v)
    for a, b in zip(excited, written, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(own(q, k, v), fn(q, k, v))


def test_functions_of_their_own_equal_excited_ones():
    z = jnp.asarray(Z, jnp.float32)
    for own, fn in (
        (je.gated_silu, jax.nn.silu),
        (je.gated_gelu, jax.nn.gelu),
        (je.gated_hard_swish, jax.nn.hard_swish),
    ):
        np.testing.assert_array_equal(own(z), fn(z))
        gradient = jax.grad(lambda z, own=own: jnp.vdot(own(z), WEIGHTS))(z)
        np.testing.assert_allclose(gradient, field(fn, z, recipes.SEMANTIC, WEIGHTS), atol=1e-6)
        with pytest.raises(je.GatingError, match="temperature is -1"):
            own(z, -1.0)
    exact = jax.grad(lambda z: jnp.vdot(je.gated_gelu(z, approximate=False), WEIGHTS))(z)
    np.testing.assert_allclose(exact, WEIGHTS * GELU[1](z * 0.8), atol=1e-6)
    x = jnp.asarray(RNG.normal(size=(3, 9)), jnp.float32)
    normal = lambda x: je.surrogate_normalisation(x, epsilon=1e-5)  # noqa: E731
    np.testing.assert_allclose(normal(x), jax.nn.standardize(x), atol=1e-5)
    cotangent = jnp.cos(jnp.arange(27.0)).reshape(3, 9)
    gradient = jax.grad(lambda x: jnp.vdot(normal(x), cotangent))(x)
    assert relative(gradient, field(jax.nn.standardize, x, recipes.SEMANTIC)) < 1e-5


def small(x):
    """A function of images with a ReLU, a SiLU and a max-pool."""
    x = jax.nn.silu(x @ np.eye(3) * 1.5)
    return jax.nn.relu(x[..., ::-1] - 0.1).max((1, 2))


IMAGES = np.random.default_rng(3).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)


def test_only_gates_without_a_scale_of_their_own_are_calibrated():
    gating = je.calibrate(small, IMAGES, gating=recipes.SEMANTIC)
    assert set(gating.site_temperatures) == {"relu", "max_pool"}
    assert gating.silu_temperature == 1.6
    smooth = je.calibrate(lambda x: jax.nn.silu(x), IMAGES, gating=recipes.SEMANTIC)
    assert smooth == recipes.SEMANTIC
    with pytest.raises(je.ExciteError, match="there are no batches"):
        je.calibrate(small, [], gating=recipes.SEMANTIC)


def test_a_sweep_of_one_kind_holds_the_others():
    fields = je.temperature_sweep(
        small, IMAGES, 1, [0.0, 0.7, 1.6], vary="silu_temperature", gating=recipes.SEMANTIC
    )
    for field, temperature in zip(fields, (0.0, 0.7, 1.6), strict=True):
        single = je.pullback(small, IMAGES, 1, gating=at("silu", temperature))
        np.testing.assert_allclose(field, single, rtol=1e-5, atol=1e-7)
    own = dataclasses.replace(recipes.SEMANTIC, site_temperatures={"relu": 0.2, "silu": 2.0})
    doubled = je.temperature_sweep(
        small, IMAGES, 1, [2.0], vary=["temperature", "pool_temperature"], gating=own
    )
    wanted = dataclasses.replace(
        own, pool_temperature=2.0, site_temperatures={"relu": 0.4, "silu": 2.0}
    )
    np.testing.assert_allclose(doubled[0], je.pullback(small, IMAGES, 1, gating=wanted), rtol=1e-5)
    with pytest.raises(je.GatingError, match="vary is 'silu': choose one of 'temperature'"):
        je.temperature_sweep(small, IMAGES, 1, [1.0], vary="silu")


# Squeeze-and-excitation

W = np.random.default_rng(5).standard_normal((6, 6)).astype(np.float32)
SCALES = {
    "means": lambda x: jax.nn.sigmoid(jax.nn.relu(x.mean((1, 2), keepdims=True) @ W) @ W),
    "sums, reshaped": lambda x: jax.nn.sigmoid(0.1 * x.sum((1, 2)) @ W).reshape(-1, 1, 1, 6),
    "hard sigmoid": lambda x: jax.nn.hard_sigmoid(x.mean((1, 2)) @ W)[:, None, None],
    "maxima": lambda x: jax.nn.sigmoid(x.max((1, 2), keepdims=True) @ W),
    "in a function": lambda x: jax.jit(jax.nn.sigmoid)(jnp.mean(x, (1, 2), keepdims=True) @ W),
}
NOT_SCALES = {
    "another map's": lambda x: jax.nn.sigmoid((x @ W).mean((1, 2), keepdims=True)),
    "per place": lambda x: jax.nn.sigmoid(x @ W),
    "no gate": lambda x: x.mean((1, 2), keepdims=True) @ W,
    "of something else too": lambda x: jax.nn.sigmoid(
        x.mean((1, 2), keepdims=True) + x[:, :1, :1] @ W
    ),
}
MAP = np.random.default_rng(6).standard_normal((2, 5, 4, 6)).astype(np.float32)


def times(gates):
    return lambda x: x * gates(x)


@pytest.mark.parametrize("name", SCALES)
def test_squeeze_and_excitation_is_held_constant(name, x64):
    gates, x = SCALES[name], MAP.astype(np.float64)
    fn = times(gates)
    kinds = [site.kind for site in je.sites(fn, x) if site.gated]
    assert kinds[-1] == "squeeze_excitation"
    gating = dataclasses.replace(je.recipes.VANILLA, squeeze_excitation="constant")
    soft = je.excite(fn, gating=gating)
    np.testing.assert_array_equal(jax.jit(soft)(x), jax.jit(fn)(x))
    pull = jax.vjp(soft, x)[1]
    wanted, held = jax.vjp(lambda x: x * jax.lax.stop_gradient(gates(x)), x)
    np.testing.assert_allclose(pull(wanted)[0], held(wanted)[0], rtol=1e-12)
    own = jax.vjp(je.excite(fn, gating=je.recipes.SEMANTIC), x)[1] if len(kinds) > 1 else None
    plain = jax.vjp(fn, x)[1](wanted)[0]
    assert not np.allclose(plain, held(wanted)[0], rtol=1e-3)
    if own is not None:  # the recipe leaves the gates their derivative
        assert not np.allclose(own(wanted)[0], held(wanted)[0], rtol=1e-3)


@pytest.mark.parametrize("name", SCALES)
def test_squeeze_and_excitation_of_a_map_with_one_place(name):
    found = je.sites(times(SCALES[name]), MAP[:, :1, :1])
    assert "squeeze_excitation" in [site.kind for site in found]


@pytest.mark.parametrize("name", NOT_SCALES)
def test_what_is_no_squeeze_and_excitation(name):
    sites = je.sites(times(NOT_SCALES[name]), MAP)
    assert not [site for site in sites if site.kind == "squeeze_excitation"]


def test_what_a_site_says_of_squeeze_and_excitation():
    (site,) = je.sites(times(SCALES["in a function"]), MAP)
    assert site.reason.endswith("Gating(squeeze_excitation=...) can hold it constant")
    with pytest.raises(je.GatingError, match="no gate to soften"):
        je.pullback(times(SCALES["in a function"]), MAP, (0, 0, 0), bounds=None)
