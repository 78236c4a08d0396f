"""One process of the benchmark: one variant of one job, run on command.

It reads commands as lines of JSON from standard input, and answers each with a line of JSON on
standard output. A process uses either torch or JAX, never both.
"""

import ctypes
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.variants import Task
from benchmarks.workers import answers


def serve(task: Task) -> Iterator[dict[str, Any]]:
    """Build the variant, then answer the commands on standard input.

    `run` does the job, and returns the seconds until it had begun and the total seconds. `rest`
    returns free memory to the system. `finish` writes the result of the last run to a file, and
    returns the peak memory before that and the memory that was in use after the imports.
    """
    if task.variant.framework == "torch":
        from benchmarks import torch_variants as side
    else:
        from benchmarks import ours as side
    imported = memory("VmRSS") if task.device == "cpu" else 0
    side.prepare(task.device)
    runner: Any = side.Runner(task)
    yield {"ready": True}
    result: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "run":
            result = None
            start = time.perf_counter()
            result = runner.run(task.steps)
            begun = time.perf_counter() - start
            runner.wait(result)
            yield {"begun": begun, "seconds": time.perf_counter() - start}
        elif command["do"] == "rest":
            ctypes.CDLL(None).malloc_trim(0)
            yield {"peak": memory("VmHWM")}
        elif command["do"] == "finish":
            peak = side.device_peak(task.device) or memory("VmHWM")
            arrays = {"result": runner.fetch(result)}
            if task.job == "pga":
                arrays["first_step"] = runner.fetch(runner.run(1))
            np.savez(command["out"], **arrays)
            yield {"peak": peak, "imported": imported}


def memory(field: str) -> int:
    """Memory of this process in bytes: VmRSS is the current, VmHWM the peak resident memory."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None, f"no {field} in /proc/self/status"
    return int(found[1]) * 1024


def main() -> None:
    """Serve a task."""
    stream = answers()
    for answer in serve(Task.parse(sys.stdin.readline())):
        print(json.dumps(answer), file=stream)


if __name__ == "__main__":
    main()
