"""Convolutions in fast forms against XLA's own, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jax_excite
from jax_excite.graphs.graph import trace
from jax_excite.kernels.convolution_forms import (
    DEPTHWISE,
    PHASES,
    POINTWISE,
    SPACE_TO_DEPTH,
    Convolution,
    choose,
)
from jax_excite.kernels.convolutions import convolve, find_convolution, prepare
from tests.networks import relative_error

# Name: shape of the input, of the kernel, strides, padding, groups, and the form.
CASES = {
    "3x3": ((2, 7, 6, 20), (3, 3, 20, 5), (1, 1), ((1, 1), (1, 1)), 1, PHASES),
    "5x3, valid": ((2, 9, 8, 20), (5, 3, 20, 4), (1, 1), ((0, 0), (0, 0)), 1, PHASES),
    "3x3, stride 2": ((2, 8, 9, 20), (3, 3, 20, 5), (2, 2), ((1, 1), (1, 1)), 1, PHASES),
    "same as in TensorFlow": ((1, 8, 8, 20), (3, 3, 20, 5), (2, 2), ((0, 1), (0, 1)), 1, PHASES),
    "remainder": ((1, 11, 10, 20), (2, 2, 20, 3), (3, 3), ((0, 0), (0, 0)), 1, PHASES),
    "kernel below stride": ((1, 9, 9, 20), (1, 2, 20, 3), (3, 4), ((0, 0), (1, 0)), 1, PHASES),
    "mixed strides": ((1, 9, 8, 20), (3, 3, 20, 3), (1, 2), ((1, 1), (1, 0)), 1, PHASES),
    "kernel above input": ((1, 2, 2, 20), (5, 5, 20, 3), (1, 1), ((2, 2), (2, 2)), 1, PHASES),
    "wide padding": ((1, 4, 4, 20), (3, 3, 20, 3), (2, 2), ((4, 3), (2, 5)), 1, PHASES),
    "one axis": ((2, 9, 20), (3, 20, 5), (2,), ((1, 1),), 1, PHASES),
    "three axes": ((1, 4, 5, 4, 20), (3, 2, 3, 20, 3), (1, 2, 1), ((1, 1),) * 3, 1, PHASES),
    "1x1": ((2, 5, 6, 8), (1, 1, 8, 3), (1, 1), ((0, 0), (0, 0)), 1, POINTWISE),
    "1x1, stride 2": ((2, 7, 6, 8), (1, 1, 8, 3), (2, 2), ((0, 0), (0, 0)), 1, POINTWISE),
    "1x1, padded": ((2, 5, 6, 20), (1, 1, 20, 3), (1, 1), ((1, 0), (0, 1)), 1, PHASES),
    "depthwise": ((2, 7, 6, 8), (3, 3, 1, 8), (1, 1), ((1, 1), (1, 1)), 8, DEPTHWISE),
    "depthwise, stride 2": ((2, 8, 7, 8), (5, 5, 1, 8), (2, 2), ((1, 2), (2, 2)), 8, DEPTHWISE),
    "stem": ((2, 16, 17, 3), (7, 7, 3, 6), (2, 2), ((3, 3), (3, 3)), 1, SPACE_TO_DEPTH),
    "stem, 3x3": ((2, 16, 16, 3), (3, 3, 3, 6), (2, 2), ((0, 1), (0, 1)), 1, SPACE_TO_DEPTH),
    "stem, stride 3": ((1, 13, 11, 1), (5, 4, 1, 6), (3, 3), ((2, 1), (0, 3)), 1, SPACE_TO_DEPTH),
}


@pytest.fixture(params=CASES)
def case(request, x64):
    return made(request.param)


@pytest.fixture(params=["3x3, stride 2", "1x1, stride 2", "depthwise, stride 2", "stem"])
def one_of_a_form(request, x64):
    return made(request.param)


def made(name):
    x_shape, w_shape, strides, padding, groups, form = CASES[name]
    conv = Convolution(strides, padding, groups, None)
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape)) for shape in (x_shape, w_shape))
    g = jnp.asarray(rng.normal(size=jax.eval_shape(conv, x, w).shape))
    assert choose(conv, x.shape, w.shape) is form
    return conv, form, x, w, g


def assert_close(found, wanted):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert relative_error(found, wanted) < 1e-14


def test_outputs_and_gradients_are_those_of_xla(case):
    conv, form, x, w, g = case
    kernels = form.prepare(conv, w)

    @jax.jit
    def both(x, w, g):
        wanted, pull = jax.vjp(conv, x, w)
        found, fast = jax.vjp(functools.partial(convolve, conv), x, w)
        _, faster = jax.vjp(lambda x: convolve(conv, x, w, kernels), x)
        return (found, *fast(g), *faster(g)), (wanted, *pull(g), pull(g)[0])

    for found, wanted in zip(*both(x, w, g), strict=True):
        assert_close(found, wanted)


def test_many_cotangents_of_one_input_and_inside_of_a_loop(one_of_a_form):
    conv, form, x, w, g = one_of_a_form
    several = jnp.stack([g, 2 * g, g**2])
    _, pull = jax.vjp(lambda x: conv(x, w), x)
    wanted = jnp.stack([pull(each)[0] for each in several])

    @jax.jit
    def found(x, w, several):
        kernels = form.prepare(conv, w)
        _, pull = jax.vjp(lambda x: convolve(conv, x, w, kernels), x)
        return jax.vmap(pull)(several)[0], lax.map(pull, several)[0]

    for each in found(x, w, several):
        assert_close(each, wanted)


def test_second_derivative(one_of_a_form):
    conv, _, x, w, _ = one_of_a_form

    def gradient(convolution, x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(convolution(x, w))))(x)

    def second(convolution):
        return jax.jit(jax.grad(lambda x: jnp.sum(gradient(convolution, x) ** 2)))(x)

    fast = functools.partial(convolve, conv)
    assert relative_error(second(fast), second(conv)) < 1e-13


def test_exact_outputs_are_bit_for_bit_those_of_xla(one_of_a_form):
    conv, _, x, w, _ = one_of_a_form
    x, w = x.astype(jnp.float32), w.astype(jnp.float32)
    found = jax.jit(lambda x, w: convolve(conv, x, w, exact=True))(x, w)
    np.testing.assert_array_equal(found, jax.jit(conv)(x, w))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes_stay(dtype, one_of_a_form):
    conv, _, x, w, g = one_of_a_form
    x, w, g = (array.astype(dtype) for array in (x, w, g))
    found, pull = jax.vjp(functools.partial(convolve, conv), x, w)
    assert found.dtype == dtype
    assert [each.dtype for each in pull(g)] == [dtype, dtype]


def test_no_branch_is_left_in_the_program(one_of_a_form):
    conv, _, x, w, g = one_of_a_form
    pull = jax.jit(lambda x, g: jax.vjp(lambda x: convolve(conv, x, w), x)[1](g))
    assert " conditional(" not in pull.lower(x, g).compile().as_text()


def test_grouped_convolutions_stay_as_they_are():
    conv = Convolution((1, 1), ((1, 1), (1, 1)), 32, None)
    assert choose(conv, (1, 8, 8, 64), (3, 3, 2, 64)) is None


NUMBERS = ("NHWC", "HWIO", "NHWC")


def network(convolution):
    """A convolution, a ReLU and a linear head, of images `[N, 8, 8, 3]`."""
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    return lambda x: jax.nn.relu(convolution(x, w)).mean((1, 2)) @ head


def by_name(numbers=NUMBERS, **options):
    def convolution(x, w):
        if numbers[0] == "NCHW":
            x, w = x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1)
        y = lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=numbers, **options)
        return y.transpose(0, 2, 3, 1) if numbers[0] == "NCHW" else y

    return convolution


def dilated(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", rhs_dilation=(2, 2), dimension_numbers=NUMBERS
    )


def mixed(x, w):
    y = by_name(preferred_element_type=jnp.float32)(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    return y.astype(jnp.float32)


FUNCTIONS = {
    "channels last": (by_name(), True),
    "channels first": (by_name(("NCHW", "OIHW", "NCHW")), False),
    "dilated": (dilated, False),
    "mixed dtypes": (mixed, False),
    "jit": (jax.jit(by_name()), True),
    "checkpoint": (jax.checkpoint(by_name()), True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_convolution_has_the_right_pullback(name):
    convolution, served = FUNCTIONS[name]
    fn = network(convolution)
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1)
    hard = jax_excite.Gating(temperature=0.0)
    wanted = jax.jit(jax.grad(lambda x: fn(x)[:, 2].sum()))(x)
    assert relative_error(jax_excite.pullback(fn, x, 2, gating=hard), wanted) < 1e-6
    graph, _ = trace(fn, x)
    found = [find_convolution(graph, node) for node in everywhere(graph)]
    assert any(found) is served
    assert len(prepare(graph).folded) == served


def everywhere(graph):
    for node in graph.nodes:
        yield node
        for body in node.bodies:
            yield from everywhere(body)


def test_kernels_that_are_arguments_or_scanned_over_are_not_prepared():
    def deep(x, kernels):
        step = lambda x, w: (jax.nn.relu(by_name_unstrided(x, w)), None)  # noqa: E731
        return lax.scan(step, by_name_unstrided(x, kernels[0]), kernels)[0]

    def by_name_unstrided(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS)

    kernels = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 3, 20, 20)), jnp.float32)
    x = jnp.ones((1, 6, 6, 20))
    assert prepare(trace(deep, x, kernels)[0]).folded == {}
    closed = functools.partial(deep, kernels=kernels)
    hard = jax_excite.Gating(temperature=0.0)
    found = jax.grad(lambda x: jnp.sum(jax_excite.excite(closed, hard)(x) ** 2))(x)
    wanted = jax.grad(lambda x: jnp.sum(closed(x) ** 2))(x)
    assert relative_error(found, wanted) < 1e-5


def test_gradients_of_weights_pass_through_excite():
    def loss(w, convolution):
        x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1)
        return jnp.sum(jax.nn.relu(convolution(x, w)) ** 2)

    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    plain = functools.partial(loss, convolution=by_name())
    found = jax.jit(jax.grad(jax_excite.excite(plain, jax_excite.Gating(temperature=0.0))))(w)
    assert relative_error(found, jax.jit(jax.grad(plain))(w)) < 1e-6
