"""Facts about the values of a graph: constants, dependence on the input, profiles."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_excite.graphs.graph import (
    Constant,
    Graph,
    Node,
    Operand,
    is_call,
    passed_on,
    scan_operands,
)
from jax_excite.graphs.profiles import Fixed, Profile, Symbol, elementwise, has_kink, primitive_name

Views = dict[int, Profile]  # a value as a function of each base, including the value itself
Meaning = Fixed | Symbol | Views | None

# Primitives after which a constant is still the same number in every entry.
_SPREADS = (
    "broadcast_in_dim",
    "expand_dims",
    "reshape",
    "squeeze",
    "stop_gradient",
    "transpose",
)
# Constants with more entries than this are treated as weights and not inspected.
_LARGEST_CONSTANT = 1 << 16
# The maximum number of bases of a value, and of primitives between a base and the value.
_MOST_BASES = 24
_DEEPEST = 200


class Facts:
    """Facts about the values of a graph and of the graphs nested in it.

    Args:
        graph: the graph.
        sources: the inputs of the graph that are differentiated.
        entered: whether a call with a derivative rule is analysed by the body that it calls.
    """

    def __init__(self, graph: Graph, sources: Iterable[int], entered: Callable[[Node], bool]):
        self.depends: set[int] = set(sources)
        self.producers: dict[int, Node] = {}
        self.homes: dict[int, Graph] = {}
        self.outer: dict[int, Operand] = {}  # an input of a body -> the outer operand
        self.views: dict[int, Views] = {}
        self.inner_views: dict[int, Views] = {}  # a call's output as functions of inner values
        self.symbols: dict[int, int] = {}  # a value that does not depend on the input -> its root
        self._constants: dict[int, Any] = {}
        self._spread_out: set[int] = set()  # values that are constant along an axis
        self._stacks: dict[int, tuple[int, list[Operand]]] = {}
        self._depths: dict[Graph, int] = {}
        self._entered = entered
        self._types = graph.types
        self._find_dependence(graph)
        self._depths[graph] = 0
        self._begin(graph)
        self._learn(graph)

    # Dependence on the input.

    def _find_dependence(self, graph: Graph) -> None:
        for node in graph.nodes:
            on_input = any(operand in self.depends for operand in node.inputs)
            if node.bodies:
                self._find_dependence_inside(node, on_input)
            elif on_input and (node.name != "stop_gradient" or self._is_mask(graph, node)):
                self.depends.update(node.outputs)
            for number in node.outputs:
                self.producers[number] = node
                self.homes[number] = graph

    def _is_mask(self, graph: Graph, node: Node) -> bool:
        """Whether a `stop_gradient` has no effect, because its operand is a converted boolean."""
        producer = self.producers.get(node.inputs[0]) if isinstance(node.inputs[0], int) else None
        if producer is None or producer.name != "convert_element_type":
            return False
        return self._dtype(producer.inputs[0]) == np.bool_

    def _find_dependence_inside(self, node: Node, on_input: bool) -> None:
        for body, operands in zip(node.bodies, passed_on(node, carried=True), strict=True):
            for number, operand in zip(body.inputs, operands, strict=True):
                self.homes[number] = body
                if operand in self.depends or (operand is None and on_input):
                    self.depends.add(number)
                if operand is not None and is_call(node):
                    self.outer[number] = operand
        for _ in range(1 + len(node.inputs)):  # dependence spreads from carried values to others
            for body in node.bodies:
                self._find_dependence(body)
            if not self._carry(node):
                break
        if is_call(node) and not self.is_kept(node):
            of_outputs = zip(node.outputs, *(body.outputs for body in node.bodies), strict=True)
            chosen = node.name == "cond" and node.inputs[0] in self.depends
            for output, *results in of_outputs:
                if chosen or any(result in self.depends for result in results):
                    self.depends.add(output)
        elif on_input:
            self.depends.update(node.outputs)

    def _carry(self, node: Node) -> bool:
        """Pass dependence on from one step of a loop to the next; return whether any was new."""
        if node.name not in ("scan", "while"):
            return False
        body = node.bodies[-1]
        first = len(body.inputs) - len(body.outputs)
        if node.name == "scan":
            consts, init, _ = scan_operands(node, node.inputs)
            first, count = len(consts), len(init)
        else:
            count = len(body.outputs)
        before = len(self.depends)
        for number, result in zip(body.inputs[first : first + count], body.outputs, strict=False):
            if result in self.depends:
                self.depends.add(number)
        if node.name == "while":
            test = node.bodies[0]
            carried = zip(test.inputs[len(test.inputs) - count :], body.outputs, strict=True)
            self.depends.update(number for number, result in carried if result in self.depends)
        return len(self.depends) > before

    def is_kept(self, node: Node) -> bool:
        """Whether a call has a derivative rule of its own that is kept."""
        return node.has_derivative_rule and not self._entered(node)

    # Constants, and values as functions of others.

    def meaning(self, operand: Operand) -> Meaning:
        """What is known about an operand: a number, an unknown constant, or its views."""
        if isinstance(operand, Constant):
            value = _uniform(operand.value)
            if value is not None:
                return Fixed(value)
            is_float = jnp.issubdtype(jnp.result_type(operand.value), jnp.floating)
            return Symbol(id(operand.value)) if is_float else None
        if operand in self._constants:
            return Fixed(self._constants[operand])
        if operand in self.symbols:
            return Symbol(self.symbols[operand])
        return self.views.get(operand)

    def _meanings(self, operands: list[Operand], output: int) -> list[Meaning]:
        """What is known about the operands of an elementwise node.

        An operand that is broadcast over the output, such as slopes per channel, counts as an
        unknown constant if other operands are not broadcast, even if it depends on the input.
        """
        found = [self.meaning(operand) for operand in operands]
        shape = self._types[output].shape
        spread = [
            isinstance(m, dict) and (o in self._spread_out or self._types[o].shape != shape)  # type: ignore[index]
            for o, m in zip(operands, found, strict=True)
        ]
        if all(s or not isinstance(m, dict) for s, m in zip(spread, found, strict=True)):
            return [
                None if isinstance(m, dict) and self._types[o].shape != shape else m  # type: ignore[index]
                for o, m in zip(operands, found, strict=True)
            ]
        return [Symbol(o) if s else m for o, m, s in zip(operands, found, spread, strict=True)]

    def is_float(self, operand: Operand) -> bool:
        """Whether an operand is of a float dtype."""
        return jnp.issubdtype(self._dtype(operand), jnp.floating)

    def is_truth(self, operand: Operand) -> bool:
        """Whether an operand is boolean."""
        return self._dtype(operand) == np.bool_

    def shape(self, operand: Operand) -> tuple[int, ...]:
        """The shape of an operand."""
        if isinstance(operand, Constant):
            return np.shape(operand.value)
        return self._types[operand].shape

    def _dtype(self, operand: Operand) -> Any:
        if isinstance(operand, Constant):
            return jnp.result_type(operand.value)
        return self._types[operand].dtype

    def constant(self, operand: Operand) -> Any:
        """The number that an operand holds in every entry, or None."""
        meaning = self.meaning(operand)
        return meaning.value if isinstance(meaning, Fixed) else None

    def as_elementwise(self, node: Node) -> tuple[Callable[..., Any], list[Operand]] | None:
        """A node as an elementwise NumPy function and its operands, or None.

        A maximum along the axis of a stack is an elementwise function of the stacked operands.
        """
        evaluate = elementwise(node.name, node.params)
        if evaluate is not None and len(node.outputs) == 1:
            return evaluate, node.inputs
        stack = self._stacks.get(node.inputs[0]) if node.inputs else None  # type: ignore[arg-type]
        if stack is None or node.name not in ("reduce_max", "argmax"):
            return None
        axis, parts = stack
        if tuple(node.params["axes"]) != (axis,):
            return None
        reduce = np.max if node.name == "reduce_max" else np.argmax
        return functools.partial(_along_stack, reduce), parts

    def _begin(self, graph: Graph) -> None:
        for number in graph.inputs:
            self.homes[number] = graph
            self._fresh(number)

    def _fresh(self, number: int) -> None:
        if not hasattr(self._types[number], "dtype") or not self.is_float(number):
            return
        if number in self.depends:
            self.views[number] = {number: Profile()}
        else:
            self.symbols[number] = number

    def _learn(self, graph: Graph) -> None:
        for node in graph.nodes:
            for number in node.outputs:
                self._fresh(number)
            if node.bodies:
                self._learn_inside(graph, node)
            elif (function := self.as_elementwise(node)) is not None:
                self._apply(node, *function)
            elif node.name in _SPREADS:
                self._spread(node)
            elif (stack := self._stack(node)) is not None:
                self._stacks[node.outputs[0]] = stack

    def _apply(self, node: Node, evaluate: Callable[..., Any], operands: list[Operand]) -> None:
        output = node.outputs[0]
        meanings = self._meanings(operands, output)
        if all(isinstance(meaning, Fixed) for meaning in meanings):
            with np.errstate(all="ignore"):
                self._forget(output)
                self._constants[output] = evaluate(*(m.value for m in meanings))  # type: ignore[union-attr]
            return
        views = [meaning for meaning in meanings if isinstance(meaning, dict)]
        chosen = node.name == "select_n" and not isinstance(meanings[0], dict)
        if not views or chosen or any(meaning is None for meaning in meanings):
            return
        kinked = has_kink(node.name, node.params) or node.name == "reduce_max"
        common = set.intersection(*(set(view) for view in views))
        own = self.views.setdefault(output, {})
        for base in sorted(common)[-_MOST_BASES:]:
            parts = tuple(m[base] if isinstance(m, dict) else m for m in meanings)
            profiles = [part for part in parts if isinstance(part, Profile)]
            depth = 1 + max(part.depth for part in profiles)
            if depth <= _DEEPEST:
                bent = kinked or any(part.kinked for part in profiles)
                name = primitive_name(node.name, node.params)
                names = frozenset([name]).union(*(part.names for part in profiles))
                own[base] = Profile(name, evaluate, parts, bent, names, depth)  # type: ignore[arg-type]

    def _forget(self, number: int) -> None:
        self.views.pop(number, None)
        self.symbols.pop(number, None)

    def _spread(self, node: Node) -> None:
        operand, output = node.inputs[0], node.outputs[0]
        meaning = self.meaning(operand)
        if isinstance(meaning, Fixed):
            self._forget(output)
            self._constants[output] = meaning.value
        elif isinstance(meaning, Symbol) and not isinstance(operand, Constant):
            if self._types[operand].size == 1 and operand in self.symbols:
                self.symbols[output] = self.symbols[operand]
        elif node.name == "broadcast_in_dim" and not isinstance(operand, Constant):
            if self._types[operand].size < self._types[output].size:
                self._spread_out.add(output)
        elif node.name == "stop_gradient" and output in self.depends and isinstance(meaning, dict):
            self.views[output] = {**meaning, **self.views.get(output, {})}

    def _stack(self, node: Node) -> tuple[int, list[Operand]] | None:
        """The axis and the operands of a stack, whichever primitives it is made of, or None."""
        if node.name == "stack":
            return node.params["axis"], list(node.inputs)
        if node.name != "concatenate":
            return None
        axis, parts = node.params["dimension"], []
        for operand in node.inputs:
            producer = None if isinstance(operand, Constant) else self.producers.get(operand)
            if producer is None or producer.name not in ("broadcast_in_dim", "reshape"):
                return None
            whole = self._types[operand].shape  # type: ignore[index]
            inner = producer.inputs[0]
            shape = np.shape(inner.value) if isinstance(inner, Constant) else None
            shape = self._types[inner].shape if shape is None else shape  # type: ignore[index]
            if whole[axis] != 1 or shape not in ((), (*whole[:axis], *whole[axis + 1 :])):
                return None
            parts.append(inner)
        return axis, parts

    def _learn_inside(self, graph: Graph, node: Node) -> None:
        seen_through = is_call(node) and node.name not in ("cond", "shard_map")
        seen_through = seen_through and not self.is_kept(node)
        for body, operands in zip(node.bodies, passed_on(node), strict=True):
            self._depths[body] = self._depths[graph] + 1
            self._begin(body)
            for number, operand in zip(body.inputs, operands, strict=True):
                meaning = None if operand is None else self.meaning(operand)
                if isinstance(meaning, Fixed) and not self.is_kept(node):
                    self._forget(number)
                    self._constants[number] = meaning.value
                elif seen_through and isinstance(meaning, Symbol) and number in self.symbols:
                    self.symbols[number] = meaning.key  # type: ignore[assignment]
                elif seen_through and isinstance(meaning, dict):
                    self.views[number] = dict(meaning)
            self._learn(body)
        if seen_through:
            for output, result in zip(node.outputs, node.bodies[0].outputs, strict=True):
                self._return(graph, output, result)

    def _return(self, graph: Graph, output: int, result: Operand) -> None:
        meaning = self.meaning(result)
        if isinstance(meaning, Fixed):
            self._forget(output)
            self._constants[output] = meaning.value
        elif isinstance(meaning, Symbol) and output in self.symbols:
            self.symbols[output] = meaning.key  # type: ignore[assignment]
        elif isinstance(meaning, dict):
            depth = self._depths[graph]
            self.inner_views[output] = self.inner_views.get(result, meaning)  # type: ignore[arg-type]
            visible = {b: p for b, p in meaning.items() if self._depths[self.homes[b]] <= depth}
            self.views[output] = {**visible, **self.views.get(output, {})}

    def producer(self, operand: Operand, within: Graph | None = None) -> Node | None:
        """The node that computes an operand, followed out of and into the bodies of calls.

        Args:
            operand: the operand.
            within: a graph whose inputs are not followed to the outside.
        """
        while not isinstance(operand, Constant):
            node = self.producers.get(operand)
            if node is None:
                if within is not None and self.homes[operand] is within:
                    return None
                operand = self.outer.get(operand, Constant(None))
            elif node.bodies and is_call(node) and node.name != "cond":
                operand = node.bodies[0].outputs[node.outputs.index(operand)]
            else:
                return node
        return None

    # Names of values in one graph.

    def local(self, number: int, graph: Graph) -> int | None:
        """The number that a value has inside a graph, or None."""
        if self.homes[number] is graph:
            return number
        for own in graph.inputs:
            outer: Operand = own
            while (outer := self.outer.get(outer, -1)) != -1:  # type: ignore[arg-type]
                if outer == number:
                    return own
        return None

    def spelled(self, root: int, graph: Graph, shape: tuple[int, ...]) -> int | None:
        """A value in a graph equal to the unknown constant `root` that broadcasts to a shape."""
        if root in self.views and self.homes[root] is graph:
            return root  # it depends on the input, but is broadcast
        for number, own in self.symbols.items():
            if own == root and self.homes[number] is graph:
                given = self._types[number].shape
                sizes = zip(given, shape, strict=True) if len(given) == len(shape) else ()
                if given == () or (sizes and all(n in (1, m) for n, m in sizes)):
                    return number
        return None


def _along_stack(reduce: Callable[..., Any], *parts: Any) -> Any:
    return reduce(np.stack(np.broadcast_arrays(*parts)), axis=0)


def _uniform(value: Any) -> Any:
    """The number that an array holds in every entry, or None."""
    if isinstance(value, Tracer) or not 0 < np.size(value) <= _LARGEST_CONSTANT:
        return None
    dtype = jnp.result_type(value)
    if not (jnp.issubdtype(dtype, np.number) or dtype == np.bool_):
        return None
    entries = np.unique(np.asarray(value))
    if entries.size != 1:
        return None
    return float(entries[0]) if jnp.issubdtype(dtype, jnp.floating) else entries[0].item()
