"""Files that are complete or absent, whatever interrupts their writing."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"  # the suffix of a file that is being written


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write beside `path`, which takes its place in the end.

    If writing fails, it is removed, and what was at `path` stays. A process that is killed leaves
    the file `.NAME.*.partial`.

    Raises:
        OSError: the file cannot be moved, for example because it was not written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
