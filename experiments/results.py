"""The settings of a measurement of Hypothesis 1, and the tables that it fills."""

import dataclasses

import numpy as np

from experiments.curves import Row
from experiments.training import NetworkName


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of the training and of the measurements.

    Attributes:
        networks: architectures, by name in `experiments.training`.
        seeds: the seeds; each architecture is trained once per seed.
        steps: the number of updates per training, T.
        snapshots: the number of measured steps besides 0, evenly spaced on a logarithmic scale.
        per_class: the number of training images per digit.
        measured: the number of measured images from the training set and from the held-out set.
        temperatures: the temperatures of the final gates Gamma(T).
        scales: temperatures of Gamma(T) in units of each site's spread at step T.
        stable_times: the times, as fractions of T, whose hard gates are averaged.
    """

    networks: tuple[NetworkName, ...] = ("conv-bn", "conv", "mlp")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 2000
    snapshots: int = 22
    per_class: int = 400
    measured: int = 600
    temperatures: tuple[float, ...] = (0.0, 0.05, 0.15, 0.3, 0.5, 1.0, 3.0, np.inf)
    scales: tuple[float, ...] = (0.05, 0.15, 0.3, 0.6, 1.0, 3.0)
    stable_times: tuple[float, ...] = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)

    def times(self) -> list[int]:
        """The measured steps: 0, then evenly spaced on a logarithmic scale up to `steps`."""
        even = np.geomspace(1, self.steps, self.snapshots)
        return [0, *np.unique(np.round(even).astype(int)).tolist()]


FULL = Settings()
QUICK = Settings(
    networks=("conv-bn", "mlp"),
    seeds=(0,),
    steps=40,
    snapshots=4,
    per_class=40,
    measured=100,
    temperatures=(0.0, 0.3, np.inf),
    scales=(0.6,),
    stable_times=(0.5, 0.75),
)


@dataclasses.dataclass(frozen=True)
class Results:
    """Tables of measurements, each a list of rows with the same keys."""

    settings: Settings
    learning: list[Row] = dataclasses.field(default_factory=list)
    correlations: list[Row] = dataclasses.field(default_factory=list)
    pairs: list[Row] = dataclasses.field(default_factory=list)
    stability: list[Row] = dataclasses.field(default_factory=list)
    flips: list[Row] = dataclasses.field(default_factory=list)
    kernels: list[Row] = dataclasses.field(default_factory=list)
    paths: list[Row] = dataclasses.field(default_factory=list)

    def tables(self) -> dict[str, list[Row]]:
        """The tables by name."""
        return {name: rows for name, rows in vars(self).items() if isinstance(rows, list)}
