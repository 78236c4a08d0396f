"""Means of pullbacks over noise in the input and in the weights, and between two inputs."""

import dataclasses
from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray

from jax_excite.attributions.engine import Attributor, GatingOptions, Options, attribute, field
from jax_excite.attributions.gradients import item_like, whole_number
from jax_excite.callables.pytree import as_floats, as_pytree
from jax_excite.errors import SettingError
from jax_excite.gating import Gating
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import EXCITATION, VANILLA
from jax_excite.transform.sites import Names, Selection, SiteSelection
from jax_excite.typing import Items, Params


def smooth_grad(
    params: Params,
    x: Items,
    c: Target,
    *,
    key: PRNGKeyArray,
    samples: int = 25,
    std: float = 0.3,
    gating: Gating = VANILLA,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    **options: Unpack[Options],
) -> Any:
    """The mean gradient over noisy copies of the input (Smilkov et al., "SmoothGrad", 2017).

    Sample `i` adds `std * jax.random.normal(jax.random.fold_in(key, i), [H, W, C])` to each image,
    so an image gets the same result alone and in a batch. If there are several inputs, input `k`
    takes `fold_in(fold_in(key, i), k)`.

    Args:
        params: as for `pullback`, like all arguments that are not described here.
        x: one item or a batch.
        c: the target.
        key: a key of `jax.random`.
        samples: the number of noisy copies, >= 1.
        std: the standard deviation of the noise, >= 0, in units of images; 0.3 is 15 % of their
            range, within the 10 to 20 % that the paper advises.
        gating: what to average: the plain gradient, or pullbacks.
        skip: sites to leave hard.
        only: if given, the only sites to soften.
        enter: functions with derivative rules of their own to replace by their bodies, by name.
        **options: `bounds`, `batched`, `batch_size` and `sharding`.

    Returns:
        The maps, shaped like `x`.

    Raises:
        SettingError: `samples` or `std` is out of its range.
        ExciteError: as for `pullback`.
    """
    count = whole_number(samples, "samples")
    _check_deviation(std, "std")
    rule = _Smoothed(Selection.of(skip, only, enter), count)
    return attribute(rule, params, x, c, gating, (key, as_floats(std)), **options)


@dataclasses.dataclass(frozen=True)
class _Smoothed:
    selection: Selection
    samples: int

    def __call__(self, params: Params, like: Any, gating: Gating, settings: Any) -> Attributor:
        key, std = settings
        pull = field(params, like, gating, self.selection)

        def block(x: Any, target: Any) -> Any:
            def one(sample: jax.Array) -> Any:
                return pull(_noisy(x, jax.random.fold_in(key, sample), std), target)

            return _mean(one, x, self.samples)

        return block


def _noisy(x: Any, key: PRNGKeyArray, std: jax.Array) -> Any:
    """A batch of items with noise that all items share; each of several inputs has its own."""
    leaves, tree = jax.tree.flatten(x)

    def noisy(part: jax.Array, own: PRNGKeyArray) -> jax.Array:
        noise = jax.random.normal(own, part.shape[1:], part.dtype)
        return part + std.astype(part.dtype) * noise

    many = range(len(leaves))
    keys = [key] if len(leaves) == 1 else [jax.random.fold_in(key, place) for place in many]
    return jax.tree.unflatten(tree, map(noisy, leaves, keys))


def smoothed_pullback(
    params: Params,
    x: Items,
    c: Target,
    *,
    key: PRNGKeyArray,
    samples: int = 25,
    std: float = 0.3,
    gating: Gating = EXCITATION,
    **options: Unpack[GatingOptions],
) -> Any:
    """The mean excitation pullback over noisy image copies: `smooth_grad` with soft gates."""
    return smooth_grad(params, x, c, key=key, samples=samples, std=std, gating=gating, **options)


def fusion_pullback(
    params: Params,
    x: Items,
    c: Target,
    *,
    key: PRNGKeyArray,
    draws: int = 10,
    samples: int = 10,
    weight_std: float = 0.1,
    std: float = 0.15,
    gating: Gating = EXCITATION,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    **options: Unpack[Options],
) -> Any:
    """The mean pullback over noisy weights and noisy copies of the input.

    FusionGrad (Bykov et al., "NoiseGrad", 2022) with soft gates; the defaults are those of the
    paper's 2026 successor. Each draw multiplies every weight by a number of its own from
    `N(1, weight_std^2)`. All items share the draws. Of a Flax module, the `nnx.Param` are the
    weights; of another pytree, all float arrays.

    Args:
        params: as for `pullback`, like all arguments that are not described here.
        x: one item or a batch.
        c: the target.
        key: a key of `jax.random`.
        draws: the number of draws of the weights, >= 1.
        samples: the number of noisy copies of the input per draw, >= 1.
        weight_std: the standard deviation of the factors of the weights, >= 0.
        std: the standard deviation of the noise of the input, >= 0, in units of images.
        gating: how gates are softened.
        skip: sites to leave hard.
        only: if given, the only sites to soften.
        enter: functions with derivative rules of their own to replace by their bodies, by name.
        **options: `bounds`, `batched`, `batch_size` and `sharding`.

    Returns:
        The maps, shaped like `x`.

    Raises:
        SettingError: a number of draws or samples, or a deviation, is out of its range.
        ExciteError: as for `pullback`.
    """
    counts = whole_number(draws, "draws"), whole_number(samples, "samples")
    _check_deviation(weight_std, "weight_std")
    _check_deviation(std, "std")
    rule = _Fused(Selection.of(skip, only, enter), *counts)
    settings = (key, as_floats(weight_std), as_floats(std))
    return attribute(rule, params, x, c, gating, settings, **options)


