"""Comparison of methods by metrics over photographs: the computation for each chunk of them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Int

from jax_excite import attributions, metrics
from jax_excite.ascent import Ascent
from jax_excite.attributions.registry import METHODS
from jax_excite.gating import Gating
from jax_excite.metrics.stability import other_classes
from jax_excite.recipes import EXCITATION_PGA
from jax_excite.typing import Method, Params

_CHANGES = 4
_CURVE_STEPS = 15
# Methods that are compared only if named. The default table has cheaper variants of the first
# three.
_COSTLY = (
    "smoothed_pullback",
    "integrated_gradients",
    "smooth_grad",
    "fusion_pullback",
    "gradient_shap",
)
COMPARED = tuple(
    name for name in METHODS if name not in _COSTLY and not name.startswith(("soft_", "semantic_"))
)


def bound_methods(gating: Gating, seed: int = 0) -> dict[str, Method]:
    """All attributions and controls by name, called as `method(params, x, c)`.

    Args:
        gating: used by the methods that are based on excitation pullbacks.
        seed: used by the methods that draw random numbers.
    """
    key = jax.random.key(seed)
    # Metrics may move images out of [-1, 1].
    return {
        name: functools.partial(_pga_difference, **{"gating": gating, **each.settings})
        if each.function is attributions.pga_difference
        else each.bind(gating, key, bounds=None)
        for name, each in METHODS.items()
    }


def _pga_difference(
    params: Params, x: Any, c: Any, gating: Gating, ascent: Ascent = EXCITATION_PGA
) -> Any:
    """`pga_difference` in [-1, 1], or in the range of the images if a metric has exceeded that."""
    bounds = (min(-1.0, float(np.min(x))), max(1.0, float(np.max(x))))
    ascent = dataclasses.replace(ascent, bounds=bounds)
    return attributions.pga_difference(params, x, c, ascent, gating=gating)


@dataclasses.dataclass(frozen=True, eq=False)
class Entrant:
    """A network with the methods that are compared on it.

    Attributes:
        name: the name of the network.
        params: the network.
        methods: the methods by name.
        seed: the seed of all random numbers.
        judge: another network with the same classes, for the transfer metrics.
    """

    name: str
    params: Params
    methods: Mapping[str, Method]
    seed: int = 0
    judge: Params | None = None


class Chunk:
    """Photographs of one entrant whose scores are computed together.

    Args:
        entrant: the network and its methods.
        x: photographs `[n, H, W, 3]`.
        number: the number of the chunk; with the entrant's seed, it seeds all random numbers.
        target: class index of each photograph, `[n]`; None for the network's predictions.
    """

    def __init__(
        self, entrant: Entrant, x: np.ndarray, number: int = 0, target: np.ndarray | None = None
    ):
        self.entrant, self.x = entrant, x
        self.params, self.methods = entrant.params, entrant.methods
        self.seed = (entrant.seed, number)
        self.key = jax.random.fold_in(jax.random.key(entrant.seed), number)
        self.target = predictions(self.params, x) if target is None else target

    @functools.cached_property
    def maps(self) -> np.ndarray:
        """The maps of all methods, `[M, n, H, W, 3]`."""
        return self._maps(self.x)

    def _maps(self, x: np.ndarray) -> np.ndarray:
        each = self.methods.values()
        return np.stack([np.asarray(method(self.params, x, self.target)) for method in each])

    @functools.cached_property
    def mosaics(self) -> tuple[metrics.Mosaics, np.ndarray] | None:
        """The chunk's photographs in mosaics, with their maps; None for fewer than four classes."""
        if len(np.unique(self.target)) < 4:
            return None
        made = metrics.mosaics(self.x, self.target, seed=int(np.sum(self.seed)))
        return made, self._maps(made.x)

    @functools.cached_property
    def transfers(self) -> dict[str, tuple[metrics.Standing, metrics.Standing]]:
        """How the judge scores other classes before and after an ascent towards them, by method."""
        judge = self.entrant.judge
        assert judge is not None
        classes = min(number_of_classes(each, self.x) for each in (self.params, judge))
        key = jax.random.fold_in(self.key, 1)
        wanted = other_classes(key, self.target % classes, classes)
        before = metrics.standing(judge, self.x, wanted)
        found = {}
        for name in self._quick():
            climbed = metrics.climb_along(self.methods[name], self.params, self.x, wanted)
            found[name] = (before, metrics.standing(judge, climbed, wanted))
        return found

    def _quick(self) -> list[str]:
        """The methods with one pass per map; ten steps along the others take too long."""
        passes = {name: each.passes for name, each in METHODS.items()}
        return [name for name in self.methods if passes.get(name, 1) == 1]

    def on_maps(self, metric: Callable[..., Any], **settings: Any) -> "Scores":
        """A metric of maps, computed in one call for all methods."""
        found = metric(self.params, self.x, self.target, self.maps, **settings)
        found = found.area if isinstance(found, metrics.Curve) else found
        return dict(zip(self.methods, found, strict=True))

    def on_methods(self, metric: Callable[..., Any], **settings: Any) -> "Scores":
        """A metric of methods, computed per method."""
        return {
            name: metric(method, self.params, self.x, self.target, maps=own, **settings)
            for (name, method), own in zip(self.methods.items(), self.maps, strict=True)
        }

    def on_mosaics(self, metric: Callable[..., Any], **settings: Any) -> "Scores":
        """A metric of maps of mosaics; NaN if there are no mosaics."""
        if self.mosaics is None:
            return {name: np.full(len(self.x), np.nan) for name in self.methods}
        made, maps = self.mosaics
        return dict(zip(self.methods, metric(maps, made.masks, **settings), strict=True))


