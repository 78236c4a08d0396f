"""Published files, which are fetched once into the user's cache folder and checked.

pooch, requests, rich, filelock and platformdirs are imported only where they are used: together
they take as long as the rest of `import jax_excite`, and most loads need none of them.
"""

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jax_excite.errors import WeightsError

if TYPE_CHECKING:
    import requests

TIMEOUT = 30.0  # seconds to connect, and seconds without a byte
LINE_EVERY = 10.0  # seconds between lines of progress where there is no terminal
PATIENCE = 1.0  # seconds to wait for a lock without a message
CHUNK = 1 << 18  # bytes


def cache_folder() -> Path:
    """The folder of weights, and of the programs that the command line compiles.

    The environment variable JAX_EXCITE_CACHE overrides the default folder.
    """
    if moved := os.environ.get("JAX_EXCITE_CACHE"):
        return Path(moved).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("jax_excite", appauthor=False)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on `path` across threads and processes, with a message if it has to wait.

    The folder of `path` is created, and an empty lock file is left in it. The lock of a process
    that dies is released.

    Raises:
        WeightsError: the folder cannot be written to.
    """
    import filelock

    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except filelock.Timeout:
            _say(f"Waiting for another process, which is writing {path}")
            lock.acquire()
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def download(url: str, path: Path, sha256_prefix: str) -> None:
    """Fetch `url` to `path`, which appears only when it is complete and its digest is verified.

    A file that is already there, for example put there by hand, is checked and kept. Call this
    while you hold the lock of `locked`: the remains of a killed process are then overwritten.

    Args:
        url: the address of the published file.
        path: where to write the file, in a folder that exists.
        sha256_prefix: the first hexadecimal digits of its SHA-256.

    Raises:
        WeightsError: the file cannot be obtained, or is not the published one. The message names
            `url` and explains how to proceed without a network.
    """
    shown = _without_credentials(url)
    if path.is_file():
        if problem := _mismatch(path, sha256_prefix):
            raise WeightsError(
                f"{path} is not the file published at {shown}: {problem}. Remove it so that it is "
                "downloaded again, or replace it with the right file"
            )
        return
    import requests

    _say(f"Downloading {shown} to {path}")
    partial = path.with_name(f".{path.name}.partial")
    try:
        _fetch(url, partial)
        if problem := _mismatch(partial, sha256_prefix):
            raise _unavailable(shown, path, problem)
        partial.replace(path)
    except requests.RequestException as error:
        raise _unavailable(shown, path, _reason(error, url)) from None
    except OSError as error:
        if error.errno is None:  # not a disk error: REQUESTS_CA_BUNDLE names a missing file
            raise _unavailable(shown, path, str(error)) from error
        raise _unwritable(path.parent, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _fetch(url: str, path: Path) -> None:
    import pooch
    import requests

    with contextlib.ExitStack() as answers, _Progress() as progress:

        def check(answer: requests.Response, **_: Any) -> None:
            answers.callback(answer.close)  # pooch leaves this to the garbage collector
            # The first digits of a digest detect accidents; only TLS protects against forgeries.
            if url.startswith("https:") and not answer.url.startswith("https:"):
                place = _without_credentials(answer.url)
                raise requests.exceptions.InvalidSchema(
                    f"it redirects to {place}, which does not use TLS"
                )

        pooch.HTTPDownloader(
            progressbar=progress,  # pyright: ignore[reportArgumentType]: any such object will do
            chunk_size=CHUNK,
            timeout=TIMEOUT,
            hooks={"response": check},
        )(url, path, None)


def _mismatch(path: Path, sha256_prefix: str) -> str:
    """A description of a wrong SHA-256; empty if it begins with `sha256_prefix`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest.startswith(sha256_prefix):
        return ""
    return f"its SHA-256 is {digest}, which should begin with {sha256_prefix}"


def _reason(error: "requests.RequestException", url: str) -> str:
    """What went wrong, as reported by the library that failed, and the proxy if there is one."""
    import requests
    from urllib3.exceptions import ReadTimeoutError

    cause = error.args[0] if error.args else error
    if isinstance(error, requests.HTTPError):
        reason = f"the server responded {str(error).partition(' for url')[0]}"
    elif isinstance(error, requests.Timeout) or isinstance(cause, ReadTimeoutError):
        reason = f"no data arrived for {TIMEOUT:g} s"
    elif isinstance(error, requests.exceptions.ChunkedEncodingError):
        reason = f"the download was interrupted: {cause}"
    else:
        reason = str(getattr(cause, "reason", cause))
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    return f"{reason}, through the proxy {_without_credentials(proxy)}" if proxy else reason


def _without_credentials(address: str) -> str:
    return address.rpartition("@")[2]


def _unavailable(url: str, path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"cannot download {url}: {reason}. To continue without a network connection, get that "
        f"file by other means and put it at {path}, or give its path: load(name, weights=FILE), "
        "jax-excite grid --weights FILE"
    )


def _unwritable(folder: Path, error: OSError) -> WeightsError:
    return WeightsError(
        f"cannot keep weights in {folder}: {error}. Set the environment variable JAX_EXCITE_CACHE "
        "to another folder"
    )


class _Progress:
    """The interface that pooch expects of a progress bar: a bar on a terminal, else a few lines.

    Attributes:
        total: the size in bytes; pooch sets it once the server has answered, and it is 0 if the
            answer does not contain the size.
    """

    total = 0

    def __init__(self) -> None:
        from rich import console, progress

        stderr = console.Console(stderr=True, force_jupyter=False)
        self.terminal = stderr.is_terminal
        self.bar = progress.Progress(
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=stderr,
            disable=not self.terminal,
        )
        self.task = self.bar.add_task("", total=None)
        self.done = 0
        self.next_line = 0.0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def update(self, count: int) -> None:
        self.done = min(self.done + count, self.total or sys.maxsize)
        if self.terminal:
            self.bar.update(self.task, completed=self.done, total=self.total or None)
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LINE_EVERY
            of_total = f" of {self.total / 1e6:.1f}" if self.total else ""
            _say(f"{self.done / 1e6:.1f}{of_total} MB")

    def reset(self) -> None:
        """Do nothing: pooch calls this at the end to fill the bar again."""

    def close(self) -> None:
        """Do nothing: leaving the context stops the bar."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
