"""A class grid of section 5.1: pullbacks, and ascents that continue from earlier results."""

import dataclasses
import enum
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jax_excite import recipes
from jax_excite.cli.console import with_progress
from jax_excite.gating import Gating
from jax_excite.models import Classifier
from jax_excite.pullbacks.pga import pga
from jax_excite.pullbacks.pullback import pullback_grid


class Along(enum.StrEnum):
    """The vector fields that figures compare."""

    EXCITATION = "excitation pullbacks"
    VANILLA = "vanilla gradients"


class _Climbed(NamedTuple):
    images: np.ndarray
    seconds: float


class ClassGrid:
    """Photographs (rows) and target classes (columns) of a network.

    The results of ascents are kept, and longer ascents continue from them: after an ascent of five
    steps, an ascent of ten steps computes only the last five.

    Attributes:
        network: the network.
        photographs: `[N, H, W, 3]` in [-1, 1].
        targets: C class indices.
        gatings: the gating of each vector field that the figures compare.
        skip: sites to leave hard.
    """

    def __init__(
        self,
        network: Classifier,
        photographs: np.ndarray,
        targets: Sequence[int],
        gatings: Mapping[Along, Gating],
        skip: Sequence[str] = (),
    ):
        self.network = network
        self.photographs = photographs
        self.targets = np.asarray(targets)
        self.gatings = gatings
        self.skip = skip
        cells = np.repeat(photographs[:, None], len(targets), axis=1)
        self._climbed = {along: {0: _Climbed(cells, 0.0)} for along in gatings}

    def pull_back(self, along: Along) -> tuple[np.ndarray, float]:
        """The vector fields `[N, C, H, W, 3]`, and the time to compute them in seconds."""
        began = time.perf_counter()
        fields = [
            np.asarray(
                pullback_grid(
                    self.network,
                    image,
                    self.targets,
                    gating=self.gatings[along],
                    skip=self.skip,
                )
            )
            for image in with_progress(list(self.photographs), f"Computing {along}")
        ]
        return np.stack(fields), time.perf_counter() - began

    def climb(self, along: Along, steps: int) -> tuple[np.ndarray, float]:
        """The perturbed images `[N, C, H, W, 3]` after `steps` steps, and the time in seconds."""
        climbed = self._climbed[along]
        if steps in climbed:
            return climbed[steps]
        done = max(number for number in climbed if number <= steps)
        began = time.perf_counter()
        cells = climbed[done].images.copy()
        ascent = dataclasses.replace(recipes.EXCITATION_PGA, steps=steps - done)
        for row in with_progress(range(len(cells)), f"Climbing along {along}"):
            cells[row] = pga(
                self.network,
                cells[row],
                self.targets,
                ascent,
                around=np.broadcast_to(self.photographs[row], cells[row].shape),
                gating=self.gatings[along],
                skip=self.skip,
            )
        seconds = climbed[done].seconds + time.perf_counter() - began
        climbed[steps] = _Climbed(cells, seconds)
        return climbed[steps]
