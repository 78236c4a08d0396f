"""Grad-CAM: where in an inner layer the evidence for a target is."""

import dataclasses
import math
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jax_excite.attributions.engine import Attributor, Options, attribute
from jax_excite.attributions.gradients import guided_backprop
from jax_excite.errors import GatingError, InputError
from jax_excite.gates.gate import AtSite
from jax_excite.gating import Gating
from jax_excite.pullbacks import targets
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import VANILLA
from jax_excite.transform.plan import Plan
from jax_excite.transform.sites import Site
from jax_excite.typing import AnyArray, Params


def grad_cam(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    *,
    site: str | int | None = None,
    channel_axis: int | None = None,
    gating: Gating = VANILLA,
    **options: Unpack[Options],
) -> Float[jax.Array, "*N H W C"]:
    """Grad-CAM (Selvaraju et al., 2017, section 3): channels of a layer, weighted by the gradient.

    The layer is the output of a site. Each of its channels is weighted by the spatial mean of its
    gradient. The positive part of the weighted sum is resized to the image by bilinear
    interpolation.

    Args:
        params: as for `pullback`, like all arguments that are not described here.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`.
        c: the target.
        site: the site whose output is the layer, by name or index as `sites` lists them; None for
            the last site with more than one spatial position. For a site inside a scan, the layer
            is that of the last step.
        channel_axis: the channel axis of the layer; None to find it in the graph.
        gating: how gates above the layer are softened; hard by default.
        **options: `bounds`, `batch_size` and `sharding`.

    Returns:
        The maps, shaped like `x`: non-negative, and the same in each channel.

    Raises:
        GatingError: there is no such site, or its output is not a layer `[N, h, w, C]`.
        ExciteError: as for `pullback`.
    """
    return attribute(_GradCam(site, channel_axis), params, x, c, gating, **options)


def guided_grad_cam(
    params: Params,
    x: Float[AnyArray, "*N H W C"],
    c: Target,
    *,
    site: str | int | None = None,
    channel_axis: int | None = None,
    **options: Unpack[Options],
) -> Float[jax.Array, "*N H W C"]:
    """Guided backpropagation times Grad-CAM (Selvaraju et al., 2017, section 3.2).

    Arguments, result and errors are those of the two functions.
    """
    cam = grad_cam(params, x, c, site=site, channel_axis=channel_axis, **options)
    return guided_backprop(params, x, c, **options) * cam


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A layer of a network.

    Attributes:
        site: the site whose output is the layer.
        shape: `[N, ., ., .]`, preceded by one axis per enclosing scan.
        channels: index of the channel axis among the last four axes, 1 to 3.
    """

    site: Site
    shape: tuple[int, ...]
    channels: int

    def last(self, values: jax.Array) -> jax.Array:
        """The layer `[N, h, w, C]`, at the last step of each enclosing scan."""
        return jnp.moveaxis(values[(-1,) * (values.ndim - 4)], self.channels, -1)


@dataclasses.dataclass(frozen=True)
class _GradCam:
    site: str | int | None
    channel_axis: int | None

    def __call__(
        self, params: Params, like: jax.Array, gating: Gating, settings: Any
    ) -> Attributor:
        if getattr(like, "ndim", None) != 4:
            raise InputError("Grad-CAM needs images, whose layers have spatial positions")
        plan = Plan(params, (like,), {})
        layer = _layer(plan, self.site, self.channel_axis, len(like))
        prepared = plan.prepare()

        def at_site(at: AtSite) -> tuple[jax.Array, Any]:
            output = at.soften(gating)
            if at.name != layer.site.name:
                return output, None
            return output + at.given, at.hard

        def block(x: jax.Array, target: Any) -> jax.Array:
            def run(change: jax.Array) -> tuple[jax.Array, jax.Array]:
                given = {site.name: change if site == layer.site else None for site in plan.sites}
                logits, brought = plan.run(at_site, given, arrays=[x], prepared=prepared)
                return logits, brought[layer.site.name]

            nothing = jnp.zeros(layer.shape, layer.site.dtype)
            logits, transpose, activations = jax.vjp(run, nothing, has_aux=True)
            (gradients,) = transpose(targets.cotangents(target, logits))
            weights = layer.last(gradients).mean(axis=(1, 2))
            cam = jnp.maximum(jnp.einsum("nhwc,nc->nhw", layer.last(activations), weights), 0)
            whole = jax.image.resize(cam, x.shape[:3], "linear")
            return jnp.broadcast_to(whole[..., None], x.shape).astype(x.dtype)

        return block


def _layer(plan: Plan, wanted: str | int | None, channels: int | None, images: int) -> _Layer:
    """The named layer, or the last one with several spatial positions."""
    for site in reversed([site for site in plan.sites if site.gated]):
        if wanted is None or str(wanted) in (site.name, str(site.index)):
            shape = _shape(plan, site)
            inner, scans = shape[-4:], len(shape) - 4
            if scans < 0 or inner[0] != images:
                continue
            axis = plan.channel_axis(site) if channels is None else channels % 4
            if axis is None:
                raise GatingError(
                    f"the channel axis of {site.name}, of shape {inner}, cannot be determined: "
                    "give channel_axis, such as -1, or another site"
                )
            places = math.prod(n for place, n in enumerate(inner) if place not in (0, axis))
            if axis > 0 and places > 1:
                return _Layer(site, shape, axis)
    listed = ", ".join(f"{s.index} ({s.name}, {s.shape})" for s in plan.sites) or "none"
    raise GatingError(
        f"site is {wanted!r}: Grad-CAM needs a site whose output [N, h, w, C] has more than one "
        f"spatial position; sites of the function: {listed}"
    )


def _shape(plan: Plan, site: Site) -> tuple[int, ...]:
    def at_site(at: AtSite) -> tuple[jax.Array, Any]:
        return at.hard, at.hard if at.name == site.name else None

    return jax.eval_shape(lambda: plan.run(at_site)[1][site.name]).shape
