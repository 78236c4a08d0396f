"""What the commands tell their user: errors in one line, and progress, both on standard error."""

import contextlib
from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from jax_excite.errors import ExciteError

Item = TypeVar("Item", covariant=True)


class Items(Iterable[Item], Sized, Protocol[Item]):
    """What can be gone through and counted."""


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print what is wrong with the input, or which extra is missing, and exit with 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        _fail(f'{error.name} is not installed: pip install "jax-excite[demo]"')
    except (ExciteError, OSError, ValueError) as error:
        _fail(str(error))


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


def with_progress(items: Items[Item], what: str) -> Iterator[Item]:
    """The items, with a bar that says how far it is and how long it will take."""
    yield from track(items, f"{what} ...", total=len(items), console=Console(stderr=True))
