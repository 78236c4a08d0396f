"""Batches are cut into blocks only where each item is treated alone."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jax_excite as je
from jax_excite import attributions
from jax_excite.pullbacks.softened import Blockwise
from tests.networks import Network, images, relative_error

W = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)


def batch_statistics(x):
    z = x @ W
    return jax.nn.relu((z - z.mean((0, 1, 2))) / z.std((0, 1, 2))).mean((1, 2))


def scanned(x):
    return lax.scan(lambda c, s: (jax.nn.relu(c * s), None), x @ W, jnp.arange(1.0, 4.0))[0].mean(
        (1, 2)
    )


def attended(x):
    h = (x @ W).reshape(len(x), -1, 5)
    return (jax.nn.softmax(h @ jnp.swapaxes(h, 1, 2)) @ h).mean(1)


class Conv(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm

    def __init__(self):
        self.conv = eqx.nn.Conv2d(3, 6, 3, key=jax.random.key(0))
        self.norm = eqx.nn.GroupNorm(2, 6)

    def __call__(self, x):
        def one(x):
            return jax.nn.relu(self.norm(self.conv(jnp.moveaxis(x, -1, 0)))).mean((1, 2))

        return jax.vmap(one)(x)


ALONE = {
    "network": Network(),
    "equinox": Conv(),
    "plain": lambda x: jax.nn.relu(x @ W).mean((1, 2)),
    "scan": scanned,
    "attention": attended,
    "pools": lambda x: nnx.max_pool(x @ W, (2, 2), (2, 2)).max((1, 2)),
    "vmap": lambda x: jax.vmap(lambda one: jnp.sort((one @ W).reshape(-1))[:5])(x),
    "cond": lambda x: lax.cond(W.sum() > 0, jnp.sin, jnp.cos, (x @ W).mean((1, 2))),
    "jit, remat": jax.jit(jax.checkpoint(lambda x: jnp.tanh(x @ W).mean((1, 2)))),
    "transposed": lambda x: jnp.einsum("nhwc,cd->dnhw", x, W).mean((2, 3)).T,
}
MIXED = {
    "batch statistics": batch_statistics,
    "rolled": lambda x: jnp.roll(x, 1, 0).mean((1, 2)) @ W,
    "reversed": lambda x: x[::-1].mean((1, 2)) @ W,
    "summed": lambda x: (x @ W).mean((1, 2)) + (x @ W).sum(),
    "sorted": lambda x: jnp.sort((x @ W).mean((1, 2)), axis=0),
    "by place": lambda x: (x @ W).mean((1, 2)) * jnp.arange(len(x))[:, None],
    "scan over items": lambda x: lax.scan(lambda c, i: (c + i,) * 2, 0 * x[0], x)[1].mean((1, 2)),
    "one branch for all": lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, (x @ W).mean((1, 2))),
    "first for all": lambda x: (x @ W).mean((1, 2)) + (x[:1] @ W).mean((1, 2)),
    "by their number": lambda x: (x @ W).mean((1, 2)) / len(x),
    "if they are many": lambda x: jnp.sin(x).mean((1, 2)) @ W if len(x) > 5 else (x @ W)[:, 0, 0],
    "to a power": lambda x: (x @ W).mean((1, 2)) ** len(x),
    "so many times": lambda x: lax.fori_loop(0, len(x), lambda i, h: h * 0.9, (x @ W)[:, 0, 0]),
    "their noise": lambda x: (x @ W)[:, 0, 0] + jax.random.normal(jax.random.key(0), x.shape).sum(),
    "their ones": lambda x: (x @ W)[:, 0, 0] * jnp.ones(x.shape).sum(),
    "pairs": lambda x: jnp.einsum("nhwc,m->nc", x, jnp.ones(len(x))) @ W,
    "a loop over ones": lambda x: (
        (x @ W)[:, 0, 0] + lax.scan(lambda c, i: (c + i, None), 0.0, jnp.ones(len(x)))[0]
    ),
}


@pytest.mark.parametrize("name", [*ALONE, *MIXED])
def test_what_treats_items_alone(name):
    x = images(8)
    fn = {**ALONE, **MIXED}[name]
    assert Blockwise(fn, x).treats_items_alone(3) == (name in ALONE)
    # Of two matrices for one item, jnp.matmul computes another graph.
    assert Blockwise(fn, x).treats_items_alone(1) == (name in ALONE and name != "attention")
    one_by_one = jnp.concatenate([fn(one[None]) for one in x])
    assert (relative_error(one_by_one, fn(x)) < 1e-5) == (name in ALONE)


def test_batch_statistics_are_those_of_the_whole_batch():
    x = images(8)
    gated = functools.partial(je.gated_relu, temperature=0.3)

    def by_hand(x):
        z = x @ W
        return gated((z - z.mean((0, 1, 2))) / z.std((0, 1, 2))).mean((1, 2))

    def wanted(x, c):
        return jax.grad(lambda x: by_hand(x)[:, c].sum())(x)

    assert relative_error(je.pullback(batch_statistics, x, 1), wanted(x, 1)) < 1e-5
    grid = je.pullback_grid(batch_statistics, x, [1, 3])
    out = je.pullback_grid(batch_statistics, x, [1, 3], out=np.zeros(grid.shape, np.float32))
    for place, c in enumerate((1, 3)):
        assert relative_error(grid[:, place], wanted(x, c)) < 1e-5
        assert relative_error(jnp.asarray(out[:, place]), wanted(x, c)) < 1e-5
    climbed = je.pga_grid(batch_statistics, x, [1, 3], je.Ascent(2))
    for place, c in enumerate((1, 3)):
        assert (
            relative_error(climbed[:, place], je.pga(batch_statistics, x, c, je.Ascent(2))) < 1e-5
        )
    plain = jax.grad(lambda x: batch_statistics(x)[:, 1].sum())(x)
    assert relative_error(attributions.gradient(batch_statistics, x, 1), plain) < 1e-5
    lines = attributions.integrated_gradients(batch_statistics, x, 1, steps=2)
    whole = attributions.integrated_gradients(batch_statistics, x, 1, steps=2, batch_size=8)
    assert relative_error(lines, whole) < 1e-6


def test_an_array_with_a_row_for_each_item():
    ages, x = jnp.arange(1.0, 9.0), images(8)

    def fn(x):
        return jax.nn.relu(x @ W).mean((1, 2)) * ages[:, None]

    gated = functools.partial(je.gated_relu, temperature=0.3)
    wanted = jax.grad(lambda x: (gated(x @ W).mean((1, 2)) * ages[:, None])[:, 1].sum())(x)
    assert relative_error(je.pullback(fn, x, 1), wanted) < 1e-5


def test_what_depends_on_the_number_of_items_is_computed_with_all():
    x = images(8)

    def fn(x):
        return jax.nn.relu(x @ W).mean((1, 2)) / (len(x) if len(x) > 3 else 1)

    gated = functools.partial(je.gated_relu, temperature=0.3)
    wanted = jax.grad(lambda x: (gated(x @ W).mean((1, 2)) / 8)[:, 1].sum())(x)
    assert relative_error(je.pullback(fn, x, 1), wanted) < 1e-5
    grid = je.pullback_grid(fn, x, [1] * 7)
    out = je.pullback_grid(fn, x, [1] * 7, out=np.zeros(grid.shape, np.float32))
    assert relative_error(grid[:, 6], wanted) < 1e-5
    assert relative_error(jnp.asarray(out[:, 6]), wanted) < 1e-5


def test_grids_of_what_is_another_graph_for_one_item():
    x = images(8)
    gated = functools.partial(je.gated_relu, temperature=0.3)

    def by_hand(relu, x):
        return relu(attended(x)) @ W.T[:, :3]

    fn = functools.partial(by_hand, jax.nn.relu)
    wanted = jax.grad(lambda x: by_hand(gated, x)[:, 2].sum())(x)
    grid = je.pullback_grid(fn, x, [0, 1, 2, 0, 1, 2, 0])
    out = je.pullback_grid(fn, x, [0, 1, 2] * 3, out=np.zeros((8, 9, *x.shape[1:]), np.float32))
    for place in (2, 5):
        assert relative_error(grid[:, place], wanted) < 1e-5
        assert relative_error(jnp.asarray(out[:, place]), wanted) < 1e-5
