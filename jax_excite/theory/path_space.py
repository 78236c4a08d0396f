"""The path space of a small multilayer perceptron, path by path (section 3 of the paper).

The number of paths is the product of the layers' widths, so this module is only for networks that
are small enough to draw. The functions that `jax_excite.theory` exports compute the same for
networks of any size.

Biases are handled as in section 2.1: the matrix of each layer has an additional row and column, and
the input and the gates of each layer have an additional coordinate, which is 1 and comes last.
Indices count from 0. Where a batch is `[N, ...]`, any number of leading axes is allowed.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax_excite.errors import ExciteError
from jax_excite.typing import AnyArray

MOST_PATHS = 1_000_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Perceptron:
    """A multilayer perceptron of ReLU layers with a linear head (section 2.1).

    Attributes:
        weights: the matrices W_1 to W_L, each `[d_l, d_(l-1)]`.
        biases: the vectors b_1 to b_L, each `[d_l]`.
        head: the vectors y of all classes, `[K, d_L]`.
        head_bias: their biases, `[K]`.
    """

    weights: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    head: jax.Array
    head_bias: jax.Array

    @classmethod
    def random(cls, widths: Sequence[int], *, bias: bool = True, seed: int = 0) -> "Perceptron":
        """A network with normally distributed weights that keep pre-activations at unit scale.

        Args:
            widths: d_0, d_1, ..., d_L and the number of classes K.
            bias: whether biases are random as well; otherwise they are 0.
            seed: the seed of the random numbers.

        Raises:
            ExciteError: fewer than three widths, or one that is not positive.
        """
        if len(widths) < 3 or min(widths) < 1:
            raise ExciteError(
                f"widths are {tuple(widths)}: give those of the input, of at least one layer and "
                "of the head, all at least 1"
            )
        generator = np.random.default_rng(seed)
        matrices, vectors = [], []
        for below, width in itertools.pairwise(widths):
            scale = math.sqrt((1 if not matrices else 2) / below)
            matrices.append(jnp.asarray(scale * generator.normal(size=(width, below))))
            vectors.append(jnp.asarray(bias * 0.5 * generator.normal(size=width)))
        return cls(tuple(matrices[:-1]), tuple(vectors[:-1]), matrices[-1], vectors[-1])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[N, K]` of a batch `[N, d_0]`."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = jax.nn.relu(x @ weight.T + bias)
        return x @ self.head.T + self.head_bias

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of coordinates of layers 0 to L, including the one that is always 1."""
        return (self.weights[0].shape[1] + 1, *(len(weight) + 1 for weight in self.weights))


def augmented(x: Float[AnyArray, "N d"]) -> Float[jax.Array, "N d+1"]:
    """An input `[N, d]`, or a layer's gates, with the coordinate that is 1: `[N, d + 1]`."""
    x = jnp.asarray(x)
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def augmented_matrices(net: Perceptron) -> list[jax.Array]:
    """The matrices of layers 1 to L with their biases, each `[d_l + 1, d_(l-1) + 1]`."""
    rows = [jnp.column_stack(layer) for layer in zip(net.weights, net.biases, strict=True)]
    return [jnp.vstack([row, jnp.eye(1, row.shape[1], row.shape[1] - 1)]) for row in rows]


def augmented_head(net: Perceptron, c: int) -> jax.Array:
    """The vector y of a class, its bias last: `[d_L + 1]`."""
    return jnp.append(net.head[c], net.head_bias[c])


def paths(net: Perceptron, start: int = 1) -> Int[np.ndarray, "P layers"]:
    """The set `P_k` of all paths through layers k to L (before equation 10).

    Args:
        net: the network.
        start: the layer k, from 0 to L.

    Returns:
        One path per row, `[P_k, L - k + 1]`: the index in layer k, in layer k + 1, and so on. The
        order is that of the entries of an array whose axes are the layers.

    Raises:
        ExciteError: there are more than `MOST_PATHS` of them.
    """
    widths = net.widths[start:]
    number = math.prod(widths)
    if number > MOST_PATHS:
        raise ExciteError(
            f"there are {number} paths through layers of {', '.join(map(str, widths))} "
            f"coordinates, but at most {MOST_PATHS} can be listed: use the functions of "
            "jax_excite.theory, which need no list"
        )
    return np.indices(widths).reshape(len(widths), -1).T


