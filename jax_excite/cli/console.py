"""Messages of the commands: errors in one line, and progress, both on standard error."""

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

import jax
import typer
from rich.console import Console
from rich.progress import Progress

from jax_excite.errors import ExciteError
from jax_excite.weights.downloads import cache_folder

Item = TypeVar("Item")

# The optional modules that commands need, with the extra that installs each.
_EXTRAS = {
    "array_record": "data",
    "importlib_resources": "data",
    "matplotlib": "viz",
    "nicegui": "app",
    "grain": "store",
    "pyarrow": "parquet",
    "skimage": "demo",
    "tensorflow_datasets": "data",
    "tensorstore": "store",
    "xarray": "store",
    "zarr": "store",
}
_SECONDS_BETWEEN_LINES = 2


def keep_compiled_programs() -> None:
    """Keep JAX's compiled programs in the cache folder, unless JAX is configured otherwise.

    Call this before the first array is made, because JAX reads this setting only once.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Report an error of the input, or a missing extra, in one line, and exit with 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRAS:
            raise
        _fail(f'{module} is not installed: pip install "jax-excite[{_EXTRAS[module]}]"')
    except (ExciteError, OSError) as error:
        _fail(str(error))


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


def announce(what: str) -> None:
    """Print a line about the work that begins."""
    typer.echo(f"{what} ...", err=True)


def with_progress(items: Iterable[Item], what: str, count: int | None = None) -> Iterator[Item]:
    """Yield the items with a progress bar on a terminal, and with occasional lines elsewhere.

    The program that the items share is compiled with the first, which the progress says.

    Args:
        items: the items.
        what: what is done with them.
        count: the number of items, if `items` has no length.
    """
    total = len(items) if isinstance(items, Sized) else count
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console) as progress:
            task = progress.add_task(f"{what}, compiling first ...", total=total)
            for item in items:
                yield item
                progress.update(task, advance=1, description=f"{what} ...")
        return
    said = -float("inf")
    given = iter(items)
    for number in itertools.count(1):
        if time.monotonic() - said >= _SECONDS_BETWEEN_LINES and number <= (total or number):
            compiling = ", compiling first" if number == 1 else ""
            announce(f"{what}: {number} of {total}{compiling}")
            said = time.monotonic()
        try:
            item = next(given)
        except StopIteration:
            return
        yield item
