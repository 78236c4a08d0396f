"""`load`: a network by name, or from an ONNX file."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_excite.data.preprocessing import Preprocessing
from jax_excite.errors import SettingError
from jax_excite.onnx.network import OnnxNetwork, is_onnx, load_onnx
from jax_excite.weights.loading import load_model


def load(
    name: str | os.PathLike[str],
    *,
    weights: Literal["pretrained"] | str | os.PathLike[str] | None = "pretrained",
    seed: int = 0,
    dtype: DTypeLike | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] = (),
) -> Any:
    """A network by name, with weights, or a network of any kind from an ONNX file.

    Published weights that no installed package contains are downloaded on first use, with a message
    on standard error. They are converted and kept in the cache folder, see
    `jax_excite.weights.downloads`.

    Args:
        name: a key of `jax_excite.models.MODELS`, or a path that ends in `.onnx`.
        weights: "pretrained" for the first of the published weights, or the name of one of them,
            such as "IMAGENET1K_V2"; a path to a PyTorch checkpoint or a safetensors file of this
            library, whose head may have any number of classes; or None for random weights. An ONNX
            file has its own.
        seed: the seed of the random weights.
        dtype: the float dtype of the leaves; if None, that of the file, or float32 for random
            weights.
        preprocessing: for an ONNX file, how images `[N, H, W, C]` in [-1, 1] become its input. If
            None, the network takes what the file describes.
        class_names: for an ONNX file, a name for each class; those in its metadata if empty.

    Returns:
        A callable pytree. A model by name is a `Classifier`, which maps images `[H, W, 3]` or
        `[N, H, W, 3]` in [-1, 1] to logits; an ONNX file gives an `OnnxNetwork`. Both have the
        attributes `preprocessing` and `class_names` (digits where the weights have no names).

    Raises:
        WeightsError: there is no such model or file, the file does not fit the model exactly, or
            the download fails.
        NetworkError: an ONNX file cannot be read, or has operators that are not supported.
    """
    if not is_onnx(name):
        if preprocessing is not None or class_names:
            raise SettingError(
                f"preprocessing and class_names are for ONNX files: {name} has its own"
            )
        return load_model(str(name), weights=weights, seed=seed, dtype=dtype)
    if weights != "pretrained":
        raise SettingError(f"weights is {weights}: an ONNX file has its own")
    network = load_onnx(name, preprocessing=preprocessing, class_names=class_names)
    return network if dtype is None else _cast(network, dtype)


def _cast(network: OnnxNetwork, dtype: DTypeLike) -> OnnxNetwork:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), network)
