"""`excite`: a function with the same outputs whose derivative is soft-gated; `sites`: its gates."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from jax_excite.blocks import AUTO, Rows, evenly
from jax_excite.convolutions import Prepared
from jax_excite.gating import Gating, check_gating
from jax_excite.plan import SELECT_ALL, AtSite, Names, Plan, Selection, Site, SiteSelection
from jax_excite.recipes import EXCITATION
from jax_excite.surrogates import soften_max_pool, soften_relu
from jax_excite.windows import PoolConfig


def excite(
    fn: Callable[..., Any],
    gating: Gating = EXCITATION,
    *,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
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
        enter: names of functions with derivative rules of their own (`jax.custom_jvp`,
            `jax.custom_vjp`) to replace by those of their bodies, so that gates in them are
            softened. All other such rules are kept.

    Returns:
        A function of the same arguments with the same outputs, bit for bit, whose
        reverse-mode derivative is soft-gated. It composes with `jit`, `vmap` and `grad`.

    Raises:
        GatingError: (when called) `fn` has no gate that can be softened and the gating is not the
            plain gradient's, a named site does not exist, or a temperature does not fit its site.
    """
    check_gating(gating)

    selection = Selection.of(skip, only, enter)

    def excited(*args: Any, **kwargs: Any) -> Any:
        plan = Plan(fn, args, kwargs, selection)
        plan.check(gating)
        return plan.run(lambda at: (soften(gating, at), None))[0]

    # Of the rest of a module, its layers and arrays, a function has no use.
    return functools.update_wrapper(excited, fn, updated=())


def sites(
    fn: Callable[..., Any],
    *args: Any,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    **kwargs: Any,
) -> list[Site]:
    """List every place where the derivative of `fn(*args)` by its arguments jumps.

    Args:
        fn: any JAX function.
        *args: its arguments; nothing is computed, only traced.
        skip: as for `excite`.
        only: as for `excite`.
        enter: as for `excite`.
        **kwargs: further arguments of `fn`.

    Returns:
        The sites in the order in which they run, each with whether `excite` softens it, and why.
    """
    return Plan(fn, args, kwargs, Selection.of(skip, only, enter)).sites


def softened(
    fn: Callable[[jax.Array], Any],
    like: Any,
    selection: Selection = SELECT_ALL,
    *,
    fold: bool = True,
) -> "Softened":
    """`excite(fn)` for many calls within one trace, on arrays shaped like `like`.

    It is traced once, and what can be computed without the input is computed here, outside of any
    loop that calls the result. Unlike those of `excite`, its outputs differ from those of `fn` by
    rounding, for the sake of speed. `fold` pays where it is called for more than one image. Errors
    are those of `excite`.
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
            lambda at: (soften(gating, at), None), arrays=[x], prepared=self.prepared
        )[0]


def softened_rows(
    fn: Callable[[jax.Array], Any],
    x: jax.Array,
    selection: Selection,
    rows: Rows,
    *,
    fold: bool = True,
) -> tuple[Softened, int]:
    """`softened` for blocks of a batch, and the number of rows of a block.

    `AUTO` blocks are all rows together where `fn` may mix them.
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
    """`softened` for a block of items; None where it may differ from `fn` of the whole batch."""
    plan = _plan_if_alone(fn, block, whole, selection)
    return None if plan is None else Softened(plan, plan.prepare(fold=fold))


def treats_items_alone(fn: Callable[..., Any], block: Any, whole: Any) -> bool:
    """Whether a function makes of each item of a block what it makes of it in the whole batch."""
    return _plan_if_alone(fn, block, whole, SELECT_ALL) is not None


def _plan_if_alone(
    fn: Callable[..., Any], block: Any, whole: Any, selection: Selection
) -> Plan | None:
    together = Plan(fn, (whole,), {}, selection)
    try:
        plan = Plan(fn, (block,), {}, selection)
    except Exception:  # whatever keeps it from a smaller batch, the whole may do
        return None
    return plan if plan.treats_items_alone(together) else None


def soften(gating: Gating, at: AtSite) -> jax.Array:
    """The output of a site, with the derivative of its soft gate."""
    config, temperature, slope = at.settings(gating)
    if isinstance(config, PoolConfig):
        return soften_max_pool(config, at.hard, at.z, temperature)
    return soften_relu(config, at.hard, at.z, temperature, slope, at.below)
