"""Temperatures for weights that have none, measured when the weights are converted."""

import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jax_excite.data.photographs import packaged_photographs
from jax_excite.models import Classifier, ModelSpec
from jax_excite.models.temperatures import measured_temperatures
from jax_excite.pullbacks.calibration import calibrate
from jax_excite.weights.files import Tensor
from jax_excite.weights.loading import fill, read_settings


def are_needed(spec: ModelSpec, metadata: Mapping[str, str]) -> bool:
    """Whether weights need temperatures of their own, and none were measured for them before."""
    return spec.calibrated and not measured_temperatures(spec.name, metadata.get("published"))


def measure(
    spec: ModelSpec, num_classes: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, float]:
    """The temperatures of a network by site: the default of `calibrate` on packaged photographs.

    Args:
        spec: the network.
        num_classes: the number of logits.
        tensors: its weights by name.
        metadata: the metadata of its file, which say how images become its input.

    Raises:
        ModuleNotFoundError: scikit-image, which has the photographs, is not installed.
        ExciteError: the network has no gates, or the weights are not finite.
    """
    photographs = packaged_photographs()
    network = fill(spec.abstract(num_classes=num_classes), tensors, spec.name)
    network = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network)
    settings = read_settings(metadata, num_classes, spec.name)
    classifier = Classifier(network, *settings)
    gating = calibrate(classifier, settings[0].load_images(photographs))
    return {str(site): float(np.asarray(t)) for site, t in gating.site_temperatures.items()}


def stored(temperatures: Mapping[str, float]) -> dict[str, str]:
    """Temperatures as metadata of a weights file."""
    return {"temperatures": json.dumps(dict(temperatures))} if temperatures else {}
