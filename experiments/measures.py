"""Measures that compare two logit matrices, or two sets of gates of one network."""

from collections.abc import Sequence

import numpy as np

from jax_excite.theory.induced_networks import Gates, preactivations


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The Pearson correlation over images, per class.

    Args:
        a: logits `[N, K]`.
        b: other logits of the same images and classes.

    Returns:
        Correlations `[K]` in [-1, 1], in float64; 0 where a logit is the same for all images.
    """
    a, b = (np.asarray(logits, np.float64) for logits in (a, b))
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return (a * b).sum(axis=0) / np.where(norms > 0, norms, np.inf)


def spreads(params, x: np.ndarray) -> dict[str, float]:
    """The standard deviation of each site's pre-activations, over images and units."""
    return {site: float(np.std(z)) for site, z in preactivations(params, x).items()}


def select_images(gates: Gates, images: np.ndarray) -> Gates:
    """The gates of the images with these indices, in this order."""
    fields = (gates.values, gates.stopped)
    return Gates(*({site: values[images] for site, values in field.items()} for field in fields))


def flip(gates: Gates, shares: dict[str, float], order: dict[str, np.ndarray]) -> Gates:
    """Hard gates with a share of each site's gates flipped, namely the first in an order.

    Args:
        gates: hard gates.
        shares: the share to flip, in [0, 1], by site.
        order: numbers shaped like a site's gates, by site; the gates with the smallest are flipped.
    """
    values = {}
    for site, value in gates.values.items():
        gate = np.asarray(value)
        first = np.argsort(order[site], axis=None, kind="stable")[: round(shares[site] * gate.size)]
        turned = gate.flatten()
        turned[first] = 1 - turned[first]
        values[site] = turned.reshape(gate.shape)
    return Gates(values, gates.stopped)


def equal_share(a: Gates, b: Gates) -> dict[str, float]:
    """The share of equal gates, by site."""
    return {site: float(np.mean(a.values[site] == b.values[site])) for site in a.values}


def cosine(a: Gates, b: Gates) -> dict[str, float]:
    """The cosine between a site's gates, one vector per image, averaged over images, by site."""
    cosines = {}
    for site in a.values:
        u, v = _units(a, site), _units(b, site)
        norms = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
        cosines[site] = float(np.mean((u * v).sum(axis=1) / np.where(norms > 0, norms, np.inf)))
    return cosines


def alignment(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine between two Gram matrices `[N, N]`, both centred in their feature space."""
    a, b = (k - k.mean(axis=0) - k.mean(axis=1)[:, None] + k.mean() for k in (a, b))
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def path_correlation(a: Sequence[Gates], b: Sequence[Gates]) -> np.ndarray:
    """The Pearson correlation of two tensor fields over all paths of a multilayer perceptron.

    A field is given by a sequence of gates, whose tensors (equation 12) are averaged. One set of
    gates gives a rank-1 tensor; several give a tensor of higher rank, as Hypothesis 1 assumes for
    pi. Paths are not enumerated: the mean over paths of a product over layers is the product of the
    layers' means.

    Args:
        a: gates `[N, units]` at each site, of the same images.
        b: the gates to compare with, of the same images.

    Returns:
        Correlations `[N]`, one per image; 0 where a field is the same on all paths.

    Raises:
        ValueError: a site's gates are not `[N, units]`, as in convolutional networks.
    """
    for gates in (*a, *b):
        for site, values in gates.values.items():
            if np.ndim(values) != 2:
                raise ValueError(
                    f"the gates at {site} have shape {np.shape(values)}: paths are averaged for "
                    "multilayer perceptrons only, where it is [images, units]"
                )
    means = [np.mean([_path_mean(gates) for gates in field], axis=0) for field in (a, b)]

    def covariance(i: int, j: int) -> np.ndarray:
        first, second = (a, b)[i], (a, b)[j]
        products = [_path_mean(u, v) for u in first for v in second]
        return np.mean(products, axis=0) - means[i] * means[j]

    scale = np.sqrt(covariance(0, 0) * covariance(1, 1))
    return covariance(0, 1) / np.where(scale > 0, scale, np.inf)


def _path_mean(*gates: Gates) -> np.ndarray:
    """The mean over paths of a product of path activities, `[N]`."""
    by_site = [
        np.prod([_units(each, site) for each in gates], axis=0).mean(axis=1)
        for site in gates[0].values
    ]
    return np.prod(by_site, axis=0)


def _units(gates: Gates, site: str) -> np.ndarray:
    values = np.asarray(gates.values[site], np.float64)
    return values.reshape(len(values), -1)
