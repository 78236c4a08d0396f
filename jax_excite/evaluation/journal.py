"""A file that records what a long run has computed, so that a killed run can be resumed."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from jax_excite.errors import ExciteError


class Journal:
    """Results by key, one per line of JSON, after a first line with the settings of the run.

    A line that is incomplete because the run was killed is dropped.
    """

    def __init__(self, path: Path):
        self.path = path
        self._settings: dict[str, Any] = {}
        self._results: dict[str, Any] = {}
        self._begun = False

    @staticmethod
    @contextlib.contextmanager
    def open(path: Path, settings: dict[str, Any]) -> Iterator["Journal"]:
        """Open the journal at a path, new or existing, and lock it against other processes.

        Raises:
            ExciteError: another run has locked it, or it is from a run with other settings.
        """
        lock = filelock.FileLock(f"{path}.lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise ExciteError(
                f"another run is writing {path}: wait for it, or write to another file"
            ) from None
        try:
            journal = Journal(path)
            journal._read(json.loads(json.dumps(settings)))
            yield journal
        finally:
            lock.release()

    def _read(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        text = self.path.read_bytes() if self.path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        if not whole:
            return
        try:
            first, *lines = map(json.loads, whole.splitlines())
            theirs = first["settings"]
            self._results = {line["key"]: line["result"] for line in lines}
        except (ValueError, KeyError, TypeError):
            raise ExciteError(
                f"{self.path} is not a journal of this command: remove it, or write to another file"
            ) from None
        self._begun = True
        for name in {**settings, **theirs}:
            old, new = theirs.get(name), settings.get(name)
            if old != new:
                raise ExciteError(
                    f"{self.path} belongs to a run with {name} {_short(old)}, and this run has "
                    f"{_short(new)}: use the same value, or remove the file to start again"
                )

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def __getitem__(self, key: str) -> Any:
        return self._results[key]

    def add(self, key: str, result: Any) -> None:
        """Record a result; once this returns, the result survives a kill."""
        with self.path.open("a", encoding="utf-8") as file:
            if not self._begun:
                file.write(json.dumps({"settings": self._settings}) + "\n")
                self._begun = True
            file.write(json.dumps({"key": key, "result": result}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._results[key] = result


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}..."
