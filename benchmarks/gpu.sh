#!/usr/bin/env bash
# Runs the benchmark on the NVIDIA GPU of this machine: benchmarks/gpu.sh [OPTION ...], the options
# those of `python -m benchmarks`. Writes benchmarks/results/gpu.md and gpu.json; without options also
# gpu-throughput.md and gpu-throughput.json, with the throughput of larger batches.
#
# Needs Linux, a driver for CUDA 12 or later, Python 3.11 or later, and 20 GB of disk.
# It has not been run: no machine with a GPU was to be had.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv/gpu/bin/python
mkdir -p .venv
"${PYTHON:-python3}" -m venv .venv/gpu
"$python" -m pip install --quiet --editable ".[test]"
"$python" -m pip install --quiet --no-deps torchvision==0.28.0
# JAX for the CUDA that PyTorch brings: two versions of its libraries would share folders.
cuda=$("$python" -c 'import torch; print((torch.version.cuda or "none").partition(".")[0])')
if [ "$cuda" = none ]; then
    echo "this PyTorch has no CUDA: install torch==2.13.0 with CUDA into .venv/gpu first" >&2
    exit 2
fi
"$python" -m pip install --quiet "jax[cuda$cuda]" torch==2.13.0

run() {
    "$python" -m benchmarks --device gpu --environment default "$@"
}
status=0
run "$@" || status=$?
if [ $# = 0 ]; then
    # Enough images for the largest batches.
    run --job throughput --images 128 --classes 2 --out benchmarks/results/gpu-throughput ||
        status=$?
fi
exit "$status"
