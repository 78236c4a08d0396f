"""An environment without torch: this one's packages but for torch's, linked into a folder."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
_TORCH = ("torch", "functorch", "triton", "nvidia")


def make_environment(folder: Path) -> dict[str, str]:
    """Fill `folder` with links, and return the variables to run Python with (and `-S`)."""
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(_TORCH):
            (folder / package.name).symlink_to(package)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python there; what fails, fails here."""
    command = [sys.executable, "-S", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result
