"""A function as a graph of equations: its jaxpr, with small calls of `jit` inlined.

This module is built on `jax.extend.core` alone. Every value has a number that is unique in a graph
and its nested bodies. An operand is such a number or a `Constant`.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.extend.core as jex

# Primitives that do not round: they give the same bits compiled alone or together with others.
_EXACT = {
    "abs",
    "and",
    "argmax",
    "broadcast_in_dim",
    "ceil",
    "clamp",
    "convert_element_type",
    "copy",
    "eq",
    "floor",
    "ge",
    "gt",
    "is_finite",
    "le",
    "lt",
    "max",
    "min",
    "ne",
    "neg",
    "not",
    "or",
    "pcast",
    "pvary",
    "reshape",
    "select_n",
    "sign",
    "squeeze",
    "stack",
    "xor",
}

# Primitives that arrange the entries of a value, or convert them.
ARRANGES = (
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "copy_p",
    "expand_dims",
    "name",
    "reshape",
    "sharding_constraint",
    "squeeze",
    "transpose",
)

# Equations whose bodies can be evaluated again, with the parameters that hold the bodies.
_ENTERED = {
    "jit": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "checkpoint": ("jaxpr",),
    "remat": ("jaxpr",),
    "remat2": ("jaxpr",),
    "shard_map": ("jaxpr",),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """An operand known when the function was traced: a literal, or a value closed over."""

    value: Any


Operand = int | Constant


@dataclasses.dataclass(eq=False)
class Node:
    """One equation: `outputs = primitive(inputs)`."""

    primitive: jex.Primitive
    params: dict[str, Any]
    inputs: list[Operand]
    outputs: list[int]
    bodies: list["Graph"]
    scope: str
    own_scope: str  # the part of `scope` that is added inside the body that contains the node
    context: Any  # the equation's context: where and how it is computed
    tracebacks: tuple[Any, ...]  # its own, then those of the calls around it, innermost first

    @property
    def number(self) -> int:
        """A number unique among this graph and its nested bodies; -1 for a node without outputs."""
        return self.outputs[0] if self.outputs else -1

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.primitive.name

    @property
    def has_derivative_rule(self) -> bool:
        """Whether it is a call of a function with a derivative rule of its own."""
        return self.name in ("custom_jvp_call", "custom_vjp_call")

    @property
    def function(self) -> tuple[str, str]:
        """Name and file of the called function with a derivative rule; empty for other nodes."""
        if not self.has_derivative_rule:
            return "", ""
        name, _, place = self.params["call_jaxpr"].jaxpr.debug_info.func_src_info.partition(" at ")
        return name, place.rpartition(":")[0]


def of_package(node: Node, package: str) -> bool:
    """Whether a node calls a function with a derivative rule that belongs to a package.

    Args:
        node: the call.
        package: the folder of the package.
    """
    return node.has_derivative_rule and node.function[1].startswith(f"{package}{os.sep}")


JAX = str(Path(str(jax.__file__)).parent)
OWN = str(Path(__file__).parents[1])


_PACKAGES = f"{Path(JAX).parent}{os.sep}"
_MODELS = f"{OWN}{os.sep}models{os.sep}"


def users_frames(traceback: Any) -> list[Any]:
    """The frames of a traceback outside installed packages, innermost first.

    The frames of the models in this package are included, except those of their shared layers.
    """

    def is_users(file: str) -> bool:
        if file.startswith(f"{OWN}{os.sep}"):
            return file.startswith(_MODELS) and file != f"{_MODELS}layers.py"
        return not file.startswith(_PACKAGES)

    return [frame for frame in traceback.frames if is_users(frame.file_name)]


@dataclasses.dataclass(eq=False)
class Graph:
    """A list of nodes in the order in which they run."""

    inputs: list[int]
    outputs: list[Operand]
    nodes: list[Node]
    types: dict[int, Any]  # number of a value -> its abstract value, shared with nested bodies


def trace(fn: Callable[..., Any], *args: Any) -> tuple[Graph, Any]:
    """The graph of `fn(*args)` over flat array arguments, and the tree of its output's shapes."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    return _Builder().graph(closed, "", ()), shapes


