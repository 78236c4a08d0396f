"""The record of completed chunks, one line per chunk on disk, and the locks for writing."""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from jax_excite.errors import DataError

_JOURNAL, _LOCKS = "journal", "locks"


class Ledger:
    """The chunks of a store that any run has completed.

    Each run adds lines to its own file, so that no run changes what another wrote. A line that is
    incomplete because the run was killed is ignored.
    """

    def __init__(self, store: Path):
        self._folder = store / _JOURNAL
        self._own: Path | None = None

    def done(self) -> dict[int, dict[str, Any]]:
        """The record of each completed chunk, by chunk."""
        found = {}
        for file in sorted(self._folder.glob("*.jsonl")):
            whole, _, _ = file.read_text("utf-8", "replace").rpartition("\n")
            for line in whole.splitlines():
                record = json.loads(line)
                found[record["chunk"]] = record
        return found

    def add(self, chunk: int, **facts: Any) -> None:
        """Record that a chunk is on disk; once this returns, the record survives a kill."""
        if self._own is None:
            self._folder.mkdir(exist_ok=True)
            self._own = self._folder / f"{secrets.token_hex(8)}.jsonl"
        try:
            with self._own.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"chunk": chunk, **facts}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # A line that is appended to an incomplete line would be lost with it.
            self._own = None
            raise


@contextlib.contextmanager
def exclusive(store: Path, part: int, parts: int) -> Iterator[None]:
    """Lock part number `part` of `parts` parts of a store, so that no other run writes it.

    Raises:
        DataError: another run writes this part, or writes with a different number of parts.
    """
    folder = store / _LOCKS
    try:
        folder.mkdir(exist_ok=True)
        with filelock.FileLock(folder / "choose.lock", timeout=10):
            for other in _active(folder):
                if other == (part, parts) or other[1] != parts:
                    raise DataError(
                        f"another run is writing {_named(*other)} of {store}: wait for it, or "
                        f"write to another store (this run is to write {_named(part, parts)})"
                    )
            own = filelock.FileLock(folder / f"{part}-of-{parts}.lock", timeout=0)
            own.acquire()
    except OSError as error:
        raise DataError(f"{store} cannot be written: {error}") from error
    try:
        yield
    finally:
        own.release()


def active(store: Path) -> list[str]:
    """The parts that are being written."""
    folder = store / _LOCKS
    return [_named(*each) for each in _active(folder)] if folder.is_dir() else []


def _active(folder: Path) -> list[tuple[int, int]]:
    found = []
    for file in sorted(folder.glob("*-of-*.lock")):
        matched = re.fullmatch(r"(\d+)-of-(\d+)\.lock", file.name)
        if matched is None:
            continue
        try:
            with filelock.FileLock(file, timeout=0):
                pass
        except filelock.Timeout:
            found.append((int(matched[1]), int(matched[2])))
    return found


def _named(part: int, parts: int) -> str:
    return "all" if parts == 1 else f"part {part} of {parts}"
