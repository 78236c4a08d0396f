"""Running a graph node by node, with a say at each, also inside of its nested bodies."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_excite.errors import GatingError
from jax_excite.graphs.graph import Constant, Graph, Node, Operand, scan_operands, while_operands

Values = dict[int, Any]  # by `Node.number`
Read = Callable[[Operand], Any]
Run = Callable[[list[Any]], tuple[list[Any], Values]]
Around = Callable[[Node, list[Any], Run, Read, Any], tuple[list[Any], Values]]


def evaluate(
    graph: Graph,
    args: Sequence[Any],
    entered: Callable[[Node], bool],
    around: Around,
    given: Values,
) -> tuple[list[Any], Values]:
    """Run a graph.

    Args:
        graph: what to run.
        args: values of its inputs.
        entered: whether to run a node's bodies, rather than the node as it is.
        around: runs one node: given the node, its inputs, the function that computes its outputs
            from inputs, a function that reads any operand so far, and what was given for it,
            returns the outputs that the rest of the graph sees, and what to bring out.
        given: pytrees of arrays to hand to `around` for some nodes, also in nested bodies. For a
            node inside a scan they have a leading axis, along which the steps take their slices.

    Returns:
        The values of the graph's outputs; and what `around` brought out, pytrees of arrays, by
        node. Out of a scan they come stacked; out of a branch that did not run, as zeros.

    Raises:
        GatingError: `around` brings something out of a `while` loop or a `shard_map`.
    """
    env: dict[int, Any] = dict(zip(graph.inputs, args, strict=True))

    def read(operand: Operand) -> Any:
        return operand.value if isinstance(operand, Constant) else env[operand]

    inside = _Inside(entered, around, given)
    brought: Values = {}
    for node in graph.nodes:
        if node.bodies and entered(node):
            run = functools.partial(_RUN[node.name], node, inside)
        else:
            run = functools.partial(_bind, node)
        with _where(node):
            inputs = [read(operand) for operand in node.inputs]
            outputs, more = around(node, inputs, run, read, given.get(node.number))
        env |= zip(node.outputs, outputs, strict=True)
        brought |= more
    return [read(operand) for operand in graph.outputs], brought


@contextlib.contextmanager
def _where(node: Node) -> Iterator[None]:
    """The named scope and the context, such as `compute_on`, that a node was written in."""
    scope = jax.named_scope(node.own_scope) if node.own_scope else contextlib.nullcontext()
    with scope, node.context.manager:
        yield


@dataclasses.dataclass(frozen=True)
class _Inside:
    """`evaluate` for nested bodies."""

    entered: Callable[[Node], bool]
    around: Around
    given: Values

    def __call__(
        self, body: Graph, args: Sequence[Any], slices: Values | None = None
    ) -> tuple[list[Any], Values]:
        given = self.given if slices is None else {**self.given, **slices}
        return evaluate(body, args, self.entered, self.around, given)

    def nothing_out(self, node: Node, body: Graph, args: Sequence[Any]) -> list[Any]:
        outputs, brought = self(body, args)
        if brought:
            raise GatingError(
                f"a site is inside `{node.name}`, out of which its gates and pre-activations "
                "cannot be brought"
            )
        return outputs


Outcome = tuple[list[Any], Values]


def _bind(node: Node, inputs: list[Any]) -> Outcome:
    outputs = node.primitive.bind(*inputs, **node.primitive.get_bind_params(node.params))
    return (list(outputs) if node.primitive.multiple_results else [outputs]), {}


def _run_body(node: Node, inside: _Inside, inputs: list[Any]) -> Outcome:
    return inside(node.bodies[0], inputs)


def _run_jit(node: Node, inside: _Inside, inputs: list[Any]) -> Outcome:
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


def _run_scan(node: Node, inside: _Inside, inputs: list[Any]) -> Outcome:
    consts, init, xs = scan_operands(node, inputs)
    body = node.bodies[0]
    given = {number: inside.given[number] for number in _numbers(body) if number in inside.given}

    def step(carry: list[Any], x: tuple[list[Any], Values]) -> tuple[list[Any], Any]:
        outputs, brought = inside(body, [*consts, *carry, *x[0]], x[1])
        return outputs[: len(init)], (outputs[len(init) :], brought)

    options = {name: node.params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, brought) = lax.scan(step, init, (xs, given), **options)
    return [*carry, *ys], brought


def _numbers(graph: Graph) -> Iterator[int]:
    for node in graph.nodes:
        yield node.number
        for body in node.bodies:
            yield from _numbers(body)


def _run_while(node: Node, inside: _Inside, inputs: list[Any]) -> Outcome:
    test_consts, step_consts, init = while_operands(node, inputs)
    test, step = node.bodies
    outputs = lax.while_loop(
        lambda carry: inside.nothing_out(node, test, [*test_consts, *carry])[0],
        lambda carry: inside.nothing_out(node, step, [*step_consts, *carry]),
        init,
    )
    return outputs, {}


def _run_cond(node: Node, inside: _Inside, inputs: list[Any]) -> Outcome:
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


def _run_checkpoint(node: Node, inside: _Inside, inputs: list[Any]) -> Outcome:
    options = {name: node.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(lambda *args: inside(node.bodies[0], args), **options)(*inputs)


def _run_shard_map(node: Node, inside: _Inside, inputs: list[Any]) -> Outcome:
    mapped = jax.shard_map(
        lambda *args: tuple(inside.nothing_out(node, node.bodies[0], args)),
        mesh=node.params["mesh"],
        in_specs=node.params["in_specs"],
        out_specs=node.params["out_specs"],
        axis_names=set(node.params["newly_manual_axes"]),
        check_vma=node.params["check_vma"],
    )
    return list(mapped(*inputs)), {}


_RUN: dict[str, Callable[[Node, _Inside, list[Any]], Outcome]] = {
    "jit": _run_jit,
    "custom_jvp_call": _run_body,
    "custom_vjp_call": _run_body,
    "scan": _run_scan,
    "while": _run_while,
    "cond": _run_cond,
    "checkpoint": _run_checkpoint,
    "remat": _run_checkpoint,
    "remat2": _run_checkpoint,
    "shard_map": _run_shard_map,
}
