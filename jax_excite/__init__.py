"""Excitation pullbacks in JAX: see why a network decides as it does.

After "Tapping into the Black Box" (Satkiewicz, 2025). `docs/` explains how to use the package. The
names below are everything that it exports.
"""

from jax_excite import recipes
from jax_excite.ascent import Ascent
from jax_excite.data.images import load_image, load_images
from jax_excite.errors import (
    DataError,
    ExciteError,
    GateWarning,
    GatingError,
    ImageError,
    InputError,
    NetworkError,
    SettingError,
    TargetError,
    WeightsError,
)
from jax_excite.gates.attention import surrogate_attention
from jax_excite.gates.gelu import gated_gelu
from jax_excite.gates.hard_swish import gated_hard_swish
from jax_excite.gates.max_pool import surrogate_max_pool
from jax_excite.gates.normalisation import surrogate_normalisation
from jax_excite.gates.relu import gated_relu
from jax_excite.gates.silu import gated_silu
from jax_excite.gating import Gating
from jax_excite.pullbacks.calibration import calibrate, temperature_sweep
from jax_excite.pullbacks.pga import pga, pga_grid
from jax_excite.pullbacks.pullback import pullback, pullback_grid, value_and_pullback
from jax_excite.stores import open_store
from jax_excite.transform.excite import excite, sites
from jax_excite.transform.sites import Site
from jax_excite.weights.networks import load

__all__ = [
    "Ascent",
    "DataError",
    "ExciteError",
    "GateWarning",
    "Gating",
    "GatingError",
    "ImageError",
    "InputError",
    "NetworkError",
    "SettingError",
    "Site",
    "TargetError",
    "WeightsError",
    "calibrate",
    "excite",
    "gated_gelu",
    "gated_hard_swish",
    "gated_relu",
    "gated_silu",
    "load",
    "load_image",
    "load_images",
    "open_store",
    "pga",
    "pga_grid",
    "pullback",
    "pullback_grid",
    "recipes",
    "sites",
    "surrogate_attention",
    "surrogate_max_pool",
    "surrogate_normalisation",
    "temperature_sweep",
    "value_and_pullback",
]