@dataclasses.dataclass(frozen=True)
class _Fused:
    selection: Selection
    draws: int
    samples: int

    def __call__(self, params: Params, like: Any, gating: Gating, settings: Any) -> Attributor:
        key, weight_std, std = settings
        smoothed = _Smoothed(self.selection, self.samples)

        def block(x: Any, target: Any) -> Any:
            def one(draw: jax.Array) -> Any:
                of_weights, of_inputs = jax.random.split(jax.random.fold_in(key, draw))
                network = with_noisy_weights(params, of_weights, weight_std)
                return smoothed(network, like, gating, (of_inputs, std))(x, target)

            return _mean(one, x, self.draws)

        return block


def with_noisy_weights(params: Params, key: PRNGKeyArray, std: ArrayLike) -> Params:
    """A callable pytree whose weights are each multiplied by a number from `N(1, std^2)`."""

    def is_variable(node: Any) -> bool:
        return isinstance(node, nnx.Variable)

    leaves, tree = jax.tree.flatten(as_pytree(params), is_leaf=is_variable)

    def noisy(leaf: Any, own: PRNGKeyArray) -> Any:
        if is_variable(leaf) and not isinstance(leaf, nnx.Param):
            return leaf  # a statistic of BatchNorm, for example
        if not is_variable(leaf):
            return _scaled(leaf, own, std)
        return jax.tree.map(lambda array: _scaled(array, own, std), leaf)

    keys = (jax.random.fold_in(key, place) for place in range(len(leaves)))
    return jax.tree.unflatten(tree, map(noisy, leaves, keys))


def _scaled(leaf: Any, key: PRNGKeyArray, std: ArrayLike) -> Any:
    if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
        return leaf
    factor = 1 + jnp.asarray(std, leaf.dtype) * jax.random.normal(key, leaf.shape, leaf.dtype)
    return leaf * factor


def gradient_shap(
    params: Params,
    x: Items,
    c: Target,
    *,
    key: PRNGKeyArray,
    samples: int = 50,
    std: float = 0.0,
    baseline: ArrayLike = 0.0,
    gating: Gating = VANILLA,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    **options: Unpack[Options],
) -> Any:
    """Gradients at random places between a baseline and noisy copies, times the difference.

    Expected gradients, as an approximation of SHAP values (Lundberg & Lee, "A Unified Approach to
    Interpreting Model Predictions", 2017; Captum's `GradientShap`), with a single baseline. Sample
    `i` uses the noise of `smooth_grad`, and a place that is uniform in [0, 1].

    Args:
        params: as for `pullback`, like all arguments that are not described here.
        x: one item or a batch.
        c: the target.
        key: a key of `jax.random`.
        samples: the number of samples, >= 1.
        std: the standard deviation of the noise, >= 0, in units of images.
        baseline: a number, or an array that broadcasts to one item; 0 is mid grey.
        gating: the plain gradient, or pullbacks.
        skip: sites to leave hard.
        only: if given, the only sites to soften.
        enter: functions with derivative rules of their own to replace by their bodies, by name.
        **options: `bounds`, `batched`, `batch_size` and `sharding`.

    Returns:
        The maps, shaped like `x`.

    Raises:
        SettingError: `samples` or `std` is out of its range, or `baseline` does not fit.
        ExciteError: as for `pullback`.
    """
    count = whole_number(samples, "samples")
    _check_deviation(std, "std")
    start = item_like(baseline, x, options.get("batched"), "baseline")
    rule = _Shap(Selection.of(skip, only, enter), count)
    return attribute(rule, params, x, c, gating, (key, as_floats(std), start), **options)


@dataclasses.dataclass(frozen=True)
class _Shap:
    selection: Selection
    samples: int

    def __call__(self, params: Params, like: Any, gating: Gating, settings: Any) -> Attributor:
        key, std, baseline = settings
        pull = field(params, like, gating, self.selection)

        def block(x: Any, target: Any) -> Any:
            def one(sample: jax.Array) -> Any:
                of_noise, of_place = _keys(key, sample)
                place = jax.random.uniform(of_place)

                def moved(part: jax.Array) -> jax.Array:
                    start = baseline.astype(part.dtype)
                    return start + place.astype(part.dtype) * (part - start)

                copy = _noisy(x, of_noise, std)
                fields = pull(jax.tree.map(moved, copy), target)
                return jax.tree.map(
                    lambda f, part: f * (part - baseline.astype(part.dtype)), fields, copy
                )

            return _mean(one, x, self.samples)

        return block


def _keys(key: PRNGKeyArray, sample: jax.Array) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """The keys of the noise of a sample, as in `smooth_grad`, and of its place."""
    own = jax.random.fold_in(key, sample)
    return own, jax.random.fold_in(own, 1_000_003)


def _mean(one: Callable[[jax.Array], Any], x: Any, count: int) -> Any:
    """The mean of the maps, shaped like `x`, of samples 0 to `count - 1`."""

    def add(total: Any, sample: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(sample)), None

    total, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, x), jnp.arange(count))
    return jax.tree.map(lambda part: part / count, total)


def _check_deviation(value: float, what: str) -> None:
    """Raise `SettingError` unless `value` is at least 0."""
    if not value >= 0:
        raise SettingError(f"{what} is {value}: give a number of at least 0")
