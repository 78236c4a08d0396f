"""Grad-CAM: where in an inner layer the evidence for a target is."""

import dataclasses
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jax_excite import targets
from jax_excite.attributions.engine import Block, Images, Options, attribute
from jax_excite.attributions.gradients import guided_backprop
from jax_excite.errors import GatingError
from jax_excite.gating import Gating
from jax_excite.plan import AtSite, Plan, Site
from jax_excite.pullback import Params
from jax_excite.recipes import VANILLA
from jax_excite.targets import Target
from jax_excite.transform import soften


def grad_cam(
    params: Params,
    x: Images,
    c: Target,
    *,
    site: str | int | None = None,
    gating: Gating = VANILLA,
    **options: Unpack[Options],
) -> jax.Array:
    """Grad-CAM (Selvaraju et al., 2017, section 3): channels of a layer, weighted by the gradient.

    The layer is the output of a site. Each of its channels is weighted by the mean of its gradient
    over the layer; the positive part of their sum is resized to the image, bilinear.

    Args:
        params: as for `pullback`, like all that is not described here; its layers are channels
            last.
        x: one image `[H, W, 3]` or a batch `[N, H, W, 3]`.
        c: the target.
        site: the layer, by name or index as `sites` lists them; the last with more than one place
            if None.
        gating: how gates above the layer are softened; hard by default.
        **options: `bounds`, `batch_size` and `sharding`.

    Returns:
        The maps, shaped like `x`: not negative, and the same in each channel.

    Raises:
        GatingError: there is no such site, or it is no layer `[N, h, w, C]`.
        ExciteError: as for `pullback`.
    """
    return attribute(_GradCam(site), params, x, c, gating, **options)


def guided_grad_cam(
    params: Params,
    x: Images,
    c: Target,
    *,
    site: str | int | None = None,
    **options: Unpack[Options],
) -> jax.Array:
    """Guided backpropagation times Grad-CAM (Selvaraju et al., 2017, section 3.2).

    Arguments, result and errors are those of the two.
    """
    cam = grad_cam(params, x, c, site=site, **options)
    return guided_backprop(params, x, c, **options) * cam


@dataclasses.dataclass(frozen=True)
class _GradCam:
    site: str | int | None

    def __call__(self, params: Params, like: jax.Array, gating: Gating, settings: Any) -> Block:
        plan = Plan(params, (like,), {})
        layer, shape = _layer(plan, self.site)
        prepared = plan.prepare()

        def at_site(at: AtSite) -> tuple[jax.Array, Any]:
            output = soften(gating, at)
            if at.site != layer:
                return output, None
            return output + at.given, at.hard

        def block(x: jax.Array, target: Any) -> jax.Array:
            def run(change: jax.Array) -> tuple[jax.Array, jax.Array]:
                given = {site.name: change if site == layer else None for site in plan.sites}
                logits, brought = plan.run(at_site, given, arrays=[x], prepared=prepared)
                return logits, brought[layer.name]

            nothing = jnp.zeros((len(x), *shape[1:]), layer.dtype)
            logits, transpose, activations = jax.vjp(run, nothing, has_aux=True)
            (gradients,) = transpose(targets.cotangents(target, logits))
            weights = gradients.mean(axis=(1, 2))
            cam = jnp.maximum(jnp.einsum("nhwc,nc->nhw", activations, weights), 0)
            whole = jax.image.resize(cam, x.shape[:3], "linear")
            return jnp.broadcast_to(whole[..., None], x.shape).astype(x.dtype)

        return block


def _layer(plan: Plan, wanted: str | int | None) -> tuple[Site, tuple[int, ...]]:
    """The site that is named, or the last one with several places; and the shape of its output."""
    for site in reversed([site for site in plan.sites if site.gated]):
        if wanted is None or str(wanted) in (site.name, str(site.index)):
            shape = _shape(plan, site)
            if len(shape) == 4 and shape[1] * shape[2] > 1:
                return site, shape
    listed = ", ".join(f"{s.index} ({s.name}, {s.shape})" for s in plan.sites) or "none"
    raise GatingError(
        f"site is {wanted!r}: Grad-CAM wants a site with a layer [N, h, w, C] of more than one "
        f"place; the sites: {listed}"
    )


def _shape(plan: Plan, site: Site) -> tuple[int, ...]:
    def output() -> jax.Array:
        return plan.run(lambda at: (at.hard, at.hard if at.site == site else None))[1][site.name]

    return jax.eval_shape(output).shape
