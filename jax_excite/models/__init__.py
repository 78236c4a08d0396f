"""The networks by name, each with the preprocessing that its weights were trained with."""

from jax_excite.data.preprocessing import Preprocessing
from jax_excite.models.classifier import Classifier, Temperatures
from jax_excite.models.published import Published
from jax_excite.models.registry import MODELS, ModelSpec, model_spec

__all__ = [
    "MODELS",
    "Classifier",
    "ModelSpec",
    "Preprocessing",
    "Published",
    "Temperatures",
    "model_spec",
]
