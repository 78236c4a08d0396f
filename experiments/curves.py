"""One training of one network: how well fixed gates reproduce its logits, step by step."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from experiments import measures
from experiments.training import Images, cross_entropy, logits
from jax_excite.gating import Gating
from jax_excite.theory.induced_networks import Gates, gates, induced, preactivations
from jax_excite.theory.path_kernel import gram

Row = dict[str, Any]
HARD = Gating(temperature=0.0)
SCALE = 0.6
KERNEL_IMAGES = 200


@dataclasses.dataclass(frozen=True)
class Training:
    """The snapshots of one training, measured on one set of images.

    Attributes:
        snapshots: the network in evaluation form, by step.
        times: the steps to measure, ascending; the last one is T.
        stable: the steps whose hard gates are averaged.
        images: the images X.
        temperatures: those of the excitation function Gamma(T).
        scales: temperatures of Gamma(T) in units of each site's spread.
        seed: the seed of the permutations of images.
    """

    snapshots: Mapping[int, nnx.Module]
    times: Sequence[int]
    stable: Sequence[int]
    images: Images
    temperatures: Sequence[float]
    scales: Sequence[float]
    seed: int

    @property
    def final(self) -> int:
        """T, the last step."""
        return self.times[-1]

    def logits(self) -> dict[int, np.ndarray]:
        """f^(t)(X), `[N, K]`, by step t."""
        return {t: np.asarray(logits(self.snapshots[t], self.images.x)) for t in self.times}

    def gates(self, t: int, gating: Gating = HARD) -> Gates:
        """The gates of step t at X: G^(t), unless another gating is given."""
        return gates(self.snapshots[t], self.images.x, gating)

    def induced(self, t: int, given: Gates) -> np.ndarray:
        """f_Lambda^(t)(X), `[N, K]`: the given gates with the weights of step t."""
        return np.asarray(induced(self.snapshots[t], self.images.x, given))

    def by_spread(self, t: int, scale: float) -> Gating:
        """One temperature per site: `scale` times the spread of its pre-activations at step t."""
        spread = measures.spreads(self.snapshots[t], self.images.x)
        return Gating(site_temperatures={site: scale * value for site, value in spread.items()})

    def learning(self) -> Iterator[Row]:
        """Accuracy and cross-entropy at each step."""
        for t, values in self.logits().items():
            accuracy = float(np.mean(values.argmax(axis=1) == self.images.y))
            yield {"step": t, "accuracy": accuracy, "loss": cross_entropy(values, self.images.y)}

    def correlations(self) -> Iterator[Row]:
        """The correlation of f^(t) with f_Lambda^(t), for gates Lambda that are constant in time.

        `correlation` is the mean over classes of Pearson's coefficient over X, and `least` is the
        smallest coefficient. `accuracy` is the accuracy of f_Lambda^(t), and `agreement` is the
        share of X for which f_Lambda^(t) and f^(t) have the same largest logit.
        """
        values = self.logits()

        def rows(name: str, temperature: float, others: Mapping[int, np.ndarray]) -> Iterator[Row]:
            for t in self.times:
                by_class = measures.pearson(values[t], others[t])
                chosen = others[t].argmax(axis=1)
                yield {
                    "gates": name,
                    "temperature": temperature,
                    "step": t,
                    "correlation": float(by_class.mean()),
                    "least": float(by_class.min()),
                    "accuracy": float(np.mean(chosen == self.images.y)),
                    "agreement": float(np.mean(chosen == values[t].argmax(axis=1))),
                }

        for name, temperature, given in self._gatings():
            yield from rows(name, temperature, {t: self.induced(t, given) for t in self.times})
        averaged = [self.gates(s) for s in self.stable]
        means = {t: np.mean([self.induced(t, each) for each in averaged], 0) for t in self.times}
        yield from rows("averaged", 0.0, means)
        yield from rows("f(T) itself", 0.0, dict.fromkeys(self.times, values[self.final]))

    def _softened(self) -> Iterator[tuple[str, float, Gates]]:
        for temperature in self.temperatures:
            yield "final", temperature, self.gates(self.final, Gating(temperature=temperature))
        for scale in self.scales:
            gating = self.by_spread(self.final, scale)
            yield "final, by spread", scale, self.gates(self.final, gating)

    def _gatings(self) -> Iterator[tuple[str, float, Gates]]:
        """Gates that are constant in time: their name, their temperature, and the gates."""
        yield from self._softened()
        yield "untrained", 0.0, self.gates(0)
        hard = self.gates(self.final)
        soft = self.gates(self.final, self.by_spread(self.final, SCALE))
        for name, images in (("other image", self._others()), ("same digit", self._same_digit())):
            yield name, 0.0, measures.select_images(hard, images)
            yield f"{name}, by spread", SCALE, measures.select_images(soft, images)

    def _others(self) -> np.ndarray:
        """The index of a different image, of any digit, for each image."""
        order = np.random.default_rng(self.seed).permutation(len(self.images.y))
        others = np.empty_like(order)
        others[order] = np.roll(order, 1)
        return others

    def _same_digit(self) -> np.ndarray:
        """The index of another image of the same digit, for each image."""
        others = np.arange(len(self.images.y))
        for digit in np.unique(self.images.y):
            (members,) = np.nonzero(self.images.y == digit)
            others[members] = np.roll(members, 1)
        return others

    def pairs(self) -> Iterator[Row]:
        """The correlation of f^(t) with f_Lambda^(t) for the gates of every step s.

        The gates are hard (`temperature` 0), or soft in units of the spread at their own step.
        """
        values = self.logits()
        for s in self.times:
            for scale, gating in ((0.0, HARD), (SCALE, self.by_spread(s, SCALE))):
                given = self.gates(s, gating)
                for t in self.times:
                    by_class = measures.pearson(values[t], self.induced(t, given))
                    row = {"gates of": s, "temperature": scale, "step": t}
                    yield {**row, "correlation": float(by_class.mean())}

    def stability(self) -> Iterator[Row]:
        """How similar the gates of each step are to those of step T, by layer.

        `equal` is the share of equal hard gates. `cosine` is the cosine between soft gates by
        spread (at step T). The rows of step "other image" compare the gates of step T at different
        images, which gives the level of chance.
        """
        soft = self.by_spread(self.final, SCALE)
        finals = self.gates(self.final), self.gates(self.final, soft)
        compared = [(t, self.gates(t), self.gates(t, soft)) for t in self.times]
        chance = [measures.select_images(each, self._others()) for each in finals]
        for t, hard, softened in [*compared, ("other image", *chance)]:
            equal = measures.equal_share(hard, finals[0])
            cosine = measures.cosine(softened, finals[1])
            for layer, site in enumerate(equal, start=1):
                yield {"layer": layer, "step": t, "equal": equal[site], "cosine": cosine[site]}

    def flips(self) -> Iterator[Row]:
        """The effect on f^(T) of the gates of an earlier step s, and of flipping as many gates.

        `earlier` is the correlation of f^(T) with f_Lambda^(T) for Lambda = G^(s). For `random` and
        `weakest`, as many gates of G^(T) are flipped in each layer as differ from G^(s): random
        gates, or those with the smallest |z|.
        """
        final, values = self.gates(self.final), self.logits()[self.final]
        rng = np.random.default_rng(self.seed)
        strength = preactivations(self.snapshots[self.final], self.images.x)
        orders = {
            "random": {site: rng.random(z.shape) for site, z in strength.items()},
            "weakest": {site: np.abs(z) for site, z in strength.items()},
        }
        for s in self.times:
            earlier = self.gates(s)
            shares = {site: 1 - e for site, e in measures.equal_share(earlier, final).items()}
            compared = {"earlier": earlier}
            compared |= {k: measures.flip(final, shares, order) for k, order in orders.items()}
            row: Row = {"gates of": s}
            for name, given in compared.items():
                by_class = measures.pearson(values, self.induced(self.final, given))
                row[name] = float(by_class.mean())
            yield row

    def kernels(self) -> Iterator[Row]:
        """The alignment of each step's path kernel (equation 23), for unit feature vectors.

        `with final` is the alignment with the kernel of step T. `with digits` is the alignment with
        the kernel that is 1 for two images of the same digit and 0 otherwise. Gates are hard, or
        soft by spread (at step T). The row of step "pixels" uses the cosine between images.
        """
        x, y = self.images.x[:KERNEL_IMAGES], self.images.y[:KERNEL_IMAGES]
        digits = (y[:, None] == y).astype(np.float64)
        for scale, gating in ((0.0, HARD), (SCALE, self.by_spread(self.final, SCALE))):
            by_step = {
                t: gram(self.snapshots[t], x, gating=gating, batch_size=len(x)) for t in self.times
            }
            final = by_step[self.final].normalised()
            kernels: dict[int | str, np.ndarray] = {t: k.normalised() for t, k in by_step.items()}
            kernels["pixels"] = by_step[self.final].cosines()[0]
            for t, kernel in kernels.items():
                row = {"step": t, "temperature": scale}
                row["with final"] = measures.alignment(kernel, final)
                yield {**row, "with digits": measures.alignment(kernel, digits)}

    def paths(self) -> Iterator[Row]:
        """Mean correlations over images in path space, for multilayer perceptrons.

        The final gates at each temperature are correlated with the averaged hard gates and with
        G(T).
        """
        averaged, hard = [self.gates(s) for s in self.stable], [self.gates(self.final)]
        for name, temperature, given in self._softened():
            if np.isfinite(temperature):
                means = [measures.path_correlation([given], f).mean() for f in (averaged, hard)]
                row = {"gates": name, "temperature": temperature}
                yield {**row, "with averaged": float(means[0]), "with hard": float(means[1])}
