"""The census of a graph: every place where a derivative jumps, recognised by what it computes.

The search goes from the outputs back to the input. A value is a gate if it is a ReLU, a leaky ReLU
or a clipped ReLU of an earlier value, or a max-pool. The search then continues at the
pre-activation, so it skips the nodes that compute the gate from it. An activation that is none of
these is left as a whole.
"""

import dataclasses
from collections.abc import Callable, Iterable

from jax_excite.gates.gate import Found, Gate
from jax_excite.gates.kinds import KINDS
from jax_excite.gates.reading import Reading
from jax_excite.graphs.facts import Facts
from jax_excite.graphs.graph import (
    JAX,
    OWN,
    Constant,
    Graph,
    Node,
    Operand,
    can_enter,
    is_call,
    of_package,
    users_frames,
)
from jax_excite.graphs.profiles import (
    PLAIN,
    PRODUCTS,
    SUMS,
    has_kink,
    jumps,
    name_of_whole,
    unknowns,
)

_PLAIN_RULES = frozenset(name for kind in KINDS for name in kind.plain_rules)

# Primitives whose derivative jumps, and the kinds that they are listed as.
_JUMPS: dict[str, str] = {
    "abs": "abs",
    "approx_top_k": "sort",
    "argmax": "argmax",
    "argmin": "argmax",
    "ceil": "round",
    "clamp": "clamp",
    "convert_element_type": "step",
    "cummax": "cumulative_max",
    "cummin": "cumulative_max",
    "floor": "round",
    "ge": "step",
    "gt": "step",
    "le": "step",
    "lt": "step",
    "max": "max",
    "min": "min",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_window": "max",
    "reduce_window_max": "max",
    "reduce_window_min": "min",
    "rem": "remainder",
    "round": "round",
    "select_n": "select",
    "sign": "sign",
    "sort": "sort",
    "top_k": "sort",
}
_WORDS: dict[str, str] = {
    "abs": "the absolute value",
    "argmax": "the place of the largest or smallest entry",
    "branch": "which branch runs, or how often, depends on the input",
    "clamp": "a value clipped at both ends",
    "cumulative_max": "the largest or smallest entry so far",
    "hard_sigmoid": "a hard sigmoid, as a whole",
    "max": "a maximum that is neither ReLU nor pooling",
    "min": "a minimum that is no gate",
    "remainder": "a remainder",
    "round": "a rounded value",
    "select": "a choice by comparison",
    "sign": "the sign",
    "sort": "sorted entries",
    "step": "a comparison, as a number",
}
# Primitives that choose by comparison.
_DECIDES = ("argmax", "argmin", "ge", "gt", "le", "lt", "sort", "top_k")


def is_entered(enter: Iterable[str]) -> Callable[[Node], bool]:
    """Return a test for calls with custom derivative rules that are read as their bodies.

    Args:
        enter: names of functions whose custom rules are dropped.
    """
    wanted = frozenset(enter)

    def entered(node: Node) -> bool:
        name = node.function[0]
        return name in wanted or (name in _PLAIN_RULES and of_package(node, JAX))

    return entered


def census(graph: Graph, sources: Iterable[int], entered: Callable[[Node], bool]) -> list[Found]:
    """Every place in a graph and its nested bodies where a derivative jumps, in graph order.

    Args:
        graph: the graph.
        sources: the inputs by which the graph is differentiated.
        entered: the result of `is_entered`.
    """
    return _Census(graph, sources, entered).run()


