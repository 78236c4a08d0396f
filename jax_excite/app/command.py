"""`jax-excite app`: the page to explore with."""

from typing import Annotated

import typer

from jax_excite.cli.console import errors_in_one_line
from jax_excite.cli.networks import ClassesFile, Prepared


def app(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")
    ] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Others than this machine reach 0.0.0.0.")
    ] = "127.0.0.1",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A network to offer besides those whose weights are on this machine: a name, "
            "which is downloaded when it is first chosen, or an ONNX file; may be repeated."
        ),
    ] = None,
    classes_file: ClassesFile = None,
    preprocessing: Prepared = None,
) -> None:
    """Explore networks and photographs on a page in the browser, offline."""
    with errors_in_one_line():
        from jax_excite.app.controls import samples
        from jax_excite.app.networks import Networks
        from jax_excite.app.page import Page
        from jax_excite.app.server import serve
        from jax_excite.app.turns import Turns

        networks = Networks(model or (), classes_file, preprocessing)
        photographs, turns = samples(), Turns()
        compiled: set[object] = set()
        try:
            serve(lambda: Page(networks, turns, photographs, compiled) and None, host, port)
        finally:
            turns.stop()
