"""Sites: the places in a function where its derivative jumps, by name, and which are softened."""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jax_excite.errors import GatingError
from jax_excite.gates.gate import Found, Gate
from jax_excite.graphs.graph import Constant, Graph, Node, users_frames

SiteSelection = str | int | Iterable[str | int]
Names = str | Iterable[str]


@dataclasses.dataclass(frozen=True)
class Site:
    """A place in a function where its derivative jumps: a gate, or something else.

    Attributes:
        index: its position in the order in which the sites run, from 0.
        kind: `relu`, `clipped_relu`, `leaky_relu` or `max_pool`, which can be softened; or another
            kind of jump, such as `abs`, `select`, `hard_swish`.
        name: its `jax.named_scope` and kind, numbered if that is not unique.
        shape: shape of its pre-activation (of the input, for `max_pool`).
        dtype: dtype of its pre-activation.
        source: `file:line (function)` of the caller's code that wrote it.
        gated: whether `excite` softens it.
        reason: how it is written, or why it is left hard.
    """

    index: int
    kind: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    source: str
    gated: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Selection:
    """The sites that a gating applies to, in a form that compiled functions take as static.

    Attributes:
        skip: sites to leave hard.
        only: if not None, the only sites to soften.
        enter: functions whose custom derivative rules are replaced by those of their bodies.
        at: the site whose output replaces the outputs of the function; None for its own outputs.
    """

    skip: Hashable = ()
    only: Hashable = None
    enter: tuple[str, ...] = ()
    at: str | int | None = None

    @staticmethod
    def of(
        skip: SiteSelection,
        only: SiteSelection | None,
        enter: Names = (),
        at: str | int | None = None,
    ) -> "Selection":
        """Make a selection of a caller's arguments."""
        names = (enter,) if isinstance(enter, str) else tuple(enter)
        return Selection(_hashable(skip), _hashable(only), names, at)


def _hashable(selection: SiteSelection | None) -> Hashable:
    if selection is None or isinstance(selection, (str, int, np.integer)):
        return selection
    return tuple(selection)


SELECT_ALL = Selection()


def sites_of(graph: Graph, found: Sequence[Found], selection: Selection) -> list[Site]:
    """Name the places that a census found, and mark those that a selection softens."""
    names = _names(found)
    sites = []
    for index, one in enumerate(found):
        constant = isinstance(one.z, Constant)
        z = jax.typeof(one.z.value) if isinstance(one.z, Constant) else graph.types[one.z]
        sites.append(
            Site(
                index=index,
                kind=one.kind,
                name=names[index],
                shape=z.shape,
                dtype=z.dtype,
                source=_source(one.node),
                gated=isinstance(one, Gate) and not one.obstacle and not constant,
                reason=one.obstacle or f"computed by `{one.form}`",
            )
        )
    skipped = select(selection.skip, sites, "skip")
    only = selection.only
    kept = set(range(len(sites))) if only is None else select(only, sites, "only")
    for index, site in enumerate(sites):
        if site.gated and (index in skipped or index not in kept):
            reason = "skipped by the caller" if index in skipped else "not among the caller's only="
            sites[index] = dataclasses.replace(site, gated=False, reason=reason)
    return sites


def _names(found: Sequence[Found]) -> list[str]:
    """`scope/kind` per site, with `_1`, `_2`, ... from the second site of a name on."""
    counts: dict[str, int] = {}
    names = []
    for one in found:
        name = f"{one.node.scope}/{one.kind}" if one.node.scope else one.kind
        repeated = counts[name] = counts.get(name, -1) + 1
        names.append(f"{name}_{repeated}" if repeated else name)
    return names


def select(selection: Any, found: Sequence[Site], what: str) -> set[int]:
    """The indices of the sites that a caller named; raises `GatingError` for an unknown site."""
    named = (selection,) if isinstance(selection, (str, int, np.integer)) else tuple(selection)
    known = {str(site.index): site.index for site in found}
    known |= {site.name: site.index for site in found}
    unknown = [item for item in named if str(item) not in known]
    if unknown:
        listed = ", ".join(f"{site.index} ({site.name})" for site in found) or "none"
        raise GatingError(f"{what} names no site of the function: {unknown}; its sites: {listed}")
    return {known[str(item)] for item in named}


def _source(node: Node) -> str:
    """Where the caller's code made a node: the innermost frame outside of installed packages."""
    for traceback in node.tracebacks:
        for frame in users_frames(traceback):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return "unknown"
