"""Which model a state dict is of, by its names and the number of its trained parameters."""

import math
import re
from collections.abc import Mapping

from jax_excite.errors import WeightsError
from jax_excite.models import MODELS, ModelSpec
from weights_converter.names import TABLES, UNTRAINED

Shape = tuple[int, ...]
IMAGENET_CLASSES = 1000


def recognise(shapes: Mapping[str, Shape], what: str = "the state dict") -> str:
    """The model of `jax_excite.models.MODELS` that a state dict is of.

    Names are not compared one by one: `fit` does that.

    Args:
        shapes: the shape of each array by its PyTorch name.
        what: where they come from, for the error.

    Raises:
        WeightsError: no model has such a head and as many trained parameters.
    """
    renamed = {
        family: {table.rename(name): shape for name, shape in shapes.items()}
        for family, table in TABLES.items()
    }
    for spec in MODELS.values():
        if _parameters_for_imagenet(renamed[spec.family], spec) == spec.parameters:
            return spec.name
    raise WeightsError(
        f"{what} is of no known model, by the number of its parameters: choose one with --model "
        "to see what differs, from those that `weights-converter list` shows"
    )


def count_classes(shapes: Mapping[str, Shape], spec: ModelSpec) -> int:
    """The number of a network's classes, by its head; ImageNet's if that is missing."""
    shape = shapes.get(f"{spec.head}.bias", ())
    return shape[0] if len(shape) == 1 else IMAGENET_CLASSES


def _parameters_for_imagenet(shapes: Mapping[str, Shape], spec: ModelSpec) -> int:
    """The number of trained parameters that the network would have with 1000 classes."""
    kernel = shapes.get(f"{spec.head}.weight", ())
    trained = sum(math.prod(s) for name, s in shapes.items() if not re.fullmatch(UNTRAINED, name))
    return trained + (IMAGENET_CLASSES - count_classes(shapes, spec)) * (1 + math.prod(kernel[1:]))
