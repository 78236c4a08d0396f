"""Recognition of a state dict's model by names and by the number of trained parameters."""

import math
import re
from collections.abc import Mapping

from jax_excite.errors import WeightsError
from jax_excite.models import MODELS, ModelSpec
from weights_converter.names import TABLES, UNTRAINED

Shape = tuple[int, ...]
IMAGENET_CLASSES = 1000


def recognise(shapes: Mapping[str, Shape], what: str = "the state dict") -> str:
    """The name of the model in `jax_excite.models.MODELS` to which a state dict belongs.

    This function does not compare names one by one; `fit` does that.

    Args:
        shapes: the shape of each array by its PyTorch name.
        what: where the arrays come from, for the error message.

    Raises:
        WeightsError: no model has such a head and the same number of trained parameters.
    """
    renamed = {
        family: {table.rename(name): shape for name, shape in shapes.items()}
        for family, table in TABLES.items()
    }
    for spec in MODELS.values():
        found = renamed[spec.family]
        if (
            f"{spec.head}.bias" in found
            and _parameters_for_imagenet(found, spec) == spec.parameters
        ):
            return spec.name
    raise WeightsError(
        f"{what} has a number of parameters that matches no known model: to see what differs, "
        "choose with --model one of those that `weights-converter list` shows"
    )


def count_classes(shapes: Mapping[str, Shape], spec: ModelSpec) -> int:
    """The number of a network's classes, from its head; that of ImageNet if the head is missing."""
    shape = shapes.get(f"{spec.head}.bias", ())
    return shape[0] if len(shape) == 1 else IMAGENET_CLASSES


def _parameters_for_imagenet(shapes: Mapping[str, Shape], spec: ModelSpec) -> int:
    """The number of trained parameters that the network would have with 1000 classes."""
    kernel = shapes.get(f"{spec.head}.weight", ())
    trained = sum(math.prod(s) for name, s in shapes.items() if not re.fullmatch(UNTRAINED, name))
    return trained + (IMAGENET_CLASSES - count_classes(shapes, spec)) * (1 + math.prod(kernel[1:]))
