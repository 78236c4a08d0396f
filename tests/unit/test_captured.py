"""Weights that functions capture are read at each call, and modules are left as they were."""

import functools
import gc
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_excite as je
from jax_excite import attributions
from jax_excite.metrics import randomisation, stability
from tests.networks import Network, images, relative_error

W = jnp.ones((3, 5)) * 0.3


def of_a_global(x):
    return jax.nn.relu(x).mean((1, 2)) @ W


def through_a_helper(x):
    return of_a_global(x)


class Plain:
    """A class of its own, which is no pytree."""

    def __init__(self):
        self.layers = {"first": [jnp.ones((3, 5)) * 0.3]}
        self.power = 1

    def __call__(self, x):
        return jax.nn.relu(x).mean((1, 2)) @ self.layers["first"][0] ** self.power

    def forward(self, x):
        return self(x)


class Method(Network):
    def forward(self, x):
        return self(x)


def double(model):
    model.head.kernel[...] = 2 * model.head.kernel[...]


def network_cases():
    model, other, third, fourth = Method(), Method(), Method(), Method()
    return {
        "method": (model.forward, lambda: double(model)),
        "lambda": (lambda x: other(x), lambda: double(other)),
        "default": (lambda x, net=third: net(x), lambda: double(third)),
        "partial": (functools.partial(lambda net, x: net(x), fourth), lambda: double(fourth)),
    }


def plain_cases():
    one, two = Plain(), Plain()

    def change(plain):
        plain.layers["first"][0] = 2 * plain.layers["first"][0]

    return {
        "object": (one, lambda: change(one)),
        "method of an object": (two.forward, lambda: change(two)),
    }


def double_the_global():
    globals()["W"] = 2 * W


CASES = {
    **network_cases(),
    **plain_cases(),
    "global": (of_a_global, double_the_global),
    "global of a helper": (through_a_helper, double_the_global),
}
CALLS = {
    "pullback": lambda fn, x: je.pullback(fn, x, 1),
    "grid": lambda fn, x: je.pullback_grid(fn, x, [1])[:, 0],
    "gradient": lambda fn, x: attributions.gradient(fn, x, 1),
    "excite": lambda fn, x: jax.grad(lambda x: je.excite(fn)(x)[:, 1].sum())(x),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", CASES)
def test_the_answer_follows_the_weights(case, call):
    fn, change = CASES[case]
    x = images()
    before = CALLS[call](fn, x)
    change()
    assert relative_error(CALLS[call](fn, x), 2 * before) < 1e-5


class Slots:
    __slots__ = ("weights",)

    def __call__(self, x):
        return jax.nn.relu(x).mean((1, 2)) @ self.weights


class OfTheClass:
    weights = jnp.ones((3, 5))

    def __call__(self, x):
        return jax.nn.relu(x).mean((1, 2)) @ self.weights


def of_itself(x):
    return jax.nn.relu(x).mean((1, 2)) @ of_itself.weights


@pytest.mark.parametrize("kind", ["slots", "class", "function", "namespace"])
def test_weights_that_are_attributes(kind):
    holder = {
        "slots": Slots(),
        "class": OfTheClass,
        "function": of_itself,
        "namespace": types.SimpleNamespace(),
    }[kind]
    holder.weights = jnp.ones((3, 5))
    fn = OfTheClass() if kind == "class" else holder
    if kind == "namespace":
        fn = lambda x: jax.nn.relu(x).mean((1, 2)) @ holder.weights  # noqa: E731
    x = images()
    before = je.pullback(fn, x, 1)
    holder.weights = 2 * holder.weights
    assert relative_error(je.pullback(fn, x, 1), 2 * before) < 1e-6


def test_a_function_that_assigns_to_what_it_captures_is_not_copied():
    held = jnp.zeros(4)

    def hook(value):
        nonlocal held
        held = value

    def fn(x):
        hook(jax.nn.relu(x))
        return held * 2

    x = jnp.array([1.0, 2.0, -1.0, 3.0])
    np.testing.assert_array_equal(je.excite(fn)(x), [2, 4, 0, 6])


def test_calibration_follows_the_weights():
    model = Method()
    before = je.calibrate(model.forward, images()).site_temperatures["relu"]
    model.conv1.kernel[...] = 2 * model.conv1.kernel[...]
    after = je.calibrate(lambda x: model(x), images()).site_temperatures["relu"]
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5)


def test_a_new_function_of_the_same_code_compiles_nothing():
    traces = []

    def make(scale, model):
        def fn(x):
            traces.append(None)
            return scale * model(x)

        return fn

    x = images()
    first = je.pullback(make(1.0, Network(seed=0)), x, 1)
    count = len(traces)
    assert count > 0
    second = je.pullback(make(1.0, Network(seed=1)), x, 1)
    assert len(traces) == count
    assert relative_error(first, second) > 0.1
    doubled = je.pullback(make(2.0, Network(seed=0)), x, 1)
    assert relative_error(doubled, 2 * first) < 1e-6


