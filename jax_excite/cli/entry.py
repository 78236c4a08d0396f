"""How command lines are run; this module does not import JAX."""

import os
import sys

import typer


def run(app: typer.Typer) -> None:
    """Run a command line; if output cannot be written, report that in one line and exit with 2."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        # At exit, Python writes the rest of the buffer once more; send it to the null device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        typer.echo(f"error: cannot write to standard output: {error}", err=True)
        sys.exit(2)
