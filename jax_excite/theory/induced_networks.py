"""The theory of the paper as functions of any network that `excite` supports (sections 2 to 4).

A network whose gates are held at given values is affine: it computes the product of its weight
matrices with the diagonal matrices of the gates between them. In this module a batch `x` has any
shape `[N, ...]` that `params` takes, and `params(x)` returns logits `[N, K]`.

Biases are handled as in section 2.1: the input and each layer have an additional coordinate that is
always 1. A vector over that input is represented by a field shaped like `x` and by a number, its
bias coordinate.

The equations hold if the gates are the only parts of the network that are not affine; those of
SiLU, GELU, normalisations, attention and squeeze-and-excitation are gates too. They do not hold
with any other product of two computed values. A clipped ReLU above its bound is a
constant, which belongs to the bias coordinate. Max-pooling, which the paper leaves out (footnote
1), is a gate too: its value is the weights that it gives to the cells of its window.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_excite.callables.pytree import as_floats, as_pytree
from jax_excite.errors import GatingError, TargetError
from jax_excite.gates.gate import AtSite
from jax_excite.gates.kinds import GATE_KINDS
from jax_excite.gating import Gating, check_gating
from jax_excite.pullbacks import targets
from jax_excite.pullbacks.request import number_of_logits
from jax_excite.recipes import EXCITATION
from jax_excite.transform.by_site import BySite
from jax_excite.transform.plan import Plan
from jax_excite.typing import AnyArray, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gates:
    """The value of a gating function Lambda at a batch (equation 3), by site name.

    Attributes:
        values: for a ReLU, the gates, in [0, 1], shaped like its pre-activation; for a max-pool,
            the weights of its window's cells, `[cells, *output]`. For a site inside a scan there is
            one entry per step, along a leading axis.
        stopped: for a clipped ReLU, the share of the constant upper bound that it passes on, shaped
            like the pre-activation.
    """

    values: dict[str, jax.Array]
    stopped: dict[str, jax.Array]


def preactivations(params: Params, x: Float[AnyArray, "N ..."]) -> dict[str, jax.Array]:
    """The pre-activation function Z (equation 2).

    Args:
        params: a callable pytree, as for `pullback`.
        x: a batch `[N, ...]`.

    Returns:
        The pre-activations by site name, in the order in which `sites` lists them.

    Raises:
        GatingError: `params` has no gate, or a hard gate that cannot be reached.
    """
    return _preactivations(as_pytree(params), x).by_name()


def gates(params: Params, x: Float[AnyArray, "N ..."], gating: Gating = EXCITATION) -> Gates:
    """The gates at a batch: the excitation function Gamma (equation 21).

    With `recipes.VANILLA` they are those of the gating function G (equation 1), which reproduce the
    network itself. With `pool_weights="through"`, the default, the gates of a max-pool can be
    outside of [0, 1]: they are the derivatives that the paper's Listing 2 takes, not its softmax
    weights.

    Args:
        params: a callable pytree, as for `pullback`.
        x: a batch `[N, ...]`.
        gating: the excitation function.

    Returns:
        The gates at `x`, which are an argument of `induced` and the other functions here.

    Raises:
        GatingError: as for `preactivations`, or a temperature does not fit its site.
    """
    check_gating(gating)
    if gating.cotangents != "all":
        raise GatingError(
            f"cotangents is {gating.cotangents!r}: gates that depend on the cotangent do not form "
            "a gating function; give a gating with cotangents='all'"
        )
    both = _gates(as_pytree(params), x, as_floats(gating)).by_name()
    return Gates(
        {name: value for name, (value, _) in both.items()},
        {name: stopped for name, (_, stopped) in both.items() if stopped is not None},
    )


def induced(params: Params, x: Float[AnyArray, "N ..."], gates: Gates) -> Float[jax.Array, "N K"]:
    """The Lambda-induced network with head: its gates are held at given values (equation 4).

    `f_G = f`: with the gates of `recipes.VANILLA` at `x` this is `params(x)`.

    Args:
        params: the network, not necessarily the one that the gates belong to. For example, its
            weights may be from a different time in training.
        x: a batch `[N, ...]`, not necessarily the one that the gates were computed at.
        gates: the gates, for a batch of the shape of `x`.

    Returns:
        Logits `[N, K]`. The function is affine in `x`.

    Raises:
        GatingError: as for `preactivations`, or the gates are those of different sites.
    """
    params = as_pytree(params)
    number_of_logits(params, x)
    return _induced(params, x, gates)


def induced_matrix(
    params: Params, x: Float[AnyArray, "N ..."], gates: Gates
) -> tuple[Float[jax.Array, "N K ..."], Float[jax.Array, "N K"]]:
    """The matrix of the Lambda-induced network with head, for each entry of a batch (equation 5).

    Args:
        params: as for `induced`.
        x: a batch `[N, ...]`. Its values matter only where they decide which branch runs.
        gates: as for `induced`.

    Returns:
        The matrices over the input `[N, K, ...]` and their bias column `[N, K]`.

    Raises:
        GatingError: as for `induced`.
    """
    params = as_pytree(params)
    rows = np.eye(number_of_logits(params, x))
    matrix, bias = jax.vmap(functools.partial(_induced_pullback, params, x, gates))(
        jnp.broadcast_to(rows[:, None], (len(rows), len(x), len(rows)))
    )
    return jnp.moveaxis(matrix, 0, 1), jnp.moveaxis(bias, 0, 1)


def induced_pullback(
    params: Params, x: Float[AnyArray, "N *item"], c: Any, gates: Gates
) -> tuple[Float[jax.Array, "N *item"], Float[jax.Array, " N"]]:
    """The Lambda-pullback of a target (equation 6).

    With the gates of an excitation function it is what `pullback` returns.

    Args:
        params: as for `induced`.
        x: a batch `[N, ...]`. Its values matter only where they decide which branch runs.
        c: a class index, an integer array `[N]`, or a cotangent `[N, K]`: the paper's y.
        gates: as for `induced`.

    Returns:
        The vector field, shaped like `x`, and its bias coordinate `[N]`.

    Raises:
        GatingError: as for `induced`.
        TargetError: `c` is none of these, or does not fit the logits.
    """
    params = as_pytree(params)
    return _induced_pullback(params, x, gates, _covector(params, x, c))


def induced_value(
    params: Params, x: Float[AnyArray, "N ..."], c: Any, gates: Gates
) -> Float[jax.Array, " N"]:
    """The target's value in the Lambda-induced network, `f_Lambda` (equation 7): `[N]`.

    It equals the product of `x` with the field of `induced_pullback`, plus its bias coordinate.
    Arguments and errors are those of `induced_pullback`.
    """
    covector = _covector(as_pytree(params), x, c)
    return jnp.sum(covector * induced(params, x, gates), axis=1)


def run_network(
    params: Params,
    x: Any,
    at_site: Callable[[AtSite], tuple[jax.Array, Any]],
    gating: Gating | None = None,
    given: dict[str, Any] | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """`Plan.run` of a network; raises `GatingError` if one of its gates cannot be reached."""
    plan = Plan(params, (x,), {})
    plan.check(gating or EXCITATION)
    hidden = [
        f"{site.name} ({site.reason})"
        for site in plan.sites
        if site.kind in GATE_KINDS and not site.gated
    ]
    if hidden:
        raise GatingError(f"the function has gates that cannot be fixed: {', '.join(hidden)}")
    if given is not None and set(given) != {site.name for site in plan.sites if site.gated}:
        raise GatingError(
            f"the gates are given for the sites {', '.join(given)}, but the function has the "
            f"sites {', '.join(site.name for site in plan.sites if site.gated)}"
        )
    return plan.run(at_site, given)


@jax.jit
def _preactivations(params: Params, x: jax.Array) -> BySite:
    return BySite.of(run_network(params, x, lambda at: (at.hard, at.z))[1])


@jax.jit
def _gates(params: Params, x: jax.Array, gating: Gating) -> BySite:
    found = run_network(params, x, lambda at: (at.hard, at.gate.value(at, gating)), gating)[1]
    return BySite.of(found)


@jax.jit
def _induced(params: Params, x: jax.Array, gates: Gates) -> jax.Array:
    given = {name: (value, gates.stopped.get(name)) for name, value in gates.values.items()}
    return run_network(params, x, lambda at: (_affine(at), None), given=given)[0]


def _affine(at: AtSite) -> jax.Array:
    """A site's output with its gates held at the given values."""
    value, stopped = at.given
    wanted = at.gate.value_shape(at)
    if value.shape != wanted:
        raise GatingError(
            f"the gates of {at.name} have shape {value.shape}, but the site needs {wanted}"
        )
    return at.gate.held(at, value, stopped)


@jax.jit
def _induced_pullback(
    params: Params, x: jax.Array, gates: Gates, covector: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Evaluated at x and not at 0, so that if a branch depends on x, the one that runs is the one
    # that the gates belong to.
    logits, transpose = jax.vjp(lambda x: _induced(params, x, gates), x)
    covector = covector.astype(logits.dtype)
    (field,) = transpose(covector)
    represented = jnp.sum((field * x).reshape(len(x), -1), axis=1)
    return field, jnp.sum(covector * logits, axis=1) - represented


def _covector(params: Params, x: Float[AnyArray, "N ..."], c: Any) -> jax.Array:
    if callable(c):
        raise TargetError(
            "the target is an objective: f_Lambda is linear in the logits, so give a class index, "
            "an array with one per entry of the batch, or a cotangent"
        )
    logits = jnp.zeros((len(x), number_of_logits(params, x)), jnp.result_type(float))
    return targets.cotangents(targets.prepare(c, logits, len(x)), logits)
