"""A traced function with its sites: what `excite`, `sites` and the theory of paths run."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_excite.callables import split_arrays
from jax_excite.convolutions import Prepared, convolve, find_convolution, prepare
from jax_excite.errors import GatingError
from jax_excite.evaluation import Values, evaluate
from jax_excite.gating import Gating
from jax_excite.graph import Graph, Node, Operand, trace
from jax_excite.matching import GateKind, HardGate, Matches, find_gates
from jax_excite.surrogates import (
    ReluConfig,
    check_broadcasts,
    compute_dtype,
)
from jax_excite.windows import PoolConfig, Window, max_pool, pooled_once

SiteSelection = str | int | Iterable[str | int]


@dataclasses.dataclass(frozen=True)
class Site:
    """A hard gate of a function: a ReLU, a clipped ReLU or a max-pool.

    Attributes:
        index: its place in the order in which the gates run, from 0.
        kind: `relu`, `clipped_relu` or `max_pool`.
        name: its `jax.named_scope` and kind, numbered where that is not unique.
        shape: shape of its pre-activation (of the input, for `max_pool`).
        dtype: dtype of its pre-activation.
        source: `file:line (function)` of the caller's code that wrote it.
        gated: whether `excite` softens it.
        reason: how it is written, or why it is left hard.
    """

    index: int
    kind: GateKind
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    source: str
    gated: bool
    reason: str


class Plan:
    """A traced function, its sites, and which of them are softened.

    Arrays among the arguments are traced; other leaves (activation functions, flags) are not.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        skip: SiteSelection,
        only: SiteSelection | None,
    ):
        leaves, tree = jax.tree.flatten((tuple(args), kwargs))
        self._arrays, rebuild = split_arrays(leaves)

        def flat(*arrays: Any) -> Any:
            args, kwargs = jax.tree.unflatten(tree, rebuild(arrays))
            return fn(*args, **kwargs)

        self._graph, self._shapes = trace(flat, *self._arrays)
        self._matches = find_gates(self._graph)
        self.sites = _sites(self._graph, self._matches, skip, only)
        self._site_of = dict(zip(self._matches.gates, self.sites, strict=True))
        self._active: dict[Graph, bool] = {}

    def check(self, gating: Gating) -> None:
        """Raise `GatingError` where there is nothing to soften or a temperature has no site."""
        plain = gating.gate == "hard" and gating.cotangents == "all"
        if not plain and all(gate.obstacle for gate in self._matches.gates):
            found = "; ".join(f"{site.name}: {site.reason}" for site in self.sites)
            raise GatingError(
                "the function has no gate to soften: excite wants a ReLU, a clipped ReLU or a "
                f"max-pool{f' (found only {found})' if found else ''}"
            )
        _select(gating.site_temperatures, self.sites, "site_temperatures")

    def run(
        self,
        at_site: Callable[["AtSite"], tuple[jax.Array, Any]],
        given: dict[str, Any] | None = None,
        *,
        arrays: Sequence[Any] | None = None,
        prepared: Prepared | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Evaluate the function, with a say at each gated site.

        Args:
            at_site: given a site as it is reached, returns its output, and a pytree of arrays to
                bring out or None.
            given: pytrees of arrays by the sites' names, for `at_site` to see. Those of a site
                inside a scan have a leading axis, one entry for each step.
            arrays: arrays of the same shapes to evaluate it on, in place of those it was traced on.
            prepared: what `prepare` gave. With it convolutions, what is folded into them, and
                max-pools differ from the function's own by rounding, for speed.

        Returns:
            What the function returns, and what was brought out, by the sites' names in their order.
        """
        names = {
            node.number: site.name
            for node, softening in self._matches.softenings.items()
            if (site := self._site_of[softening.gate]).gated
        }
        outputs, brought = evaluate(
            self._graph,
            self._arrays if arrays is None else arrays,
            self._enters,
            functools.partial(self._around, at_site, prepared),
            {} if given is None else {number: given[name] for number, name in names.items()},
        )
        # A clipped ReLU may have two nodes, of which the last computes its output.
        found = {names[number]: brought[number] for number in sorted(brought)}
        tree = jax.tree.structure(self._shapes)
        return jax.tree.unflatten(tree, outputs), {
            site.name: found[site.name] for site in self.sites if site.name in found
        }

    def prepare(self, *, fold: bool = True) -> Prepared:
        """What makes `run` faster, computed from the constants of the function."""
        return prepare(self._graph, fold=fold)

    def _around(
        self,
        at_site: Callable[["AtSite"], tuple[jax.Array, Any]],
        prepared: Prepared | None,
        node: Node,
        inputs: list[Any],
        run: Callable[[list[Any]], tuple[list[Any], Values]],
        read: Callable[[Operand], Any],
        given: Any,
    ) -> tuple[list[Any], Values]:
        if prepared is not None and node.number in prepared.absorbed:
            return [inputs[prepared.absorbed[node.number]]], {}
        if (conv := find_convolution(self._graph, node)) is not None:
            x, w = inputs
            folded = None if prepared is None else prepared.folded.get(node.number)
            if folded is None:
                return [convolve(conv, x, w, exact=prepared is None)], {}
            y = convolve(conv, x, folded.w, folded.kernels)
            return [y if folded.shift is None else y + folded.shift], {}
        softening = self._matches.softenings.get(node)
        if softening is None or not self._site_of[softening.gate].gated:
            return run(inputs)
        site = self._site_of[softening.gate]
        window = _window(node) if site.kind == "max_pool" else None
        inputs = [lax.stop_gradient(value) for value in inputs]
        if window is None or prepared is None:
            (hard, *_), _ = run(inputs)
        else:
            hard = max_pool(window, inputs[0])
        z = jnp.asarray(read(softening.z))
        output, out = at_site(AtSite(site, jnp.asarray(hard), z, softening.bound, window, given))
        return [output], {} if out is None else {node.number: out}

    def _enters(self, node: Node) -> bool:
        return any(self._has_active(body) for body in node.bodies)

    def _has_active(self, graph: Graph) -> bool:
        if graph not in self._active:
            self._active[graph] = any(
                self._site_of[softening.gate].gated
                if (softening := self._matches.softenings.get(node))
                else self._enters(node)
                for node in graph.nodes
            )
        return self._active[graph]


@dataclasses.dataclass(frozen=True)
class AtSite:
    """A site as an evaluation reaches it.

    Attributes:
        site: which.
        hard: its output, without a derivative.
        z: its pre-activation; the input of a max-pool.
        bound: the upper bound of a clipped ReLU.
        window: that of a max-pool.
        given: what the caller of `Plan.run` gave for it.
    """

    site: Site
    hard: jax.Array
    z: jax.Array
    bound: float | None
    window: Window | None
    given: Any

    def settings(self, gating: Gating) -> tuple[ReluConfig | PoolConfig, jax.Array, jax.Array]:
        """The static settings, the temperature and the slope that a gating has for the site."""
        dtype = compute_dtype(self.z.dtype)
        if self.window is not None:
            config = PoolConfig(self.window, gating.pool_weights, gating.pool_padding)
            default, allowed = gating.pool_temperature, pooled_once(self.window, self.z.shape)
        else:
            config = ReluConfig(gating.gate, self.bound, gating.upper, gating.cotangents)
            default, allowed = gating.temperature, self.z.shape
        by_index = gating.site_temperatures.get(str(self.site.index), default)
        temperature = jnp.asarray(gating.site_temperatures.get(self.site.name, by_index))
        slope = jnp.asarray(gating.slope).astype(dtype)
        try:
            check_broadcasts(temperature, allowed)
            check_broadcasts(slope, self.z.shape)
        except GatingError as error:
            raise GatingError(f"site {self.site.index} ({self.site.name}): {error}") from None
        return config, temperature.astype(dtype), slope


def _window(node: Node) -> Window:
    names = ("window_dimensions", "window_strides", "padding", "window_dilation")
    return Window(*(node.params[name] for name in names))


def _sites(
    graph: Graph, matches: Matches, skip: SiteSelection, only: SiteSelection | None
) -> list[Site]:
    names = _names(matches.gates)
    found = []
    for index, gate in enumerate(matches.gates):
        z = graph.types[gate.z]
        found.append(
            Site(
                index=index,
                kind=gate.kind,
                name=names[index],
                shape=z.shape,
                dtype=z.dtype,
                source=_source(gate.node),
                gated=not gate.obstacle,
                reason=gate.obstacle or gate.form,
            )
        )
    skipped = _select(skip, found, "skip")
    kept = set(range(len(found))) if only is None else _select(only, found, "only")
    for index, site in enumerate(found):
        if site.gated and (index in skipped or index not in kept):
            reason = "skipped by the caller" if index in skipped else "not among the caller's only="
            found[index] = dataclasses.replace(site, gated=False, reason=reason)
    return found


def _names(gates: Sequence[HardGate]) -> list[str]:
    """`scope/kind` for each gate, with `_1`, `_2`, ... from the second of a name on."""
    counts: dict[str, int] = {}
    names = []
    for gate in gates:
        name = f"{gate.node.scope}/{gate.kind}" if gate.node.scope else gate.kind
        repeated = counts[name] = counts.get(name, -1) + 1
        names.append(f"{name}_{repeated}" if repeated else name)
    return names


def _select(selection: Any, found: Sequence[Site], what: str) -> set[int]:
    """The indices of the sites that a caller named, or `GatingError` for one that is not there."""
    named = (selection,) if isinstance(selection, (str, int, np.integer)) else tuple(selection)
    known = {str(site.index): site.index for site in found}
    known |= {site.name: site.index for site in found}
    unknown = [item for item in named if str(item) not in known]
    if unknown:
        listed = ", ".join(f"{site.index} ({site.name})" for site in found) or "none"
        raise GatingError(f"{what} names no site of the function: {unknown}; its sites: {listed}")
    return {known[str(item)] for item in named}


_PACKAGES = f"{Path(str(jax.__file__)).parents[1]}{os.sep}"
_OWN = tuple(
    str(Path(__file__).parent / name)
    for name in (
        "graph.py",
        "plan.py",
        "transform.py",
        "surrogates.py",
        "windows.py",
        "models/blocks.py",
    )
)


def _source(node: Node) -> str:
    """Where the caller's code made a node: the innermost frame outside of installed packages."""
    for frame in (frame for traceback in node.tracebacks for frame in traceback.frames):
        if not frame.file_name.startswith((_PACKAGES, *_OWN)):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return "unknown"
