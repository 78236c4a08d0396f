"""A test whether a function treats batch items independently, so that a batch may be split.

The batch axis is followed through the graph. A primitive that is not known to keep items separate
is assumed to mix them. Anything that depends on the number of items also counts as mixing. The
graphs for a block and for the whole batch therefore have to be the same except for sizes. A value
that does not depend on any item may be as long as the batch only along axes where it is constant.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_excite.graphs.graph import (
    JAX,
    OWN,
    Constant,
    Graph,
    Node,
    Operand,
    is_call,
    of_package,
    scan_operands,
)
from jax_excite.graphs.profiles import elementwise


@dataclasses.dataclass(frozen=True)
class _Batched:
    """A value with one entry per item along an axis."""

    axis: int


@dataclasses.dataclass(frozen=True)
class _Shared:
    """A value that does not depend on any item; along `uniform` axes its entries are the same."""

    uniform: frozenset[int] = frozenset()


_State = _Batched | _Shared
_States = dict[int, _State]


class _MixesError(Exception):
    """Items are mixed, or may be mixed."""


def treats_items_alone(graph: Graph, batched: Sequence[int], whole: Graph) -> bool:
    """Whether each item's outputs depend only on that item and on values that all items share.

    Args:
        graph: the graph for a block of a batch.
        batched: those of its inputs that have the items along axis 0. All its outputs must
            have them there too.
        whole: the graph for the whole batch.
    """
    states: _States = {n: _Batched(0) if n in batched else _Shared() for n in graph.inputs}
    try:
        _require_same(graph, whole)
        _follow(graph, states)
        _require_no_count(graph, whole, states)
    except _MixesError:
        return False
    return all(_state(states, output) == _Batched(0) for output in graph.outputs)


def batch_axis(graph: Graph, batched: Sequence[int], number: int) -> int | None:
    """The axis of a value that holds the items, or None if it is not known.

    Args:
        graph: the graph of a function of a batch.
        batched: those of its inputs that have the items along axis 0.
        number: the value, of the graph or of one that is nested in it.
    """
    states: _States = {n: _Batched(0) if n in batched else _Shared() for n in graph.inputs}
    with contextlib.suppress(_MixesError):
        _follow(graph, states)
    state = states.get(number)
    return state.axis if isinstance(state, _Batched) else None


def _require_same(graph: Graph, whole: Graph) -> None:
    """Require that two graphs are the same except for sizes, so that their values correspond.

    Args:
        graph: the graph for a block.
        whole: the graph for the whole batch.
    """
    _require(graph.inputs == whole.inputs)
    _require_same_operands(graph.outputs, whole.outputs)
    _require(len(graph.nodes) == len(whole.nodes))
    for node, other in zip(graph.nodes, whole.nodes, strict=True):
        _require(node.name == other.name and node.outputs == other.outputs)
        _require_same_operands(node.inputs, other.inputs)
        for name, value in node.params.items():
            _require(name in _SIZES or _same(value, other.params.get(name)))
        _require(len(node.bodies) == len(other.bodies))
        for body, other_body in zip(node.bodies, other.bodies, strict=True):
            _require_same(body, other_body)


# Parameters that specify the size of an output.
_SIZES = ("shape", "new_sizes", "limit_indices", "slice_sizes", "sizes")


def _require_same_operands(operands: Sequence[Operand], others: Sequence[Operand]) -> None:
    _require(len(operands) == len(others))
    for operand, other in zip(operands, others, strict=True):
        if isinstance(operand, Constant) and isinstance(other, Constant):
            a, b = operand.value, other.value
            _require(a is b or (_is_known(a) and _is_known(b) and np.array_equal(a, b)))
        else:
            _require(operand == other)


def _is_known(value: Any) -> bool:
    """Whether a constant's numbers are accessible; those of a tracer or a random key are not."""
    is_key = jnp.issubdtype(jax.typeof(value).dtype, jax.dtypes.extended)
    return not isinstance(value, Tracer) and not is_key


def _same(value: Any, other: Any) -> bool:
    """Whether two parameters are the same; only numbers, strings and tuples are compared."""
    if isinstance(value, tuple) and isinstance(other, tuple):
        pairs = zip(value, other, strict=True)
        return len(value) == len(other) and all(_same(a, b) for a, b in pairs)
    if isinstance(value, (bool, int, float, str)):
        return value == other
    return True


