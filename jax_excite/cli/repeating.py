"""Runs of `grid` and of the page from their manifests, so that they can be computed again."""

import dataclasses
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_excite.cli.console import announce
from jax_excite.cli.manifest import describe_file, describe_run
from jax_excite.cli.networks import Network, open_network
from jax_excite.cli.runs import Run
from jax_excite.data.preprocessing import Preprocessing
from jax_excite.errors import ExciteError
from jax_excite.onnx.network import is_onnx


@dataclasses.dataclass(frozen=True)
class Repeated:
    """A run with everything that it needs.

    Attributes:
        run: what is computed.
        model: the name of the network, or an ONNX file.
        weights: the file of the weights.
        network: the network.
        images: the files of the photographs.
    """

    run: Run
    model: str
    weights: Path
    network: Network
    images: list[Path]


def manifest_of(
    run: Run,
    model: str,
    network: Network,
    weights: dict[str, str],
    images: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """The manifest of a run.

    Args:
        run: what was computed.
        model: the name of the network, or an ONNX file.
        network: the network.
        weights: the description of the file of its weights.
        images: the descriptions of the files of the photographs.
    """
    assert network.preprocessing is not None
    return {
        **run.described(),
        "model": model,
        "weights": weights,
        "preprocessing": dataclasses.asdict(network.preprocessing),
        "images": images,
        **describe_run(),
    }


def read_run(path: Path, *, model: str | None = None, weights: str | None = None) -> Repeated:
    """Read a manifest, and open the network and the photographs that it names.

    Args:
        path: a `.npz` of `grid`, or a JSON file. Photographs are looked for beside it first.
        model: an ONNX file to take instead of the recorded path, with the same content.
        weights: a file of weights to take instead of the recorded path, with the same content.

    Raises:
        ExciteError: the file contains no manifest of a class grid, or a file that it names is
            missing or has another content.
    """
    manifest = _read(path)
    try:
        run = Run.of_manifest(manifest)
        recorded, digest = manifest["model"], manifest["weights"]["sha256"]
        images = [_beside(path, each) for each in manifest["images"]]
        prepared = _preprocessing(manifest["preprocessing"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ExciteError(
            f"{path} is not the manifest of a class grid ({type(error).__name__}: {error}): give a "
            "file that `jax-excite grid` or the page has written"
        ) from None
    for each, image in zip(manifest["images"], images, strict=True):
        _check(image, each["sha256"])
    opened = model or recorded
    if weights is None and not is_onnx(opened):
        file = Path(manifest["weights"]["file"])
        weights = str(file) if file.is_file() else None
    place, network = open_network(opened, weights)
    _check(place, digest)
    network.preprocessing = prepared
    theirs, ours = manifest["versions"], describe_run()["versions"]
    changed = [f"{name} {theirs[name]}" for name in theirs if theirs[name] != ours.get(name)]
    if changed:
        announce(f"The run was computed with {', '.join(changed)}: results may differ by rounding")
    return Repeated(run, opened, place, network, images)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                text = str(arrays["manifest"])
        else:
            text = path.read_text("utf-8")
        return json.loads(text)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ExciteError(
            f"{path} contains no manifest ({error}): give an .npz file of `jax-excite grid`, or a "
            "manifest.json"
        ) from None


def _beside(manifest: Path, image: Mapping[str, str]) -> Path:
    """The file of a photograph: beside the manifest, or where it was."""
    beside = manifest.parent / image["file"]
    return beside if beside.is_file() else Path(image["file"])


def _check(path: Path, digest: str) -> None:
    found = describe_file(path)["sha256"]
    if found != digest:
        raise ExciteError(
            f"{path} is not the file that the run read: its SHA-256 is {found[:12]}..., and the "
            f"manifest has {digest[:12]}..."
        )


def _preprocessing(described: Mapping[str, Any]) -> Preprocessing:
    lists = {name: tuple(described[name]) for name in ("mean", "std")}
    return Preprocessing(**{**described, **lists})
