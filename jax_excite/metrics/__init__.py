"""Metrics of attributions: measures from the literature of the quality of a map or a method.

Metrics of maps take `(params, x, c, maps)`; `maps` may hold the maps of several methods. Metrics of
methods take `(method, params, x, c)`, where a method is any of `jax_excite.attributions` with its
settings bound, or any function with the same signature. All return NumPy arrays with one value per
image.
"""

from jax_excite.metrics.curves import Curve, deletion, insertion
from jax_excite.metrics.faithfulness import (
    faithfulness_correlation,
    faithfulness_estimate,
    infidelity,
)
from jax_excite.metrics.localisation import Mosaics, boxes, focus, mosaics, pointing_game
from jax_excite.metrics.similarity import cosine, pearson, spearman, ssim, total_variation
from jax_excite.metrics.stability import (
    max_sensitivity,
    parameter_randomisation,
    random_logit,
    randomised,
)
from jax_excite.metrics.transfer import Standing, climb_along, standing, transfer

__all__ = [
    "Curve",
    "Mosaics",
    "Standing",
    "boxes",
    "climb_along",
    "cosine",
    "deletion",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "focus",
    "infidelity",
    "insertion",
    "max_sensitivity",
    "mosaics",
    "parameter_randomisation",
    "pearson",
    "pointing_game",
    "random_logit",
    "randomised",
    "spearman",
    "ssim",
    "standing",
    "total_variation",
    "transfer",
]
