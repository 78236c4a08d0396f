"""The layers of a network from the top down, and weights shuffled within a layer.

After "Sanity Checks for Saliency Maps" (Adebayo et al., 2018), section 3.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_excite.callables.pytree import is_array, is_weight, named_leaves, split_arrays
from jax_excite.errors import ExciteError
from jax_excite.graphs.graph import Graph, passed_on, trace
from jax_excite.typing import AnyArray, Params


def layers(params: Params, x: Float[AnyArray, "N H W C"]) -> dict[str, list[str]]:
    """The layers of a network from the top down, each with the dotted names of its weights.

    A layer is an attribute of the network, or an entry of a list. Layers are in reverse order of
    the first use of their weights.

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
        raise ExciteError(
            "params has no weights to randomise: none of its arrays has a float dtype"
        )
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
    """Number the weights in `first` in order of use, including their use in nested bodies."""
    for node in graph.nodes:
        for body, operands in zip(node.bodies, passed_on(node), strict=True):
            inner = zip(body.inputs, operands, strict=True)
            _find_uses(body, {n: weights[o] for n, o in inner if o in weights}, first)
        for operand in node.inputs:
            if operand in weights:
                first.setdefault(weights[operand], len(first))


def _layer(parts: Sequence[str]) -> str:
    """A dotted name up to its first index, or its first attribute if there is no index."""
    index = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: index + 1])


def randomise(params: Any, names: Sequence[str], seed: int = 0) -> Any:
    """The pytree with the entries of each named leaf shuffled; this keeps their distribution."""
    rng = np.random.default_rng(seed)
    chosen = set(names)
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten(
        jnp.asarray(rng.permutation(np.asarray(leaf).ravel()).reshape(leaf.shape))
        if name in chosen
        else leaf
        for name, leaf in zip(named_leaves(params), leaves, strict=True)
    )
