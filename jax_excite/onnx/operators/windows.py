"""Convolutions and pools, computed with channels last."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_excite.errors import NetworkError
from jax_excite.onnx.operators.operator import Operator
from jax_excite.onnx.program import Node
from jax_excite.onnx.values import ChannelsLast, Value, channels_last, lowest

Sides = list[tuple[int, int]]


def _padding(
    node: Node, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> Sides:
    """The cells added before and after each spatial axis.

    Args:
        node: the node.
        sizes: the sizes of the axes.
        spans: the sizes of the window, counting the gaps that dilation makes.
        strides: the strides of the window.
    """
    auto = node.get("auto_pad", "NOTSET")
    rank = len(sizes)
    if auto == "VALID":
        return [(0, 0)] * rank
    if auto == "NOTSET":
        pads = node.ints("pads", (0,) * (2 * rank))
        return list(zip(pads[:rank], pads[rank:], strict=True))
    sides = []
    for n, span, stride in zip(sizes, spans, strides, strict=True):
        total = max((math.ceil(n / stride) - 1) * stride + span - n, 0)
        sides.append(_halves(total, auto))
    return sides


def _halves(total: int, auto: str) -> tuple[int, int]:
    """Cells before and after an axis; if their number is odd, one more on the side of `auto`."""
    half = total // 2
    return (half, total - half) if auto == "SAME_UPPER" else (total - half, half)


def _conv(node: Node, x: Value, w: Value, b: Value = None) -> Value:
    rank = x.ndim - 2
    strides = node.ints("strides", (1,) * rank)
    dilations = node.ints("dilations", (1,) * rank)
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    kernel = jnp.transpose(jnp.asarray(w), (*range(2, rank + 2), 1, 0))
    padding = _padding(node, x.shape[2:], spans, strides)
    y = _convolve(node, x, kernel, padding, window_strides=strides, rhs_dilation=dilations)
    return ChannelsLast(y if b is None else y + b)


def _convolve(node: Node, x: Value, kernel: jax.Array, padding: Sides, **how: Any) -> jax.Array:
    """A convolution with channels last by a kernel `[*sizes, I, O]`."""
    axes = "DHWXY"[: x.ndim - 2]
    return lax.conv_general_dilated(
        channels_last(x),
        kernel,
        padding=padding,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=node.get("group", 1),
        **how,
    )


def _conv_transpose(node: Node, x: Value, w: Value, b: Value = None) -> Value:
    rank = x.ndim - 2
    strides = node.ints("strides", (1,) * rank)
    dilations = node.ints("dilations", (1,) * rank)
    extra = node.ints("output_padding", (0,) * rank)
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    sides = _transposed_padding(node, x.shape[2:], spans, strides, extra)
    groups = node.get("group", 1)
    inputs, outputs = w.shape[0] // groups, w.shape[1]
    kernel = jnp.flip(jnp.asarray(w), tuple(range(2, w.ndim)))
    kernel = kernel.reshape(groups, inputs, outputs, *w.shape[2:])
    kernel = jnp.moveaxis(kernel, (1, 0, 2), (-3, -2, -1)).reshape(
        *w.shape[2:], inputs, groups * outputs
    )
    padding = [
        (span - 1 - before, span - 1 - after + more)
        for span, (before, after), more in zip(spans, sides, extra, strict=True)
    ]
    how = {"window_strides": (1,) * rank, "lhs_dilation": strides, "rhs_dilation": dilations}
    y = _convolve(node, x, kernel, padding, **how)
    return ChannelsLast(y if b is None else y + b)


def _transposed_padding(
    node: Node,
    sizes: Sequence[int],
    spans: Sequence[int],
    strides: Sequence[int],
    extra: Sequence[int],
) -> Sides:
    """The cells that a transposed convolution leaves out before and after each axis."""
    rank = len(sizes)
    whole = [
        (n - 1) * stride + more + span
        for n, span, stride, more in zip(sizes, spans, strides, extra, strict=True)
    ]
    wanted = node.ints("output_shape")
    auto = node.get("auto_pad", "NOTSET")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * stride for n, stride in zip(sizes, strides, strict=True)]
    if wanted is None:
        pads = node.ints("pads", (0,) * (2 * rank)) if auto == "NOTSET" else (0,) * (2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    return [_halves(n - size, auto) for n, size in zip(whole, wanted[-rank:], strict=True)]


class _Pool:
    """The windows of a pool over the spatial axes of `[N, C, *spatial]`."""

    def __init__(self, node: Node, sizes: Sequence[int]):
        rank = len(sizes)
        self.window = node.ints("kernel_shape")
        self.strides = node.ints("strides", (1,) * rank)
        self.dilations = node.ints("dilations", (1,) * rank)
        self.spans = [(k - 1) * d + 1 for k, d in zip(self.window, self.dilations, strict=True)]
        self.sides = _padding(node, sizes, self.spans, self.strides)
        self.overhang = [
            _overhang(n, before, after, span, stride) if node.get("ceil_mode", 0) else 0
            for n, (before, after), span, stride in zip(
                sizes, self.sides, self.spans, self.strides, strict=True
            )
        ]

    @property
    def padding(self) -> Sides:
        """The cells added before and after each axis of a channels-last array."""
        sides = zip(self.sides, self.overhang, strict=True)
        return [(0, 0), *((before, after + more) for (before, after), more in sides), (0, 0)]

    def reduce(self, array: jax.Array, initial: Any, function: Callable[..., Any]) -> jax.Array:
        """Reduce the windows of a channels-last array; `initial` fills the padding."""
        return lax.reduce_window(
            array,
            np.asarray(initial, array.dtype),
            function,
            (1, *self.window, 1),
            (1, *self.strides, 1),
            self.padding,
            window_dilation=(1, *self.dilations, 1),
        )

    def counts(self, sizes: Sequence[int], *, with_padding: bool) -> np.ndarray:
        """The number of cells in each window, of the input or of the padded input."""
        total = np.ones((), np.float32)
        for axis, n in enumerate(sizes):
            before, after = self.sides[axis]
            low, high = (-before, n + after) if with_padding else (0, n)
            length = n + before + after + self.overhang[axis] - self.spans[axis]
            starts = np.arange(length // self.strides[axis] + 1) * self.strides[axis] - before
            cells = starts[:, None] + np.arange(self.window[axis]) * self.dilations[axis]
            inside = ((cells >= low) & (cells < high)).sum(1)
            total = total[..., None] * inside
        return total[..., None].astype(np.float32)


def _overhang(n: int, before: int, after: int, span: int, stride: int) -> int:
    """How far the last window extends beyond the padded edge, if it starts inside."""
    length = n + before + after - span
    windows = -(-length // stride) + 1
    if (windows - 1) * stride >= n + before:
        windows -= 1
    return max((windows - 1) * stride - length, 0)


def _max_pool(node: Node, x: Value) -> Any:
    pool, array = _Pool(node, x.shape[2:]), channels_last(x)
    array = jnp.asarray(array)
    largest = ChannelsLast(pool.reduce(array, lowest(array.dtype), lax.max))
    if len(node.outputs) < 2 or not node.outputs[1]:
        return largest
    # The index of an entry in the whole array, in which it has its logical place.
    order = np.arange(math.prod(x.shape)).reshape(x.shape)
    if node.get("storage_order", 0):
        columns = np.arange(math.prod(x.shape[2:])).reshape(x.shape[:1:-1])
        planes = np.arange(x.shape[0] * x.shape[1]) * columns.size
        order = planes.reshape(*x.shape[:2], *(1,) * columns.ndim) + columns.T
    index = jnp.moveaxis(jnp.asarray(order, jnp.int32), 1, -1)
    found = jnp.full(largest.array.shape, jnp.iinfo(jnp.int32).max, jnp.int32)
    least = jnp.asarray(lowest(array.dtype), array.dtype)
    values, places = (
        jnp.pad(part, pool.padding, constant_values=fill)
        for part, fill in ((array, least), (index, jnp.iinfo(jnp.int32).max))
    )
    for cell in np.ndindex(*pool.window):
        part = _cells(pool, cell, largest.array.shape)
        is_largest = values[part] == largest.array
        found = jnp.minimum(found, jnp.where(is_largest, places[part], found))
    return largest, ChannelsLast(found.astype(jax.dtypes.canonicalize_dtype(np.int64)))


def _cells(pool: _Pool, cell: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """The entries of a padded array that are in one cell of each window."""
    steps = zip(cell, pool.dilations, pool.strides, shape[1:-1], strict=True)
    inner = (slice(c * d, c * d + (m - 1) * s + 1, s) for c, d, s, m in steps)
    return (slice(None), *inner, slice(None))


def _average_pool(node: Node, x: Value) -> Value:
    pool, array = _Pool(node, x.shape[2:]), channels_last(x)
    total = pool.reduce(array, 0, lax.add)
    counts = pool.counts(x.shape[2:], with_padding=bool(node.get("count_include_pad", 0)))
    return ChannelsLast(total / counts.astype(total.dtype))


def _lp_pool(node: Node, x: Value) -> Value:
    p = node.get("p", 2)
    total = _Pool(node, x.shape[2:]).reduce(jnp.abs(channels_last(x)) ** p, 0, lax.add)
    return ChannelsLast(total ** (1 / p))


def _global(name: str) -> Operator:
    """A reduction over all positions."""

    def evaluate(node: Node, x: Value) -> Value:
        array = jnp.asarray(channels_last(x))
        axes = tuple(range(1, array.ndim - 1))
        return ChannelsLast(getattr(jnp, name)(array, axes, keepdims=True))

    return Operator(evaluate, any_order=True)


def _max_unpool(node: Node, x: Value, index: Value, shape: Value = None) -> Value:
    pool = _Pool(node, x.shape[2:])
    sizes = [
        (n - 1) * stride - before - after + span
        for n, stride, (before, after), span in zip(
            x.shape[2:], pool.strides, pool.sides, pool.spans, strict=True
        )
    ]
    plain = (*x.shape[:2], *sizes)
    flat = jnp.zeros(math.prod(plain), x.dtype).at[index.ravel()].set(x.ravel())
    if shape is None:
        return flat.reshape(plain)
    wanted = tuple(int(n) for n in np.asarray(shape))
    # Indices are those of an array without the additional rows and columns.
    widths = [(0, w - n) for w, n in zip(wanted, plain, strict=True)]
    return jnp.pad(flat.reshape(plain), widths)


def _grid_sample(node: Node, x: Value, grid: Value) -> Value:
    rank = x.ndim - 2
    if rank not in (2, 3):
        raise NetworkError(f"{node}: grids of {rank} dimensions are not supported")
    align, fill = node.get("align_corners", 0), node.get("padding_mode", "zeros")
    mode = str(node.get("mode", "linear")).removeprefix("bi")
    sizes = x.shape[2:]
    places = []
    for axis, n in enumerate(sizes):  # the last axis of the grid counts from the last axis of x
        at = grid[..., rank - 1 - axis]
        places.append((at + 1) / 2 * (n - 1) if align else ((at + 1) * n - 1) / 2)
    per_axis = [
        _samples(at, n, mode, fill, bool(align)) for at, n in zip(places, sizes, strict=True)
    ]
    batch = jnp.arange(x.shape[0]).reshape(-1, *(1,) * (grid.ndim - 2))
    array = jnp.moveaxis(jnp.asarray(x), 1, -1)
    total: Any = 0
    for choice in itertools.product(*per_axis):
        weight = math.prod((w for _, w in choice[1:]), start=choice[0][1])
        total = total + array[(batch, *(i for i, _ in choice))] * jnp.expand_dims(weight, -1)
    return jnp.moveaxis(total, -1, 1).astype(x.dtype)


def _samples(at: Any, n: int, mode: str, fill: str, align: bool) -> list[tuple[Any, Any]]:
    """Indices along an axis and their weights, for places given as real numbers."""
    if fill == "border" and mode != "cubic":
        at = jnp.clip(at, 0, n - 1)
    if fill == "reflection" and mode != "cubic":
        at = _reflected(at, n, align)
    first = jnp.floor(at)
    part = at - first
    if mode == "nearest":
        offsets, weights = [0], [jnp.ones_like(at)]
        first = jnp.round(at)
    elif mode == "linear":
        offsets, weights = [0, 1], [1 - part, part]
    else:
        offsets = [-1, 0, 1, 2]
        weights = [cubic(part - offset, -0.75) for offset in offsets]
    samples = []
    for offset, weight in zip(offsets, weights, strict=True):
        place = first + offset
        if fill == "border":
            place = jnp.clip(place, 0, n - 1)
        elif fill == "reflection":
            place = jnp.clip(_reflected(place, n, align), 0, n - 1)
        inside = (place >= 0) & (place <= n - 1)
        index = jnp.clip(place, 0, n - 1).astype(jnp.int32)
        samples.append((index, jnp.where(inside, weight, 0)))
    return samples


def _reflected(at: Any, n: int, align: bool) -> Any:
    low, high = (0.0, n - 1.0) if align else (-0.5, n - 0.5)
    span = high - low
    if span == 0:
        return jnp.zeros_like(at)
    over = jnp.mod(jnp.abs(at - low), 2 * span)
    return jnp.where(over > span, 2 * span - over, over) + low


def cubic(distance: Any, a: float) -> Any:
    """The weight of the cubic convolution kernel (Keys, 1981)."""
    d = abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    xp = np if isinstance(d, np.ndarray) else jnp
    return xp.where(d <= 1, near, xp.where(d < 2, far, xp.zeros_like(d)))


def _lrn(node: Node, x: Value) -> Value:
    size, array = node.get("size"), channels_last(x)
    sides = [(0, 0)] * (x.ndim - 1) + [((size - 1) // 2, size - 1 - (size - 1) // 2)]
    window = (1,) * (x.ndim - 1) + (size,)
    total = lax.reduce_window(
        array * array, np.asarray(0, x.dtype), lax.add, window, (1,) * x.ndim, sides
    )
    scale = node.get("bias", 1.0) + node.get("alpha", 1e-4) / size * total
    return ChannelsLast(array / scale ** node.get("beta", 0.75))


OPERATORS = {
    "AveragePool": Operator(_average_pool, any_order=True),
    "Conv": Operator(_conv, any_order=True),
    "ConvTranspose": Operator(_conv_transpose, any_order=True),
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("max"),
    "GridSample": Operator(_grid_sample),
    "LRN": Operator(_lrn, any_order=True),
    "LpPool": Operator(_lp_pool, any_order=True),
    "MaxPool": Operator(_max_pool, any_order=True),
    "MaxUnpool": Operator(_max_unpool, known=(2,)),
}
