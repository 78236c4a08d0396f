"""A softened function for many calls within one trace, on a whole batch or on blocks of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jax_excite.gating import Gating
from jax_excite.kernels.convolutions import Prepared
from jax_excite.pullbacks import targets
from jax_excite.pullbacks.batching import AUTO, Rows, evenly
from jax_excite.transform.plan import Plan
from jax_excite.transform.sites import SELECT_ALL, Selection


def softened(
    fn: Callable[[jax.Array], Any],
    like: Any,
    selection: Selection = SELECT_ALL,
    *,
    fold: bool = True,
) -> "Softened":
    """`excite(fn)` for many calls within one trace, on arrays shaped like `like`.

    `fn` is traced once. Everything that does not depend on the input is computed here, outside of
    any loop that calls the result. For speed, the outputs differ from those of `fn` by rounding,
    unlike those of `excite`. `fold` saves time only if the result is called with more than one
    image. Errors are those of `excite`.
    """
    plan = Plan(fn, (like,), {}, selection)
    return Softened(plan, plan.prepare(fold=fold))


@dataclasses.dataclass(frozen=True)
class Softened:
    """A softened function of a batch and a gating."""

    plan: Plan
    prepared: Prepared

    def __call__(self, x: jax.Array, gating: Gating) -> Any:
        """The function's outputs for a batch of the shape that it was traced for."""
        self.plan.check(gating)
        return self.plan.run(
            lambda at: (at.soften(gating), None), arrays=[x], prepared=self.prepared
        )[0]


def softened_rows(
    fn: Callable[[jax.Array], Any],
    x: Float[jax.Array, "N ..."],
    selection: Selection,
    rows: Rows,
    *,
    fold: bool = True,
) -> tuple[Softened, int]:
    """`softened` for blocks of a batch, and the number of rows per block.

    With `AUTO`, all rows form one block if `fn` may mix them.
    """
    at_once = evenly(len(x), rows)
    if rows != AUTO or at_once == len(x):
        return softened(fn, x[:at_once], selection, fold=fold), at_once
    network = softened_if_alone(fn, x[:at_once], x, selection, fold=fold)
    if network is not None:
        return network, at_once
    return softened(fn, x, selection, fold=fold), len(x)


def softened_if_alone(
    fn: Callable[[jax.Array], Any],
    block: Any,
    whole: Any,
    selection: Selection,
    *,
    fold: bool = True,
) -> Softened | None:
    """`softened` for a block of items; None if it may differ from `fn` on the whole batch."""
    plan = _plan_if_alone(fn, block, whole, selection)
    return None if plan is None else Softened(plan, plan.prepare(fold=fold))


def treats_items_alone(fn: Callable[..., Any], block: Any, whole: Any) -> bool:
    """Whether a function computes the same for each item in a block as in the whole batch."""
    return _plan_if_alone(fn, block, whole, SELECT_ALL) is not None


def _plan_if_alone(
    fn: Callable[..., Any], block: Any, whole: Any, selection: Selection
) -> Plan | None:
    together = Plan(fn, (whole,), {}, selection)
    try:
        plan = Plan(fn, (block,), {}, selection)
    except Exception:  # it may fail on a smaller batch and still work on the whole one
        return None
    return plan if plan.treats_items_alone(together) else None


GatedNetwork = Callable[[jax.Array, Gating], jax.Array]  # as `softened` returns it


def fields(
    pull: Callable[[Any], jax.Array], indices: Int[jax.Array, "N K"]
) -> Float[jax.Array, "N K ..."]:
    """The pullbacks `[N, C, H, W, 3]` of classes `[N, C]`, by the map that `linearise` returns."""
    return jnp.moveaxis(jax.vmap(pull)(indices.T), 0, 1)


def linearise(
    network: GatedNetwork, x: Float[jax.Array, "N ..."], gating: Gating
) -> tuple[Float[jax.Array, "N K"], Callable[[Any], jax.Array]]:
    """The logits of a batch, and the map from targets (made by `targets.prepare`) to fields."""
    logits, transpose = jax.vjp(lambda x: network(x, gating), x)
    return logits, lambda target: transpose(targets.cotangents(target, logits))[0]
