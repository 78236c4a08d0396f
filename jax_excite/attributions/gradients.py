"""Attributions computed from pullbacks: one, or several along a line."""

import dataclasses
import numbers
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jax_excite.attributions.engine import Attributor, Options, attribute, field
from jax_excite.callables.pytree import as_floats
from jax_excite.errors import SettingError
from jax_excite.gating import Gating
from jax_excite.pullbacks.pullback import pullback
from jax_excite.pullbacks.targets import Target
from jax_excite.recipes import DECONVOLUTION, GUIDED_BACKPROP, VANILLA
from jax_excite.transform.sites import Names, Selection, SiteSelection
from jax_excite.typing import Items, Params


def gradient(params: Params, x: Items, c: Target, **options: Unpack[Options]) -> Any:
    """The gradient of the target (Simonyan et al., "Deep Inside Convolutional Networks", 2014).

    The gradient is signed and has all channels. The derivative of a ReLU is 0 where its
    pre-activation is 0. If several cells of a max-pool window are equal, the first of them receives
    the gradient, as in PyTorch.

    Args:
        params: as for `pullback`; a function without gates works too.
        x: the input, as for `pullback`.
        c: the target, as for `pullback`.
        **options: `bounds`, `batched`, `batch_size` and `sharding`, as for `pullback`.

    Returns:
        The gradients, shaped like `x`.

    Raises:
        ExciteError: as for `pullback`.
    """
    return pullback(params, x, c, gating=VANILLA, **options)


def input_x_gradient(params: Params, x: Items, c: Target, **options: Unpack[Options]) -> Any:
    """The gradient times the image (Shrikumar et al., "Not Just a Black Box", 2016).

    The image is in [-1, 1], so mid-grey pixels get 0. Arguments, result and errors are those
    of `gradient`.
    """
    gradients = gradient(params, x, c, **options)
    return jax.tree.map(lambda part, along: jnp.asarray(part) * along, x, gradients)


def guided_backprop(params: Params, x: Items, c: Target, **options: Unpack[Options]) -> Any:
    """Guided backpropagation (Springenberg et al., "Striving for Simplicity", 2015, section 3.4).

    Active ReLUs pass positive cotangents only; inactive ones pass nothing. The map is known to
    change little when the weights of higher layers are randomised (Adebayo et al., 2018).
    Arguments, result and errors are those of `gradient`, except that the function must have gates.
    """
    return pullback(params, x, c, gating=GUIDED_BACKPROP, **options)


def deconvolution(params: Params, x: Items, c: Target, **options: Unpack[Options]) -> Any:
    """Deconvolution (Zeiler & Fergus, "Visualizing and Understanding", 2014, section 2.1).

    ReLUs pass positive cotangents only, whether they are active or not. The upper bounds of clipped
    ReLUs block none of these. Arguments, result and errors are those of `guided_backprop`.
    """
    return pullback(params, x, c, gating=DECONVOLUTION, **options)


def integrated_gradients(
    params: Params,
    x: Items,
    c: Target,
    *,
    steps: int = 50,
    baseline: ArrayLike = 0.0,
    gating: Gating = VANILLA,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    **options: Unpack[Options],
) -> Any:
    """Gradients integrated from a baseline to the image, times the difference between the two.

    Sundararajan et al., "Axiomatic Attribution for Deep Networks" (2017), equation 1. The integral
    is computed by Gauss-Legendre quadrature. With the plain gradient, the sum of a map approaches
    the difference between the target's values at the image and at the baseline.

    Args:
        params: as for `pullback`, like all arguments that are not described here.
        x: one item or a batch.
        c: the target.
        steps: the number of quadrature points, >= 1.
        baseline: the start of the path: a number, or an array that broadcasts to one item, such as
            an image `[H, W, C]`; 0 is mid grey.
        gating: what to integrate: the plain gradient, or pullbacks.
        skip: sites to leave hard.
        only: if given, the only sites to soften.
        enter: functions with derivative rules of their own to replace by their bodies, by name.
        **options: `bounds`, `batched`, `batch_size` and `sharding`.

    Returns:
        The maps, shaped like `x`.

    Raises:
        SettingError: `steps` is out of its range, or `baseline` does not fit the image.
        ExciteError: as for `pullback`.
    """
    count = whole_number(steps, "steps")
    start = item_like(baseline, x, options.get("batched"), "baseline")
    rule = _Integrated(Selection.of(skip, only, enter), count)
    return attribute(rule, params, x, c, gating, start, **options)


@dataclasses.dataclass(frozen=True)
class _Integrated:
    selection: Selection
    steps: int

    def __call__(self, params: Params, like: Any, gating: Gating, settings: Any) -> Attributor:
        pull = field(params, like, gating, self.selection)
        places, weights = np.polynomial.legendre.leggauss(self.steps)
        nodes = np.stack([(places + 1) / 2, weights / 2], axis=1)

        def block(x: Any, target: Any) -> Any:
            def between(part: jax.Array, node: jax.Array) -> jax.Array:
                start = settings.astype(part.dtype)
                return start + node[0].astype(part.dtype) * (part - start)

            def add(total: Any, node: jax.Array) -> tuple[Any, None]:
                fields = pull(jax.tree.map(lambda part: between(part, node), x), target)
                weighted = jax.tree.map(lambda f: node[1].astype(f.dtype) * f, fields)
                return jax.tree.map(jnp.add, total, weighted), None

            dtype = jax.tree.leaves(x)[0].dtype
            zeros = jax.tree.map(jnp.zeros_like, x)
            total, _ = lax.scan(add, zeros, jnp.asarray(nodes, dtype))
            return jax.tree.map(lambda t, part: t * (part - settings.astype(part.dtype)), total, x)

        return block


def whole_number(value: Any, what: str) -> int:
    """`value` as an int; raises `SettingError` unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise SettingError(f"{what} is {value!r}: give a whole number of at least 1")
    return int(value)


def item_like(value: ArrayLike, x: Items, batched: bool | None, what: str) -> jax.Array:
    """`value` as an array; raises `SettingError` unless it broadcasts to one item of `x`."""
    array = jnp.asarray(as_floats(value))
    for leaf in jax.tree.leaves(x):
        shape = np.shape(leaf)
        is_batch = len(shape) == 4 if batched is None else batched
        item = shape[is_batch:]
        pairs = zip(reversed(array.shape), reversed(item), strict=False)
        if array.ndim > len(item) or not all(own in (1, extent) for own, extent in pairs):
            raise SettingError(
                f"{what} has shape {array.shape}: give a number, or an array that broadcasts to "
                f"one item, {item}"
            )
    return array
