"""Targets: the scalar of each item's outputs that is pulled back to the input.

A target is a class index, an array with one index per item, a tuple of indices, a cotangent of the
outputs, or a scalar objective of one item's outputs. At a site inside of the network, an index is
that of a channel.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int

from jax_excite.callables.pytree import as_pytree
from jax_excite.errors import TargetError
from jax_excite.pullbacks.items import shapes_of
from jax_excite.transform.site_output import SiteOutput
from jax_excite.typing import AnyArray

# A class index, one per item, indices of one entry of the outputs, a cotangent of the outputs, or
# an objective: one item's outputs -> [].
Target = int | tuple[Any, ...] | np.ndarray | jax.Array | Callable[[Any], jax.Array] | Any
# The targets of a grid: class indices for all items, a row of them per item, or tuples.
Targets = Sequence[int] | Sequence[tuple[Any, ...]] | Int[AnyArray, "*N K"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of one array of each item's outputs.

    Attributes:
        leaf: which array it is, in the order of the pytree's leaves.
        indices: its indices in the array of one item, integers `[N, rank]`.
    """

    leaf: int = dataclasses.field(metadata={"static": True})
    indices: Any

    def values(self, outputs: Any) -> jax.Array:
        """The entries `[N]`."""
        leaf = jax.tree.leaves(outputs)[self.leaf]
        sizes = leaf.shape[1:]
        strides = np.array([math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))], np.int32)
        flat, places = leaf.reshape(len(leaf), -1), self.indices @ strides
        return jnp.take_along_axis(flat, places[:, None], axis=1)[:, 0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Channel:
    """A channel of a site's output, summed over all positions.

    Attributes:
        axis: the axis of the output that holds channels.
        index: the channel of each item, integers `[N]`.
    """

    axis: int = dataclasses.field(metadata={"static": True})
    index: Any

    def values(self, outputs: Any) -> jax.Array:
        """The sums `[N]`."""
        (leaf,) = jax.tree.leaves(outputs)
        others = tuple(axis for axis in range(1, leaf.ndim) if axis != self.axis)
        return jnp.take_along_axis(leaf.sum(others), self.index[:, None], axis=1)[:, 0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cotangent:
    """A cotangent of the outputs, which stands for its product with them.

    Attributes:
        leaves: a float array for each array of the outputs, of the same shape.
    """

    leaves: list[Any]

    def values(self, outputs: Any) -> jax.Array:
        """The products `[N]`."""

        def product(cotangent: Any, leaf: jax.Array) -> jax.Array:
            return jnp.sum(cotangent.astype(leaf.dtype) * leaf, axis=tuple(range(1, leaf.ndim)))

        pairs = zip(self.leaves, jax.tree.leaves(outputs), strict=True)
        floats = ((c, leaf) for c, leaf in pairs if jnp.issubdtype(leaf.dtype, jnp.floating))
        return cast(jax.Array, sum(product(*pair) for pair in floats))


_BY_INDEX = "give a class index (jax_excite.data.class_names.class_index({!r}) finds one by name)"


def prepare(c: Any, outputs: Any, count: int, single: bool = False) -> Any:
    """Convert a target to the form that `values` and `cotangents` take.

    Args:
        c: the caller's target.
        outputs: shapes and dtypes of the outputs, each with the items along axis 0.
        count: the number of items, N.
        single: whether the caller gave one item without a batch axis, so that a cotangent has no
            batch axis either.

    Returns:
        An `Entry`, `Channel` or `Cotangent`, or an objective as a pytree.

    Raises:
        TargetError: `c` is not a valid target, or does not fit the outputs.
    """
    if callable(c):
        return _objective(c, outputs)
    if isinstance(c, str):
        raise TargetError(f"the target is the string {c!r}: {_BY_INDEX.format(c)}")
    inner = bare(outputs)
    if isinstance(c, (list, float)) and jax.tree_util.treedef_is_leaf(jax.tree.structure(inner)):
        c = np.asarray(c)
    if _has_floats(c):
        return _cotangent(c, inner, single)
    if isinstance(c, tuple):
        return _entry(c, inner, count)
    index = c if isinstance(c, jax.Array) else np.asarray(c)
    _require_integers(index, outputs)
    if index.shape not in ((), (count,)):
        raise TargetError(
            f"class indices have shape {index.shape}: give one index, or an array of shape "
            f"({count},) with one for each item"
        )
    return _indexed(index, (count,), outputs)


def columns(classes: Any, outputs: Any, count: int) -> Any:
    """The targets of a grid, as one target whose arrays start with axes `[N, C]`.

    Args:
        classes: `C` class indices (channels, at a site), an array `[N, C]` of them with a row per
            item, or a sequence of `C` tuples of indices.
        outputs: as for `prepare`.
        count: the number of items, N.

    Raises:
        TargetError: they are not valid, or do not fit the outputs.
    """
    if isinstance(classes, Sequence) and classes and all(isinstance(c, tuple) for c in classes):
        entries = [_entry(c, bare(outputs), count) for c in classes]
        if len({entry.leaf for entry in entries}) != 1:
            raise TargetError("the tuples of a grid have to index the same array of the outputs")
        return Entry(entries[0].leaf, _stacked([entry.indices for entry in entries]))
    array = classes if isinstance(classes, jax.Array) else np.asarray(classes)
    if array.ndim not in (1, 2) or not array.size or array.shape[:-1] not in ((), (count,)):
        raise TargetError(
            f"classes has shape {array.shape}: give C class indices, or an array of shape "
            f"({count}, C) with a row for each item"
        )
    _require_integers(array, outputs)
    return _indexed(array, (count, array.shape[-1]), outputs)


def class_rows(classes: Any, count: int, logits: int) -> Any:
    """Class indices `[N, C]`, from `C` indices or an array `[N, C]`, or raise `TargetError`."""
    shape = jax.ShapeDtypeStruct((count, logits), jnp.float32)
    return columns(classes, shape, count).indices[..., 0]


def cells(columns: Any, rows: Any, chosen: Any) -> Any:
    """The targets of some rows and columns of a grid, by indices of its axes."""
    return jax.tree.map(lambda array: array[rows][:, chosen], columns)


def bare(outputs: Any) -> Any:
    """Outputs as objectives and callers receive them."""
    return outputs.value if isinstance(outputs, SiteOutput) else outputs


def _objective(c: Callable[..., Any], outputs: Any) -> Any:
    item = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), outputs)
    value = jax.eval_shape(c, bare(item))
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TargetError(
            f"the objective maps the outputs of one item, {shapes_of(bare(item))}, to {value}: it "
            "has to return one float"
        )
    return as_pytree(c)


