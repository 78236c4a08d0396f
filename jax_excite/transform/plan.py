"""A traced function with its sites, which `excite`, `sites` and the theory of paths use."""

import collections
import functools
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_excite.callables.captured import call_watched
from jax_excite.callables.pytree import StaticLeaves, as_pytree, check_callable, split_arrays
from jax_excite.errors import GateWarning, GatingError
from jax_excite.gates.gate import SOFT_ALREADY, AtSite, Gate
from jax_excite.gates.kinds import GATE_KINDS
from jax_excite.gating import Gating
from jax_excite.graphs.graph import Graph, Node, bind, nodes_of, origin, trace
from jax_excite.kernels.convolution_forms import Convolution
from jax_excite.kernels.convolutions import Folded, Prepared, convolve, find_convolution, prepare
from jax_excite.recipes import SEMANTIC
from jax_excite.transform.census import census, is_entered
from jax_excite.transform.channels import channel_axis
from jax_excite.transform.independence import treats_items_alone
from jax_excite.transform.interpret import Interpreter, Outcome, Reached, Rule, enter
from jax_excite.transform.site_output import TargetSite
from jax_excite.transform.sites import SELECT_ALL, Selection, Site, select, sites_of


class Plan:
    """A traced function, its sites, and which of them are softened.

    Arrays among the arguments, and among the leaves of the function, are traced; other leaves
    (activation functions, flags) are not. The derivative is that with respect to the arguments.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        selection: Selection = SELECT_ALL,
    ):
        check_callable(fn)
        fn = as_pytree(fn)
        own, own_tree = jax.tree.flatten(fn)
        leaves, tree = jax.tree.flatten((tuple(args), kwargs))
        self._weights, rebuild_own = split_arrays(own)
        names: list[str] = []
        self._arrays, rebuild = split_arrays(leaves)

        def flat(*arrays: Any) -> Any:
            # A module breaks if an inner trace closes over it, so it is rebuilt inside the trace.
            count = len(self._weights)
            given = rebuild_own(arrays[:count])
            called = jax.tree.unflatten(own_tree, given)
            inner = called.fn if isinstance(called, StaticLeaves) else called
            args, kwargs = jax.tree.unflatten(tree, rebuild(arrays[count:]))
            outputs, replaced = call_watched(inner, args, kwargs)
            names[:] = replaced
            return outputs, list(replaced.values())

        self._graph, (self._shapes, replaced) = trace(flat, *self._weights, *self._arrays)
        _check_state(self._graph, dict(zip(names, replaced, strict=True)))
        self._known = dict(zip(self._graph.inputs, self._weights, strict=False))
        inputs = self._graph.inputs[len(self._weights) :]
        types = self._graph.types
        sources = [n for n in inputs if jnp.issubdtype(types[n].dtype, jnp.inexact)]
        self._differentiable = bool(sources)
        self._is_entered = is_entered(selection.enter)
        self._found = census(self._graph, sources, self._is_entered)
        self.sites = sites_of(self._graph, self._found, selection)
        only = () if selection.only is None else selection.only
        self._asked = select(only, self.sites, "only")
        self._gates = {
            found.node: (found, site)
            for found, site in zip(self._found, self.sites, strict=True)
            if site.gated and isinstance(found, Gate)
        }
        self._active: dict[Graph, bool] = {}
        self._target: TargetSite | None = None
        if selection.at is not None:
            (index,) = select((selection.at,), self.sites, "at")
            node = self._found[index].node
            self._target = TargetSite.of(self._graph, inputs, node, self.sites[index])
            self._graph = self._target.graph

    def check(self, gating: Gating) -> None:
        """Raise `GatingError` if there is nothing to soften or a temperature has no site.

        Also if `only=` names sites that the gating leaves as they are. Warns if gates that the
        gating should soften are left hard.
        """
        named = select(gating.site_temperatures, self.sites, "site_temperatures")
        softened = [
            (site, found)
            for found, site in zip(self._found, self.sites, strict=True)
            if found.is_gate and not found.is_left(gating, named=site.index in named)
        ]
        for index in named:
            found = self._found[index]
            if isinstance(found, Gate) and not found.setting:
                raise GatingError(
                    f"site_temperatures names {self.sites[index].name}, which has no temperature"
                )
        if not gating.is_plain and self._differentiable and not softened:
            raise GatingError(f"the function has no gate to soften: {self._advice()}")
        others = {site.index for site in self.sites} - {site.index for site, _ in softened}
        if not gating.is_plain and (missed := sorted(self._asked & others)):
            listed = "; ".join(f"{self.sites[i].name} ({self.sites[i].reason})" for i in missed)
            raise GatingError(f"only= names sites that this gating does not soften: {listed}")
        left = [
            f"{site.name} ({found.obstacle})"
            for site, found in softened
            if found.obstacle not in ("", SOFT_ALREADY)
        ]
        if left and not gating.is_plain:
            warnings.warn(f"gates that are left hard: {'; '.join(left)}", GateWarning, stacklevel=3)

    def _advice(self) -> str:
        """What to do about a function in which a gating softens nothing."""
        smooth = collections.Counter(
            site.kind
            for found, site in zip(self._found, self.sites, strict=True)
            if found.is_gate and not found.is_left(SEMANTIC)
        )
        if smooth:
            counts = ", ".join(f"{count} of kind {kind}" for kind, count in smooth.items())
            return (
                "it has no ReLU and no max-pool, which this gating softens, but other gates "
                f"({counts}): use gating=recipes.SEMANTIC, which softens them"
            )
        listed = "; ".join(f"{site.name}: {site.reason}" for site in self.sites)
        kinds = ", ".join(GATE_KINDS)
        return f"excite needs one of {kinds}{f' (found only {listed})' if listed else ''}"

    def run(
        self,
        at_site: "SiteRule",
        given: dict[str, Any] | None = None,
        *,
        arrays: Sequence[Any] | None = None,
        prepared: Prepared | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Evaluate the function, with the output of each gated site computed by `at_site`.

        Args:
            at_site: takes a site when it is reached, and returns its output and a pytree of arrays
                to collect, or None.
            given: pytrees of arrays by site name, which are passed to `at_site`. Those of a site
                inside a scan have a leading axis with one entry per step.
            arrays: arrays of the same shapes to evaluate it on, in place of those it was traced on.
            prepared: the result of `prepare`. With it, convolutions, the operations folded into
                them, and max-pools differ from the function's own by rounding, for speed.

        Returns:
            The outputs of the function (a `SiteOutput` if the selection has a site that the target
            is at), and the collected arrays by site name, in site order.
        """
        names = {node.number: site.name for node, (_, site) in self._gates.items()}
        interpreter = Interpreter(
            self._rules(at_site, prepared),
            {} if given is None else {number: given[name] for number, name in names.items()},
        )
        outputs, brought = interpreter(
            self._graph, [*self._weights, *(self._arrays if arrays is None else arrays)]
        )
        if self._target is None:
            result = jax.tree.unflatten(jax.tree.structure(self._shapes), outputs)
        else:
            result = self._target.output(brought)
        found = {names[number]: value for number, value in brought.items() if number in names}
        return result, {site.name: found[site.name] for site in self.sites if site.name in found}

    def prepare(self, *, fold: bool = True) -> Prepared:
        """Compute, from the weights of the function, values that make `run` faster."""
        return prepare(self._graph, self._known, fold=fold)

    def treats_items_alone(self, whole: "Plan") -> bool:
        """Whether the function computes the same for each item in a block as in the whole batch.

        Args:
            whole: the plan for the whole batch; this plan is for a block of it.
        """
        batched = self._graph.inputs[len(self._weights) :]
        return treats_items_alone(self._graph, batched, whole._graph)

    def softened_by(self, settings: Collection[str]) -> set[str]:
        """The names and indices of the sites whose temperature is one of these fields of `Gating`.

        Args:
            settings: names of fields.
        """
        sites = (
            site
            for found, site in zip(self._found, self.sites, strict=True)
            if isinstance(found, Gate) and found.setting in settings
        )
        return {name for site in sites for name in (site.name, str(site.index))}

    def channel_axis(self, site: Site) -> int | None:
        """The axis of a site's output that holds channels, or None if it cannot be determined."""
        return channel_axis(self._graph, self._found[site.index].node)

    def _rules(self, at_site: "SiteRule", prepared: Prepared | None) -> dict[Node, Rule]:
        """The rules of all nodes that do more than evaluate their primitive."""
        absorbed = {} if prepared is None else prepared.absorbed
        rules: dict[Node, Rule] = {}
        for node in nodes_of(self._graph):
            if node.number in absorbed:
                rules[node] = functools.partial(_pass_on, absorbed[node.number])
            elif (conv := find_convolution(self._graph, node)) is not None:
                folded = None if prepared is None else prepared.folded.get(node.number)
                rules[node] = functools.partial(_convolve, conv, folded, prepared is None)
            elif node in self._gates:
                rules[node] = functools.partial(
                    _soften, at_site, *self._gates[node], prepared is not None
                )
            elif self._enters(node):
                rules[node] = enter
        if self._target is not None:
            rule = rules.get(self._target.node, _evaluate)
            rules[self._target.node] = functools.partial(_keep, rule)
        return rules

    def _enters(self, node: Node) -> bool:
        if node in self._gates or (node.has_derivative_rule and not self._is_entered(node)):
            return False
        return any(self._has_active(body) for body in node.bodies)

    def _has_active(self, graph: Graph) -> bool:
        if graph not in self._active:
            target = None if self._target is None else self._target.node
            self._active[graph] = any(
                node in self._gates or node is target or self._enters(node) for node in graph.nodes
            )
        return self._active[graph]


