"""Compiled functions of a network, whose traced programs are kept on disk.

JAX keeps compiled programs, but it finds one only after it has traced and lowered the function,
which takes seconds for a network. For known networks (`jax_excite.callables.known`), what tracing
and lowering give is kept too.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding

from jax_excite.callables.known import is_known, place_of, read, write
from jax_excite.data.arrays import dtype_in_jax


class Compiled:
    """A function of a network and of arrays, compiled by `jax.jit`.

    Attributes:
        lower: that of the function compiled by `jax.jit`.
    """

    def __init__(self, function: Callable[..., Any], static_argnames: tuple[str, ...]):
        functools.update_wrapper(self, function)
        kept = functools.partial(_by_kept_program, function, static_argnames)
        self._plain = jax.jit(function, static_argnames=static_argnames)
        self._kept = jax.jit(kept, static_argnames=static_argnames)
        self.lower = self._plain.lower

    def __call__(self, params: Any, *args: Any, **settings: Any) -> Any:
        """Call the function."""
        if not is_known(params) or not _are_on_default_device((params, args, settings)):
            return self._plain(params, *args, **settings)
        args, settings = jax.tree.map(_committed, (args, settings))
        return self._kept(params, *args, **settings)


def compiled(*static_argnames: str) -> Callable[[Callable[..., Any]], Compiled]:
    """Decorate a function whose first argument is a network; as `jax.jit` with `static_argnames`.

    The static arguments have to be passed by name.
    """
    return lambda function: Compiled(function, static_argnames)


def _by_kept_program(
    function: Callable[..., Any],
    static_argnames: tuple[str, ...],
    params: Any,
    *args: Any,
    **settings: Any,
) -> Any:
    """`function(params, *args, **settings)` by the kept program, which is made if there is none."""
    fixed = {name: settings.pop(name) for name in static_argnames if name in settings}
    name = f"{function.__module__}.{function.__qualname__}"
    place = place_of(name, params, (args, settings), fixed)
    if place is None:
        return function(params, *args, **settings, **fixed)
    leaves, tree = jax.tree.flatten((params, args, settings))
    content = read(place)
    if content is None:

        def flat(*leaves: Any) -> Any:
            params, args, settings = tree.unflatten(leaves)
            return function(params, *args, **settings, **fixed)

        shapes = [jax.ShapeDtypeStruct(leaf.shape, dtype_in_jax(leaf.dtype)) for leaf in leaves]
        program = export.export(jax.jit(flat))(*shapes)
        write(place, program.serialize())
    else:
        program = export.deserialize(bytearray(content))
    return program.call(*leaves)


def _committed(leaf: Any) -> Any:
    """An array on the default device by name, like the results of kept programs.

    Otherwise a call with an earlier result would be compiled anew: JAX compiles for what it may
    move, and for what it may not.
    """
    if isinstance(leaf, np.ndarray | np.generic):
        return jax.device_put(leaf.copy(), _default())  # the caller may change its own
    return jax.device_put(leaf, _default()) if isinstance(leaf, jax.Array) else leaf


def _are_on_default_device(arrays: Any) -> bool:
    """Whether a program for the one device that JAX uses if it is not told can take these arrays.

    What is no array of JAX is moved there by the call.
    """
    found = [leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
    return all(not isinstance(leaf, Tracer) and leaf.sharding == _default() for leaf in found)


@functools.cache
def _default() -> SingleDeviceSharding:
    return SingleDeviceSharding(jax.local_devices()[0])
