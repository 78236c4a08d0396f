"""The wheel in clean environments: what it does alone, and what each extra brings."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_excite.models import MODELS
from jax_excite.weights.files import describe, write
from jax_excite.weights.loading import named_leaves

ROOT = Path(__file__).parents[2]
EXTRAS = set(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
)
FOR_A_CLONE = {"experiments", "notebooks", "docs", "test"}

ALONE = """
import sys
import jax, jax.numpy as jnp
import jax_excite as je

def network(params, x):
    return jax.nn.relu(x.reshape(len(x), -1) @ params[0]) @ params[1]

first, second = jax.random.split(jax.random.key(0))
params = jax.random.normal(first, (48, 7)), jax.random.normal(second, (7, 3))
x = jax.random.uniform(jax.random.key(1), (2, 4, 4, 3), minval=-1)
field = je.pullback(lambda x: network(params, x), x, 1)
hidden = x.reshape(2, -1) @ params[0]
wanted = (jax.nn.sigmoid(hidden / 0.3) * params[1][:, 1]) @ params[0].T
assert jnp.allclose(field, wanted.reshape(x.shape), rtol=1e-4, atol=1e-5)
assert not {"torch", "matplotlib", "onnx", "tensorflow_datasets"} & set(sys.modules)
"""
# What each extra is for.
USES = {
    "hub": """
import os
os.environ["HF_HUB_OFFLINE"] = "1"
import jax_excite as je
try:
    je.load("timm/resnet18.a1_in1k")
except je.WeightsError as error:
    assert "cannot" in str(error) and "pip install" not in str(error), error
else:
    raise AssertionError
""",
    "viz": """
import numpy as np
from jax_excite import pictures
pictures.draw_grid("grid.png", np.zeros((1, 2, 8, 8, 3)), ["row"], ["a", "b"])
""",
    "onnx": """
import numpy as np, onnx
from onnx import helper
import jax_excite as je
node = helper.make_node("Relu", ["x"], ["y"])
x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy")
graph = helper.make_graph([node], "net", [x], [y])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), "net.onnx")
field = je.pullback(je.load("net.onnx"), np.ones((1, 4), np.float32), 2, batched=True)
assert field[0, 2] > 0.9
""",
    "parquet": """
from pathlib import Path
from jax_excite.evaluation.summary import write_parquet
write_parquet(Path("table.parquet"), [])
""",
    "data": """
import sys
import importlib_resources, tensorflow_datasets
from array_record.python import array_record_module
from jax_excite.data import datasets, imagenette
assert "tensorflow" not in sys.modules
""",
    "store": """
import subprocess, sys
from pathlib import Path
from jax_excite import open_store
command = [Path(sys.executable).with_name("jax-excite"), "attribute", "photographs"]
network = ["--model", "squeezenet1_1", "--weights", "weights.safetensors"]
subprocess.run([*command, *network, "--targets", "0", "--out", "made"], check=True)
assert open_store("made").done.all()
""",
    "demo": """
import subprocess, sys
from pathlib import Path
from PIL import Image
subprocess.run([Path(sys.executable).with_name("jax-excite"), "demo", "--out", "."], check=True)
assert Image.open("demo.png").width > 1000
""",
    "app": """
import re, subprocess, sys, urllib.request
from pathlib import Path
command = [Path(sys.executable).with_name("jax-excite"), "app", "--port", "0"]
with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
    while not (found := re.search(r"Open (\\S+) in", server.stderr.readline())):
        assert server.poll() is None
    page = urllib.request.urlopen(found[1]).read()
    server.terminate()
assert b"jax_excite" in page
""",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def install(wheel, tmp_path):
    """Installs the wheel with an extra into a new environment; returns its folder of commands."""

    def installed(extra=None):
        environment = tmp_path / "environment"
        uv("venv", "--python", sys.executable, environment)
        wanted = f"jax-excite[{extra}] @ {wheel.as_uri()}" if extra else wheel
        uv("pip", "install", "--python", environment / "bin" / "python", wanted)
        return environment / "bin"

    return installed


def uv(*arguments):
    command = [sys.executable, "-m", "uv", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    if "error sending request" in result.stderr:
        pytest.skip("the package index cannot be reached")
    assert result.returncode == 0, result.stderr


@pytest.fixture
def empty(tmp_path):
    """An empty folder, which knows nothing of the clone."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def run(*command, folder):
    hidden = {"PYTHONPATH", "JAX_COMPILATION_CACHE_DIR"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["XDG_CACHE_HOME"] = str(folder.parent / "cache")
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_alone_it_explains_a_network_of_ones_own(install, empty):
    commands = install()
    result = run(commands / "python", "-W", "error", "-c", ALONE, folder=empty)
    assert result.returncode == 0, result.stderr
    result = run(commands / "jax-excite", "models", folder=empty)
    assert result.returncode == 0, result.stderr
    assert "resnet50" in result.stdout
    result = run(commands / "weights-converter", "--help", folder=empty)
    assert result.returncode == 0, result.stderr
    result = run(commands / "jax-excite", "demo", folder=empty)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert 'pip install "jax-excite[demo]"' in result.stderr
    assert list(empty.iterdir()) == []


def test_every_extra_is_tried():
    assert set(USES) | FOR_A_CLONE == EXTRAS


@pytest.mark.parametrize("extra", USES)
def test_extra(extra, install, empty):
    if extra == "store":
        (empty / "photographs").mkdir()
        Image.new("RGB", (300, 300), "red").save(empty / "photographs" / "red.png")
        spec = MODELS["squeezenet1_1"]
        leaves = named_leaves(spec.abstract(num_classes=3))
        tensors = {name: np.zeros(leaf.shape, np.float32) for name, leaf in leaves.items()}
        write(empty / "weights.safetensors", tensors, describe(spec, class_names=["a", "b", "c"]))
    result = run(install(extra) / "python", "-c", USES[extra], folder=empty)
    assert result.returncode == 0, result.stderr