def _has_floats(c: Any) -> bool:
    leaves = jax.tree.leaves(c)
    return bool(leaves) and all(
        isinstance(leaf, (np.ndarray, jax.Array)) and jnp.issubdtype(leaf.dtype, jnp.floating)
        for leaf in leaves
    )


def _cotangent(c: Any, outputs: Any, single: bool) -> Cotangent:
    leaves, tree = jax.tree.flatten(c)
    wanted = [leaf.shape[single:] for leaf in jax.tree.leaves(outputs)]
    if tree != jax.tree.structure(outputs) or [leaf.shape for leaf in leaves] != wanted:
        item = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[single:], leaf.dtype), outputs
        )
        raise TargetError(
            f"the target is a float array of shape {shapes_of(c)}: a cotangent has the structure "
            f"and shape of the outputs, {shapes_of(item)}; a class index is an integer"
        )
    return Cotangent([leaf[None] for leaf in leaves] if single else leaves)


def _entry(c: tuple[Any, ...], outputs: Any, count: int) -> Entry:
    """The entry that a tuple names: keys or places in the pytree, then indices of the array."""
    leaves, tree = jax.tree.flatten(outputs)
    numbered = jax.tree.unflatten(tree, range(len(leaves)))
    given = f"the target is {c}, but the outputs of {count} items are {shapes_of(outputs)}"
    rest = list(c)
    while isinstance(numbered, (dict, list, tuple)):
        keys = list(numbered) if isinstance(numbered, dict) else list(range(len(numbered)))
        if not rest or rest[0] not in keys:
            raise TargetError(f"{given}: the tuple has to name one array by one of {keys} in turn")
        numbered = numbered[rest.pop(0)]
    if not isinstance(numbered, int):
        raise TargetError(f"{given}: arrays are named in dicts, lists and tuples only")
    shape = leaves[numbered].shape[1:]
    if len(rest) != len(shape):
        raise TargetError(
            f"{given}: {len(rest)} indices do not name one entry of an array {shape} per item"
        )
    indices = [
        _in_range(_integers(index, count, given), (count,), size, "index", f" of the array {shape}")
        for index, size in zip(rest, shape, strict=True)
    ]
    _require_derivative(leaves[numbered])
    return Entry(numbered, _stacked(indices) if indices else np.zeros((count, 0), np.int32))