Scores = dict[str, np.ndarray]  # by method, [n]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric with its settings.

    Attributes:
        compute: computes the scores of a chunk.
        better: which scores are better; None if that is left to the reader.
        meaning: the meaning in a few words.
    """

    compute: Callable[[Chunk], Scores]
    better: Literal["higher", "lower"] | None
    meaning: str


def _faithfulness_correlation(chunk: Chunk) -> Scores:
    return chunk.on_maps(metrics.faithfulness_correlation, key=chunk.key)


def _faithfulness_estimate(chunk: Chunk) -> Scores:
    return chunk.on_maps(metrics.faithfulness_estimate, steps=_CURVE_STEPS)


def _infidelity(chunk: Chunk) -> Scores:
    return chunk.on_maps(metrics.infidelity)


def _insertion(chunk: Chunk) -> Scores:
    return chunk.on_maps(metrics.insertion, steps=_CURVE_STEPS)


def _deletion(chunk: Chunk) -> Scores:
    return chunk.on_maps(metrics.deletion, steps=_CURVE_STEPS)


def _max_sensitivity(chunk: Chunk) -> Scores:
    return chunk.on_methods(metrics.max_sensitivity, key=chunk.key, samples=_CHANGES)


def _random_logit(chunk: Chunk) -> Scores:
    return chunk.on_methods(metrics.random_logit, key=chunk.key)


def _parameter_randomisation(chunk: Chunk) -> Scores:
    changed = _random_network(chunk.entrant, chunk.x.shape[1:])
    return {
        name: metrics.parameter_randomisation(
            method, chunk.params, changed, chunk.x, chunk.target, maps=own
        )
        for (name, method), own in zip(chunk.methods.items(), chunk.maps, strict=True)
    }


@functools.lru_cache(maxsize=1)
def _random_network(entrant: Entrant, shape: tuple[int, ...]) -> Params:
    return metrics.randomised(entrant.params, np.zeros(shape, np.float32), seed=entrant.seed)


def _focus(chunk: Chunk) -> Scores:
    return chunk.on_mosaics(metrics.focus)


def _pointing_game(chunk: Chunk) -> Scores:
    return chunk.on_mosaics(metrics.pointing_game)


def _total_variation(chunk: Chunk) -> Scores:
    return dict(zip(chunk.methods, metrics.total_variation(chunk.maps), strict=True))


def _transfer_rank(chunk: Chunk) -> Scores:
    return _transferred(chunk, lambda before, after: np.log10((1 + before.rank) / (1 + after.rank)))


def _transfer_probability(chunk: Chunk) -> Scores:
    return _transferred(
        chunk, lambda before, after: np.log10(after.probability / before.probability)
    )


def _transferred(
    chunk: Chunk, gain: Callable[[metrics.Standing, metrics.Standing], np.ndarray]
) -> Scores:
    nothing = np.full(len(chunk.x), np.nan)
    return {
        name: gain(*chunk.transfers[name]) if name in chunk.transfers else nothing
        for name in chunk.methods
    }


METRICS: dict[str, Metric] = {
    "faithfulness_correlation": Metric(
        _faithfulness_correlation, "higher", "map's sum and drop of the logit, random values"
    ),
    "faithfulness_estimate": Metric(
        _faithfulness_estimate, "higher", "map's sum and drop of the logit, values by rank"
    ),
    "infidelity": Metric(_infidelity, "lower", "squared error on drops of the logit, scaled"),
    "insertion": Metric(_insertion, "higher", "area under the probability, blur to image"),
    "deletion": Metric(_deletion, "lower", "area under the probability, image to grey"),
    "max_sensitivity": Metric(_max_sensitivity, "lower", "greatest relative change by noise"),
    "random_logit": Metric(_random_logit, "lower", "structural similarity to another class's map"),
    "parameter_randomisation": Metric(
        _parameter_randomisation, "lower", "rank correlation with a random network's map"
    ),
    "focus": Metric(_focus, "higher", "positive part inside the target's quadrant"),
    "pointing_game": Metric(_pointing_game, "higher", "greatest value in the target's quadrant"),
    "total_variation": Metric(_total_variation, None, "roughness"),
    "transfer_rank": Metric(
        _transfer_rank, "higher", "rank gained in another network, in powers of 10"
    ),
    "transfer_probability": Metric(
        _transfer_probability, "higher", "probability gained in another network, in powers of 10"
    ),
}


def predictions(params: Params, x: Float[np.ndarray, "N H W C"]) -> Int[np.ndarray, " N"]:
    """The class with the greatest logit for each image `[N, H, W, 3]`."""
    return np.asarray(_logits(params, x)).argmax(axis=1)


def number_of_classes(params: Params, x: Float[np.ndarray, "N H W C"]) -> int:
    """The number of classes K of a network that maps images `[N, H, W, 3]` to logits `[N, K]`."""
    return _logits.eval_shape(params, x).shape[1]


@jax.jit
def _logits(params: Params, x: jax.Array) -> jax.Array:
    return params(x)


def chunks(count: int, size: int) -> list[tuple[np.ndarray, int]]:
    """The indices of the images of each chunk, and how many of them are new.

    The last chunk is filled up with the first images. All chunks have the same size, so nothing is
    compiled twice.
    """
    size = min(size, count)
    starts: Sequence[int] = range(0, count, size)
    return [(np.arange(at, at + size) % count, min(size, count - at)) for at in starts]