class _Census:
    def __init__(self, graph: Graph, sources: Iterable[int], entered: Callable[[Node], bool]):
        self._graph = graph
        self._facts = Facts(graph, sources, entered)
        self._reading = Reading(graph, self._facts, KINDS)
        self._obstacles: dict[Graph, str] = {graph: ""}
        self._kept: set[Graph] = set()  # bodies of functions whose custom rules are kept
        self._calls: dict[Graph, Node] = {}  # by body, the call of a JAX function that it is in
        self._seen: set[int] = set()
        self._left: list[int] = []
        self._found: list[Found] = []
        self._branches: set[Node] = set()

    def run(self) -> list[Found]:
        self._push(self._graph.outputs)
        while self._left:
            value = self._left.pop()
            if value not in self._seen and value in self._facts.depends:
                self._seen.add(value)
                self._visit(value)
        return sorted(self._found, key=lambda found: found.node.number)

    def _push(self, operands: Iterable[Operand]) -> None:
        self._left += [operand for operand in operands if not isinstance(operand, Constant)]

    def _list(self, node: Node, z: Operand, kind: str, obstacle: str = "") -> None:
        if self._graph_of(node) not in self._kept:
            reason = obstacle or f"{_WORDS[kind]}: left with its own derivative"
            self._found.append(Found(kind, node, z, node.name, reason))

    def _graph_of(self, node: Node) -> Graph:
        return self._facts.homes[node.outputs[0]]

    # One value at a time.

    def _visit(self, value: int) -> None:
        node = self._facts.producers.get(value)
        if node is None:
            self._push([self._facts.outer[value]] if value in self._facts.outer else [])
        elif (gate := self._reading.gate(value)) is not None:
            home = self._graph_of(node)
            self._list_gate(gate, home)
        elif self._reading.is_guard(value):
            self._push(node.inputs)
        elif node.bodies and node.name != "reduce_window":
            self._enter(value, node)
        elif (function := self._facts.as_elementwise(node)) is not None:
            self._visit_elementwise(value, node, function[1])
        else:
            if node.name in _JUMPS and any(map(self._facts.is_float, node.inputs)):
                reason = self._reading.refusal(node)
                self._list(node, node.inputs[0], _JUMPS[node.name], reason)
            self._push(node.inputs)

    def _list_gate(self, gate: Found, home: Graph) -> None:
        if isinstance(gate, Gate):
            gate = dataclasses.replace(gate, obstacle=gate.obstacle or self._obstacles[home])
        if home not in self._kept or (gate.is_gate and self._is_users(gate.node, home)):
            self._found.append(gate)
        self._push(gate.sources if isinstance(gate, Gate) else [gate.z])

    def _enter(self, value: int, node: Node) -> None:
        graph = self._graph_of(node)
        obstacle = self._obstacles[graph]
        if self._facts.is_kept(node):
            if of_package(node, OWN):
                self._push(node.inputs)
                return
            if of_package(node, JAX):
                self._calls.update((body, node) for body in node.bodies)
            name = node.function[0]
            self._kept.update(node.bodies)
            obstacle = (
                f"the derivative rule of `{name}` is kept; enter={name!r} replaces it by that of "
                "its body"
            )
        elif not can_enter(node):
            obstacle = f"it is inside `{node.name}`, which excite does not enter"
        for body in node.bodies:
            self._obstacles[body] = obstacle
            if graph in self._kept:
                self._kept.add(body)
            if graph in self._calls:
                self._calls[body] = self._calls[graph]
        if self._depends_on_branch(node):
            self._list(node, node.inputs[0], "branch")
        if is_call(node) and not self._facts.is_kept(node):
            place = node.outputs.index(value)
            self._push(body.outputs[place] for body in node.bodies)
            return
        for body in node.bodies:
            self._push(body.outputs)
        self._push(node.inputs)

    def _is_users(self, node: Node, home: Graph) -> bool:
        """Whether the user's code made a node, rather than the JAX function that it is in.

        For example, `odeint` calls a function of the user. The nodes of that function have more
        user frames in their tracebacks than the call of `odeint`.
        """
        if home not in self._calls:
            return True
        around = self._calls[home].tracebacks
        inside = node.tracebacks[: len(node.tracebacks) - len(around)]
        outside = len(users_frames(around[0]))
        return any(len(users_frames(traceback)) > outside for traceback in inside)

    def _depends_on_branch(self, node: Node) -> bool:
        if node in self._branches:
            return False
        self._branches.add(node)
        if node.name == "cond":
            return node.inputs[0] in self._facts.depends
        return node.name == "while" and node.bodies[0].outputs[0] in self._facts.depends

    def _visit_elementwise(self, value: int, node: Node, operands: list[Operand]) -> None:
        base = self._reading.base(value)
        kinked = has_kink(node.name, node.params) or node.name in ("reduce_max", "argmax")
        if base is not None and (kinked or self._is_joint(value, base, operands)):
            self._leave_whole(value, node, base)
        elif kinked or self._is_step(node):
            self._visit_jump(node, operands)
        else:
            self._push(operands)

    def _visit_jump(self, node: Node, operands: list[Operand]) -> None:
        """A jump that depends on several values."""
        if node.name == "select_n":
            which, *cases = operands
            if self._compares(which):
                self._list(node, cases[0], "select")
            self._push(cases)
        elif self._is_step(node):
            self._list(node, operands[0], "step")
        else:
            self._list(node, operands[0], _JUMPS[node.name])
            self._push(operands)

    def _is_step(self, node: Node) -> bool:
        """Whether a node converts the result of a comparison to a number."""
        operand = node.inputs[0]
        is_truth = node.name == "convert_element_type" and self._facts.is_truth(operand)
        return is_truth and self._compares(operand)

    def _compares(self, operand: Operand) -> bool:
        """Whether a truth value depends on the input through an inequality."""
        left, seen = [operand], set()
        while left:
            value = left.pop()
            if isinstance(value, Constant) or value in seen or value not in self._facts.depends:
                continue
            seen.add(value)
            node = self._facts.producers.get(value)
            if node is None:
                left += [self._facts.outer[value]] if value in self._facts.outer else []
            elif node.name in _DECIDES or self._tells_apart(node):
                return True
            elif node.name == "is_finite" or (
                self._facts.is_float(value) and node.name != "convert_element_type"
            ):
                continue
            elif is_call(node):
                left += [body.outputs[node.outputs.index(value)] for body in node.bodies]
            else:
                left += node.inputs
        return False

    def _tells_apart(self, node: Node) -> bool:
        """Whether an equality test does more than compare a float with one constant."""
        if node.name not in ("eq", "ne") or node.inputs[0] == node.inputs[1]:
            return False
        a, b = node.inputs
        numbers = [self._facts.constant(operand) for operand in (a, b)]
        return not self._facts.is_float(a) or all(number is None for number in numbers)

    def _leave_whole(self, value: int, node: Node, base: int) -> None:
        """Leave a function of one value as it is; list it if its derivative jumps."""
        views = self._facts.views[value]
        while jumps(views[base]) and (below := self._reading.below(base)) in views:
            base = below
        profile = views[base]
        if jumps(profile):
            self._list(node, base, name_of_whole(profile) or _JUMPS.get(node.name, "select"))
        self._push([base, *(key for key in unknowns(profile) if key in self._facts.depends)])

    def _kinked(self, operand: Operand, base: int) -> bool:
        views = {} if isinstance(operand, Constant) else self._facts.views.get(operand, {})
        return base in views and views[base].kinked

    def _is_joint(self, value: int, base: int, operands: list[Operand]) -> bool:
        """Whether a node combines two functions of one value into a new activation."""
        node = self._facts.producers[value]
        on_input = {o for o in operands if o in self._facts.depends}
        if len(on_input) < 2:
            return False
        kinked = [operand for operand in on_input if self._kinked(operand, base)]
        if node.name not in SUMS:
            return bool(kinked)
        return len(kinked) > 1 and not all(self._is_sum_of_gates(o, base) for o in kinked)

    def _is_sum_of_gates(self, operand: Operand, base: int) -> bool:
        if isinstance(operand, Constant) or not self._kinked(operand, base):
            return True
        if (gate := self._reading.gate(operand)) is not None:
            return gate.is_gate
        node = self._facts.producers.get(operand)
        if node is not None and node.bodies and is_call(node) and not self._facts.is_kept(node):
            place = node.outputs.index(operand)
            return all(self._is_sum_of_gates(body.outputs[place], base) for body in node.bodies)
        if node is None or node.name not in (*PLAIN, *SUMS, *PRODUCTS):
            return False
        on_input = {o for o in node.inputs if o in self._facts.depends}
        if node.name in PRODUCTS and len(on_input) > 1:
            return False
        return all(self._is_sum_of_gates(o, base) for o in on_input)
