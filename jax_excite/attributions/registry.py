"""The attribution methods by name, in one table: a name gives the same numbers everywhere.

`jax-excite evaluate` and `jax-excite attribute` take their methods from here. A variant with other
settings has its own name: `smooth_grad_8` averages 8 noisy copies, `smooth_grad` 25. `soft_` before
the name of a method means its backward pass is soft, at the gating that the caller chooses;
`semantic_` stands for the settings and the gating of the paper's 2026 successor.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jax_excite.attributions.controls import constant_map, edges, random_map
from jax_excite.attributions.deep_lift import deep_lift
from jax_excite.attributions.grad_cam import grad_cam, guided_grad_cam
from jax_excite.attributions.gradients import (
    deconvolution,
    gradient,
    guided_backprop,
    input_x_gradient,
    integrated_gradients,
)
from jax_excite.attributions.noise import (
    fusion_pullback,
    gradient_shap,
    smooth_grad,
    smoothed_pullback,
)
from jax_excite.attributions.pga_difference import pga_difference
from jax_excite.gating import Gating
from jax_excite.pullbacks.pullback import pullback
from jax_excite.recipes import (
    DECONVOLUTION,
    GUIDED_BACKPROP,
    SEMANTIC,
    SEMANTIC_PGA,
    VANILLA,
)


@dataclasses.dataclass(frozen=True)
class Attribution:
    """One attribution method.

    Attributes:
        function: called as `function(params, x, c, **settings)`.
        settings: the settings that the name implies, where they are not the function's defaults.
        is_soft: whether it takes the gating that the caller chooses.
        is_random: whether it takes a random key.
        gating: the gating of a method that is a single pullback at a fixed gating, else None.
            Several targets of such a method, or of the excitation pullback, share one forward pass.
        passes: the number of forward and backward passes per map.
        is_control: whether it is a control, which explains nothing and takes no bounds.
    """

    function: Callable[..., jax.Array]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_soft: bool = False
    is_random: bool = False
    gating: Gating | None = None
    passes: int = 1
    is_control: bool = False

    def bind(self, gating: Gating, key: jax.Array, **options: Any) -> Callable[..., jax.Array]:
        """The method as a function of `params`, `x` and `c`.

        Args:
            gating: used if `is_soft`.
            key: used if `is_random`.
            **options: keyword arguments of the function, such as `bounds`; ignored for controls.
        """
        given = {} if self.is_control else options
        if self.is_soft:
            given = {**given, "gating": gating}
        if self.is_random:
            given = {**given, "key": key}
        return functools.partial(self.function, **self.settings, **given)


_METHODS: dict[str, Attribution] = {
    "excitation_pullback": Attribution(pullback, is_soft=True),
    "smoothed_pullback": Attribution(
        smoothed_pullback, {"samples": 25}, is_soft=True, is_random=True, passes=25
    ),
    "smoothed_pullback_8": Attribution(
        smoothed_pullback, {"samples": 8}, is_soft=True, is_random=True, passes=8
    ),
    "fusion_pullback": Attribution(fusion_pullback, is_soft=True, is_random=True, passes=100),
    "pga_difference": Attribution(pga_difference, is_soft=True, passes=10),
    "gradient": Attribution(gradient, gating=VANILLA),
    "input_x_gradient": Attribution(input_x_gradient),
    "integrated_gradients": Attribution(integrated_gradients, {"steps": 50}, passes=50),
    "integrated_gradients_16": Attribution(integrated_gradients, {"steps": 16}, passes=16),
    "smooth_grad": Attribution(smooth_grad, {"samples": 25}, is_random=True, passes=25),
    "smooth_grad_8": Attribution(smooth_grad, {"samples": 8}, is_random=True, passes=8),
    "deep_lift": Attribution(deep_lift, passes=2),
    "gradient_shap": Attribution(gradient_shap, {"samples": 50}, is_random=True, passes=50),
    "guided_backprop": Attribution(guided_backprop, gating=GUIDED_BACKPROP),
    "deconvolution": Attribution(deconvolution, gating=DECONVOLUTION),
    "grad_cam": Attribution(grad_cam),
    "guided_grad_cam": Attribution(guided_grad_cam),
    "random_map": Attribution(random_map, is_random=True, is_control=True),
    "constant_map": Attribution(constant_map, is_control=True),
    "edges": Attribution(edges, is_control=True),
}

# Any method whose function takes a gating, with the caller's.
_SOFT = {
    f"soft_{name}": dataclasses.replace(_METHODS[name], is_soft=True)
    for name in ("integrated_gradients", "deep_lift", "gradient_shap", "grad_cam")
}

_SEMANTIC = {
    "semantic_pullback": Attribution(pullback, {"gating": SEMANTIC}, gating=SEMANTIC),
    "semantic_smoothed_pullback": Attribution(
        smoothed_pullback,
        {"samples": 50, "std": 0.15, "gating": SEMANTIC},
        is_random=True,
        passes=50,
    ),
    "semantic_fusion_pullback": Attribution(
        fusion_pullback, {"gating": SEMANTIC}, is_random=True, passes=100
    ),
    "semantic_pga_difference": Attribution(
        pga_difference, {"ascent": SEMANTIC_PGA, "gating": SEMANTIC}, passes=5
    ),
}

METHODS: dict[str, Attribution] = {**_METHODS, **_SOFT, **_SEMANTIC}
