"""The page of `jax-excite app` in a process of its own, and a browser that talks to nobody else."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
_SECONDS_TO_START = 60


READY = "Choose a target, and press Explain."  # what the page says when it has predictions


class Served(NamedTuple):
    """Where the page is, and the process that serves it."""

    address: str
    process: int


@contextlib.contextmanager
def served(folder: Path, *options: object) -> Iterator[Served]:
    """The page, with a cache of compiled programs in a folder."""
    log = folder / "server.txt"
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [
        sys.executable,
        "-c",
        "from jax_excite.cli import main; main()",
        "app",
        "--port",
        "0",
    ]
    with (
        log.open("w") as errors,
        subprocess.Popen([*command, *map(str, options)], stderr=errors, env=environment) as process,
    ):
        try:
            end = time.monotonic() + _SECONDS_TO_START
            while not (found := re.search(r"Open (\S+) in", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end
                time.sleep(0.1)
            yield Served(found[1], process.pid)
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
    assert "Traceback" not in log.read_text(), log.read_text()


def open_page(page: Page, address: str) -> None:
    """Open the page, and wait for its predictions."""
    page.goto(address)
    expect(page.get_by_role("status")).to_have_text(READY)


def add_class(page: Page, name: str) -> None:
    """Search for a class, and choose it besides the others."""
    page.get_by_label("Classes: type to search").fill(name)
    page.get_by_role("option", name=name, exact=True).click()


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET))
        yield browser
        browser.close()