def test_a_function_that_is_gone_keeps_no_weights():
    def make():
        weights = jnp.ones((3, 5))
        return (lambda x: jax.nn.relu(x @ weights).mean((1, 2))), weakref.ref(weights)

    fn, weights = make()
    je.pullback(fn, images(), 1)
    assert weights() is not None
    del fn
    gc.collect()
    assert weights() is None


def test_records_that_a_function_keeps_are_its_own():
    seen, counts = [], {"calls": 0}

    def fn(x):
        seen.append(x.shape)
        counts["calls"] += 1
        return jax.nn.relu(x).mean((1, 2))

    je.pullback(fn, images(), 1)
    assert seen[-1] == (2, 8, 8, 3)
    assert counts["calls"] == len(seen)


def test_integers_that_a_function_captures_stay_static():
    order, repeats = np.array([2, 0, 1]), 3

    def fn(x):
        return sum(jax.nn.relu(x[..., int(i)]).mean((1, 2)) for i in order[:repeats])[:, None]

    assert je.pullback(fn, images(), 0).shape == (2, 8, 8, 3)


class Training(nnx.Module):
    def __init__(self, layer, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.layer = layer(rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.layer(self.conv(x))).mean((1, 2)))


STATEFUL = {
    "Dropout": (lambda rngs: nnx.Dropout(0.2, rngs=rngs), "layer.rngs.count"),
    "BatchNorm": (lambda rngs: nnx.BatchNorm(8, rngs=rngs), "layer.mean, layer.var"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layer", STATEFUL)
def test_train_mode_is_refused(layer, call):
    make, names = STATEFUL[layer]
    model, x = Training(make, nnx.Rngs(0)), images()
    for fn in (model, lambda x: model(x)):
        with pytest.raises(je.GatingError, match=rf"{names}\), .* call .eval\(\) on it first"):
            CALLS[call](fn, x)
    model.eval()
    assert CALLS[call](model, x).shape == x.shape
    assert model(x).shape == (2, 5)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(8, 8, (3, 3), rngs=rngs)

    def __call__(self, x):
        return jax.nn.relu(x + self.conv(x))


class Inside(nnx.Module):
    """A module that runs blocks in `nnx.scan`, or one of them in `nnx.remat`."""

    def __init__(self, way, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def build(rngs):
            return Block(rngs)

        self.way = way
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.blocks = build(rngs) if way == "scan" else Block(rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.stem(x))
        if self.way == "scan":
            step = nnx.scan(lambda x, b: b(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            x = step(x, self.blocks)
        else:
            x = nnx.remat(lambda b, x: b(x))(self.blocks, x)
        return self.head(x.mean((1, 2)))

    def plainly(self, x, relu):
        kernels, biases = self.blocks.conv.kernel[...], self.blocks.conv.bias[...]
        kernels, biases = (
            v.reshape(-1, *shape) for v, shape in ((kernels, (3, 3, 8, 8)), (biases, (8,)))
        )
        x = relu(self.stem(x))
        for kernel, bias in zip(kernels, biases, strict=True):
            numbers = ("NHWC", "HWIO", "NHWC")
            z = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
            x = relu(x + z + bias)
        return self.head(x.mean((1, 2)))


@pytest.mark.parametrize("way", ["scan", "remat"])
def test_transforms_of_flax_inside_of_a_module(way):
    model, x = Inside(way, nnx.Rngs(0)), images()
    before = model(x)
    assert [site.kind for site in je.sites(model, x)] == ["relu", "relu"]
    gated = functools.partial(je.gated_relu, temperature=0.3)
    wanted = jax.grad(lambda x: model.plainly(x, gated)[:, 1].sum())(x)
    assert relative_error(je.pullback(model, x, 1), wanted) < 1e-5
    assert relative_error(attributions.gradient(model, x, 1), wanted) > 0.01
    np.testing.assert_array_equal(model(x), before)


def test_random_keys_among_the_leaves():
    model, x = Training(STATEFUL["Dropout"][0], nnx.Rngs(0)), images()
    model.eval()
    key = jax.random.key(0)
    assert attributions.random_map(model, x, 1, key=key).shape == x.shape
    names = [name for names in randomisation.layers(model, x).values() for name in names]
    assert sorted(names) == ["conv.bias", "conv.kernel", "head.bias", "head.kernel"]
    changed = stability.randomised(model, x)
    assert changed.layer.rngs.count[...] == model.layer.rngs.count[...]
    assert relative_error(changed.head.kernel[...], model.head.kernel[...]) > 0.1
