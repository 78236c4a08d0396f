"""Callables as pytrees: weights are arguments of compiled functions, never constants."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_excite.callables.captured import Static, is_index, opened
from jax_excite.errors import InputError


def is_array(leaf: Any) -> bool:
    """Whether a pytree leaf is an array; all other leaves are static."""
    return isinstance(leaf, (jax.Array, np.ndarray))


def is_weight(leaf: Any) -> bool:
    """Whether a pytree leaf is an array of floats, not a random key, counter or index."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by dotted name, such as `layer1.0.conv1.kernel`, in its order."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def leaf_name(path: Any) -> str:
    """The dotted name of a leaf, from its path in a pytree."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def split_arrays(
    leaves: Sequence[Any],
) -> tuple[list[Any], Callable[[Sequence[Any]], list[Any]]]:
    """The arrays among leaves, and a function that puts arrays back among the other leaves."""
    others = [None if is_array(leaf) else leaf for leaf in leaves]
    places = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

    def rebuild(arrays: Sequence[Any]) -> list[Any]:
        whole = list(others)
        for place, array in zip(places, arrays, strict=True):
            whole[place] = array
        return whole

    return [leaves[place] for place in places], rebuild


_ARRAY = object()


@jax.tree_util.register_pytree_node_class
class StaticLeaves:
    """A callable pytree with leaves that are not arrays, as one whose leaves are all arrays.

    Equinox modules hold activation functions, for example, and closures hold numbers.
    """

    def __init__(self, fn: Callable[..., Any]):
        self.fn = fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.fn(*args, **kwargs)

    def tree_flatten(self) -> tuple[list[Any], Hashable]:
        """The arrays, and everything else."""
        leaves, tree = jax.tree.flatten(self.fn)
        traced = [is_array(leaf) and not is_index(leaf) for leaf in leaves]
        static = (_ARRAY if t else Static(leaf) for leaf, t in zip(leaves, traced, strict=True))
        return [leaf for leaf, t in zip(leaves, traced, strict=True) if t], (tree, tuple(static))

    @classmethod
    def tree_unflatten(cls, static: Any, arrays: Sequence[Any]) -> "StaticLeaves":
        """The inverse of `tree_flatten`."""
        tree, leaves = static
        rest = iter(arrays)
        return cls(
            tree.unflatten([next(rest) if leaf is _ARRAY else leaf.value for leaf in leaves])
        )


def as_pytree(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` as a callable pytree whose leaves are all arrays, including those that it captures.

    The values that a function captures are read again each time, so weights are never stale, and
    never constants of a compiled function (docs/decisions/0009).
    """
    if isinstance(fn, StaticLeaves):
        return fn
    if isinstance(fn, Flattened):
        return fn.whole()
    return fn if _is_module(fn, jax.tree.leaves(fn)) else StaticLeaves(opened(fn))


def _is_module(fn: Callable[..., Any], leaves: Sequence[Any]) -> bool:
    return not isinstance(fn, functools.partial) and all(map(is_array, leaves))


def check_callable(fn: Any) -> None:
    """Raise `InputError` if what a caller gives as a network is a class, or cannot be called."""
    whole = fn.whole() if isinstance(fn, Flattened) else fn
    network = whole.fn if isinstance(whole, StaticLeaves) else whole
    if isinstance(network, type):
        raise InputError(f"the network is the class {network.__name__}: give an instance of it")
    if not callable(network):
        raise InputError(
            f"the network is of type {type(network).__name__}, which cannot be called: give a "
            "function, or a module with its weights (for a state of Flax, nnx.merge(graphdef, "
            "state))"
        )


@jax.tree_util.register_pytree_node_class
class Flattened:
    """A callable pytree as the list of its leaves, for several calls of compiled functions.

    Flattening a module of 300 weights takes milliseconds, and each call of a compiled function
    would do it again.

    Attributes:
        leaves: its leaves, which are all arrays.
        tree: its structure.
    """

    def __init__(self, leaves: Sequence[Any], tree: Any):
        self.leaves = leaves
        self.tree = tree

    @classmethod
    def of(cls, fn: Callable[..., Any]) -> "Flattened":
        """`as_pytree(fn)`, flattened."""
        leaves, tree = jax.tree.flatten(fn)
        whole = _is_module(fn, leaves)
        return cls(leaves, tree) if whole else cls(*jax.tree.flatten(as_pytree(fn)))

    def whole(self) -> Callable[..., Any]:
        """The callable pytree."""
        return self.tree.unflatten(self.leaves)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self.whole()(*args, **kwargs)

    def tree_flatten(self) -> tuple[Sequence[Any], Hashable]:
        """The leaves, and the structure."""
        return self.leaves, self.tree

    @classmethod
    def tree_unflatten(cls, tree: Any, leaves: Sequence[Any]) -> "Flattened":
        """The inverse of `tree_flatten`."""
        return cls(leaves, tree)


def as_floats(tree: Any) -> Any:
    """A pytree of settings with its numbers as arrays of the default float dtype.

    A compiled function then treats 1, 1.0, `np.float64(1)` and `jnp.asarray(1)` as the same kind of
    argument.
    """
    dtype = jnp.result_type(float)

    def as_float(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return lax.convert_element_type(leaf, dtype)
        return np.asarray(leaf, dtype)

    return jax.tree.map(as_float, tree)
