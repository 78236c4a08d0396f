"""The command line `jax-excite`. Exit codes: 0 done, 1 interrupted or a bug, 2 wrong input."""

import typer

from jax_excite.cli.demo import demo
from jax_excite.cli.grid import grid
from jax_excite.cli.models import models

app = typer.Typer(
    help="Excitation pullbacks: see why a ReLU network decides as it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, grid, models):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    app()
