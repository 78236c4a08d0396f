"""Attributions: maps shaped like the image that show what a target depends on.

All are called like `pullback`: `gradient(params, x, c)` with one image or a batch, any callable
pytree and any target. They are compiled once per shape and setting. `excitation_pullback` is
`jax_excite.pullback`. `random_map`, `constant_map` and `edges` are controls, which explain nothing.
"""

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
from jax_excite.pullbacks.pullback import pullback as excitation_pullback

__all__ = [
    "constant_map",
    "deconvolution",
    "deep_lift",
    "edges",
    "excitation_pullback",
    "fusion_pullback",
    "grad_cam",
    "gradient",
    "gradient_shap",
    "guided_backprop",
    "guided_grad_cam",
    "input_x_gradient",
    "integrated_gradients",
    "pga_difference",
    "random_map",
    "smooth_grad",
    "smoothed_pullback",
]
