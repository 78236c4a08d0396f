"""The shapes in signatures are true: each public function runs once with them checked."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What takes or gives no arrays.
WITHOUT_ARRAYS = {"jax_excite": {"load", "open_store", "recipes"}}


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def called():
    result = run("-m", "tests.shapes")
    assert result.returncode == 0, result.stderr[-3000:]
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "module", ["jax_excite", "jax_excite.attributions", "jax_excite.metrics", "jax_excite.theory"]
)
def test_the_shapes_of_public_functions_are_true(called, module):
    found = importlib.import_module(module)
    functions = {name for name in found.__all__ if not isinstance(getattr(found, name), type)}
    wanted = functions - WITHOUT_ARRAYS.get(module, set())
    assert {f"{module}.{name}" for name in wanted} <= called


def test_a_wrong_shape_does_not_pass():
    code = (
        "from tests.shapes import attributions, metrics, NET, X, MAPS, CLASSES\n"
        "metrics.similarity.cosine(MAPS, MAPS[:2])"
    )
    result = run("-c", code)
    assert result.returncode == 1
    assert "TypeCheckError" in result.stderr
