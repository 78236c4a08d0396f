"""One process of the benchmark: variants of jobs, run on command.

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


def serve() -> Iterator[dict[str, Any]]:
    """Answer the commands on standard input.

    `task` builds the variant of a task. The other commands are about the task of their `number`,
    counted from 0. `run` does its job, and returns the seconds until it had begun and the total
    seconds. `rest` returns free memory to the system. `finish` writes the result of the last run to
    a file, in PGA also that of an ascent of one step if `first_step` is true, and returns the peak
    memory before that and the memory that was in use after the imports.
    """
    tasks: list[Task] = []
    runners: list[Any] = []
    results: list[Any] = []
    imported = 0
    for line in sys.stdin:
        command = json.loads(line)
        number = command.get("number", 0)
        if command["do"] == "task":
            task = Task.parse(command)
            side = _side(task)
            imported = imported or memory("VmRSS")
            side.prepare(task.device)
            tasks.append(task)
            runners.append(side.Runner(task))
            results.append(None)
            yield {"ready": True}
        elif command["do"] == "run":
            results[number] = None
            runner = runners[number]
            start = time.perf_counter()
            results[number] = runner.run(tasks[number].steps)
            begun = time.perf_counter() - start
            runner.wait(results[number])
            yield {"begun": begun, "seconds": time.perf_counter() - start}
        elif command["do"] == "rest":
            ctypes.CDLL(None).malloc_trim(0)
            yield {"peak": memory("VmHWM")}
        elif command["do"] == "finish":
            task, runner = tasks[number], runners[number]
            peak = _side(task).device_peak(task.device)
            answer = {"peak": memory("VmHWM") if peak is None else peak, "imported": imported}
            arrays = {"result": runner.fetch(results[number])}
            if task.job == "pga" and command["first_step"]:
                arrays["first_step"] = runner.fetch(runner.run(1))
            np.savez(command["out"], **arrays)
            yield answer


def _side(task: Task) -> Any:
    if task.variant.framework == "torch":
        from benchmarks import torch_variants as side
    else:
        from benchmarks import ours as side
    return side


def memory(field: str) -> int:
    """Memory of this process in bytes: VmRSS is the current, VmHWM the peak resident memory."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None, f"no {field} in /proc/self/status"
    return int(found[1]) * 1024


def main() -> None:
    """Serve until the end of standard input."""
    stream = answers()
    for answer in serve():
        print(json.dumps(answer), file=stream)


if __name__ == "__main__":
    main()
