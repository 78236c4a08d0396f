"""The convolutions of a graph, with input gradients in the forms of `convolution_forms`.

These forms are for CPUs. Elsewhere convolutions and their gradients are those of XLA.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_excite.convolution_forms import Convolution, choose
from jax_excite.graph import Constant, Graph, Node, Operand, passed_on

Kernels = dict[int, Any]  # by `Node.number`: what `Form.prepare` made of a convolution's kernel


def find_convolution(graph: Graph, node: Node) -> Convolution | None:
    """What a node computes, if that is a convolution of channels-last floats with a form here."""
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


def prepare_kernels(graph: Graph, known: Mapping[Operand, Any] | None = None) -> Kernels:
    """What input gradients need of the kernels that are constants of a graph.

    Made outside of a loop in which the graph is run, it is made once.

    Args:
        graph: with the graphs nested in it.
        known: values of some of its inputs.
    """

    def value(operand: Operand | None) -> Any:
        if isinstance(operand, Constant):
            return operand.value
        return None if operand is None or known is None else known.get(operand)

    kernels: Kernels = {}
    for node in graph.nodes:
        conv = find_convolution(graph, node)
        if conv is not None and (w := value(node.inputs[1])) is not None:
            form = choose(conv, _type(graph, node.inputs[0]).shape, w.shape)
            kernels[node.number] = form and form.prepare(conv, jnp.asarray(w))
        for body, operands in zip(node.bodies, passed_on(node), strict=True):
            kernels |= prepare_kernels(
                body, dict(zip(body.inputs, map(value, operands), strict=True))
            )
    return kernels


def _type(graph: Graph, operand: Operand) -> Any:
    return jax.typeof(operand.value) if isinstance(operand, Constant) else graph.types[operand]


def convolve(
    conv: Convolution, x: jax.Array, w: jax.Array, kernels: Any = None, *, exact: bool = False
) -> jax.Array:
    """A convolution, with a fast input gradient.

    Args:
        conv: which.
        x: `[N, *spatial, I]`.
        w: `[*sizes, I, O]`.
        kernels: what `prepare_kernels` made of `w`; if None it is made anew.
        exact: compute the convolution as XLA does, bit for bit, if that is slower too.
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
        return form.gradient(conv, x.shape, prepared, g)

    def plain(w: jax.Array, kernels: Any, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda x: conv(x, w), x)(g)[0]

    by_x = lax.platform_dependent(w, kernels, cotangent, cpu=fast, default=plain)
    (by_w,) = jax.linear_transpose(functools.partial(conv, x), w)(cotangent)
    return by_x, by_w, None


_convolve.defvjp(_convolve_fwd, _convolve_bwd)
