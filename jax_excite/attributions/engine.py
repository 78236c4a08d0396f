"""The common part of all attributions: checks, blocks, devices, and one compiled call."""

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypedDict, runtime_checkable

from jax.sharding import NamedSharding

from jax_excite.gating import Gating
from jax_excite.pullbacks import items
from jax_excite.pullbacks.batching import Rows, in_loop
from jax_excite.pullbacks.compiled import compiled
from jax_excite.pullbacks.request import Request
from jax_excite.pullbacks.sharding import on_each
from jax_excite.pullbacks.softened import Blockwise, linearise, softened
from jax_excite.pullbacks.targets import Target
from jax_excite.transform.sites import Names, Selection, SiteSelection
from jax_excite.typing import Bounds, Items, Params

Attributor = Callable[[Any, Any], Any]  # n items, such as [n, H, W, C], and their targets -> maps


class Options(TypedDict, total=False):
    """The keyword arguments that all attributions share with `pullback`."""

    bounds: Bounds | None
    batched: bool | None
    batch_size: int | None
    sharding: NamedSharding | None


class GatingOptions(Options, total=False):
    """The keyword arguments of `Options`, and the sites to which the gating applies."""

    skip: SiteSelection
    only: SiteSelection | None
    enter: Names


@runtime_checkable
class AttributionRule(Hashable, Protocol):
    """How an attribution is computed; settings that are not arrays are part of the rule."""

    def __call__(self, params: Params, like: Any, gating: Gating, settings: Any) -> Attributor:
        """The function that takes a block of items shaped like `like` and their targets."""
        ...


def attribute(
    rule: AttributionRule,
    params: Params,
    x: Items,
    c: Target,
    gating: Gating,
    settings: Any = (),
    *,
    bounds: Bounds | None = (-1.0, 1.0),
    batched: bool | None = None,
    batch_size: int | None = None,
    sharding: NamedSharding | None = None,
) -> Any:
    """The maps that a rule computes from items and targets.

    Args:
        rule: what is computed; compiled once per rule and shape.
        params: as for `pullback`, like all arguments that are not described here.
        x: as for `pullback`.
        c: the target.
        gating: how gates are softened.
        settings: a pytree of further arrays that the rule takes, traced.
        bounds: the range of images.
        batched: as for `pullback`.
        batch_size: the number of items computed at a time.
        sharding: how to spread the items.

    Returns:
        The maps, shaped like `x`.
    """
    request = Request.of(
        params,
        x,
        gating,
        bounds=bounds,
        batched=batched,
        batch_size=batch_size,
        sharding=sharding,
    )
    return request.over_rows(_attribute, request.target(c), rule=rule, settings=settings)


@compiled("rule", "rows", "sharding")
def _attribute(
    params: Params,
    gating: Gating,
    x: Any,
    target: Any,
    *,
    settings: Any,
    rule: AttributionRule,
    rows: Rows,
    sharding: NamedSharding | None,
) -> Any:
    def compute(params: Params, gating: Gating, settings: Any, x: Any, target: Any) -> Any:
        at_once = Blockwise(params, x).rows_at_once(rows)
        like = items.rows(x, slice(at_once))
        return in_loop(rule(params, like, gating, settings), at_once, x, target)

    return on_each(compute, sharding, (params, gating, settings), (x, target))


def field(params: Params, like: Any, gating: Gating, selection: Selection) -> Attributor:
    """The function that computes the pullbacks of items shaped like `like`."""
    network = softened(params, like, selection)

    def pull(x: Any, target: Any) -> Any:
        return linearise(network, x, gating)[1](target)

    return pull
