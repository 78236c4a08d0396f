"""`excite`: a function with the same outputs whose derivative is soft-gated; `sites`: its gates."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jax_excite.errors import ExciteError
from jax_excite.gating import Gating, check_gating
from jax_excite.recipes import EXCITATION
from jax_excite.transform.plan import Plan
from jax_excite.transform.sites import Names, Selection, Site, SiteSelection


def excite(
    fn: Callable[..., Any],
    gating: Gating = EXCITATION,
    *,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
) -> Callable[..., Any]:
    """Soften the hard gates of a function in its backward pass.

    The paper replaces modules of a network (sections 5.2 and 5.3). Here the function itself is
    transformed, whichever library it was written with. Its equations are evaluated one by one,
    unchanged except that the derivative at each site is that of the soft gate.

    Args:
        fn: any JAX function of any arguments. Arrays among the arguments are traced; all other
            arguments are passed unchanged.
        gating: how gates are softened.
        skip: sites to leave hard, by index or name as `sites` lists them.
        only: if given, the only sites to soften.
        enter: names of functions with custom derivative rules (`jax.custom_jvp`, `jax.custom_vjp`)
            to replace by those of their bodies, so that gates in them are softened. All other
            custom rules are kept.

    Returns:
        A function of the same arguments with the same outputs, bit for bit, whose reverse-mode
        derivative is soft-gated. It composes with `jit`, `vmap` and `grad`.

    Raises:
        GatingError: (when called) `fn` has no gate that can be softened and the gating is not that
            of the plain gradient, a named site does not exist, or a temperature does not fit its
            site.
    """
    check_gating(gating)

    selection = Selection.of(skip, only, enter)

    def excited(*args: Any, **kwargs: Any) -> Any:
        plan = Plan(fn, args, kwargs, selection)
        plan.check(gating)
        return plan.run(lambda at: (at.soften(gating), None))[0]

    # The other attributes of a module, its layers and arrays, are of no use to a function.
    return functools.update_wrapper(excited, fn, updated=())


def sites(
    fn: Callable[..., Any],
    *args: Any,
    skip: SiteSelection = (),
    only: SiteSelection | None = None,
    enter: Names = (),
    **kwargs: Any,
) -> list[Site]:
    """List every place where the derivative of `fn(*args)` with respect to its arguments jumps.

    Args:
        fn: any JAX function.
        *args: its arguments as it takes them, with a batch axis if it needs one. The function is
            only traced, not computed, so a `jax.ShapeDtypeStruct` can stand for an array, also
            among the weights of `fn`.
        skip: as for `excite`.
        only: as for `excite`.
        enter: as for `excite`.
        **kwargs: further arguments of `fn`.

    Returns:
        The sites in the order in which they run. Each states whether `excite` can soften it, and
        how it is written or what prevents it.
    """
    fn, args, kwargs = jax.tree.map(_as_array, (fn, args, kwargs))
    try:
        return Plan(fn, args, kwargs, Selection.of(skip, only, enter)).sites
    except ExciteError:
        raise
    except Exception as error:
        shapes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves((args, kwargs)))
        error.add_note(
            f"sites called the function with its arguments as they are, of shape {shapes}; one "
            "image of a network that takes batches is x[None]"
        )
        raise


def _as_array(leaf: Any) -> Any:
    """Zeros of a shape and dtype, which take no memory; anything else as it is."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