class _Builder:
    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._types: dict[int, Any] = {}

    def graph(self, closed: Any, scope: str, tracebacks: tuple[Any, ...]) -> Graph:
        jaxpr, consts = (closed.jaxpr, closed.consts) if hasattr(closed, "jaxpr") else (closed, ())
        graph = Graph([self._new(v) for v in jaxpr.invars], [], [], self._types)
        if len(consts) == len(jaxpr.constvars):
            known: list[Operand] = [Constant(c) for c in consts]
        else:
            known = [self._new(v) for v in jaxpr.constvars]
        graph.outputs = self._write(graph, jaxpr, known, graph.inputs, scope, "", tracebacks)
        return graph

    def _new(self, var: Any) -> int:
        number = next(self._numbers)
        self._types[number] = var.aval
        return number

    def _write(
        self,
        graph: Graph,
        jaxpr: Any,
        consts: Sequence[Operand],
        args: Sequence[Operand],
        scope: str,
        own_scope: str,
        tracebacks: tuple[Any, ...],
    ) -> list[Operand]:
        env: dict[Any, Operand] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= zip(jaxpr.invars, args, strict=True)

        def read(atom: Any) -> Operand:
            return Constant(atom.val) if isinstance(atom, jex.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            stack = str(eqn.source_info.name_stack)
            inner, own = ("/".join(filter(None, (s, stack))) for s in (scope, own_scope))
            chain = (eqn.source_info.traceback, *tracebacks)
            if _is_exact_call(eqn):
                body = eqn.params["jaxpr"]
                constants = [Constant(c) for c in body.consts]
                outputs = self._write(graph, body.jaxpr, constants, inputs, inner, own, chain)
                env |= zip(eqn.outvars, outputs, strict=True)
                continue
            numbers = [self._new(v) for v in eqn.outvars]
            env |= zip(eqn.outvars, numbers, strict=True)
            bodies = [self.graph(body, inner, chain) for body in _bodies(eqn)]
            graph.nodes.append(
                Node(
                    eqn.primitive,
                    eqn.params,
                    inputs,
                    numbers,
                    bodies,
                    inner,
                    own,
                    eqn.ctx,
                    chain,
                )
            )
        return [read(atom) for atom in jaxpr.outvars]


def _is_exact_call(eqn: Any) -> bool:
    """Whether an equation is a call of `jit` such as those in `jnp.clip` or `jnp.where`.

    Only such calls are inlined: the last bits of the results of a larger call depend on its being
    compiled as a whole.
    """
    return eqn.primitive.name == "jit" and all(
        inner.primitive.name in _EXACT or _is_exact_call(inner)
        for inner in eqn.params["jaxpr"].jaxpr.eqns
    )


def _bodies(eqn: Any) -> Iterator[Any]:
    if eqn.primitive.name not in _ENTERED:
        yield from jex.jaxprs_in_params(eqn.params)
        return
    for param in _ENTERED[eqn.primitive.name]:
        value = eqn.params[param]
        yield from value if isinstance(value, tuple) else (value,)


def bind(node: Node, inputs: list[Any]) -> list[Any]:
    """Evaluate the primitive of a node."""
    outputs = node.primitive.bind(*inputs, **node.primitive.get_bind_params(node.params))
    return list(outputs) if node.primitive.multiple_results else [outputs]


def nodes_of(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph and of its nested bodies."""
    for node in graph.nodes:
        yield node
        for body in node.bodies:
            yield from nodes_of(body)


def can_enter(node: Node) -> bool:
    """Whether `evaluate` can run the bodies of a node itself."""
    return node.name in _ENTERED


def is_call(node: Node) -> bool:
    """Whether a node runs each of its bodies at most once, and returns that body's outputs."""
    return can_enter(node) and node.name not in ("scan", "while")


def passed_on(node: Node, *, carried: bool = False) -> list[list[Operand | None]]:
    """For each body of a node, the operands that its inputs stand for.

    An entry is None if the operand is not known or changes from one run of the body to the next.
    An input that is a slice stands for the whole operand.

    Args:
        node: the node.
        carried: return the initial values of the inputs that change from one run to the next.
    """
    if not can_enter(node):
        return [[None] * len(body.inputs) for body in node.bodies]
    if node.name == "cond":
        return [list(node.inputs[1:]) for _ in node.bodies]
    if node.name == "scan":
        consts, init, xs = scan_operands(node, node.inputs)
        return [[*consts, *(init if carried else (None for _ in init)), *xs]]
    if node.name == "while":
        test, step, init = while_operands(node, node.inputs)
        init = init if carried else [None for _ in init]
        return [[*test, *init], [*step, *init]]
    return [list(node.inputs)]


def producers_of(graph: Graph) -> dict[int, Node]:
    """The node that computes each value of a graph, without its nested bodies."""
    return {number: node for node in graph.nodes for number in node.outputs}


def origin(graph: Graph, operand: Operand) -> Operand:
    """The operand that `operand` equals, traced back through calls and loops that pass it on."""
    producers = producers_of(graph)
    while not isinstance(operand, Constant) and (node := producers.get(operand)) is not None:
        given = _given_back(node, node.outputs.index(operand))
        if given is None:
            break
        operand = given
    return operand


def _given_back(node: Node, place: int) -> Operand | None:
    """The operand that a node returns as an output, whichever of its bodies runs, or None."""
    if not can_enter(node):
        return None
    found: set[Operand | None] = set()
    for body, operands in zip(node.bodies, passed_on(node, carried=True), strict=True):
        result = origin(body, body.outputs[place]) if place < len(body.outputs) else None
        if not isinstance(result, int) or result not in body.inputs:
            return None
        passes = is_call(node) or _comes_back(node, place, result)
        found.add(operands[body.inputs.index(result)] if passes else None)
    return found.pop() if len(found) == 1 else None


def _comes_back(node: Node, place: int, number: int) -> bool:
    """Whether a loop returns, as output `place`, the operand of its body's input `number`."""
    if node.name != "scan":
        return False
    consts, init, _ = scan_operands(node, node.inputs)
    at = node.bodies[0].inputs.index(number) - len(consts)
    return at == place if place < len(init) else at >= len(init)


def scan_operands(node: Node, inputs: list[Any]) -> list[list[Any]]:
    """The constants, initial carry and scanned arrays of a scan, as flat lists."""
    if "ft_in" in node.params:  # jax 0.12
        return [list(part) for part in node.params["ft_in"].update(inputs).unpack()]
    consts = node.params["num_consts"]
    carry = consts + node.params["num_carry"]
    return [inputs[:consts], inputs[consts:carry], inputs[carry:]]


def while_operands(node: Node, inputs: list[Any]) -> list[list[Any]]:
    """The constants of the test, those of the step, and the initial carry of a while loop."""
    test = node.params["cond_nconsts"]
    step = test + node.params["body_nconsts"]
    return [inputs[:test], inputs[test:step], inputs[step:]]
