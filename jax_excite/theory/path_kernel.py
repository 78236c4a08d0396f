"""The product kernel of a network's paths: a similarity of inputs by their gates (equation 23)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jax_excite.callables.pytree import as_floats, as_pytree
from jax_excite.errors import SettingError
from jax_excite.gates.gate import AtSite
from jax_excite.gates.surrogates import compute_dtype
from jax_excite.gating import Gating, check_gating
from jax_excite.pullbacks.batching import check_batch_size
from jax_excite.recipes import EXCITATION
from jax_excite.theory.induced_networks import run_network
from jax_excite.transform.by_site import BySite
from jax_excite.typing import AnyArray, Params


@dataclasses.dataclass(frozen=True)
class Gram:
    """The product kernel between two batches of N and M entries, factor by factor (equation 23).

    Attributes:
        names: the names of the factors: "input", then the sites. A site inside a scan has one
            factor per step.
        products: the factors `<lambda, lambda'> + 1`, `[F, N, M]`; the bias coordinate adds the 1.
        left: the factors of each entry of the first batch with itself, `[F, N]`.
        right: the same for the second batch, `[F, M]`.
    """

    names: tuple[str, ...]
    products: np.ndarray
    left: np.ndarray
    right: np.ndarray

    @property
    def factors(self) -> dict[str, np.ndarray]:
        """The factors by name, each `[N, M]`."""
        return dict(zip(self.names, self.products, strict=True))

    @property
    def sign(self) -> np.ndarray:
        """The sign of the kernel, `[N, M]`."""
        return np.prod(np.sign(self.products), axis=0)

    @property
    def log(self) -> np.ndarray:
        """The logarithm of the kernel's magnitude, `[N, M]`; the product itself would overflow."""
        with np.errstate(divide="ignore"):
            return np.sum(np.log(np.abs(self.products)), axis=0)

    def cosines(self) -> np.ndarray:
        """Each factor as the cosine of the angle between its two vectors, `[F, N, M]`."""
        return self.products / np.sqrt(self.left[:, :, None] * self.right[:, None])

    def normalised(self) -> np.ndarray:
        """The cosine of the angle in path space, `[N, M]`: the kernel of unit feature vectors."""
        return np.prod(self.cosines(), axis=0)


def gram(
    params: Params,
    x: Float[AnyArray, "N *item"],
    x2: Float[AnyArray, "M *item"] | None = None,
    *,
    gating: Gating = EXCITATION,
    batch_size: int = 8,
) -> Gram:
    """The product kernel `K_Lambda` (equation 23) between all entries of two batches, in tiles.

    If the network is a chain of layers, the kernel is the inner product of the feature functions
    `phi_Lambda` in path space. For a network with branches, it is the same product over all sites.
    Max-pools contribute with their softmax weights, because equation 3 requires gates in [0, 1].
    Do not call this function inside `jit`.

    Args:
        params: a callable pytree, as for `pullback`.
        x: a batch `[N, ...]`.
        x2: a batch `[M, ...]`; `x` itself if None.
        gating: the gating function Lambda; `recipes.VANILLA` for G.
        batch_size: the maximum number of entries of each batch at a time, to bound memory.

    Returns:
        The kernel and its factors, in NumPy's float64. Each factor is computed in the network's
        precision, at least float32.

    Raises:
        GatingError: as for `gates`.
        SettingError: `batch_size` is not a whole number of at least 1, or the batches are empty or
            differ in shape.
    """
    check_gating(gating)
    check_batch_size(batch_size)
    others = x if x2 is None else x2
    if x.shape[1:] != others.shape[1:]:
        raise SettingError(
            f"x has shape {x.shape} and x2 {others.shape}: they may differ only in axis 0"
        )
    if not (len(x) and len(others)):
        raise SettingError(
            f"x has shape {x.shape} and x2 {others.shape}: give at least one of each"
        )
    params = as_pytree(params)
    settings = as_floats(dataclasses.replace(gating, pool_weights="detached"))

    def layers(batch: Float[AnyArray, "N ..."], start: int) -> BySite:
        index = np.minimum(np.arange(start, start + batch_size), len(batch) - 1)
        return _layers(params, batch[index], settings)

    names = layers(x, 0).names
    products = np.zeros((len(names), len(x), len(others)))
    left, right = np.zeros(products.shape[:2]), np.zeros((len(names), len(others)))
    for row in range(0, len(x), batch_size):
        mine = layers(x, row)
        upper = slice(row, row + batch_size)
        for column in range(row if x2 is None else 0, len(others), batch_size):
            theirs = mine if x2 is None and column == row else layers(others, column)
            across = slice(column, column + batch_size)
            _put(products[:, upper, across], _products(mine, theirs))
            if x2 is None:
                products[:, across, upper] = products[:, upper, across].transpose(0, 2, 1)
            elif row == 0:
                _put(right[:, across], _self_products(theirs))
        if x2 is not None:
            _put(left[:, upper], _self_products(mine))
    if x2 is None:
        left = right = np.einsum("fnn->fn", products)
    return Gram(names, products, left, right)


def _put(place: np.ndarray, tile: jax.Array) -> None:
    """Copy a tile without its padding."""
    place[...] = tile[tuple(slice(n) for n in place.shape)]


@jax.jit
def _layers(params: Params, x: jax.Array, gating: Gating) -> BySite:
    """The vectors whose products are the kernel's factors, each `[N, D]`."""

    def wide(vectors: jax.Array) -> jax.Array:
        return vectors.astype(compute_dtype(vectors.dtype))

    def one(entry: jax.Array) -> BySite:
        def at_site(at: AtSite) -> tuple[jax.Array, jax.Array]:
            return at.hard, wide(at.gate.value(at, gating)[0].reshape(-1))

        return BySite.of(run_network(params, entry[None], at_site, gating)[1])

    names, vectors = ["input"], [wide(x.reshape(len(x), -1))]
    for name, gates in jax.vmap(one)(x).by_name().items():
        steps = gates.reshape(len(x), -1, gates.shape[-1])
        several = steps.shape[1] > 1
        names += [f"{name}[{step}]" if several else name for step in range(steps.shape[1])]
        vectors += list(jnp.moveaxis(steps, 1, 0))
    return BySite(tuple(names), vectors)


@jax.jit
def _products(a: BySite, b: BySite) -> jax.Array:
    """`<lambda, lambda'> + 1` of each layer: `[F, N, M]`."""
    products = [
        jnp.matmul(v, w.T, precision=lax.Precision.HIGHEST)
        for v, w in zip(a.values, b.values, strict=True)
    ]
    return jnp.stack(products) + 1


@jax.jit
def _self_products(a: BySite) -> jax.Array:
    return jnp.stack([jnp.sum(v * v, axis=1) for v in a.values]) + 1