def _check_state(graph: Graph, replaced: dict[str, Any]) -> None:
    """Raise `GatingError` if a module changed its own arrays when it was called.

    Args:
        graph: the graph. Its last outputs are pairs of an array of the module and its replacement;
            they are removed from the outputs.
        replaced: the pairs by name. Some modules replace an array by an equal one, as `nnx.remat`
            does.
    """
    count = 2 * len(replaced)
    pairs = graph.outputs[len(graph.outputs) - count :]
    graph.outputs = graph.outputs[: len(graph.outputs) - count]
    changed = [
        name
        for name, old, new in zip(replaced, pairs[::2], pairs[1::2], strict=True)
        if origin(graph, new) != origin(graph, old)
    ]
    if changed:
        listed = ", ".join(changed[:4]) + (", ..." if len(changed) > 4 else "")
        raise GatingError(
            f"the model changes its own state when it is called ({listed}), as a module in train "
            "mode does: call .eval() on it first"
        )


SiteRule = Callable[[AtSite], tuple[jax.Array, Any]]


def _evaluate(reached: Reached) -> Outcome:
    """The rule of a node that is evaluated by its primitive."""
    return bind(reached.node, reached.inputs), {}


def _keep(rule: Rule, reached: Reached) -> Outcome:
    """The rule of a node whose output is collected."""
    outputs, _ = rule(reached)
    return outputs, {reached.node.number: outputs[0]}


