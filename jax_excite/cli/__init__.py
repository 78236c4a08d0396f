"""The command line `jax-excite`.

Exit codes: 0 success; 2 wrong input or a missing extra, reported in one line on standard error;
3 a check of `sanity` failed; 130 interrupted; 1 any other error, which is a bug.
"""

import typer

from jax_excite.cli.attribute import attribute
from jax_excite.cli.calibrate import calibrate
from jax_excite.cli.console import keep_compiled_programs, run
from jax_excite.cli.demo import demo
from jax_excite.cli.evaluate import evaluate
from jax_excite.cli.figures import figures
from jax_excite.cli.grid import grid
from jax_excite.cli.models import models
from jax_excite.cli.sanity import sanity
from jax_excite.cli.stores import status, view
from jax_excite.cli.sweep import sweep

app = typer.Typer(
    help="Excitation pullbacks: see why a ReLU network decides as it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    demo,
    grid,
    figures,
    sweep,
    calibrate,
    sanity,
    evaluate,
    attribute,
    status,
    view,
    models,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line."""
    keep_compiled_programs()
    run(app)
