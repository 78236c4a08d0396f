"""`excite`: a function with the same outputs whose derivative is soft-gated; `sites`: its gates."""

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
from jax_excite.errors import GatingError
from jax_excite.gating import Gating, check_gating
from jax_excite.graph import Graph, Node, Operand, evaluate, trace
from jax_excite.matching import GateKind, HardGate, Matches, find_gates
from jax_excite.recipes import EXCITATION
from jax_excite.surrogates import (
    PoolConfig,
    ReluConfig,
    Window,
    compute_dtype,
    soften_max_pool,
    soften_relu,
)

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


def excite(
    fn: Callable[..., Any],
    gating: Gating = EXCITATION,
    *,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
) -> Callable[..., Any]:
    """Soften the hard gates of a function in its backward pass.

    The paper replaces modules of a network (sections 5.2 and 5.3); here the function itself is
    transformed, whatever wrote it. Its equations are evaluated one by one, as they are, except
    that the derivative at each site is that of the soft gate.

    Args:
        fn: any JAX function of any arguments; the arrays among them are traced, all else is kept.
        gating: how to soften.
        skip: sites to leave hard, by index or name as `sites` lists them.
        only: if given, the only sites to soften.

    Returns:
        A function of the same arguments with the same outputs, bit for bit, whose
        reverse-mode derivative is soft-gated. It composes with `jit`, `vmap` and `grad`.

    Raises:
        GatingError: (when called) `fn` has no gate that can be softened, a named site does not
            exist, or a temperature does not fit its site.
    """
    check_gating(gating)

    @functools.wraps(fn)
    def excited(*args: Any, **kwargs: Any) -> Any:
        plan = Plan(fn, args, kwargs, skip, only)
        plan.check(gating)
        return plan.run(functools.partial(_soften, gating))

    return excited


def sites(
    fn: Callable[..., Any],
    *args: Any,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    **kwargs: Any,
) -> list[Site]:
    """List every hard gate of `fn(*args)`, and whether and why `excite` softens it.

    Args:
        fn: any JAX function.
        *args: its arguments; nothing is computed, only traced.
        skip: as for `excite`.
        only: as for `excite`.
        **kwargs: further arguments of `fn`.

    Returns:
        The sites in the order in which they run.
    """
    return Plan(fn, args, kwargs, skip, only).sites


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
        if not any(not gate.obstacle for gate in self._matches.gates):
            found = "; ".join(f"{site.name}: {site.reason}" for site in self.sites)
            raise GatingError(
                "the function has no gate to soften: excite wants a ReLU, a clipped ReLU or a "
                f"max-pool{f' (found only {found})' if found else ''}"
            )
        _select(gating.site_temperatures, self.sites, "site_temperatures")

    def run(self, soften: Callable[..., jax.Array]) -> Any:
        """Evaluate the function, with `soften(site, softening, node, hard, z)` at each gate."""
        outputs = evaluate(
            self._graph, self._arrays, self._enters, functools.partial(self._around, soften)
        )
        return jax.tree.unflatten(jax.tree.structure(self._shapes), outputs)

    def _around(
        self,
        soften: Callable[..., jax.Array],
        node: Node,
        inputs: list[Any],
        run: Callable[[list[Any]], list[Any]],
        read: Callable[[Operand], Any],
    ) -> list[Any]:
        softening = self._matches.softenings.get(node)
        if softening is None or not self._site_of[softening.gate].gated:
            return run(inputs)
        hard = run([lax.stop_gradient(value) for value in inputs])[0]
        return [soften(self._site_of[softening.gate], softening, node, hard, read(softening.z))]

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


def _soften(
    gating: Gating, site: Site, softening: Any, node: Node, hard: jax.Array, z: jax.Array
) -> jax.Array:
    hard, z = jnp.asarray(hard), jnp.asarray(z)
    default = gating.pool_temperature if site.kind == "max_pool" else gating.temperature
    by_index = gating.site_temperatures.get(str(site.index), default)
    dtype = compute_dtype(z.dtype)
    temperature = jnp.asarray(gating.site_temperatures.get(site.name, by_index)).astype(dtype)
    try:
        if site.kind == "max_pool":
            config = PoolConfig(_window(node), gating.pool_weights, gating.pool_padding)
            return soften_max_pool(config, hard, z, temperature)
        config = ReluConfig(gating.gate, softening.bound, gating.upper)
        return soften_relu(config, hard, z, temperature, jnp.asarray(gating.slope).astype(dtype))
    except GatingError as error:
        raise GatingError(f"site {site.index} ({site.name}): {error}") from None


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
    for name in ("graph.py", "transform.py", "surrogates.py", "models/blocks.py")
)


def _source(node: Node) -> str:
    """Where the caller's code made a node: the innermost frame outside of installed packages."""
    for frame in (frame for traceback in node.tracebacks for frame in traceback.frames):
        if not frame.file_name.startswith((_PACKAGES, *_OWN)):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return "unknown"
