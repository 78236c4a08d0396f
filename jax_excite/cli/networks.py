"""The options that commands share, and the network and images that they specify."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from jax_excite.cli.console import announce
from jax_excite.data.datasets import ImageData
from jax_excite.data.images import ImageSource, load_images
from jax_excite.errors import ExciteError
from jax_excite.models import Classifier, ModelSpec
from jax_excite.weights.loading import load_model
from jax_excite.weights.published import PRETRAINED, find_weights

ModelName = Annotated[
    str, typer.Option(help="Name of the network, as listed by `jax-excite models`.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="A .pth or .safetensors file, or a name such as IMAGENET1K_V2. Default: the first "
        "published."
    ),
]
DEFAULT_MODEL = "efficientnet_lite0"


def open_network(spec: ModelSpec, weights: str | None) -> tuple[Path, Classifier]:
    """The file that holds the user's weights, and the network with these weights."""
    announce(f"Loading {spec.name}")
    path = find_weights(spec, weights or PRETRAINED)
    return path, load_model(spec.name, weights=path)


def check_labels(data: ImageData, option: str) -> None:
    """Raise `ExciteError` if an image has no label, where an option asks for labels as targets."""
    if None in data.labels:
        unknown = data.names[data.labels.index(None)]
        raise ExciteError(f"{option} is label, but the file name of {unknown} contains no label")


def open_images(network: Classifier, sources: Sequence[ImageSource]) -> np.ndarray:
    """Images as the network's weights expect them, `[N, H, W, 3]` in [-1, 1]."""
    size, resize = network.preprocessing.size, network.preprocessing.resize
    return load_images(sources, size, resize=resize)
