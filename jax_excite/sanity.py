"""Sanity checks of the method itself: does a map depend on the weights, on the class, on the gates?

After "Sanity Checks for Saliency Maps" (Adebayo et al., 2018), section 3: a map that stays the same
when weights are randomised explains the image, not the network.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from jax_excite.callables import as_pytree, is_array, is_weight, named_leaves, split_arrays
from jax_excite.errors import ExciteError
from jax_excite.gating import Gating
from jax_excite.graph import Graph, passed_on, trace
from jax_excite.paths import Batch, Network
from jax_excite.pullback import pullback
from jax_excite.recipes import EXCITATION


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How alike two vector fields are.

    Attributes:
        name: what is compared.
        cosine: of the angle between the fields, in [-1, 1]; 0 for unrelated ones.
        rank_correlation: Spearman's, between the fields' magnitudes at each pixel, in [-1, 1].
    """

    name: str
    cosine: float
    rank_correlation: float


def compare(name: str, a: Batch, b: Batch) -> Comparison:
    """Compare two fields `[H, W, 3]`; a constant one has no rank correlation (NaN)."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    cosine = float(np.sum(first * second) / norms) if norms else 0.0
    magnitudes = [np.linalg.norm(field, axis=-1).ravel() for field in (first, second)]
    varied = all(np.ptp(magnitude) for magnitude in magnitudes)
    ranks = [rankdata(magnitude) for magnitude in magnitudes]
    rank = float(np.corrcoef(*ranks)[0, 1]) if varied else float("nan")
    return Comparison(name, cosine, rank)


def layers(params: Network, x: Batch) -> dict[str, list[str]]:
    """The layers of a network from the top down, each with the dotted names of its weights.

    A layer is an attribute of the network, or an entry of a list; the order is that in which its
    weights are used first, turned round.

    Args:
        params: a callable pytree.
        x: a batch `[N, H, W, 3]`.

    Raises:
        ExciteError: `params` holds no arrays.
    """
    leaves, tree = jax.tree.flatten(params)
    arrays, rebuild = split_arrays(leaves)
    if not arrays:
        raise ExciteError("params has no weights to randomise: give a pytree that holds arrays")
    everything = [name for name, leaf in named_leaves(params).items() if is_array(leaf)]
    graph, _ = trace(lambda *arrays: tree.unflatten(rebuild(arrays))(x), *arrays)
    first: dict[str, int] = {}
    _find_uses(graph, dict(zip(graph.inputs, everything, strict=True)), first)
    names = [name for name, leaf in named_leaves(params).items() if is_weight(leaf)]
    if not names:
        raise ExciteError("params has no weights to randomise: its arrays are no floats")
    above = names[0].split(".")[:-1]
    while above and not all(name.startswith(f"{'.'.join(above)}.") for name in names):
        above.pop()
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_layer(name.split(".")[len(above) :]), []).append(name)

    def last_first(layer: str) -> int:
        return -min(first.get(name, len(first)) for name in found[layer])

    return {layer: found[layer] for layer in sorted(found, key=last_first)}


def _find_uses(graph: Graph, weights: dict[Any, str], first: dict[str, int]) -> None:
    """Number the weights in `first` in the order in which they are used, in nested bodies too."""
    for node in graph.nodes:
        for body, operands in zip(node.bodies, passed_on(node), strict=True):
            inner = zip(body.inputs, operands, strict=True)
            _find_uses(body, {n: weights[o] for n, o in inner if o in weights}, first)
        for operand in node.inputs:
            if operand in weights:
                first.setdefault(weights[operand], len(first))


def _layer(parts: Sequence[str]) -> str:
    """The part of a dotted name up to its first index, or its attribute without one."""
    index = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: index + 1])


def randomise(params: Any, names: Sequence[str], seed: int = 0) -> Any:
    """The pytree with the entries of each named leaf shuffled, so that their spread stays."""
    rng = np.random.default_rng(seed)
    chosen = set(names)
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten(
        jnp.asarray(rng.permutation(np.asarray(leaf).ravel()).reshape(leaf.shape))
        if name in chosen
        else leaf
        for name, leaf in zip(named_leaves(params), leaves, strict=True)
    )


def randomisation_cascade(
    params: Network, x: Batch, c: int, *, gating: Gating = EXCITATION, seed: int = 0
) -> list[Comparison]:
    """The pullback, compared with that of the network randomised from the top down to each layer.

    Args:
        params: a callable pytree.
        x: one image `[H, W, 3]`.
        c: class index.
        gating: as for `pullback`.
        seed: of the shuffling.

    Returns:
        One comparison for each layer, the top one first: with it and all above it randomised.
    """
    original = pullback(params, x, c, gating=gating)
    changed, comparisons = params, []
    for layer, names in layers(params, x[None]).items():
        changed = randomise(changed, names, seed)
        comparisons.append(compare(layer, original, pullback(changed, x, c, gating=gating)))
    return comparisons


def temperature_limits(
    params: Network, x: Batch, c: int, *, gating: Gating = EXCITATION
) -> dict[str, float]:
    """Relative L2 distances that the limits of section 5.2 say are 0, to rounding.

    Args:
        params: a callable pytree.
        x: one image `[H, W, 3]`, in which not all pixels are 0.
        c: class index.
        gating: all but its temperatures. Upper bounds of clipped ReLUs are hard near 0 and passed
            at infinity, as otherwise there is no limit.

    Returns:
        By name: of the pullback at T = 0 to the plain gradient, of that at a tiny temperature to
        that at 0, and of the pullbacks of `x` and `-x` without any gate, at T = infinity.
    """

    def at(temperature: float, image: Batch = x) -> jax.Array:
        at_limit = dataclasses.replace(
            gating,
            temperature=temperature,
            pool_temperature=temperature,
            site_temperatures={},
            upper="hard" if temperature < 1 else "pass",
        )
        return pullback(params, image, c, gating=at_limit)

    params = as_pytree(params)
    gradient = jax.jit(jax.grad(lambda image: params(image[None])[0, c]))(jnp.asarray(x))
    hard, none = at(0.0), at(np.inf)
    return {
        "T = 0 and the gradient": _distance(hard, gradient),
        "T = 1e-12 and T = 0": _distance(at(1e-12), hard),
        "T = inf at two images": _distance(at(np.inf, -x), none),
    }


def _distance(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b)))