def path_activity(
    gates: Sequence[Float[jax.Array, "N _"]], path: Int[np.ndarray, "*P L"]
) -> Float[jax.Array, "N *P"]:
    """The product of the gates along a path, `Lambda^p` (equation 10; for all paths, equation 12).

    Args:
        gates: the gates of layers 1 to L, each `[N, d_l]`.
        path: a path through these layers `[L]`, or several, `[P, L]`.

    Returns:
        `[N]`, or `[N, P]`.
    """
    along = [augmented(gate)[..., index] for gate, index in zip(gates, path.T, strict=True)]
    return math.prod(along[1:], start=along[0])


def tensor_field(gates: Sequence[Float[jax.Array, "N _"]]) -> Float[jax.Array, "N P"]:
    """The path activities as a tensor of rank 1, the product of all layers' gates (equation 13).

    Args:
        gates: the gates of layers 1 to L, each `[N, d_l]`.

    Returns:
        The tensors `[N, P_1]`, in the order of `paths`.
    """
    tensor, *others = [augmented(gate) for gate in gates]
    for gate in others:
        tensor = _outer(tensor, gate)
    return tensor


def atoms(net: Perceptron, c: int) -> Float[jax.Array, "P d"]:
    """The constant fields that each pullback is a weighted sum of (equation 11).

    Args:
        net: the network.
        c: the class.

    Returns:
        One field for each path through layers 1 to L, `[P_1, d_0 + 1]`.

    Raises:
        ExciteError: there are too many paths.
    """
    return omega(net, c).reshape(net.widths[0], -1).T


def tensor_pullback(
    net: Perceptron, c: int, tau: Float[jax.Array, "N P"]
) -> Float[jax.Array, "N d"]:
    """The tau-pullback: the sum of the atoms weighted by a tensor (equation 14).

    Args:
        net: the network.
        c: the class.
        tau: tensors `[N, P_1]` of any rank.

    Returns:
        The vector field `[N, d_0 + 1]`.

    Raises:
        ExciteError: there are too many paths.
    """
    return tau @ atoms(net, c)


def tensor_value(
    net: Perceptron, x: Float[jax.Array, "N d"], c: int, tau: Float[jax.Array, "N P"]
) -> Float[jax.Array, " N"]:
    """The tau-induced function at inputs `[N, d_0]`, as `<v_tau, x>` (equation 15): `[N]`.

    The other arguments and errors are those of `tensor_pullback`.
    """
    return jnp.sum(tensor_pullback(net, c, tau) * augmented(x), axis=-1)


def omega(net: Perceptron, c: int) -> Float[jax.Array, " P"]:
    """The network in path space: the product of its weights along each path (equation 16).

    Args:
        net: the network.
        c: the class.

    Returns:
        One number for each path through layers 0 to L, `[P_0]`.

    Raises:
        ExciteError: there are too many paths.
    """
    path = paths(net, 0).T
    product = augmented_head(net, c)[path[-1]]
    for matrix, below, above in zip(augmented_matrices(net), path, path[1:], strict=False):
        product *= matrix[above, below]
    return product


def phi(tau: Float[jax.Array, "N P"], x: Float[jax.Array, "N d"]) -> Float[jax.Array, "N Q"]:
    """The feature function of a tensor: the product of input and tensor (equation 17).

    Args:
        tau: tensors `[N, P_1]`.
        x: inputs `[N, d_0]`.

    Returns:
        The features in path space `[N, P_0]`, in the order of `paths(net, 0)`.
    """
    return _outer(augmented(x), tau)


def path_space_value(
    net: Perceptron, x: Float[jax.Array, "N d"], c: int, tau: Float[jax.Array, "N P"]
) -> Float[jax.Array, " N"]:
    """The tau-induced function as the product `<phi_tau(x), omega>` (equation 18): `[N]`.

    Arguments and errors are those of `tensor_value`.
    """
    return phi(tau, x) @ omega(net, c)


def _outer(a: jax.Array, b: jax.Array) -> jax.Array:
    product = a[..., :, None] * b[..., None, :]
    return product.reshape(*product.shape[:-2], -1)
