"""The seconds that the parts of a fresh process take."""

import json
import time

from benchmarks.workers import answers


class Stopwatch:
    """Measures from the start of the process, of which its parent tells the time.

    Args:
        start: `time.time()` when the process was started.
    """

    def __init__(self, start: float):
        self._start = self._last = start
        self._parts: dict[str, float] = {}
        self._stream = answers()

    def stop(self, part: str) -> None:
        """End a part, which began when the last one ended."""
        now = time.time()
        self._parts[part] = now - self._last
        self._last = now

    def report(self) -> None:
        """Write the seconds of each part, and of all, as a line of JSON to standard output."""
        whole = {**self._parts, "in all": self._last - self._start}
        print(json.dumps(whole), file=self._stream)
