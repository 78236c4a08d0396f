"""Weights by dotted name: saving, loading, and refusing whatever does not fit exactly.

A name is the path of attributes and list indices to a leaf, such as `layer1.0.conv1.kernel`.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jax_excite.callables.known import make_known
from jax_excite.callables.pytree import leaf_name, named_leaves
from jax_excite.data.class_names import CLASS_NAMES
from jax_excite.errors import WeightsError
from jax_excite.models import Classifier, ModelSpec, Preprocessing, model_spec
from jax_excite.models.temperatures import measured_temperatures, read_temperatures
from jax_excite.weights.files import Tensor, read_any, write
from jax_excite.weights.published import find_weights

_LISTED = 8  # the number of names of each kind that an error lists

Tree = TypeVar("Tree")


def fill(abstract: Tree, tensors: Mapping[str, Tensor], what: str) -> Tree:
    """A pytree like `abstract` with the tensors as leaves; raises the errors of `check_fit`."""
    check_fit(abstract, tensors, what)
    # `device_put` may not copy, and `jnp.array` would compile a program per shape.
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.device_put(np.array(tensors[leaf_name(path)])), abstract
    )


def check_fit(
    abstract: Any, tensors: Mapping[str, Tensor | jax.ShapeDtypeStruct], what: str
) -> None:
    """Raise unless the tensors are the leaves of `abstract`.

    Args:
        abstract: a pytree whose leaves have a shape.
        tensors: for each dotted name a tensor of a float dtype, or its shape and dtype.
        what: where the tensors come from, for the error message.

    Raises:
        WeightsError: names are missing or unexpected, or tensors have a different shape or no float
            dtype. The message covers every kind of problem.
    """
    leaves = named_leaves(abstract)
    both = [name for name in leaves if name in tensors]
    refuse(
        what,
        {
            "missing": [name for name in leaves if name not in tensors],
            "unexpected": [name for name in tensors if name not in leaves],
            "mis-shaped": [
                f"{name} is {list(tensors[name].shape)} instead of {list(leaves[name].shape)}"
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


def refuse(what: str, problems: Mapping[str, Sequence[str]]) -> None:
    """Raise one `WeightsError` that lists the problems by kind; return if there are none."""
    parts = []
    for kind, found in problems.items():
        if found:
            rest = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
            parts.append(f"{len(found)} {kind}: {', '.join(found[:_LISTED])}{rest}")
    if parts:
        raise WeightsError(f"{what}: {'; '.join(parts)}")


def save(params: Any, path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Save a `Classifier`, or any pytree of arrays, with metadata such as `describe` returns.

    The class names and the temperatures of a `Classifier` are saved too, unless the metadata
    already has them.
    """
    network = params
    if isinstance(params, Classifier):
        network = params.net
        known = {"class_names": params.class_names, "temperatures": dict(params.temperatures)}
        metadata = {**{name: json.dumps(value) for name, value in known.items()}, **metadata}
    tensors = {name: np.asarray(leaf) for name, leaf in named_leaves(network).items()}
    write(path, tensors, metadata)


def load_model(
    name: str,
    *,
    weights: Literal["pretrained"] | str | os.PathLike[str] | None = "pretrained",
    seed: int = 0,
    dtype: DTypeLike | None = None,
) -> Classifier:
    """A model by name, with weights.

    Published weights that no installed package contains are downloaded on first use, with a message
    on standard error. They are converted and kept in the cache folder, see
    `jax_excite.weights.downloads`.

    Args:
        name: a key of `jax_excite.models.MODELS`.
        weights: "pretrained" for the first of the published weights, or the name of one of them,
            such as "IMAGENET1K_V2"; a path to a PyTorch checkpoint or a safetensors file of this
            library, whose head may have any number of classes; or None for random weights.
        seed: the seed of the random weights.
        dtype: the float dtype of the leaves; if None, that of the file, or float32 for random
            weights.

    Returns:
        A callable pytree that maps images `[H, W, 3]` or `[N, H, W, 3]` in [-1, 1] to logits. Its
        attributes include its `preprocessing`, its `class_names` (digits where the file has no
        names), and `temperatures`: those that the file has, or those that were measured for these
        published weights.

    Raises:
        WeightsError: there is no such model or file, the file does not fit the model exactly, or
            the download fails.
    """
    spec = model_spec(name)
    if weights is None:
        abstract = spec.abstract()
        network = fill(abstract, _random_tensors(abstract, seed), "random weights")
        classifier = Classifier(network, spec.preprocessing, CLASS_NAMES)
    else:
        path = find_weights(spec, weights)
        tensors, metadata = read_any(path, name)
        num_classes = _count_classes(spec, tensors)
        abstract = spec.abstract(num_classes=num_classes)
        network = fill(abstract, tensors, f"{path} does not fit {name}")
        settings = read_settings(metadata, num_classes, str(path))
        temperatures = read_temperatures(metadata.get("temperatures"), str(path))
        if not temperatures:
            temperatures = measured_temperatures(spec.name, metadata.get("published"))
        classifier = Classifier(network, *settings, temperatures)
    if dtype is not None:
        classifier = jax.tree.map(lambda leaf: leaf.astype(dtype), classifier)
    count = len(classifier.class_names)
    make_known(classifier, f"{spec.name}, {count} classes, {classifier.preprocessing}")
    return classifier


def _count_classes(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> int:
    bias = tensors.get(f"{spec.head}.bias")
    return len(CLASS_NAMES) if bias is None else math.prod(bias.shape)


def _random_tensors(abstract: nnx.Module, seed: int) -> dict[str, np.ndarray]:
    """He-normal kernels, zero biases, and BatchNorm parameters that leave its input unchanged.

    NumPy draws the numbers, because the initialisers of the layers compile once per shape, which
    takes 5 to 15 seconds per model.
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


def read_settings(
    metadata: Mapping[str, str], num_classes: int, what: str
) -> tuple[Preprocessing, tuple[str, ...]]:
    """How images are normalised, and the names of the classes: digits if the file has none.

    Raises:
        WeightsError: the metadata of `what` lack these settings, or name a different number of
            classes.
    """
    try:
        fields = json.loads(metadata["preprocessing"])
        mean, std = (
            (float(red), float(green), float(blue))
            for red, green, blue in (fields["mean"], fields["std"])
        )
        pixels = (int(fields["resize"]), int(fields["size"]), int(fields["min_size"]))
        interpolation = fields.get("interpolation", "bilinear")
        names = json.loads(metadata.get("class_names", "null")) or range(num_classes)
        class_names = tuple(map(str, names))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{what} has no readable description of its preprocessing and classes: {error!r}"
        ) from error
    if len(class_names) != num_classes:
        raise WeightsError(f"{what} names {len(class_names)} classes, but has {num_classes}")
    return Preprocessing(mean, std, *pixels, interpolation=interpolation), class_names
