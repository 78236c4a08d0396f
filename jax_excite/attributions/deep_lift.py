"""DeepLIFT's rescale rule: gates as differences between two inputs."""

import dataclasses
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jax_excite.attributions.engine import Attributor, Options, attribute
from jax_excite.attributions.gradients import item_like
from jax_excite.gates.gate import AtSite
from jax_excite.gating import Gating
from jax_excite.pullbacks.softened import linearise
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import VANILLA
from jax_excite.transform.plan import Plan
from jax_excite.transform.sites import Names, Selection, SiteSelection
from jax_excite.typing import Items, Params

# Where pre-activations differ by less, the quotient is replaced by the derivative, as in Captum.
_CLOSE = 1e-10


def deep_lift(
    params: Params,
    x: Items,
    c: Target,
    *,
    baseline: ArrayLike = 0.0,
    gating: Gating = VANILLA,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    **options: Unpack[Options],
) -> Any:
    """DeepLIFT with the rescale rule, times the difference between the image and a baseline.

    Shrikumar et al., "Learning Important Features Through Propagating Activation Differences"
    (2017), section 3.5.2. In the backward pass, an activation function `a` of a pre-activation `z`,
    which is `z0` at the baseline, multiplies by `(a(z) - a(z0)) / (z - z0)`. These are the ReLUs,
    leaky and clipped ReLUs, SiLUs, GELUs and hard swishes that `sites` lists. If all other layers
    are affine, the sum of a map is the difference between the target's values at the image and at
    the baseline. Max-pooling, normalisations and attention have the derivative that `gating` gives
    them; for max-pooling, DeepLIFT has a rule of its own, which is not used here.

    Args:
        params: as for `pullback`, like all arguments that are not described here.
        x: one item or a batch.
        c: the target.
        baseline: a number, or an array that broadcasts to one item, such as an image `[H, W, C]`; 0
            is mid grey.
        gating: the derivative of gates that are no activation functions, and of those whose
            pre-activation is the same at the baseline: plain, or soft.
        skip: sites to leave with their own derivative.
        only: if given, the only sites to which the rule and the gating apply.
        enter: functions with derivative rules of their own to replace by their bodies, by name.
        **options: `bounds`, `batched`, `batch_size` and `sharding`.

    Returns:
        The maps, shaped like `x`.

    Raises:
        SettingError: `baseline` does not fit the image.
        ExciteError: as for `pullback`.
    """
    start = item_like(baseline, x, options.get("batched"), "baseline")
    rule = _Rescale(Selection.of(skip, only, enter))
    return attribute(rule, params, x, c, gating, start, **options)


@dataclasses.dataclass(frozen=True)
class _Rescale:
    selection: Selection

    def __call__(self, params: Params, like: Any, gating: Gating, settings: Any) -> Attributor:
        plan = Plan(params, (like,), {}, self.selection)
        prepared = plan.prepare()

        def at_baseline(at: AtSite) -> tuple[jax.Array, Any]:
            return at.hard, (at.z, at.hard) if at.gate.is_activation else None

        def at_site(at: AtSite) -> tuple[jax.Array, Any]:
            output = at.soften(gating)
            return (output if at.given is None else _rescaled(at, output)), None

        def block(x: Any, target: Any) -> Any:
            start = jax.tree.map(lambda part: jnp.zeros_like(part) + settings, x)
            arrays = jax.tree.leaves(start)
            _, brought = plan.run(at_baseline, arrays=arrays, prepared=prepared)
            given = {site.name: brought.get(site.name) for site in plan.sites}

            def network(x: Any, _: Gating) -> Any:
                arrays = jax.tree.leaves(x)
                return plan.run(at_site, given, arrays=arrays, prepared=prepared)[0]

            multipliers = linearise(network, x, gating)[1](target)
            return jax.tree.map(lambda m, part, base: m * (part - base), multipliers, x, start)

        return block


def _rescaled(at: AtSite, softened: jax.Array) -> jax.Array:
    """The output, with the quotient of differences as its derivative."""
    z0, hard0 = at.given
    z = lax.stop_gradient(at.z)
    is_far = jnp.abs(z - z0) >= _CLOSE
    quotient = (at.hard - hard0) / jnp.where(is_far, z - z0, 1)
    return jnp.where(is_far, at.hard + quotient * (at.z - z), softened)
