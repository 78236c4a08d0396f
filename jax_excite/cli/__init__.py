"""The command line `jax-excite`.

Exit codes: 0 success; 2 wrong input or a missing extra, reported in one line on standard error;
3 a check of `sanity` failed; 130 interrupted; 1 any other error, which is a bug.
"""

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from jax_excite.cli.entry import run

# The commands, each with its module and the first line of its help, so that the list of commands
# does not wait for JAX.
COMMANDS = {
    "demo": ("cli.demo", "Explain EfficientNet-Lite0 on three photographs, offline: out/demo.png."),
    "app": ("app.command", "Explore networks and photographs on a page in the browser, offline."),
    "grid": (
        "cli.grid",
        "Draw ascents or pullbacks of photographs (rows) towards classes (columns).",
    ),
    "figures": (
        "cli.figures",
        "Draw the paper's Figures 1 to 4 for a network, and write a manifest beside each.",
    ),
    "sweep": (
        "cli.sweep",
        "Draw photographs (rows) and pullbacks at several temperatures (columns).",
    ),
    "calibrate": (
        "cli.calibrate",
        "Measure the spread of each site, and write weights with temperatures derived from it.",
    ),
    "sanity": ("cli.sanity", "Check the method on a photograph; exits with 3 if a check fails."),
    "evaluate": (
        "cli.evaluate",
        "Compare attribution methods by several metrics; resumes where a killed run stopped.",
    ),
    "attribute": (
        "cli.attribute",
        "Compute attributions of all images of a source; resumes where a killed run stopped.",
    ),
    "status": (
        "cli.stores",
        "Show the progress of a store, the skipped images, and the parts that are being written.",
    ),
    "view": (
        "cli.stores",
        "Draw a selection of a store: one row per image, one column per method and target.",
    ),
    "sites": (
        "cli.sites",
        "List the gates of a network by index and name, as --at takes them; needs no weights.",
    ),
    "models": (
        "cli.models",
        "List the models, their size, recommended temperature and pretrained weights.",
    ),
}


class _Commands(TyperGroup):
    """The commands, whose modules are imported when they run."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command without its options, as the list of commands shows it."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the arguments name, and the rest of them."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, None if listed is None else _load(listed.name), rest


def _load(name: Any) -> Any:
    from jax_excite.cli.console import keep_compiled_programs

    keep_compiled_programs()
    module = importlib.import_module(f"jax_excite.{COMMANDS[name][0]}")
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command(name)(getattr(module, name))
    return typer.main.get_command(command)


app = typer.Typer(
    cls=_Commands,
    help="Excitation pullbacks: see why a network decides as it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    """Excitation pullbacks: see why a network decides as it does."""


def main() -> None:
    """Run the command line; if output cannot be written, report that and exit with 2."""
    run(app)
