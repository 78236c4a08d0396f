"""Images spread over eight simulated devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jax_excite
from jax_excite.callables.pytree import as_floats
from jax_excite.errors import ImageError
from jax_excite.pullbacks.pga_loops import climb_grid
from jax_excite.pullbacks.pullback import _pullback_grid
from jax_excite.pullbacks.targets import Entry
from jax_excite.recipes import EXCITATION
from jax_excite.transform.sites import SELECT_ALL
from tests.networks import Network, images

COMMUNICATES = re.compile(
    r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
)
CLASSES = [0, 3, 4]


@pytest.fixture(scope="module")
def data():
    return NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))


JOBS = {
    "value_and_pullback": lambda x, **how: jax_excite.value_and_pullback(Network(), x, 2, **how),
    "pullback": lambda x, **how: jax_excite.pullback(Network(), x, np.arange(len(x)) % 5, **how),
    "cotangent": lambda x, **how: jax_excite.pullback(
        Network(), x, np.linspace(-1, 1, 5 * len(x), dtype=np.float32).reshape(-1, 5), **how
    ),
    "objective": lambda x, **how: jax_excite.pullback(Network(), x, lambda y: y[1] - y[0], **how),
    "pullback_grid": lambda x, **how: jax_excite.pullback_grid(Network(), x, CLASSES, **how),
    "pga": lambda x, **how: jax_excite.pga(
        Network(), x, 1, ascent=jax_excite.Ascent(3, 0.5), trajectory=True, **how
    ),
    "around": lambda x, **how: jax_excite.pga(
        Network(), x, 1, ascent=jax_excite.Ascent(2, 0.5), around=x[::-1], **how
    ),
    "pga_grid": lambda x, **how: jax_excite.pga_grid(
        Network(), x, CLASSES, ascent=jax_excite.Ascent(3, 0.5), trajectory=True, **how
    ),
}


def assert_same(found, wanted):
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("job", JOBS)
def test_sharded_images_are_computed_where_they_are(job, data):
    x = images(n=16)
    found = JOBS[job](jax.device_put(x, data))
    assert_same(found, JOBS[job](x))
    for part in jax.tree.leaves(found):
        assert part.sharding.is_equivalent_to(data, part.ndim), part.sharding


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("count", [1, 5, 10, 17])
def test_batches_that_do_not_divide_evenly(job, count, data):
    x = images(n=count)
    assert_same(JOBS[job](x, sharding=data), JOBS[job](x))


@pytest.mark.parametrize("job", ["pullback", "pullback_grid", "pga", "pga_grid"])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_blocks_on_each_device(job, batch_size, data):
    x = images(n=24)
    assert_same(JOBS[job](jax.device_put(x, data), batch_size=batch_size), JOBS[job](x))


def test_a_single_image(data):
    x = images(n=1)[0]
    found = jax_excite.pullback(Network(), x, 2, sharding=data)
    assert_same(found, jax_excite.pullback(Network(), x, 2))


def test_a_mesh_of_two_axes_of_which_one_is_the_batch():
    mesh = jax.make_mesh((2, 4), ("model", "data"))
    x = images(n=8)
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    assert_same(JOBS["pullback_grid"](spread), JOBS["pullback_grid"](x))
    both = NamedSharding(mesh, PartitionSpec(("model", "data")))
    assert_same(JOBS["pga"](x, sharding=both), JOBS["pga"](x))


def test_replicated_images(data):
    x = images(n=4)
    everywhere = NamedSharding(data.mesh, PartitionSpec())
    assert_same(JOBS["pullback"](jax.device_put(x, everywhere)), JOBS["pullback"](x))


def test_a_sharding_that_does_not_spread_the_batch_is_refused(data):
    with pytest.raises(ImageError, match="does not spread the batch"):
        JOBS["pullback"](images(n=8), sharding=NamedSharding(data.mesh, PartitionSpec()))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("job", ["pullback", "pullback_grid", "pga", "pga_grid"])
def test_nothing_is_gathered_in_a_program_that_a_user_compiles(job, kind):
    """Traced images need not say how they are spread, so nothing may loop over their rows."""
    x = images(n=16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    compiled = jax.jit(JOBS[job]).lower(spread).compile()
    text = compiled.as_text()
    assert re.search(r"num_partitions=8", text)
    assert not COMMUNICATES.search(text), COMMUNICATES.search(text)
    assert_same(compiled(spread), JOBS[job](x))


@pytest.mark.parametrize("cells", [None, 3, 1])
def test_nothing_passes_between_devices(cells, data):
    x = jax.device_put(images(n=16), data)
    indices = jax.device_put(jnp.tile(jnp.array(CLASSES), (16, 1))[..., None], data)
    columns = Entry(0, indices)
    options = {"selection": SELECT_ALL, "cells": cells, "sharding": data}
    gating, settings = as_floats((EXCITATION, jax_excite.Ascent(2, 1.0, 2.0)))
    grid = _pullback_grid.lower(Network(), gating, x, columns, **options)
    ascent = climb_grid.lower(
        Network(), gating, x, columns, ascent=settings, trajectory=True, **options
    )
    for lowered in (grid, ascent):
        text = lowered.compile().as_text()
        assert re.search(r"num_partitions=8", text)
        assert "convolution" in text
        assert not COMMUNICATES.search(text)


def test_a_user_who_compiles_the_call(data):
    x = images(n=16)
    compiled = jax.jit(functools.partial(JOBS["pullback_grid"], sharding=data))
    assert_same(compiled(jax.device_put(x, data)), JOBS["pullback_grid"](x))
