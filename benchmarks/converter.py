"""Prints the table of docs/weights.md: `python -m benchmarks.converter [MODEL ...]`.

For each model, `torch.save` writes a full-size checkpoint with random weights. The command line
converts it in a process without torch, and the result is compared with PyTorch.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from jax_excite.models import MODELS, ModelSpec
from jax_excite.weights.files import read
from jax_excite.weights.loading import named_leaves
from tests import torch_reference as reference
from tests import without_torch
from weights_converter.outputs import compare_logits

HEADER = (
    "| model | parameters | checkpoint, MB | s | peak memory, MB | peak / tensors "
    "| tensors that differ | logits, relative L2 |\n|---|---|---|---|---|---|---|---|"
)

CONVERT = """
import pathlib, sys
from weights_converter.cli import app

app(["convert", *sys.argv[1:]], standalone_mode=False)
status = pathlib.Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split("\\n")[0], file=sys.stderr)
"""


def main() -> None:
    """Print a row for each model named on the command line, or for all models."""
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder, "packages")
        packages.mkdir()
        environment = without_torch.make_environment(packages)
        for name in sys.argv[1:] or MODELS:
            print(row(MODELS[name], Path(folder), environment), flush=True)


def row(spec: ModelSpec, folder: Path, environment: dict[str, str]) -> str:
    """Convert and compare one model."""
    checkpoint, converted = folder / "checkpoint.pth", folder / "converted.safetensors"
    module = reference.reference(spec.name, dtype=torch.float32)
    torch.save(module.net.state_dict(), checkpoint)
    seconds, peak = convert(checkpoint, converted, environment)
    tensors, _ = read(converted)
    wanted = named_leaves(reference.to_jax(spec.name, module).net)
    different = sum(not np.array_equal(tensors[name], leaf) for name, leaf in wanted.items())
    size = sum(tensor.nbytes for tensor in tensors.values())
    error = compare_logits(spec, converted, checkpoint)
    converted.unlink()
    return (
        f"| `{spec.name}` | {spec.parameters:,} | {checkpoint.stat().st_size / 1e6:.1f} "
        f"| {seconds:.1f} | {peak / 1e6:.0f} | {peak / size:.2f} | {different} | {error:.1e} |"
    )


def convert(checkpoint: Path, out: Path, environment: dict[str, str]) -> tuple[float, int]:
    """Convert; wall-clock seconds and peak resident bytes of the process, with Python and JAX."""
    start = time.perf_counter()
    result = without_torch.run(environment, "-c", CONVERT, str(checkpoint), "-o", str(out))
    return time.perf_counter() - start, int(result.stderr.split()[-2]) * 1024


if __name__ == "__main__":
    main()