def _require_no_count(graph: Graph, whole: Graph, states: _States) -> None:
    """Require that the length of the batch appears only as a batch axis or as a uniform axis.

    Unless a shared value with such an axis is used entry by entry, it could reveal the number of
    items.
    """
    sized = {
        number: frozenset(
            axis
            for axis, sizes in enumerate(
                zip(graph.types[number].shape, whole.types[number].shape, strict=True)
            )
            if sizes[0] != sizes[1]
        )
        for number in states
    }
    for number, state in states.items():
        fits = {state.axis} if isinstance(state, _Batched) else state.uniform
        _require(sized[number] <= fits)
    _require_counted(graph, states, sized)


def _require_counted(graph: Graph, states: _States, sized: dict[int, frozenset[int]]) -> None:
    for node in graph.nodes:
        inputs = [n for n in node.inputs if not isinstance(n, Constant)]
        shared = all(isinstance(states.get(n), _Shared) for n in inputs)
        if shared and any(sized.get(n) for n in inputs) and not is_call(node):
            _require(all(sized[n] for n in node.outputs))
        for body in node.bodies:
            _require_counted(body, states, sized)


def _state(states: _States, operand: Operand) -> _State:
    if not isinstance(operand, Constant):
        return states[operand]
    shape = np.shape(operand.value)
    return _Shared(frozenset(axis for axis, n in enumerate(shape) if n == 1))


def _shape(graph: Graph, operand: Operand) -> tuple[int, ...]:
    is_constant = isinstance(operand, Constant)
    return np.shape(operand.value) if is_constant else graph.types[operand].shape


def _follow(graph: Graph, states: _States) -> None:
    for node in graph.nodes:
        inputs = [_state(states, operand) for operand in node.inputs]
        if node.bodies and node.name in _BODIES:
            outputs = _BODIES[node.name](node, inputs, states)
        elif not any(isinstance(state, _Batched) for state in inputs):
            outputs = _shared(graph, node, inputs)
        elif node.name in _RULES:
            outputs = [_RULES[node.name](graph, node, inputs)] * len(node.outputs)
        elif elementwise(node.name, node.params) is not None or node.name in _ENTRY_BY_ENTRY:
            outputs = [_together(graph, node, inputs)] * len(node.outputs)
        else:
            raise _MixesError(node.name)
        states.update(zip(node.outputs, outputs, strict=True))


# These are elementwise too, though `profiles` does not need them.
_ENTRY_BY_ENTRY = ("stop_gradient", "real", "imag", "nextafter")


