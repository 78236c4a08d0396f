"""Softmax-pooling's gradient, re-derived window by window from the paper's Listing 2."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jax_excite import surrogate_max_pool

CASES = [
    # size, window, strides, padding, dilation
    ((7, 9), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    ((7, 9), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    ((6, 8), (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1)),
    ((6, 7), (3, 2), (1, 2), ((2, 0), (0, 1)), (1, 1)),
    ((9, 9), (2, 3), (2, 1), ((1, 0), (1, 2)), (2, 3)),
    ((12, 10), (9, 9), (1, 2), ((4, 4), (4, 4)), (1, 1)),
]


def slow_gradient(x, g, window, strides, padding, dilation, temperature, weights, pool_padding):
    """d sum(g * softmax_pool(x)) / dx for one image [H, W, C], by loops over windows."""
    gradient = np.zeros_like(x)
    for i, j in np.ndindex(*g.shape[:2]):
        cells = [
            (i * strides[0] + a * dilation[0] - padding[0][0],
             j * strides[1] + b * dilation[1] - padding[1][0])
            for a, b in itertools.product(range(window[0]), range(window[1]))
        ]  # fmt: skip
        inside = [0 <= r < x.shape[0] and 0 <= s < x.shape[1] for r, s in cells]
        for c in range(x.shape[2]):
            values = np.array(
                [x[r, s, c] if ok else 0.0 for (r, s), ok in zip(cells, inside, strict=True)]
            )
            taking = np.array(inside) if pool_padding == "-inf" else np.ones(len(cells), bool)
            if temperature == 0:
                weight = np.zeros(len(cells))
                real = np.where(inside, values, -np.inf)
                weight[np.argmax(real)] = 1
            else:
                e = np.exp((values - values[taking].max()) / temperature) * taking
                weight = e / e.sum()
                if weights == "through":
                    pooled = (weight * values).sum()
                    weight = weight * (1 + (values - pooled) / temperature)
            for (r, s), ok, w in zip(cells, inside, weight, strict=True):
                if ok:
                    gradient[r, s, c] += g[i, j, c] * w
    return gradient


@functools.partial(jax.jit, static_argnames=("case", "weights", "pool_padding"))
def pulled_back(x, temperature, *, case, weights, pool_padding):
    """The max-pool of images, a cotangent of it, and the gradient that this gives."""
    _, window, strides, padding, dilation = case
    out, transpose = jax.vjp(
        lambda x: surrogate_max_pool(
            x,
            window,
            strides,
            padding,
            temperature=temperature,
            dilation=dilation,
            weights=weights,
            pool_padding=pool_padding,
        ),
        x,
    )
    g = np.random.default_rng(1).normal(size=out.shape[-3:])
    return out, g, transpose(jnp.broadcast_to(g, out.shape))[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pool_padding", ["zero", "-inf"])
@pytest.mark.parametrize("weights", ["through", "detached"])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 5.0, np.inf])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_window_by_window(case, temperature, weights, pool_padding):
    x = np.random.default_rng(0).normal(size=(*case[0], 2))
    x[::3] = np.round(x[::3])  # ties
    settings = {"case": case, "weights": weights, "pool_padding": pool_padding}
    out, g, gradient = pulled_back(x, temperature, **settings)
    expected = slow_gradient(x, np.asarray(g), *case[1:], temperature, weights, pool_padding)
    np.testing.assert_allclose(gradient, expected, rtol=1e-11, atol=1e-12)

    batched, _, gradients = pulled_back(np.stack([x, -x]), temperature, **settings)
    np.testing.assert_array_equal(batched[0], out)
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if c[4] == (1, 1)], ids=str)
def test_zero_temperature_is_jax_grad_of_the_hard_pool(case):
    size, window, strides, padding, _ = case
    generator = np.random.default_rng(1)
    x = jnp.asarray(np.round(generator.normal(size=(2, *size, 3)), 1), jnp.float32)

    def hard(x):
        pads = ((0, 0), *padding, (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), pads)

    out, transpose = jax.vjp(hard, x)
    soft, soft_transpose = jax.vjp(
        lambda x: surrogate_max_pool(x, window, strides, padding, temperature=0.0), x
    )
    np.testing.assert_array_equal(soft, out)
    g = jnp.asarray(generator.normal(size=out.shape), jnp.float32)
    np.testing.assert_array_equal(soft_transpose(g)[0], transpose(g)[0])
