"""Checks of float arrays: their type, dtype and range."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_excite.errors import ExciteError, InputError
from jax_excite.typing import Bounds


def check_floats(
    x: Any, bounds: Bounds | None, wanted: str, error: type[ExciteError] = InputError
) -> None:
    """Raise an error unless `x` is an array of finite floats in a range.

    Args:
        x: a NumPy or JAX array. Only the dtype of a traced array can be checked.
        bounds: the range in which its values must lie, with a relative tolerance of 1e-6; None for
            any finite values.
        wanted: what is expected, for the message.
        error: the error to raise.
    """
    if bounds is not None:
        wanted += f" in [{bounds[0]:g}, {bounds[1]:g}]"
    if not isinstance(x, (np.ndarray, jax.Array)):
        raise error(f"x is of type {type(x).__name__}: {wanted}")
    given = f"x has shape {x.shape} and dtype {x.dtype}"
    if not jnp.issubdtype(x.dtype, jnp.floating):
        hint = "; load_image brings 0..255 into [-1, 1]" if x.dtype == np.uint8 else ""
        raise error(f"{given}: {wanted}{hint}")
    if isinstance(x, Tracer) or not x.size:
        return
    low, high, finite = _extremes(x)
    if not finite:
        raise error(f"{given} and holds NaN or infinity: {wanted}, and finite")
    if bounds is not None:
        slack = 1e-6 * max(abs(bounds[0]), abs(bounds[1]))
        if low < bounds[0] - slack or high > bounds[1] + slack:
            looks_8_bit = low >= 0 and 1 < high <= 255
            hint = "; if it is in 0..255, use load_image or x / 127.5 - 1" if looks_8_bit else ""
            raise error(
                f"{given} and values {low:.7g}..{high:.7g}: {wanted}{hint}; for inputs in other "
                "units, bounds=None switches this check off (for PGA, in Ascent, where bounds are "
                "also what each step is clipped to)"
            )


def _extremes(x: np.ndarray | jax.Array) -> tuple[float, float, bool]:
    """The minimum and maximum of a concrete array, and whether all values are finite."""
    if isinstance(x, np.ndarray):
        with np.errstate(invalid="ignore"):
            low, high = float(x.min()), float(x.max())
        return low, high, bool(np.isfinite(low) and np.isfinite(high))
    with jax.ensure_compile_time_eval():  # x may be a constant of a function being traced
        low, high, finite = np.asarray(_reduce(x))
    return float(low), float(high), bool(finite)


@jax.jit
def _reduce(x: jax.Array) -> jax.Array:
    # XLA's minimum and maximum may drop a NaN on a CPU, so finiteness is a separate reduction.
    return jnp.stack([x.min(), x.max(), jnp.isfinite(x).all().astype(x.dtype)])


def dtype_in_jax(dtype: Any) -> Any:
    """The dtype that an array of a dtype has in JAX: in a 32-bit mode, float32 for float64."""
    return jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)
