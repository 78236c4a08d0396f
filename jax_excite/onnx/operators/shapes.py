"""Operators that move, repeat, join or cut arrays, or compute with their shapes."""

import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_excite.errors import NetworkError
from jax_excite.onnx.operators.operator import Operator
from jax_excite.onnx.program import Node
from jax_excite.onnx.values import (
    ChannelsLast,
    Value,
    bounded,
    channels_last,
    dtype_of,
    known,
    logical,
    numpy_or_jax,
)


def _axes(node: Node, given: Value, rank: int) -> tuple[int, ...] | None:
    """Axes given as an input, or until version 12 as an attribute; None if they are absent."""
    axes = node.ints("axes") if given is None else known(node, given, "axes").ravel()
    return None if axes is None else tuple(int(axis) % max(rank, 1) for axis in axes)


def _shape(node: Node, x: Value) -> Value:
    start, end = node.get("start", 0), node.get("end")
    return np.asarray(x.shape[start:end], np.int64)


def _size(node: Node, x: Value) -> Value:
    return np.asarray(math.prod(x.shape), np.int64)


def _reshape(node: Node, x: Value, shape: Value = None) -> Value:
    sizes = node.ints("shape") if shape is None else known(node, shape, "shape")
    sizes = [int(n) for n in np.ravel(sizes)]
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    try:
        return x.reshape(sizes)
    except (TypeError, ValueError) as error:
        raise NetworkError(f"{node}: shape {x.shape} does not fit {sizes}") from error


def _flatten(node: Node, x: Value) -> Value:
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(node: Node, x: Value, axes: Value = None) -> Value:
    return numpy_or_jax(x).squeeze(x, _axes(node, axes, x.ndim))


def _unsqueeze(node: Node, x: Value, axes: Value = None) -> Value:
    count = len(node.ints("axes", ())) if axes is None else np.size(axes)
    return numpy_or_jax(x).expand_dims(x, _axes(node, axes, x.ndim + count))


def _transpose(node: Node, x: Value) -> Value:
    order = node.ints("perm", tuple(reversed(range(x.ndim))))
    if isinstance(x, ChannelsLast):
        if order == (0, *range(2, x.ndim), 1):
            return x.array
        x = logical(x)
    elif x.ndim > 2 and order == (0, x.ndim - 1, *range(1, x.ndim - 1)):
        return x.transpose(order) if isinstance(x, np.ndarray) else ChannelsLast(x)
    return x.transpose(order)


def _expand(node: Node, x: Value, shape: Value) -> Value:
    sizes = tuple(known(node, shape, "shape").ravel().tolist())
    whole = bounded(node, np.broadcast_shapes(x.shape, sizes), x)
    return numpy_or_jax(x).broadcast_to(x, whole)


def _tile(node: Node, x: Value, repeats: Value) -> Value:
    times = known(node, repeats, "repeats").ravel().tolist()
    bounded(node, [n * size for n, size in zip(times, x.shape, strict=True)], x)
    return numpy_or_jax(x).tile(x, times)


def _concat(node: Node, *values: Value) -> Value:
    axis = node.get("axis", 1)
    last = [isinstance(value, ChannelsLast) for value in values]
    if any(last):
        place = values[last.index(True)].axis(axis)
        return ChannelsLast(jnp.concatenate([channels_last(v) for v in values], place))
    return numpy_or_jax(*values).concatenate(values, axis)


