"""The options that commands share, and the network and images that they specify."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from jax_excite.callables.pytree import Flattened
from jax_excite.cli.console import announce
from jax_excite.data.datasets import ImageData
from jax_excite.data.images import ImageSource
from jax_excite.data.preprocessing import IMAGENET, Preprocessing
from jax_excite.errors import ExciteError
from jax_excite.models import Classifier, ModelSpec, model_spec
from jax_excite.onnx.network import OnnxNetwork, is_onnx, load_onnx
from jax_excite.pullbacks.compiled import compiled
from jax_excite.weights.loading import load_model
from jax_excite.weights.published import PRETRAINED, find_weights

ModelName = Annotated[
    str,
    typer.Option(help="Name of the network, as listed by `jax-excite models`, or an ONNX file."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="A .pth or .safetensors file, or a name such as IMAGENET1K_V2. Default: the first "
        "published."
    ),
]
ClassesFile = Annotated[
    Path | None,
    typer.Option(help="For an ONNX file: a text file with the name of one class per line."),
]
Prepared = Annotated[
    str | None,
    typer.Option(
        "--preprocessing",
        help="For an ONNX file: the range of its pixels, imagenet, unit (0 to 1), signed (-1 to 1) "
        "or pixels (0 to 255); with commas, also bgr, letterbox, or a side in pixels. Default: "
        "imagenet.",
    ),
]
DEFAULT_MODEL = "efficientnet_lite0"
Network = Classifier | OnnxNetwork

_RANGES = {
    "imagenet": (IMAGENET.mean, IMAGENET.std),
    "unit": ((0.0,) * 3, (1.0,) * 3),
    "signed": ((0.5,) * 3, (0.5,) * 3),
    "pixels": ((0.0,) * 3, (1 / 255,) * 3),
}


def find_spec(model: str) -> ModelSpec | None:
    """The entry of a network in the registry, or None for an ONNX file."""
    return None if is_onnx(model) else model_spec(model)


def open_network(
    model: str,
    weights: str | None,
    classes_file: Path | None = None,
    preprocessing: str | None = None,
) -> tuple[Path, Any]:
    """The file that holds the user's weights, and the network with these weights."""
    if is_onnx(model):
        if weights is not None:
            raise ExciteError(f"--weights is {weights}: {model} has its own weights")
        announce(f"Loading {model}")
        return Path(model), _open_onnx(Path(model), classes_file, preprocessing or "imagenet")
    for option, value in (("--classes-file", classes_file), ("--preprocessing", preprocessing)):
        if value is not None:
            raise ExciteError(f"{option} is for ONNX files: {model} has its own")
    spec = model_spec(model)
    announce(f"Loading {spec.name}")
    path = find_weights(spec, weights or PRETRAINED)
    return path, load_model(spec.name, weights=path)


def _open_onnx(path: Path, classes_file: Path | None, words: str) -> OnnxNetwork:
    names = classes_file.read_text("utf-8").splitlines() if classes_file is not None else ()
    network = load_onnx(path, class_names=names)
    prepared = network.preprocessing = _preprocessing(words, network)
    like = np.zeros((1, prepared.size, prepared.size, prepared.channels), np.float32)
    shapes = jax.eval_shape(network, like)
    if getattr(shapes, "ndim", None) == 2:
        classes = shapes.shape[1]
        network.class_names = network.class_names or tuple(map(str, range(classes)))
        if len(network.class_names) != classes:
            raise ExciteError(
                f"{classes_file or path} names {len(network.class_names)} classes: {path} has "
                f"{classes}"
            )
    return network


def _preprocessing(words: str, network: OnnxNetwork) -> Preprocessing:
    """The preprocessing that the words of an option describe, at the size that the file has."""
    settings: dict[str, Any] = {}
    mean, std = _RANGES["imagenet"]
    for word in (word.strip() for word in words.split(",")):
        if word in _RANGES:
            mean, std = _RANGES[word]
        elif word == "bgr":
            settings["order"] = "BGR"
        elif word == "letterbox":
            settings["fit"] = word
        elif word.isdecimal() and int(word) > 0:
            settings["size"] = int(word)
        else:
            raise ExciteError(
                f"--preprocessing has {word!r}: give {', '.join(_RANGES)}, bgr, letterbox, or a "
                "side in pixels"
            )
    shape = network.program.inputs[0].shape
    _, channels, *sides = shape if shape and len(shape) == 4 else (None, 3, None, None)
    fixed = {side for side in sides if side is not None}
    if len(fixed) > 1 or not fixed <= {settings.get("size", *fixed or [0])}:
        raise ExciteError(f"the network takes images of {sides} pixels, which is not a square side")
    if channels == 1:
        mean, std = (float(np.mean(mean)),), (float(np.mean(std)),)
    size = settings.setdefault("size", *fixed or [224])
    return Preprocessing(mean, std, resize=round(size * 256 / 224), **settings)


def check_labels(data: ImageData, option: str) -> None:
    """Raise `ExciteError` if an image has no label, where an option asks for labels as targets."""
    if None in data.labels:
        unknown = data.names[data.labels.index(None)]
        raise ExciteError(f"{option} is label, but the file name of {unknown} contains no label")


def open_images(network: Network, sources: Sequence[ImageSource]) -> np.ndarray:
    """Images as the network's weights expect them, `[N, H, W, C]` in [-1, 1]."""
    assert network.preprocessing is not None
    return network.preprocessing.load_images(sources)


def logits(network: Network, images: np.ndarray) -> np.ndarray:
    """The logits `[N, K]` of images `[N, H, W, C]`, computed one image at a time."""
    given = Flattened.of(network)
    return np.concatenate([_apply(given, image[None]) for image in images])


@compiled()
def _apply(network: Flattened, x: jax.Array) -> jax.Array:
    return network(x)
