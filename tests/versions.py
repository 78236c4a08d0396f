"""Runs the tests with other versions: `python -m tests.versions newest --python 3.13`.

`oldest` installs the oldest version of each package that `pyproject.toml` names, `newest` the
newest that fits the interpreter. `--python` takes a version or a path. What is after `--` goes to
pytest.
"""

import os
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
SHOWN = ("jax", "flax", "optax", "numpy", "scipy", "typer", "torch", "keras", "equinox", "onnx")


class Resolution(StrEnum):
    """Which of the allowed versions are installed."""

    OLDEST = "oldest"
    NEWEST = "newest"


def main(
    resolution: Resolution,
    pytest_arguments: Annotated[list[str] | None, typer.Argument()] = None,
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}",
    folder: Path = Path("/tmp/jax_excite_versions"),
) -> None:
    """Install the packages into a new environment in `folder`, print them and run the tests."""
    environment = folder / f"{Path(python).name}-{resolution}"
    strategy = {Resolution.OLDEST: "lowest-direct", Resolution.NEWEST: "highest"}[resolution]
    interpreter = str(environment / "bin" / "python")
    _uv("venv", "--clear", "--python", python, str(environment))
    install = ["pip", "install", "--python", interpreter]
    _uv(*install, "--resolution", strategy, "--editable", f"{ROOT}[test]")
    _uv(*install, "--no-deps", *without_dependencies())
    versions = _uv("pip", "freeze", "--python", interpreter)
    shown = [line for line in versions.splitlines() if line.split("==")[0] in SHOWN]
    typer.echo(f"{python}, {resolution}: {', '.join(shown)}")
    command = [interpreter, "-m", "pytest", "-n", "2", "--dist", "loadfile"]
    raise typer.Exit(subprocess.run([*command, *(pytest_arguments or [])], cwd=ROOT).returncode)


def without_dependencies() -> list[str]:
    """Return the packages that the Makefile installs for the tests without what they ask for."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    found = re.search(r"--no-deps ([^;]+);", makefile)
    assert found
    return found[1].split()


def _uv(*arguments: str) -> str:
    links = os.environ.get("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))
    environment = {**os.environ, "UV_FIND_LINKS": links}
    command = [sys.executable, "-m", "uv", "--quiet", *arguments]
    return subprocess.run(
        command, check=True, env=environment, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    typer.run(main)
