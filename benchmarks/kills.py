"""Kills runs of `jax-excite attribute` at random moments: `python -m benchmarks.kills FOLDER`.

FOLDER contains photographs. After each failure, the same command is run again and continues. The
final store is compared, byte by byte, with the store of an undisturbed run.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

_IMAGES, _CHUNK = 24, 2
_PORT = 23456


def main(
    photographs: Annotated[Path, typer.Argument(help="A folder of images.")],
    kills: Annotated[int, typer.Option(min=5, help="How often a run is made to fail.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Run, kill and continue; exit with code 1 if a store differs."""
    rng = random.Random(seed)
    ways: dict[str, Callable[[Path, Path, random.Random], bool]] = {
        "kill -9 of the process": _killed,
        "kill -9 of one of two processes": _one_killed,
        "kill -9 of both processes": _both_killed,
        "no space left": _full,
        "read-only store": _read_only,
        "vanished source file": _vanished,
    }
    with tempfile.TemporaryDirectory(prefix="kills.") as folder:
        source = Path(folder, "photographs")
        source.mkdir()
        for file in sorted(photographs.iterdir())[:_IMAGES]:
            shutil.copy(file, source)
        whole = Path(folder, "whole")
        _run(source, whole)
        wanted = contents(whole)
        done, number, failures = 0, 0, 0
        while done < kills:
            number += 1
            store, hits = Path(folder, f"store{number}"), []
            while len(hits) < 5 and done + len(hits) < kills:
                name = rng.choice(list(ways))
                if ways[name](source, store, rng):
                    hits.append(name)
                elif store.exists() and not _left(store):
                    break
            _run(source, store)
            same, left = contents(store) == wanted, _left(store)
            failures += not same or bool(left)
            done += len(hits)
            told = ", ".join(hits) or "nothing"
            print(f"store {number}: {told}: {'equal' if same else 'DIFFERENT'}", flush=True)
            shutil.rmtree(store)
    print(f"{done} failures in {number} stores; {failures} stores differ")
    raise typer.Exit(1 if failures else 0)


def contents(store: Path) -> dict[str, bytes]:
    """The contents of the array files of a store, by path."""
    files = (file for file in (store / "arrays").rglob("*") if file.is_file())
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in files
        if not file.name.endswith("__lock")
    }


def _command(source: Path, store: Path, *more: str) -> list[str]:
    start = [sys.executable, "-c", "from jax_excite.cli import main; main()", "attribute"]
    return [*start, str(source), "--out", str(store), "--chunk", str(_CHUNK), *more]


def _run(source: Path, store: Path) -> None:
    subprocess.run(_command(source, store), check=True, capture_output=True)


def _begin(source: Path, store: Path, *more: str) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(_command(source, store, *more), stdout=quiet, stderr=quiet)


def _left(store: Path) -> int:
    """The number of images that are not done."""
    from jax_excite import open_store

    return int((~open_store(store).done).sum())


def _at_a_random_moment(store: Path, rng: random.Random, *runs: subprocess.Popen[bytes]) -> None:
    """Wait for a random part of the start-up, or until the run writes, and a little longer."""
    before = len(list(store.rglob("*")))
    until = time.monotonic() + rng.choice((rng.uniform(0, 8), 600))
    while time.monotonic() < until and all(run.poll() is None for run in runs):
        if len(list(store.rglob("*"))) > before + rng.randrange(12):
            time.sleep(rng.uniform(0, 0.5))
            return
        time.sleep(0.02)


def _killed(source: Path, store: Path, rng: random.Random) -> bool:
    run = _begin(source, store)
    _at_a_random_moment(store, rng, run)
    run.kill()
    return run.wait() == -signal.SIGKILL


def _pair(source: Path, store: Path, rng: random.Random) -> list[subprocess.Popen[bytes]]:
    address = f"localhost:{_PORT + rng.randrange(9000)}"
    return [
        _begin(
            source, store, "--coordinator", address, "--processes", "2", "--process", str(process)
        )
        for process in range(2)
    ]


def _one_killed(source: Path, store: Path, rng: random.Random) -> bool:
    runs = _pair(source, store, rng)
    _at_a_random_moment(store, rng, *runs)
    chosen, other = rng.sample(runs, 2)
    chosen.kill()
    # JAX ends the other process eventually; this benchmark does not wait for it.
    time.sleep(rng.uniform(0, 2))
    other.terminate()
    other.kill()
    other.wait()
    return chosen.wait() == -signal.SIGKILL


def _both_killed(source: Path, store: Path, rng: random.Random) -> bool:
    runs = _pair(source, store, rng)
    _at_a_random_moment(store, rng, *runs)
    for run in runs:
        run.kill()
    return [run.wait() for run in runs] == [-signal.SIGKILL] * 2


def _full(source: Path, store: Path, rng: random.Random) -> bool:
    """Limit the size of files, which has the same effect on the run as a full disk."""
    most = rng.choice((200, 20_000, 200_000))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    run = subprocess.run(
        _command(source, store), check=False, capture_output=True, preexec_fn=limit, env=environment
    )
    assert b"Traceback" not in run.stderr, run.stderr.decode()
    return run.returncode == 2 and b"error: " in run.stderr


def _read_only(source: Path, store: Path, rng: random.Random) -> bool:
    """Put a file where a folder is needed, which makes writing fail even for root."""
    if not store.exists():
        return False
    place = store / "arrays" / "logits" / "c" / str(rng.randrange(_IMAGES // _CHUNK))
    if place.exists():
        return False
    place.parent.mkdir(exist_ok=True)
    place.write_text("in the way")
    run = subprocess.run(_command(source, store), check=False, capture_output=True)
    place.unlink()
    assert b"Traceback" not in run.stderr, run.stderr.decode()
    return run.returncode == 2 and b"cannot be written" in run.stderr


def _vanished(source: Path, store: Path, rng: random.Random) -> bool:
    run = _begin(source, store)
    _at_a_random_moment(store, rng, run)
    lost = rng.choice(sorted(source.iterdir()))
    away = source.parent / lost.name
    lost.rename(away)
    code = run.wait()
    away.rename(lost)
    return code == 2


if __name__ == "__main__":
    typer.run(main)
