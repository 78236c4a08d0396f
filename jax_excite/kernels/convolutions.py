"""The convolutions of a graph, with input gradients in the forms of `convolution_forms`.

These forms are for CPUs. On other devices, convolutions and their gradients are those of XLA.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_excite.graphs.consumers import Consumers
from jax_excite.graphs.graph import Constant, Graph, Node, Operand, passed_on
from jax_excite.kernels.convolution_forms import Convolution, choose
from jax_excite.kernels.folding import ChannelMap, following_map, known_values


def find_convolution(graph: Graph, node: Node) -> Convolution | None:
    """The convolution that a node computes, if it is channels-last, of floats and has a form."""
    if node.name != "conv_general_dilated":
        return None
    params = node.params
    x, w = (_type(graph, operand) for operand in node.inputs)
    rank = x.ndim
    numbers = params["dimension_numbers"]
    channels_last = (0, rank - 1, *range(1, rank - 1))
    if not (
        3 <= rank <= 5
        and numbers.lhs_spec == numbers.out_spec == channels_last
        and numbers.rhs_spec == (rank - 1, rank - 2, *range(rank - 2))
        and params["batch_group_count"] == 1
        and {*params["lhs_dilation"], *params["rhs_dilation"]} == {1}
        and jnp.issubdtype(x.dtype, jnp.floating)
        and x.dtype == w.dtype
        and params["preferred_element_type"] in (None, x.dtype)
    ):
        return None
    conv = Convolution(
        tuple(params["window_strides"]),
        tuple(params["padding"]),
        params["feature_group_count"],
        params["precision"],
    )
    return conv if choose(conv, x.shape, w.shape) is not None else None


@dataclasses.dataclass(frozen=True)
class Folded:
    """A convolution with a known kernel, together with the channel map that follows it.

    Attributes:
        w: its kernel.
        shift: the number added to each channel; None for 0.
        kernels: the arrays prepared from the kernel for its input gradient.
    """

    w: jax.Array
    shift: jax.Array | None
    kernels: Any


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The part of a graph that can be computed before the graph is run.

    Attributes:
        folded: the convolutions, by node number.
        absorbed: the nodes that these convolutions compute too, by number, each with the position
            of the input that it passes on.
    """

    folded: dict[int, Folded]
    absorbed: dict[int, int]


def prepare(
    graph: Graph, inputs: Mapping[int, Any] | None = None, *, fold: bool = True
) -> Prepared:
    """Fold the channel maps after convolutions into them, and prepare their input gradients.

    This applies to convolutions whose kernels are constants of a graph. If you call it outside a
    loop in which the graph is run, the work is done only once.

    Args:
        graph: the graph; the graphs nested in it are included.
        inputs: the known values of its inputs.
        fold: whether to fold; for one image the folded kernels cost more than they save.
    """
    value, consumers = known_values(graph, dict(inputs or {})), Consumers(graph)
    prepared = Prepared({}, {})
    for node in graph.nodes:
        conv = find_convolution(graph, node)
        if conv is not None and (w := value(node.inputs[1])) is not None:
            w = jnp.asarray(w)
            following = ChannelMap(None, None, {})
            if fold:
                following = following_map(graph, node, value, consumers)
            w = w if following.scale is None else w * following.scale
            form = choose(conv, _type(graph, node.inputs[0]).shape, w.shape)
            kernels = form and form.prepare(conv, w)
            prepared.folded[node.number] = Folded(w, following.shift, kernels)
            prepared.absorbed.update(following.absorbed)
        for body, operands in zip(node.bodies, passed_on(node), strict=True):
            # A body receives slices of the arrays that a scan iterates over, and shards under
            # `shard_map`.
            known = {
                number: found
                for number, operand in zip(body.inputs, operands, strict=True)
                if (found := value(operand)) is not None
                and np.shape(found) == body.types[number].shape
            }
            inner = prepare(body, known, fold=fold)
            prepared.folded.update(inner.folded)
            prepared.absorbed.update(inner.absorbed)
    return prepared


def _type(graph: Graph, operand: Operand) -> Any:
    return jax.typeof(operand.value) if isinstance(operand, Constant) else graph.types[operand]


def convolve(
    conv: Convolution, x: jax.Array, w: jax.Array, kernels: Any = None, *, exact: bool = False
) -> jax.Array:
    """A convolution, with a fast input gradient.

    Args:
        conv: the convolution.
        x: `[N, *spatial, I]`.
        w: `[*sizes, I, O]`.
        kernels: the arrays that its form prepared from `w`; if None, they are computed here.
        exact: compute the convolution as XLA does, bit for bit, even if that is slower.
    """
    return _convolve(conv, exact, x, w, kernels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(
    conv: Convolution, exact: bool, x: jax.Array, w: jax.Array, kernels: Any
) -> jax.Array:
    form = choose(conv, x.shape, w.shape)
    if exact or form is None or form.forward is None:
        return conv(x, w)
    return lax.platform_dependent(x, w, cpu=functools.partial(form.forward, conv), default=conv)


def _convolve_fwd(
    conv: Convolution, exact: bool, x: jax.Array, w: jax.Array, kernels: Any
) -> tuple[jax.Array, Any]:
    return _convolve(conv, exact, x, w, kernels), (x, w, kernels)


def _convolve_bwd(
    conv: Convolution, exact: bool, residuals: Any, cotangent: jax.Array
) -> tuple[Any, ...]:
    x, w, kernels = residuals
    form = choose(conv, x.shape, w.shape)
    assert form is not None

    def fast(w: jax.Array, kernels: Any, g: jax.Array) -> jax.Array:
        prepared = form.prepare(conv, w) if kernels is None else kernels
        return form.gradient(conv, x.shape, w, prepared, g)

    def plain(w: jax.Array, kernels: Any, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda x: conv(x, w), x)(g)[0]

    by_x = lax.platform_dependent(w, kernels, cotangent, cpu=fast, default=plain)
    (by_w,) = jax.linear_transpose(functools.partial(conv, x), w)(cotangent)
    return by_x, by_w, None


_convolve.defvjp(_convolve_fwd, _convolve_bwd)