def _together(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    """The batch axis of operands of one shape; shared operands have to be uniform along it."""
    axes = {state.axis for state in inputs if isinstance(state, _Batched)}
    if len(axes) != 1:
        raise _MixesError(node.name)
    (axis,) = axes
    for operand, state in zip(node.inputs, inputs, strict=True):
        shape = _shape(graph, operand)
        varies = len(shape) > 0 and shape[axis] != 1
        if isinstance(state, _Shared) and varies and axis not in state.uniform:
            raise _MixesError(node.name)
    return _Batched(axis)


def _shared(graph: Graph, node: Node, inputs: list[_State]) -> list[_State]:
    """The states of the outputs of a node that does not depend on any item."""
    uniform: frozenset[int] = frozenset()
    states = [state for state in inputs if isinstance(state, _Shared)]
    if node.name == "broadcast_in_dim":
        places, shape = node.params["broadcast_dimensions"], _shape(graph, node.inputs[0])
        kept = {
            place
            for axis, place in enumerate(places)
            if shape[axis] != 1 and axis not in states[0].uniform
        }
        uniform = frozenset(range(len(node.params["shape"]))) - kept
    elif node.name == "iota":
        uniform = frozenset(range(len(node.params["shape"]))) - {node.params["dimension"]}
    elif elementwise(node.name, node.params) is not None and len(node.outputs) == 1:
        arrays = [
            state.uniform | {axis for axis, n in enumerate(_shape(graph, operand)) if n == 1}
            for operand, state in zip(node.inputs, states, strict=True)
            if _shape(graph, operand)
        ]
        uniform = frozenset.intersection(*map(frozenset, arrays)) if arrays else uniform
    return [_Shared(uniform)] * len(node.outputs)


def _first(inputs: list[_State]) -> int:
    """The batch axis of the first operand; the others must not have one."""
    state, *others = inputs
    if not isinstance(state, _Batched) or any(isinstance(s, _Batched) for s in others):
        raise _MixesError
    return state.axis


def _require(condition: bool) -> None:
    if not condition:
        raise _MixesError


def _broadcast(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    return _Batched(node.params["broadcast_dimensions"][_first(inputs)])


def _reshape(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    axis = _first(inputs)
    old, new = _shape(graph, node.inputs[0]), node.params["new_sizes"]
    fits = [
        place
        for place, n in enumerate(new)
        if n == old[axis] and math.prod(new[:place]) == math.prod(old[:axis])
    ]
    _require(bool(fits))
    return _Batched(axis if axis in fits else fits[0])


def _squeeze(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    axis, gone = _first(inputs), node.params["dimensions"]
    _require(axis not in gone)
    return _Batched(axis - sum(d < axis for d in gone))


def _expand(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    axis = _first(inputs)
    for place in sorted(node.params["dimensions"]):
        axis += place <= axis
    return _Batched(axis)


def _transpose(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    return _Batched(tuple(node.params["permutation"]).index(_first(inputs)))


def _reduce(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    axis, gone = _first(inputs), node.params["axes"]
    _require(axis not in gone)
    return _Batched(axis - sum(d < axis for d in gone))


def _along(param: str) -> Callable[[Graph, Node, list[_State]], _State]:
    """Return the rule of primitives that run along the axis, or axes, given by a parameter."""

    def rule(graph: Graph, node: Node, inputs: list[_State]) -> _State:
        state = _together(graph, node, inputs)
        along = node.params[param]
        assert isinstance(state, _Batched)
        _require(state.axis not in (along if isinstance(along, tuple) else (along,)))
        return state

    return rule


def _stack(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    state = _together(graph, node, inputs)
    assert isinstance(state, _Batched)
    return _Batched(state.axis + (node.params["axis"] <= state.axis))


def _top_k(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    axis = _first(inputs)
    _require(axis != node.params.get("axis", len(_shape(graph, node.inputs[0])) - 1))
    return _Batched(axis)


def _pad(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    axis = _first(inputs)
    _require(tuple(node.params["padding_config"][axis]) == (0, 0, 0))
    return _Batched(axis)


def _slice(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    axis = _first(inputs)
    shape = _shape(graph, node.inputs[0])
    strides = node.params["strides"] or (1,) * len(shape)
    whole = (node.params["start_indices"][axis], node.params["limit_indices"][axis])
    _require(whole == (0, shape[axis]) and strides[axis] == 1)
    return _Batched(axis)


def _dynamic_slice(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    axis = _first(inputs)
    _require(node.params["slice_sizes"][axis] == _shape(graph, node.inputs[0])[axis])
    return _Batched(axis)


def _window(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    axis, params = _first(inputs), node.params
    plain = params["window_dimensions"][axis] == params["window_strides"][axis] == 1
    _require(plain and tuple(params["padding"][axis]) == (0, 0))
    return _Batched(axis)


def _convolution(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    numbers = node.params["dimension_numbers"]
    _require(_first(inputs) == numbers.lhs_spec[0] and node.params["batch_group_count"] == 1)
    return _Batched(numbers.out_spec[0])


def _dot(graph: Graph, node: Node, inputs: list[_State]) -> _State:
    (contracted, shared) = node.params["dimension_numbers"]
    sides = list(zip(inputs, contracted, shared, strict=True))
    places = []
    for side, (state, contract, batch) in enumerate(sides):
        if not isinstance(state, _Batched):
            continue
        _require(state.axis not in contract)
        if state.axis in batch:
            place = tuple(batch).index(state.axis)
            other, _, others = sides[1 - side]
            uniform = isinstance(other, _Shared) and others[place] in other.uniform
            _require(uniform or other == _Batched(others[place]))
            places.append(place)
            continue
        _require(isinstance(sides[1 - side][0], _Shared))
        free = [
            axis
            for axis in range(len(_shape(graph, node.inputs[side])))
            if axis not in (*contract, *batch)
        ]
        before = len(_shape(graph, node.inputs[0])) - len(contracted[0]) if side else len(batch)
        places.append(before + free.index(state.axis))
    _require(len(set(places)) == 1)
    return _Batched(places[0])


_Rule = Callable[[Graph, Node, list[_State]], _State]
_RULES: dict[str, _Rule] = {
    "argmax": _reduce,
    "argmin": _reduce,
    "broadcast_in_dim": _broadcast,
    "concatenate": _along("dimension"),
    "conv_general_dilated": _convolution,
    "cumlogsumexp": _along("axis"),
    "cummax": _along("axis"),
    "cummin": _along("axis"),
    "cumprod": _along("axis"),
    "cumsum": _along("axis"),
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "expand_dims": _expand,
    "pad": _pad,
    "reduce_and": _reduce,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "reduce_or": _reduce,
    "reduce_prod": _reduce,
    "reduce_sum": _reduce,
    "reduce_window": _window,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window_sum": _window,
    "reshape": _reshape,
    "rev": _along("dimensions"),
    "slice": _slice,
    "sort": _along("dimension"),
    "split": _along("axis"),
    "squeeze": _squeeze,
    "stack": _stack,
    "top_k": _top_k,
    "transpose": _transpose,
}


def _inside(body: Graph, inputs: Sequence[_State], states: _States) -> list[_State]:
    states.update(zip(body.inputs, inputs, strict=True))
    _follow(body, states)
    return [_state(states, output) for output in body.outputs]


def _call(node: Node, inputs: list[_State], states: _States) -> list[_State]:
    return _inside(node.bodies[0], inputs, states)


def _branches(node: Node, inputs: list[_State], states: _States) -> list[_State]:
    which, *operands = inputs
    _require(isinstance(which, _Shared))
    first, *others = (_inside(body, operands, states) for body in node.bodies)
    return [_joined(column) for column in zip(first, *others, strict=True)]


def _joined(column: Sequence[_State]) -> _State:
    """The state of a value that may have any of several states."""
    batched = {state for state in column if isinstance(state, _Batched)}
    if not batched:
        return _Shared(frozenset.intersection(*(s.uniform for s in column)))  # type: ignore[union-attr]
    _require(len(batched) == 1)
    (state,) = batched
    assert isinstance(state, _Batched)
    for other in column:
        _require(other == state or state.axis in other.uniform)  # type: ignore[union-attr]
    return state


def _scan(node: Node, inputs: list[_State], states: _States) -> list[_State]:
    consts, carry, xs = scan_operands(node, inputs)
    steps = []
    for state in xs:
        if isinstance(state, _Batched):
            _require(state.axis > 0)
            steps.append(_Batched(state.axis - 1))
        else:
            steps.append(_Shared(frozenset(a - 1 for a in state.uniform if a > 0)))
    results: list[_State] = []
    for _ in range(len(carry) + 1):
        results = _inside(node.bodies[0], [*consts, *carry, *steps], states)
        after = [_joined(pair) for pair in zip(carry, results[: len(carry)], strict=True)]
        if after == carry:
            break
        carry = after
    ys = [
        _Batched(s.axis + 1) if isinstance(s, _Batched) else _Shared()
        for s in results[len(carry) :]
    ]
    return [*carry, *ys]


def _derivative_rule(node: Node, inputs: list[_State], states: _States) -> list[_State]:
    """Follow a function whose custom rule may mix items, unless JAX or this library defines it."""
    if any(isinstance(state, _Batched) for state in inputs):
        _require(of_package(node, JAX) or of_package(node, OWN))
    return _call(node, inputs, states)


_BODIES: dict[str, Callable[[Node, list[_State], _States], list[Any]]] = {
    "checkpoint": _call,
    "cond": _branches,
    "custom_jvp_call": _derivative_rule,
    "custom_vjp_call": _derivative_rule,
    "jit": _call,
    "remat": _call,
    "remat2": _call,
    "scan": _scan,
}
