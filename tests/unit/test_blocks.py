import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jax_excite
from jax_excite import recipes
from jax_excite.pullbacks.batching import AUTO, Grid, cells_at_once, evenly, in_loop, rows_at_once
from jax_excite.pullbacks.request import Request
from tests.networks import Network, images


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_a_loop_over_blocks_gives_what_one_call_gives(count, rows):
    x, y = jnp.arange(count * 2.0).reshape(count, 2), jnp.arange(count)
    seen = []

    def compute(x, y, scale):
        seen.append(x.shape)
        return scale(x), x.sum(1) * y

    found = jax.jit(lambda: in_loop(compute, rows, x, y, lambda v: v * 2))()
    np.testing.assert_array_equal(found[0], x * 2)
    np.testing.assert_array_equal(found[1], x.sum(1) * y)
    assert seen[-1][0] == min(rows, count)


def test_blocks_are_even():
    assert [evenly(count, 6) for count in (1, 6, 7, 10, 12, 13, 30)] == [1, 6, 4, 5, 6, 5, 6]
    assert evenly(7, None) == 7


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (5, 6), (2, 7)])
@pytest.mark.parametrize("cells", [1, 2, 3, 4, 6, 8, 13, 100, None, "column"])
def test_a_grid_in_blocks(shape, cells):
    grid = Grid(*shape, cells)
    if isinstance(cells, int):
        assert grid.rows_at_once * grid.columns_at_once <= cells
    whole = jnp.arange(shape[0] * shape[1] * 3.0).reshape(*shape, 3)

    def begin(rows):
        part = whole[rows]
        return lambda columns: (part[:, columns],)

    found = jax.jit(lambda: grid.in_loop(begin))()
    np.testing.assert_array_equal(found[0], whole)
    covered = np.zeros(shape, int)
    for rows, columns, place in grid.blocks(shape[0], shards=2):
        assert (len(rows), len(columns)) == (2 * grid.rows_at_once, grid.columns_at_once)
        covered[place] += 1
        inside = covered[place].shape
        np.testing.assert_array_equal(
            whole[rows][:, columns][: inside[0], : inside[1]], whole[place]
        )
    np.testing.assert_array_equal(covered, 1)


def test_the_default_is_small_on_a_cpu(monkeypatch):
    assert rows_at_once(None) == AUTO
    assert evenly(12, AUTO) == 6
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert rows_at_once(None) is None
    assert rows_at_once(50) == 50


def test_what_has_to_stay_together_does(monkeypatch):
    by_image = jax_excite.Gating(temperature=np.ones((8, 1, 1, 1)))
    assert rows_at_once(None, images(n=8), by_image) is None
    assert rows_at_once(4, images(n=8), by_image) == 4
    seen = []

    def look(x):
        seen.append(
            (rows_at_once(None, x), cells_at_once(None, x, None), cells_at_once(4, x, None))
        )
        return x

    jax.jit(look)(jnp.ones(3))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.jit(lambda x: look(x))(jnp.ones(3))
    assert seen == [(None, "column", 4), (AUTO, AUTO, 4)]


class Memory:
    """An array that knows what was written to it, and how much at a time."""

    def __init__(self, shape):
        self.shape, self.dtype = shape, np.dtype(np.float32)
        self.array = np.full(shape, np.nan, np.float32)
        self.largest = 0

    def __setitem__(self, at, block):
        assert isinstance(block, np.ndarray)
        self.largest = max(self.largest, block.size)
        assert np.isnan(self.array[at]).all(), "written twice"
        self.array[at] = block


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 100])
@pytest.mark.parametrize("job", ["pullback_grid", "pga_grid"])
def test_a_grid_written_in_blocks(job, batch_size):
    x, classes = images(n=3), [0, 2, 3, 4]
    options = {} if job == "pullback_grid" else {"ascent": jax_excite.Ascent(2, 0.5)}
    compute = getattr(jax_excite, job)
    wanted = compute(Network(), x, classes, **options)
    out = Memory(wanted.shape)
    assert compute(Network(), x, classes, batch_size=batch_size, out=out, **options) is out
    np.testing.assert_allclose(out.array, wanted, rtol=1e-5, atol=1e-6)
    assert out.largest <= 8 * batch_size * x[0].size
    single = Memory(wanted.shape[1:])
    compute(Network(), x[1], classes, batch_size=batch_size, out=single, **options)
    np.testing.assert_allclose(single.array, wanted[1], rtol=1e-5, atol=1e-6)


def test_values_come_beside_what_is_written():
    x, classes = images(n=3), [0, 2, 3, 4]
    options = {"ascent": jax_excite.Ascent(2, 0.5), "trajectory": True}
    _, wanted = jax_excite.pga_grid(Network(), x, classes, **options)
    out = np.zeros((3, 4, *x.shape[1:]), np.float32)
    _, values = jax_excite.pga_grid(Network(), x, classes, batch_size=2, out=out, **options)
    np.testing.assert_allclose(values, wanted, rtol=1e-5)
    _, of_one = jax_excite.pga_grid(Network(), x[0], classes, out=out[0], **options)
    np.testing.assert_allclose(of_one, wanted[0], rtol=1e-5)


def test_a_sharded_grid_written_in_blocks():
    sharding = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))
    x, classes = images(n=11), [0, 2, 3]
    wanted = jax_excite.pullback_grid(Network(), x, classes)
    for batch_size in (1, 3, None):
        out = Memory(wanted.shape)
        jax_excite.pullback_grid(
            Network(), x, classes, batch_size=batch_size, sharding=sharding, out=out
        )
        np.testing.assert_allclose(out.array, wanted, rtol=1e-5, atol=1e-6)


def test_an_array_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"out has shape \(2, 2, 8, 8\): the result has \(2, 3, 8"):
        jax_excite.pullback_grid(Network(), images(), [0, 1, 2], out=np.zeros((2, 2, 8, 8)))


def test_an_array_that_cannot_hold_the_result_is_refused():
    out = np.zeros((2, 3, 8, 8, 3), np.int32)
    with pytest.raises(ValueError, match="out has dtype int32"):
        jax_excite.pullback_grid(Network(), images(), [0, 1, 2], out=out)


def test_devices_share_a_grid_that_is_written():
    """Blocks are as many for each device as its own rows ask for, not copies of the last image."""
    sharding = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))
    x, out, shapes = images(n=16), np.zeros((16, 3, 8, 8, 3), np.float32), []

    def compiled(params, gating, x, columns, *, cells, sharding):
        shapes.append(columns.indices.shape)
        return (jnp.repeat(x[:, None], columns.indices.shape[1], 1),)

    options = {"bounds": None, "batch_size": 100, "sharding": sharding}
    request = Request.of(Network(), x, recipes.EXCITATION, **options)
    request.over_grid(compiled, request.columns([0, 2, 3]), out)
    np.testing.assert_array_equal(out, np.repeat(x[:, None], 3, 1))
    assert shapes == [(16, 3, 1)]