def _stacked(indices: Sequence[Any]) -> Any:
    """Arrays of indices along a second axis; NumPy's, unless one of them is JAX's."""
    stack = jnp.stack if any(isinstance(i, jax.Array) for i in indices) else np.stack
    return stack(indices, axis=1)


def _require_derivative(output: Any) -> None:
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise TargetError(f"the output has dtype {output.dtype}, which has no derivative")


def _integers(index: Any, count: int, given: str) -> Any:
    array = index if isinstance(index, jax.Array) else np.asarray(index)
    if not jnp.issubdtype(array.dtype, jnp.integer) or array.shape not in ((), (count,)):
        raise TargetError(f"{given}: {index!r} is not an integer, nor an array of {count} integers")
    return array


def _require_integers(array: Any, outputs: Any) -> None:
    """Raise unless an array holds integers, and an integer is a target for such outputs."""
    others = (
        "a tuple of indices of one entry, a float cotangent with the outputs' structure and shape, "
        "or an objective of one item's outputs"
    )
    if array.dtype.kind == "U" and array.size:
        raise TargetError(f"the targets are strings: {_BY_INDEX.format(str(array.flat[0]))}")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TargetError(
            f"the target has dtype {array.dtype}: give a class index, an array of them, {others}"
        )
    inner = bare(outputs)
    if isinstance(outputs, SiteOutput):
        if outputs.channel_axis is None:
            raise TargetError(
                f"the target is a channel of {outputs.name}, whose output has shape "
                f"{inner.shape}: which axis holds channels cannot be determined; give {others}"
            )
    elif getattr(inner, "ndim", None) != 2:
        raise TargetError(
            f"the target is an integer, but the outputs have shape {shapes_of(inner)}: a class "
            f"index needs logits [N, K]; give {others}"
        )
    else:
        _require_derivative(inner)


def _indexed(array: Any, shape: tuple[int, ...], outputs: Any) -> Entry | Channel:
    """Class indices or channels, checked and broadcast to `shape`."""
    if isinstance(outputs, SiteOutput):
        axis = outputs.channel_axis
        assert axis is not None
        size = outputs.value.shape[axis]
        return Channel(axis, _in_range(array, shape, size, "channel", f" of {outputs.name}"))
    return Entry(0, _in_range(array, shape, outputs.shape[1], "class index")[..., None])


def _in_range(array: Any, shape: tuple[int, ...], size: int, what: str, of: str = "") -> Any:
    """Check and broadcast indices; the values of traced indices cannot be checked."""
    if not isinstance(array, Tracer):
        array = np.asarray(array)
        wrong = array[(array < 0) | (array >= size)]
        if wrong.size:
            raise TargetError(
                f"{what} {wrong[0]}{of} is out of range: there are {size}, so give 0 to {size - 1}"
            )
    broadcast = jnp.broadcast_to if isinstance(array, jax.Array) else np.broadcast_to
    return broadcast(array.astype(np.int32), shape)


def probabilities(logits: Float[jax.Array, "*N K"]) -> Float[jax.Array, "*N K"]:
    """The probabilities of logits `[N, K]`: their softmax, or the sigmoid of a single logit."""
    return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)


def values(target: Any, outputs: Any) -> Float[jax.Array, " N"]:
    """The scalar that a target assigns to each item's outputs."""
    if callable(target):
        return cast(jax.Array, jax.vmap(target)(bare(outputs)))
    return target.values(outputs)


def cotangents(target: Any, outputs: Any) -> Any:
    """The gradient of `values` with respect to the outputs, in their structure."""
    return jax.grad(lambda y: jnp.sum(values(target, y)), allow_int=True)(outputs)
