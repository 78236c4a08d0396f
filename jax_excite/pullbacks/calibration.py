"""Temperatures in units of each site's own spread, measured on images.

The paper's temperature of 0.3 suits pre-activations of unit scale, which BatchNorm produces. (In
general the gate is specific to the neuron; see section 4.2.) In other networks the spread of each
site has to be measured: its standard deviation over images, positions and channels.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Real

from jax_excite.callables.pytree import as_floats, as_pytree
from jax_excite.errors import ExciteError, GatingError
from jax_excite.gates.gate import AtSite
from jax_excite.gates.surrogates import compute_dtype
from jax_excite.gating import (
    Gating,
    TemperatureName,
    check_choice,
    check_gating,
    check_temperature,
)
from jax_excite.pullbacks import items
from jax_excite.pullbacks.compiled import compiled
from jax_excite.pullbacks.items import as_items
from jax_excite.pullbacks.request import Request
from jax_excite.pullbacks.softened import linearise, softened
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import EXCITATION
from jax_excite.transform.by_site import BySite
from jax_excite.transform.plan import Plan
from jax_excite.transform.sites import Names, Selection, SiteSelection
from jax_excite.typing import AnyArray, Bounds, Items, Params

SCALE = 0.6
# The temperatures of gates with a jump.
HARD_GATES = ("temperature", "pool_temperature")


def calibrate(
    params: Params,
    batches: Items | Iterable[Items],
    *,
    scale: float = SCALE,
    per_channel: bool = False,
    gating: Gating = EXCITATION,
    bounds: Bounds | None = (-1.0, 1.0),
    batched: bool | None = None,
) -> Gating:
    """Set the temperature of each site to a multiple of its pre-activation's standard deviation.

    The deviations are accumulated batch by batch in float64, so any number of images is possible. A
    hundred photographs determine them to within a few percent.

    Args:
        params: a callable pytree, as for `pullback`.
        batches: batches `[N, H, W, C]` (or other items, with `batched`), a single batch, or an
            image. For labelled batches, give `(x for x, _ in datasets.batches(...))`. A batch of a
            different size triggers recompilation.
        scale: temperature in units of the deviation, > 0. The default was the best of those tried;
            see docs/calibration.md.
        per_channel: one temperature per channel (the last axis) instead of one per site.
        gating: all other settings.
        bounds: the range that images are checked against; None checks only that they are finite.
        batched: as for `pullback`.

    Returns:
        `gating` with `site_temperatures` for every ReLU and max-pool that it softens: numbers, or
        arrays `[C]`. The gates of SiLU, GELU, hard swish and attention have a scale of their own,
        so they keep the temperatures of their kinds. A site that never changes gets 0, the hard
        gate. A site in a branch that never ran gets no temperature.

    Raises:
        GatingError: `params` has no gate, or a gate inside a loop without a fixed number of steps.
        InputError: a batch does not consist of images in `bounds`, or `batched` has to be given.
        ExciteError: there are no batches, pre-activations are not finite, or `scale` is not
            positive.
    """
    check_gating(gating)
    if not (math.isfinite(scale) and scale > 0):
        raise ExciteError(f"scale is {scale}: give a positive number")
    params = as_pytree(params)
    found: dict[str, _Moments] = {}
    empty = True
    for batch in [batches] if isinstance(batches, (np.ndarray, jax.Array, dict)) else batches:
        given, _ = as_items(batch, bounds, batched)
        empty = False
        for name, (count, mean, squares) in _statistics(params, given, gating).by_name().items():
            if not np.isfinite(squares).all():
                raise ExciteError(f"the pre-activations of {name} are not finite")
            moments = _Moments.of(count, mean, squares)
            found[name] = moments if name not in found else found[name].joined(moments)
    if empty:
        raise ExciteError("there are no batches: give at least one")
    return dataclasses.replace(
        gating,
        site_temperatures={
            name: _temperatures(moments, scale) if per_channel else _temperature(moments, scale)
            for name, moments in found.items()
            if moments.count.any()
        },
    )


def temperature_sweep(
    params: Params,
    x: Items,
    c: Target,
    temperatures: Sequence[float] | Real[AnyArray, " T"],
    *,
    vary: str | Sequence[str] = HARD_GATES,
    at: str | int | None = None,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    bounds: Bounds | None = (-1.0, 1.0),
    batched: bool | None = None,
) -> Any:
    """Pullbacks over a range of temperatures, from hard gates at 0 to no gating at infinity.

    This is one compiled call. Section 5.2 gives the range 0.15 to 0.5.

    Args:
        params: as for `pullback`, which has more details on the other arguments too.
        x: one item or a batch.
        c: the target.
        temperatures: `[T]`. If `gating` has a temperature for a site, that one is multiplied by
            each of these: after `calibrate(..., scale=1)` they are the scales.
        vary: the temperatures of `gating` that they replace, by the names of its fields; the other
            kinds of gates keep theirs. By default these are the ones of ReLUs and max-pools.
        at: the site whose output the target refers to.
        gating: all other settings.
        skip: sites to leave hard.
        only: if given, the only sites to soften.
        enter: names of functions with custom derivative rules to replace by their bodies.
        bounds: the range that images are checked against.
        batched: as for `pullback`.

    Returns:
        The vector fields, `[T, *x.shape]`, in the structure of `x`.

    Raises:
        ExciteError: as for `pullback`, `temperatures` is not an array `[T]` of valid ones, or
            `vary` names no temperature.
    """
    check_gating(gating)
    varied = (vary,) if isinstance(vary, str) else tuple(vary)
    for name in varied:
        check_choice(name, get_args(TemperatureName), "vary")
    values = np.asarray(temperatures)
    if values.ndim != 1 or not values.size:
        raise GatingError(f"temperatures have shape {values.shape}: give [T], at least one")
    check_temperature(values, "temperatures")
    request = Request.of(
        params,
        x,
        gating,
        bounds=bounds,
        batched=batched,
        at=at,
        skip=skip,
        only=only,
        enter=enter,
    )
    target = request.target(c)
    fields = _sweep(
        request.params,
        request.items,
        target,
        as_floats(values),
        request.gating,
        selection=request.selection,
        varied=varied,
    )
    return items.rows(fields, np.s_[:, 0]) if request.is_single else fields


@compiled("selection", "varied")
def _sweep(
    params: Params,
    x: Any,
    target: Any,
    temperatures: Float[jax.Array, " T"],
    gating: Gating,
    *,
    selection: Selection,
    varied: tuple[str, ...],
) -> Any:
    network = softened(params, x, selection)
    sites = network.plan.softened_by(varied)

    def at(t: jax.Array) -> Any:
        own = {
            name: jnp.where(value == 0, value, t * value) if name in sites else value
            for name, value in gating.site_temperatures.items()
        }
        of_kinds = dict.fromkeys(varied, t)
        swept = dataclasses.replace(gating, **of_kinds, site_temperatures=own)
        _, pull = linearise(network, x, swept)
        return pull(target)

    return lax.map(at, temperatures)


@jax.jit
def _statistics(params: Params, x: Any, gating: Gating) -> BySite:
    """For each site, per channel: number of entries, mean and sum of squared deviations.

    Entries of -inf are not counted: some models explicitly pad a max-pool with them.
    """

    def at_site(at: AtSite) -> tuple[jax.Array, Any]:
        if at.is_left(gating) or not at.gate.is_calibrated:
            return at.hard, None
        z = at.z.astype(compute_dtype(at.z.dtype)).reshape(-1, at.z.shape[-1])
        there = z > -jnp.inf
        count = jnp.sum(there, axis=0)
        mean = jnp.sum(jnp.where(there, z, 0), axis=0) / jnp.maximum(count, 1)
        return at.hard, (count, mean, jnp.sum(jnp.where(there, z - mean, 0) ** 2, axis=0))

    plan = Plan(params, (x,), {})
    plan.check(gating)
    return BySite.of(plan.run(at_site)[1])


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Per channel `[C]`: the number of entries, their mean and sum of squared deviations."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @staticmethod
    def of(count: jax.Array, mean: jax.Array, squares: jax.Array) -> "_Moments":
        """Make moments of a site's statistics, which have one entry per step inside a scan."""
        channels = mean.shape[-1]
        each = zip(
            np.asarray(count, np.float64).reshape(-1, channels),
            np.asarray(mean, np.float64).reshape(-1, channels),
            np.asarray(squares, np.float64).reshape(-1, channels),
            strict=True,
        )
        return functools.reduce(_Moments.joined, (_Moments(*one) for one in each))

    def joined(self, other: "_Moments") -> "_Moments":
        """The moments of both together (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        step = other.mean - self.mean
        share = other.count / np.maximum(count, 1)
        mean = self.mean + step * share
        squares = self.squares + other.squares + step**2 * self.count * share
        return _Moments(count, mean, squares)

    def pooled(self) -> "_Moments":
        """The moments of all channels together, as a single channel."""
        channels = zip(self.count[:, None], self.mean[:, None], self.squares[:, None], strict=True)
        return functools.reduce(_Moments.joined, (_Moments(*one) for one in channels))

    def deviation(self) -> np.ndarray:
        """The standard deviation."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))


def _temperatures(moments: _Moments, scale: float) -> np.ndarray:
    return (scale * moments.deviation()).astype(np.float32)


def _temperature(moments: _Moments, scale: float) -> np.float32:
    return _temperatures(moments.pooled(), scale)[0]
