"""Imports point one way, and the core brings in nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A folder, or a file beside them, may import what stands before it (docs/decisions/0011).
ORDER = [
    *(
        "errors",
        "typing",
        "replacing",
        "gating",
        "ascent",
        "recipes",
        "data",
        "callables",
        "graphs",
        "kernels",
    ),
    *("gates", "transform", "pullbacks", "theory", "attributions", "metrics", "evaluation"),
    *("stores", "pictures", "models", "onnx", "weights", "cli", "app"),
]
# The networks and their weights know nothing of pullbacks, and pullbacks nothing of them.
ISLAND = {"models", "onnx", "weights"}
SHORE = {"errors", "typing", "replacing", "data", "callables", *ISLAND}


def imports(path):
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module):
    """The folder or file of the package that a module is in; None for other packages."""
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "jax_excite" and len(pieces) > 1 else None


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files("jax_excite"), ids=str)
def test_imports_point_one_way(path):
    own = path.relative_to(ROOT / "jax_excite").parts[0].removesuffix(".py")
    for imported in filter(ORDER.__contains__, map(part, imports(path))):
        if own != "__init__":
            assert ORDER.index(imported) <= ORDER.index(own), f"{own} imports {imported}"
            assert own in {*ISLAND, "cli", "app"} or imported not in ISLAND, (
                f"{own} imports {imported}"
            )
            assert own not in ISLAND or imported in SHORE, f"{own} imports {imported}"


def test_every_part_has_its_place():
    parts = {path.stem for path in (ROOT / "jax_excite").iterdir() if path.suffix in ("", ".py")}
    assert parts - {"__init__", "__pycache__", "py"} == set(ORDER)


@pytest.mark.parametrize("path", files("jax_excite"), ids=str)
def test_library_never_imports_the_converter(path):
    assert not [name for name in imports(path) if name.split(".")[0] == "weights_converter"]


@pytest.mark.parametrize("path", [*files("jax_excite"), *files("weights_converter")], ids=str)
def test_only_public_jax(path):
    assert not [name for name in imports(path) if "_src" in name.split(".")]


@pytest.mark.parametrize("package", ["jax_excite", "weights_converter"])
def test_import_is_light(package):
    heavy = {"torch", "matplotlib", "skimage", "typer", "tensorflow", "equinox", "onnx"}
    code = f"import sys, {package}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert heavy.isdisjoint(result.stdout.split())
