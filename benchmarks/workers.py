"""Starts and controls the processes of the benchmark; imports neither JAX nor torch."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]

# malloc uses huge pages and keeps large blocks, and idle OpenMP threads sleep.
_TUNED = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1",
    "OMP_WAIT_POLICY": "passive",
}
# The code that XLA generates, oneDNN, PyTorch's own kernels and MKL use no instructions beyond
# AVX2. YNNPACK, with which XLA computes matrix products and convolutions, cannot be held to it.
_AVX2 = {
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa=AVX2".strip(),
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": _TUNED,
    "default-avx2": _AVX2,
    "tuned-avx2": {**_TUNED, **_AVX2},
}
USUAL = "default", "tuned"
SHARE_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # otherwise JAX reserves most of its memory
PAUSE = 0.1  # seconds between runs, so that threads go to sleep


def caching(folder: Path) -> dict[str, str]:
    """Variables that make JAX and torch.compile cache compiled programs in a folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),
    }


def available_memory() -> int:
    """The memory in bytes that new processes can use without swapping."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None, "no MemAvailable in /proc/meminfo"
    return int(found[1]) * 1024


def answers() -> TextIO:
    """A worker's standard output; later output of libraries goes to standard error instead."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return stream


class WorkerError(RuntimeError):
    """A worker ended without an answer; the text is its last line, or its exit code."""


class Worker:
    """A process that answers lines of text with lines of JSON."""

    def __init__(self, module: str, arguments: Sequence[str], environment: dict[str, str]):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (`close` does)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, **SHARE_GPU, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def tell(self, line: str) -> dict[str, Any]:
        """Send a line and return the answer.

        Raises:
            WorkerError: the process ended instead.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has ended, so there is no answer
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            written = self.errors.read().strip().splitlines()
            raise WorkerError(written[-1] if written and code > 0 else f"ended with code {code}")
        time.sleep(PAUSE)
        return json.loads(line)

    def run(self, number: int = 0) -> tuple[float, float]:
        """Do a job once; return the seconds until it had begun (compiled), and in total."""
        answer = self.tell(json.dumps({"do": "run", "number": number}))
        return answer["begun"], answer["seconds"]

    def finish(self, out: Path, number: int = 0, *, first_step: bool = True) -> tuple[int, int]:
        """Write the result of the last run; return the peak memory and that of the imports.

        With `first_step`, the file of an ascent also has the images after one step.
        """
        command = {"do": "finish", "number": number, "out": str(out), "first_step": first_step}
        answer = self.tell(json.dumps(command))
        return answer["peak"], answer["imported"]

    def rest(self) -> int:
        """Return free memory to the system; the result is the peak memory in bytes."""
        return self.tell(json.dumps({"do": "rest"}))["peak"]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
