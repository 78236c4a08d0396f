"""Targets: what is pulled back from the logits to the input.

A target is a class index, an array with one index per image, a cotangent of the logits, or a scalar
objective of the logits.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from jax_excite.callables.pytree import as_pytree
from jax_excite.errors import TargetError

# A class index, one per image, a cotangent shaped like the logits, or an objective: [K] -> [].
Target = int | np.ndarray | jax.Array | Callable[[jax.Array], jax.Array]


def prepare(c: Any, images: int, logits: int, single: bool = False) -> Any:
    """Convert a target to the form that `values` and `cotangents` take.

    Args:
        c: the caller's target.
        images: the number of images, N.
        logits: the number of logits per image, K.
        single: whether the caller gave one image without a batch axis, so that a cotangent has no
            batch axis either.

    Returns:
        Class indices `[N]`, a cotangent `[N, K]`, or an objective as a pytree.

    Raises:
        TargetError: `c` is not a valid target, or does not fit the logits.
    """
    if callable(c):
        value = jax.eval_shape(c, jax.ShapeDtypeStruct((logits,), jnp.result_type(float)))
        if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise TargetError(
                f"the objective maps the logits ({logits},) of one image to {value}: it has to "
                "return one float"
            )
        return as_pytree(c)
    if isinstance(c, str):
        raise TargetError(
            f"the target is the string {c!r}: give a class index "
            f"(jax_excite.data.class_names.class_index({c!r}) finds the index of a class name)"
        )
    target = c if isinstance(c, jax.Array) else np.asarray(c)
    if jnp.issubdtype(target.dtype, jnp.floating):
        shape = (logits,) if single else (images, logits)
        if target.shape != shape:
            raise TargetError(
                f"the target is a float array of shape {target.shape}: a cotangent has the shape "
                f"of the logits, {shape}; a class index is an integer"
            )
        return target[None] if single else target
    if target.shape not in ((), (images,)):
        raise TargetError(
            f"class indices have shape {target.shape}: give one index, or an array of shape "
            f"({images},) with one for each image"
        )
    return class_indices(target, (images,), logits)


def class_rows(classes: Any, images: int, logits: int) -> Any:
    """Class indices `[N, C]`, from `C` indices or an array `[N, C]`, or raise `TargetError`."""
    array = classes if isinstance(classes, jax.Array) else np.asarray(classes)
    if array.ndim not in (1, 2) or not array.size or array.shape[:-1] not in ((), (images,)):
        raise TargetError(
            f"classes has shape {array.shape}: give C class indices, or an array of shape "
            f"({images}, C) with a row for each image"
        )
    return class_indices(array, (images, array.shape[-1]), logits)


def class_indices(array: Any, shape: tuple[int, ...], logits: int) -> Any:
    """Check and broadcast class indices; the values of traced indices cannot be checked."""
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TargetError(
            f"the target has dtype {array.dtype}: give a class index, an array of them, a float "
            "cotangent with the logits' shape, or an objective of the logits"
        )
    if not isinstance(array, Tracer):
        array = np.asarray(array)
        wrong = array[(array < 0) | (array >= logits)]
        if wrong.size:
            raise TargetError(
                f"class index {wrong[0]} is out of range: the model has {logits} logits, "
                f"so give 0 to {logits - 1}"
            )
    broadcast = jnp.broadcast_to if isinstance(array, jax.Array) else np.broadcast_to
    return broadcast(array.astype(np.int32), shape)


def probabilities(logits: Float[jax.Array, "*N K"]) -> Float[jax.Array, "*N K"]:
    """The probabilities of logits `[N, K]`: their softmax, or the sigmoid of a single logit."""
    return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)


def values(target: Any, logits: Float[jax.Array, "N K"]) -> Float[jax.Array, " N"]:
    """The scalar that a target assigns to each image's logits: `[N, K]` -> `[N]`."""
    if callable(target):
        return cast(jax.Array, jax.vmap(target)(logits))
    if jnp.issubdtype(target.dtype, jnp.integer):
        return jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
    return jnp.sum(target.astype(logits.dtype) * logits, axis=1)


def cotangents(target: Any, logits: Float[jax.Array, "N K"]) -> Float[jax.Array, "N K"]:
    """The gradient of `values` with respect to the logits: `[N, K]` -> `[N, K]`."""
    return jax.grad(lambda y: jnp.sum(values(target, y)))(logits)
