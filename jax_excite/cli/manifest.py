"""The output files of a run, which appear together or not at all, and a record of their origin."""

import contextlib
import hashlib
import importlib.metadata
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_excite.errors import ExciteError

_PACKAGES = ("jax-excite", "jax", "jaxlib", "flax", "numpy", "pillow")


def check_folder(out: Path) -> None:
    """Raise `ExciteError` unless the folder of an output file exists."""
    if not out.parent.is_dir():
        raise ExciteError(f"--out is {out}: there is no folder {out.parent}")


def check_picture(out: Path, images: Sequence[Path] = ()) -> None:
    """Raise `ExciteError` unless a PNG file can be written there without replacing an image."""
    if out.suffix.lower() != ".png":
        raise ExciteError(f"--out is {out}: give a file name that ends in .png")
    check_folder(out)
    if out.is_dir():
        raise ExciteError(f"--out is {out}: give a file, not a folder")
    if out.resolve() in [path.resolve() for path in images]:
        raise ExciteError(f"--out is {out}, which is one of the photographs: give another file")


@contextlib.contextmanager
def appear_together(*paths: Path) -> Iterator[list[Path]]:
    """Yield temporary paths; on success the files move to `paths`, otherwise they are removed.

    Raises:
        OSError: the folder of the first path cannot be written to.
    """
    folder = paths[0].parent
    with tempfile.TemporaryDirectory(prefix=f".{paths[0].stem}.", dir=folder) as partial:
        staged = [Path(partial, path.name) for path in paths]
        yield staged
        for source, path in zip(staged, paths, strict=True):
            source.replace(path)


def describe_run() -> dict[str, Any]:
    """The command, the versions of the packages involved, and the kind of device."""
    return {
        "command": shlex.join(["jax-excite", *sys.argv[1:]]),
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
        "backend": jax.default_backend(),
    }


def describe_file(path: Path) -> dict[str, str]:
    """A file's path and SHA-256."""
    with path.open("rb") as file:
        return {"file": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """Write arrays and the manifest, which is JSON text under `manifest`, to an `.npz` file."""
    everything: dict[str, Any] = {"manifest": np.asarray(_json(manifest)), **arrays}
    np.savez_compressed(path, **everything)


def save_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest as a separate JSON file."""
    path.write_text(_json(manifest, indent=2) + "\n", "utf-8")


def _json(manifest: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(manifest, indent=indent, default=_plain)


def _plain(value: Any) -> Any:
    """A mapping or an array, as a value that JSON can represent."""
    return dict(value) if isinstance(value, Mapping) else np.asarray(value).tolist()
