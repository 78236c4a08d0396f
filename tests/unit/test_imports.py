"""Imports point one way, and the core brings in nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each may import what stands before it, and nothing that stands after it (design: section 5).
LAYERS = [
    {"errors"},
    {"journal", "summary", "captured", "profiles"},
    {"gating", "imagenet", "images", "callables", "phases", "devices", "blocks"},
    {"recipes", "windows", "graph", "imagenette", "convolution_forms"},
    {"surrogates", "datasets", "independence", "channels"},
    {"evaluation", "folding", "facts"},
    {"convolutions", "pool_matching", "guards"},
    {"matching"},
    {"plan"},
    {"transform", "targets"},
    {"pullback"},
    {"climbing"},
    {"ascent", "paths", "path_space", "calibration", "sanity"},
    {"path_kernel", "attributions"},
    {"metrics"},
    {"comparison", "stores"},
    {"viz", "plots"},
    {"cli"},
]
MODELS = {
    "models",
    "weights",
    "weight_files",
    "pretrained",
    "downloads",
}  # know nothing of pullbacks, and pullbacks nothing of them


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
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "jax_excite" and len(pieces) > 1 else None


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files("jax_excite"), ids=str)
def test_imports_point_one_way(path):
    relative = path.relative_to(ROOT / "jax_excite")
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    rank = {name: level for level, names in enumerate(LAYERS) for name in names}
    assert own in rank or own in MODELS, f"{own} has no place among the layers"
    known = {*rank, *MODELS}
    for imported in filter(known.__contains__, map(part, imports(path))):
        if own == "cli" or imported == own:
            continue
        if own in MODELS or imported in MODELS:
            allowed = MODELS | {"callables", "errors", "images", "imagenet"}
            assert own in MODELS, f"{own} imports {imported}"
            assert imported in allowed, f"{own} imports {imported}"
        else:
            assert rank[imported] <= rank[own], f"{own} imports {imported}"


@pytest.mark.parametrize("path", files("jax_excite"), ids=str)
def test_library_never_imports_the_converter(path):
    assert not [name for name in imports(path) if name.split(".")[0] == "weights_converter"]


@pytest.mark.parametrize("path", [*files("jax_excite"), *files("weights_converter")], ids=str)
def test_only_public_jax(path):
    assert not [name for name in imports(path) if "_src" in name.split(".")]


@pytest.mark.parametrize("package", ["jax_excite", "weights_converter"])
def test_import_is_light(package):
    heavy = {"torch", "matplotlib", "skimage", "typer", "tensorflow", "equinox"}
    code = f"import sys, {package}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert heavy.isdisjoint(result.stdout.split())