def _split(node: Node, x: Value, split: Value = None) -> Any:
    axis, count = node.get("axis", 0) % x.ndim, len(node.outputs)
    total = x.shape[axis]
    sizes = node.ints("split") if split is None else known(node, split, "split")
    if sizes is None:
        each = -(-total // node.get("num_outputs", count))
        sizes = [min(each, total - i * each) for i in range(count)]
    ends = [int(n) for n in itertools.accumulate(np.ravel(sizes))]
    parts = []
    for start, end in itertools.pairwise([0, *ends]):
        if isinstance(x, ChannelsLast):
            parts.append(ChannelsLast(_cut(x.array, x.axis(axis), slice(start, end))))
        else:
            parts.append(_cut(x, axis, slice(start, end)))
    return tuple(parts)


def _cut(x: Value, axis: int, part: slice) -> Value:
    return x[(slice(None),) * axis + (part,)]


def _slice(
    node: Node,
    x: Value,
    starts: Value = None,
    ends: Value = None,
    axes: Value = None,
    steps: Value = None,
) -> Value:
    first, last = (
        node.ints(name) if given is None else known(node, given, name).ravel()
        for name, given in (("starts", starts), ("ends", ends))
    )
    places = _axes(node, axes, x.ndim) or range(len(first))
    strides = [1] * len(first) if steps is None else known(node, steps, "steps").ravel()
    array, is_last = (x.array, True) if isinstance(x, ChannelsLast) else (x, False)
    for axis, start, end, step in zip(places, first, last, strides, strict=True):
        # A slice's `indices` clamps out-of-range numbers as ONNX does.
        size = x.shape[axis]
        low, high, by = slice(int(start), int(end), int(step)).indices(size)
        stop = None if high < 0 else high
        array = _cut(array, x.axis(axis) if is_last else axis, slice(low, stop, by))
    return ChannelsLast(array) if is_last else array


def _pad(
    node: Node, x: Value, pads: Value = None, value: Value = None, axes: Value = None
) -> Value:
    amounts = node.ints("pads") if pads is None else known(node, pads, "pads").ravel()
    places = range(x.ndim) if axes is None else _axes(node, axes, x.ndim) or ()
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(places):
        widths[axis] = int(amounts[i]), int(amounts[i + len(amounts) // 2])
    array = x
    if isinstance(x, ChannelsLast):
        array, widths = x.array, [widths[0], *widths[2:], widths[1]]
    # Negative amounts cut.
    cut = [slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(widths, array.shape, strict=True)]
    array, widths = array[tuple(cut)], [(max(a, 0), max(b, 0)) for a, b in widths]
    sizes = [n + a + b for n, (a, b) in zip(array.shape, widths, strict=True)]
    bounded(node, sizes, array)
    mode = node.get("mode", "constant")
    xp = numpy_or_jax(array, value)
    fill = node.get("value", 0.0) if value is None else value.reshape(())
    options = {"constant_values": fill} if mode == "constant" else {}
    result = xp.pad(array, widths, mode, **options).astype(x.dtype)
    return ChannelsLast(result) if isinstance(x, ChannelsLast) else result


def _constant_of_shape(node: Node, shape: Value) -> Value:
    value = node.get("value")
    value = np.zeros(1, np.float32) if value is None else value
    return np.full(bounded(node, known(node, shape, "shape")), value.reshape(()), value.dtype)


def _range(node: Node, start: Value, limit: Value, delta: Value) -> Value:
    numbers = [known(node, value, "limits").item() for value in (start, limit, delta)]
    bounded(node, [max(0, math.ceil((numbers[1] - numbers[0]) / numbers[2]))])
    return np.arange(*numbers).astype(start.dtype)


def _eye_like(node: Node, x: Value) -> Value:
    kind = node.get("dtype")
    return np.eye(*x.shape, k=node.get("k", 0)).astype(x.dtype if kind is None else dtype_of(kind))


def _trilu(node: Node, x: Value, k: Value = None) -> Value:
    offset = 0 if k is None else int(known(node, k, "k"))
    xp = numpy_or_jax(x)
    return (xp.triu if node.get("upper", 1) else xp.tril)(x, offset)


def _depth_to_space(node: Node, x: Value) -> Value:
    x, size = channels_last(x), node.get("blocksize")
    n, h, w, c = x.shape
    if node.get("mode", "DCR") == "DCR":
        x = x.reshape(n, h, w, size, size, c // size**2).transpose(0, 1, 3, 2, 4, 5)
    else:
        x = x.reshape(n, h, w, c // size**2, size, size).transpose(0, 1, 4, 2, 5, 3)
    return ChannelsLast(jnp.asarray(x.reshape(n, h * size, w * size, c // size**2)))


def _space_to_depth(node: Node, x: Value) -> Value:
    x, size = channels_last(x), node.get("blocksize")
    n, h, w, c = x.shape
    order = (0, 1, 3, 2, 4, 5) if node.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    x = x.reshape(n, h // size, size, w // size, size, c).transpose(order)
    return ChannelsLast(jnp.asarray(x.reshape(n, h // size, w // size, c * size**2)))


def _reverse_sequence(node: Node, x: Value, lengths: Value) -> Value:
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    moved = jnp.moveaxis(x, (batch, time), (0, 1))
    place = jnp.arange(moved.shape[1])[None]
    own = jnp.asarray(lengths)[:, None]
    index = jnp.where(place < own, own - 1 - place, place)
    index = index.reshape(*index.shape, *(1,) * (moved.ndim - 2))
    return jnp.moveaxis(jnp.take_along_axis(moved, index, 1), (0, 1), (batch, time))


def _col2im(node: Node, x: Value, image: Value, block: Value) -> Value:
    sizes, window = (known(node, v, "shape").ravel().tolist() for v in (image, block))
    rank = len(sizes)
    strides = node.ints("strides", (1,) * rank)
    dilations = node.ints("dilations", (1,) * rank)
    pads = node.ints("pads", (0,) * (2 * rank))
    whole = [n + pads[i] + pads[i + rank] for i, n in enumerate(sizes)]
    counts = [
        (n - (w - 1) * d - 1) // s + 1
        for n, w, d, s in zip(whole, window, dilations, strides, strict=True)
    ]
    x = x.reshape(len(x), -1, *window, *counts)
    total = jnp.zeros((*x.shape[:2], *whole), x.dtype)
    for cell in np.ndindex(*window):
        place = tuple(
            slice(c * d, c * d + (m - 1) * s + 1, s)
            for c, d, m, s in zip(cell, dilations, counts, strides, strict=True)
        )
        total = total.at[(..., *place)].add(x[(slice(None), slice(None), *cell)])
    inside = tuple(slice(pads[i], pads[i] + n) for i, n in enumerate(sizes))
    return total[(..., *inside)]


def _center_crop_pad(node: Node, x: Value, shape: Value) -> Value:
    sizes = known(node, shape, "shape").ravel()
    axes = node.ints("axes", tuple(range(x.ndim)))
    for axis, size in zip(axes, sizes, strict=True):
        axis, have = axis % x.ndim, x.shape[axis]
        if have > size:
            start = (have - int(size)) // 2
            x = lax.slice_in_dim(x, start, start + int(size), axis=axis)
        else:
            before = (int(size) - have) // 2
            widths = [(0, 0)] * x.ndim
            widths[axis] = (before, int(size) - have - before)
            x = jnp.pad(x, widths)
    return x


OPERATORS = {
    "CenterCropPad": Operator(_center_crop_pad, known=(1,)),
    "Col2Im": Operator(_col2im, known=(1, 2)),
    "Concat": Operator(_concat, any_order=True),
    "ConstantOfShape": Operator(_constant_of_shape, known=(0,)),
    "DepthToSpace": Operator(_depth_to_space, any_order=True),
    "Expand": Operator(_expand, known=(1,)),
    "EyeLike": Operator(_eye_like),
    "Flatten": Operator(_flatten),
    "Pad": Operator(_pad, known=(1, 3), any_order=True),
    "Range": Operator(_range, known=(0, 1, 2)),
    "Reshape": Operator(_reshape, known=(1,)),
    "ReverseSequence": Operator(_reverse_sequence),
    "Shape": Operator(_shape, any_order=True),
    "Size": Operator(_size, any_order=True),
    "Slice": Operator(_slice, known=(1, 2, 3, 4), any_order=True),
    "SpaceToDepth": Operator(_space_to_depth, any_order=True),
    "Split": Operator(_split, known=(1,), any_order=True),
    "Squeeze": Operator(_squeeze, known=(1,)),
    "Tile": Operator(_tile, known=(1,)),
    "Transpose": Operator(_transpose, any_order=True),
    "Trilu": Operator(_trilu, known=(1,)),
    "Unsqueeze": Operator(_unsqueeze, known=(1,)),
}
