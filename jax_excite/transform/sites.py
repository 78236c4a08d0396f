"""Sites: the gates of a function, and other places where its derivative jumps, by name."""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jax_excite.errors import GatingError
from jax_excite.gates.gate import Found, Gate
from jax_excite.graphs.graph import Constant, Graph, Node, users_frames
from jax_excite.recipes import EXCITATION, SEMANTIC

SiteSelection = str | int | Iterable[str | int]
Names = str | Iterable[str]


@dataclasses.dataclass(frozen=True)
class Site:
    """A gate of a function, or another place where its derivative jumps.

    Attributes:
        index: its position in the order in which the sites run, from 0.
        kind: the kind of gate, such as `relu`, `max_pool`, `silu` or `attention`; or a kind of
            jump, such as `abs` or `select`.
        name: its `jax.named_scope` and kind, numbered if that is not unique.
        shape: shape of its pre-activation (of the input, for `max_pool` and `normalisation`; of the
            logits, for `attention`).
        dtype: dtype of its pre-activation.
        source: `file:line (function)` of the caller's code that wrote it.
        gated: whether `excite` can soften it. Gates without a jump, such as `silu`, are softened by
            gatings that say so: `recipes.SEMANTIC` does, the default does not.
        reason: how it is written, or why it cannot be softened.
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
                reason=one.obstacle or _form(one),
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


def _form(one: Found) -> str:
    """How a gate is written, and whether it is one that the default recipe leaves."""
    if not one.is_left(EXCITATION):
        asks = ""
    elif not one.is_left(SEMANTIC):
        asks = "; recipes.SEMANTIC softens it"
    else:
        asks = f"; Gating({one.kind}=...) can hold it constant"
    return f"computed by `{one.form}`{asks}"


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
