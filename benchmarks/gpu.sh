#!/usr/bin/env bash
# Runs the benchmark on the NVIDIA GPU of this machine, in about six minutes: benchmarks/gpu.sh
# [OPTION ...], with the options of `python -m benchmarks.gpu`. Writes benchmarks/results/gpu.md and
# gpu.json, after each job.
#
# It installs nothing and needs no network: it takes the Python at hand, `python3` or $PYTHON, whose
# JAX and PyTorch must both find the GPU, and names the packages that are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

"$python" - <<'CHECK'
import importlib.util
import sys

NEEDED = {
    "filelock": "filelock",
    "flatbuffers": "flatbuffers",
    "flax": "flax",
    "jax": "jax[cuda13]",
    "jaxtyping": "jaxtyping",
    "lazy_loader": "lazy-loader",
    "ml_dtypes": "ml_dtypes",
    "optax": "optax",
    "PIL": "pillow",
    "platformdirs": "platformdirs",
    "pooch": "pooch",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "torch": "torch",
    "torchvision": "torchvision",
    "typer": "typer",
}
missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    sys.exit(
        f"{sys.executable} lacks {', '.join(missing)}: install them, or unpack their wheels into a "
        "folder and name it in PYTHONPATH"
    )
CHECK
exec "$python" -m benchmarks.gpu "$@"