def _pass_on(place: int, reached: Reached) -> Outcome:
    """The rule of a node that was folded into an earlier convolution."""
    return [reached.inputs[place]], {}


def _convolve(conv: Convolution, folded: Folded | None, exact: bool, reached: Reached) -> Outcome:
    """The rule of a convolution with a fast form."""
    x, w = reached.inputs
    if folded is None:
        return [convolve(conv, x, w, exact=exact)], {}
    y = convolve(conv, x, folded.w, folded.kernels)
    return [y if folded.shift is None else y + folded.shift], {}


def _soften(at_site: SiteRule, gate: Gate, site: Site, is_fast: bool, reached: Reached) -> Outcome:
    """The rule of a gate, however it is written: its output is computed by `at_site`."""
    inputs = [lax.stop_gradient(value) for value in reached.inputs]
    hard = gate.fast(inputs) if is_fast else None
    if hard is None:
        hard = jnp.asarray(bind(reached.node, inputs)[0])
    z, *operands = (jnp.asarray(reached.read(operand)) for operand in (gate.z, *gate.operands))

    def plain() -> jax.Array:
        return bind(reached.node, reached.inputs)[0]

    inner, z = gate.inward(hard, z)
    here = AtSite(site.index, site.name, gate, plain, inner, z, operands, reached.given)
    output, out = at_site(here)
    return [gate.outward(output, hard)], {} if out is None else {reached.node.number: out}
