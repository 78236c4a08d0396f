"""The interpreter: it walks a graph and looks up the rule of each node."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_excite.errors import GatingError
from jax_excite.graphs.graph import (
    Constant,
    Graph,
    Node,
    Operand,
    bind,
    nodes_of,
    scan_operands,
    while_operands,
)

Values = dict[int, Any]  # by `Node.number`
Outcome = tuple[list[Any], Values]  # the outputs of a node or a graph, and the collected values


@dataclasses.dataclass(frozen=True)
class Reached:
    """A node when the interpreter reaches it.

    Attributes:
        node: the node.
        inputs: the values of its inputs.
        read: returns the value of any operand that has been computed so far.
        given: the values that the caller gave for the node, or None.
        interpreter: the interpreter, which evaluates nested bodies.
    """

    node: Node
    inputs: list[Any]
    read: Callable[[Operand], Any]
    given: Any
    interpreter: "Interpreter"


Rule = Callable[[Reached], Outcome]


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """Evaluates graphs. A node without a rule is evaluated by its primitive.

    Attributes:
        rules: the rules by node, including nodes of nested bodies. The rule `enter` is for a node
            whose bodies the interpreter evaluates. A rule returns the outputs that the rest of the
            graph receives, and pytrees of arrays to collect, by `Node.number`.
        given: pytrees of arrays that are passed to the rules of some nodes. For a node inside a
            scan they have a leading axis, and each step takes its slice along it.
    """

    rules: Mapping[Node, Rule]
    given: Values

    def __call__(self, graph: Graph, args: Sequence[Any]) -> Outcome:
        """Evaluate a graph; return its outputs, and the values that rules collected, by node.

        Values collected in a scan are stacked. Those of a branch that did not run are zeros.

        Raises:
            GatingError: a rule collects a value inside a `while` loop or a `shard_map`.
        """
        env: dict[int, Any] = dict(zip(graph.inputs, args, strict=True))

        def read(operand: Operand) -> Any:
            return operand.value if isinstance(operand, Constant) else env[operand]

        brought: Values = {}
        for node in graph.nodes:
            with _where(node):
                inputs = [read(operand) for operand in node.inputs]
                if node in self.rules:
                    given = self.given.get(node.number)
                    reached = Reached(node, inputs, read, given, self)
                    outputs, more = self.rules[node](reached)
                    brought |= more
                else:
                    outputs = bind(node, inputs)
            env |= zip(node.outputs, outputs, strict=True)
        return [read(operand) for operand in graph.outputs], brought

    def with_slices(self, slices: Values) -> "Interpreter":
        """The interpreter of one step of a scan, with the step's own slices of the given values."""
        return dataclasses.replace(self, given={**self.given, **slices})

    def without_values(self, node: Node, body: Graph, args: Sequence[Any]) -> list[Any]:
        """The outputs of a body from which no values can be collected."""
        outputs, brought = self(body, args)
        if brought:
            raise GatingError(
                f"a site is inside `{node.name}`, from which its gates and pre-activations cannot "
                "be extracted"
            )
        return outputs


def enter(reached: Reached) -> Outcome:
    """The rule of a node whose bodies the interpreter evaluates."""
    return _ENTER[reached.node.name](reached.node, reached.interpreter, reached.inputs)


@contextlib.contextmanager
def _where(node: Node) -> Iterator[None]:
    """Enter the named scope and the context, such as `compute_on`, that a node was written in."""
    scope = jax.named_scope(node.own_scope) if node.own_scope else contextlib.nullcontext()
    with scope, node.context.manager:
        yield


def _enter_body(node: Node, inside: Interpreter, inputs: list[Any]) -> Outcome:
    return inside(node.bodies[0], inputs)


def _enter_jit(node: Node, inside: Interpreter, inputs: list[Any]) -> Outcome:
    def call(*args: Any) -> Outcome:
        return inside(node.bodies[0], args)

    call.__name__ = node.params["name"]
    shardings = (
        [s if isinstance(s, jax.sharding.Sharding) else None for s in node.params[name]]
        for name in ("in_shardings", "out_shardings")
    )
    ins, outs = (found if any(found) else None for found in shardings)
    compiled = jax.jit(
        call,
        in_shardings=None if ins is None else tuple(ins),
        out_shardings=None if outs is None else (outs, None),
        inline=node.params["inline"],
    )
    return compiled(*inputs)


def _enter_scan(node: Node, inside: Interpreter, inputs: list[Any]) -> Outcome:
    consts, init, xs = scan_operands(node, inputs)
    body = node.bodies[0]
    numbers = {node.number for node in nodes_of(body)}
    given = {number: value for number, value in inside.given.items() if number in numbers}

    def step(carry: list[Any], x: tuple[list[Any], Values]) -> tuple[list[Any], Any]:
        outputs, brought = inside.with_slices(x[1])(body, [*consts, *carry, *x[0]])
        return outputs[: len(init)], (outputs[len(init) :], brought)

    options = {name: node.params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, brought) = lax.scan(step, init, (xs, given), **options)
    return [*carry, *ys], brought


def _enter_while(node: Node, inside: Interpreter, inputs: list[Any]) -> Outcome:
    test_consts, step_consts, init = while_operands(node, inputs)
    test, step = node.bodies
    outputs = lax.while_loop(
        lambda carry: inside.without_values(node, test, [*test_consts, *carry])[0],
        lambda carry: inside.without_values(node, step, [*step_consts, *carry]),
        init,
    )
    return outputs, {}


def _enter_cond(node: Node, inside: Interpreter, inputs: list[Any]) -> Outcome:
    which, *operands = inputs
    shapes: Values = {}
    for body in node.bodies:
        shapes |= jax.eval_shape(functools.partial(inside, body), operands)[1]

    def branch(body: Graph, *args: Any) -> Outcome:
        outputs, brought = inside(body, args)
        absent = {number: shape for number, shape in shapes.items() if number not in brought}
        return outputs, brought | jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), absent)

    branches = [functools.partial(branch, body) for body in node.bodies]
    if (platforms := node.params.get("branches_platforms")) is not None:
        pairs = list(zip(branches, platforms, strict=True))
        named = {name: branch for branch, names in pairs for name in names or ()}
        others = [branch for branch, names in pairs if names is None]
        return lax.platform_dependent(*operands, default=others[0] if others else None, **named)
    return lax.switch(which.astype(jnp.int32), branches, *operands)


def _enter_checkpoint(node: Node, inside: Interpreter, inputs: list[Any]) -> Outcome:
    options = {name: node.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(lambda *args: inside(node.bodies[0], args), **options)(*inputs)


def _enter_shard_map(node: Node, inside: Interpreter, inputs: list[Any]) -> Outcome:
    mapped = jax.shard_map(
        lambda *args: tuple(inside.without_values(node, node.bodies[0], args)),
        mesh=node.params["mesh"],
        in_specs=node.params["in_specs"],
        out_specs=node.params["out_specs"],
        axis_names=set(node.params["newly_manual_axes"]),
        check_vma=node.params["check_vma"],
    )
    return list(mapped(*inputs)), {}


_ENTER: dict[str, Callable[[Node, Interpreter, list[Any]], Outcome]] = {
    "jit": _enter_jit,
    "custom_jvp_call": _enter_body,
    "custom_vjp_call": _enter_body,
    "scan": _enter_scan,
    "while": _enter_while,
    "cond": _enter_cond,
    "checkpoint": _enter_checkpoint,
    "remat": _enter_checkpoint,
    "remat2": _enter_checkpoint,
    "shard_map": _enter_shard_map,
}
