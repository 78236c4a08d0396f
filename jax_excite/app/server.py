"""The server of the page: what it listens to, what it accepts, and what browsers may load."""

import logging
import socket
from collections.abc import Callable
from typing import Any

import typer
import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from jax_excite.app.photograph import MAX_BYTES
from jax_excite.errors import ExciteError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Room for what surrounds a file in a form.
_MAX_BODY = MAX_BYTES + 100_000
# How long what a person has on the page is kept when the connection breaks: a laptop sleeps, a
# network changes, or the machine is too busy to answer in time.
_SECONDS_TO_RECONNECT = 60.0
# Vue compiles templates in the browser, and NiceGUI's start is an inline script.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' ws: wss:; frame-ancestors 'none'; form-action 'none'; base-uri 'self'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


def application(page: Callable[[], Any], *, only_loopback: bool) -> Any:
    """The ASGI application that shows a page.

    Args:
        page: builds the page for one person.
        only_loopback: answer only requests to this machine by its own names, so that a page of
            another host cannot reach it under a name that resolves to it.
    """
    fastapi = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    ui.page("/")(page)
    ui.run_with(
        fastapi,
        title="jax_excite",
        dark=None,
        language="en-US",
        reconnect_timeout=_SECONDS_TO_RECONNECT,
        tailwind=False,
        show_welcome_message=False,
    )
    if only_loopback:
        hosts = [f"[{host}]" if ":" in host else host for host in LOOPBACK]
        fastapi.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return bounded(with_headers(fastapi))


def with_headers(inner: Any) -> Any:
    """An application whose answers let browsers load nothing from another host."""

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await inner(scope, receive, sending if scope["type"] == "http" else send)

    return outer


def bounded(inner: Any) -> Any:
    """An application that refuses requests with a larger body than a photograph's."""

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await inner(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > _MAX_BODY:
            await PlainTextResponse("The file is too large.", 413)(scope, receive, send)
            return
        received = 0

        async def receiving() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return {"type": "http.disconnect"} if received > _MAX_BODY else message

        await inner(scope, receiving, send)

    return outer


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises `ExciteError` if the address cannot be taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ExciteError(
            f"cannot listen on {host}, port {port} ({error}): give another --port, or 0 for any "
            "that is free"
        ) from None


def serve(page: Callable[[], Any], host: str, port: int) -> None:
    """Show a page until the process is interrupted.

    Args:
        page: builds the page for one person.
        host: the address to listen on.
        port: the port, or 0 for any that is free.

    Raises:
        ExciteError: the address cannot be taken.
    """
    listening = listen(host, port)
    port = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    logging.basicConfig(level=logging.WARNING)
    app = application(page, only_loopback=host in LOOPBACK)
    config = uvicorn.Config(app, log_level="warning", lifespan="on")
    typer.echo(f"Open http://{shown}:{port} in a browser. Ctrl+C ends the page.", err=True)
    if host not in LOOPBACK:
        typer.echo("Everybody who reaches this address can use the page.", err=True)
    uvicorn.Server(config).run(sockets=[listening])
