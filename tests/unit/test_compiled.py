"""Programs of known networks on disk."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import jax_excite as je
from jax_excite import attributions
from jax_excite.callables.known import make_known
from tests.networks import Network, images

X = images(2)
KEY = jax.random.key(0)
CALLS = {
    "pullback": lambda model: je.pullback(model, X, [1, 4]),
    "values": lambda model: je.value_and_pullback(model, X[0], 4)[0],
    "grid": lambda model: je.pullback_grid(model, X, [1, 4]),
    "ascent": lambda model: je.pga(model, X, 3, je.Ascent(steps=2), trajectory=True)[1],
    "ascents": lambda model: je.pga_grid(model, X, [1, 4], je.Ascent(steps=2)),
    "sweep": lambda model: je.temperature_sweep(model, X, 2, [0.1, 1.0]),
    "integrated": lambda model: attributions.integrated_gradients(model, X, 2, steps=3),
    "smooth": lambda model: attributions.smooth_grad(model, X, 2, samples=2, key=KEY),
}


@pytest.fixture
def folder(tmp_path):
    """An empty folder in which JAX is told to keep its programs."""
    jax.clear_caches()
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def traces(monkeypatch):
    """A list that grows each time a network is traced."""
    found = []
    call = Network.__call__

    def counted(self, x):
        found.append(x.shape)
        return call(self, x)

    monkeypatch.setattr(Network, "__call__", counted)
    return found


def model(seed):
    network = Network(seed=seed)
    make_known(network, "the small network of the tests")
    return network


def kept(folder):
    """The programs in a folder, which also has the shapes of outputs."""
    names = sorted(path.name for path in folder.glob("jax_excite-*"))
    return [name for name in names if not name.startswith("jax_excite-outputs-")]


def without(folder, call):
    """What a call gives without a folder."""
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        return call()
    finally:
        jax.config.update("jax_compilation_cache_dir", str(folder))


@pytest.mark.parametrize("name", CALLS)
def test_a_program_serves_other_weights(folder, traces, name):
    call, first, second = CALLS[name], model(0), model(1)
    wanted = without(folder, lambda: call(second))
    call(first)
    (program,) = kept(folder)
    jax.clear_caches()
    traces.clear()
    np.testing.assert_array_equal(call(second), wanted)
    assert not traces
    assert kept(folder) == [program]
    assert not list(folder.glob("*.partial"))


@pytest.mark.usefixtures("folder")
def test_results_of_a_call_can_be_given_to_the_next(caplog):
    """In any mixture of arrays of JAX and NumPy, without compiling anew."""
    network, x = model(0), np.array(X)
    field = je.pullback(network, x, 1)
    je.pullback(network, X, 1)
    with jax.log_compiles(True):
        for given in (x, X, field * 0, np.asarray(field) * 0, jax.device_put(X, jax.devices()[0])):
            for target in (2, np.array([1, 2]), jnp.array([1, 2])):
                je.pullback(network, given, target)
        again = je.pullback(network, x, 1)
    assert "_by_kept_program" not in caplog.text
    np.testing.assert_array_equal(again, field)


def test_what_a_program_depends_on(folder):
    network = model(0)
    calls = [
        lambda: je.pullback(network, X, 1),
        lambda: je.pullback(network, X[:1], 1),
        lambda: je.pullback(network, X[:, :6], 1),
        lambda: je.pullback(network, X, np.ones((2, 5), np.float32)),
        lambda: je.pullback(network, X, 1, gating=je.recipes.VANILLA),
        lambda: je.pullback(network, X, 1, gating=je.Gating(gate="normal_cdf")),
        lambda: je.pullback(network, X, 1, skip="0"),
        lambda: je.pullback(network, X, 1, batch_size=1),
        lambda: je.pullback(jax.tree.map(lambda w: w.astype(jnp.bfloat16), network), X, 1),
        lambda: attributions.gradient(network, X, 1, batch_size=2),
    ]
    for count, call in enumerate(calls, 1):
        wanted = without(folder, call)
        np.testing.assert_array_equal(call(), wanted)
        assert len(kept(folder)) == count
    with jax.default_matmul_precision("bfloat16"):
        calls[0]()
    assert len(kept(folder)) == len(calls) + 1
    # Numbers are arguments of a program, not parts of it.
    je.pullback(network, X, 2, gating=je.Gating(0.7))
    assert len(kept(folder)) == len(calls) + 1


def test_what_is_not_known_is_not_kept(folder):
    network, changed = model(0), model(0)
    changed.conv2 = nnx.Conv(6, 8, (3, 3), padding="VALID", rngs=nnx.Rngs(0))
    assert je.pullback(network, X, 1).shape == X.shape
    (program,) = kept(folder)
    for other in (changed, Network(classes=7), lambda x: network(x), jax.jit(network)):
        soft = je.pullback(other, X, 1)
        wanted = without(folder, functools.partial(je.pullback, other, X, 1))
        np.testing.assert_array_equal(soft, wanted)
    je.pullback(network, X, lambda logits: logits[1] - logits[2])
    assert kept(folder) == [program]


def test_transformations_of_a_call(folder):
    network = model(0)
    wanted = je.pullback(network, X, 1)
    program = kept(folder)
    by_image = jax.vmap(lambda x: je.pullback(network, x, 1))(X)
    np.testing.assert_allclose(by_image, wanted, rtol=1e-3, atol=1e-7)
    inside = jax.jit(lambda model: je.pullback(model, X, 1))(network)
    np.testing.assert_allclose(inside, wanted, rtol=1e-3, atol=1e-7)
    slope = jax.grad(lambda x: jnp.vdot(je.pullback(network, x, 1), wanted))(jnp.asarray(X))
    assert slope.shape == X.shape
    assert kept(folder) == program


@pytest.mark.parametrize("damage", [b"", b"half a program", None])
def test_a_damaged_program_is_made_again(folder, damage):
    network = model(0)
    wanted = je.pullback(network, X, 1)
    (name,) = kept(folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    jax.clear_caches()
    np.testing.assert_array_equal(je.pullback(network, X, 1), wanted)
    assert (folder / name).read_bytes() == whole


def test_a_folder_that_cannot_be_written(tmp_path, folder):
    place = tmp_path / "a file"
    place.write_text("")
    jax.config.update("jax_compilation_cache_dir", str(place / "within"))
    assert je.pullback(model(0), X, 1).shape == X.shape


def test_settings_for_other_devices(folder):
    network, x = model(0), jnp.asarray(X)
    wanted = without(folder, lambda: je.pullback(network, x, 1))
    other = jax.devices()[1]
    moved = jax.device_put(network, other)
    on_other = je.pullback(moved, jax.device_put(x, other), 1)
    assert on_other.devices() == {other}
    with jax.default_device(other):
        assert je.pullback(model(0), X, 1).devices() == {other}
    np.testing.assert_array_equal(on_other, wanted)
    assert not kept(folder)


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("name", ["pullback", "ascents", "smooth"])
def test_programs_can_be_exported_for_accelerators(name, platform):
    leaves, tree = jax.tree.flatten(Network())
    function = jax.jit(lambda *leaves: CALLS[name](tree.unflatten(leaves)))
    program = export.export(function, platforms=[platform])(*leaves)
    assert export.deserialize(program.serialize()).platforms == (platform,)


PROCESS = """
import sys
import jax, numpy as np
import jax_excite as je
from jax_excite.models import Classifier

call, traces = Classifier.__call__, []
Classifier.__call__ = lambda self, x: traces.append(x.shape) or call(self, x)
model = je.load("squeezenet1_1", weights=None, seed=int(sys.argv[1]))
x = np.random.default_rng(0).uniform(-1, 1, (1, 40, 40, 3)).astype(np.float32)
np.save(sys.argv[2], je.pullback(model, x, 1))
print(len(traces))
"""


def test_a_new_process_traces_nothing(tmp_path):
    def run(seed, programs):
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / programs)}
        command = [sys.executable, "-c", PROCESS, str(seed), str(tmp_path / "found.npy")]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return int(ended.stdout), np.load(tmp_path / "found.npy")

    traced, wanted = run(1, "some")
    assert traced > 0
    assert run(0, "others")[0] > 0
    traced, found = run(1, "others")
    assert traced == 0
    np.testing.assert_array_equal(found, wanted)
