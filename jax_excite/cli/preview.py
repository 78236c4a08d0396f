"""The picture of a long run while it is computed, beside the one that it becomes."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import typer

Arrays = Mapping[str, np.ndarray]
# Drawing takes at most a tenth of the time.
_SECONDS_BETWEEN, _TIMES_DRAWING = 2.0, 9.0


@contextlib.contextmanager
def previewed(
    out: Path, draw: Callable[[Path, Arrays], None]
) -> Iterator[Callable[[Arrays], None]]:
    """Yield a function that draws the arrays so far into a file beside `out`, if it is time to.

    The file is removed in the end. Its name contains the number of the process, so that it replaces
    no file of the user's.

    Args:
        out: the file of the final picture.
        draw: writes the picture of arrays to a path.
    """
    path = out.with_suffix(f".preview-{os.getpid()}.png")
    due = -float("inf")

    def show(arrays: Arrays) -> None:
        nonlocal due
        begun = time.monotonic()
        if begun < due:
            return
        if due < 0:
            typer.echo(f"While it is computed, the cells so far are in {path}", err=True)
        draw(path, arrays)
        ended = time.monotonic()
        due = ended + max(_SECONDS_BETWEEN, _TIMES_DRAWING * (ended - begun))

    try:
        yield show
    finally:
        path.unlink(missing_ok=True)
