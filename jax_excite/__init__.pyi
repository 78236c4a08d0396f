from . import recipes
from .ascent import Ascent
from .data.images import load_image, load_images
from .errors import (
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
from .gates.attention import surrogate_attention
from .gates.gelu import gated_gelu
from .gates.hard_swish import gated_hard_swish
from .gates.max_pool import surrogate_max_pool
from .gates.normalisation import surrogate_normalisation
from .gates.relu import gated_relu
from .gates.silu import gated_silu
from .gating import Gating
from .pullbacks.calibration import calibrate, temperature_sweep
from .pullbacks.pga import pga, pga_grid
from .pullbacks.pga_steps import pga_steps
from .pullbacks.pullback import pullback, pullback_grid, value_and_pullback
from .stores import open_store
from .transform.excite import excite, sites
from .transform.sites import Site
from .weights.networks import load

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
    "pga_steps",
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
