"""Hypothesis 1 of the paper (section 4.3.1), measured while small networks learn digits.

    python -m experiments.hypothesis_1 --out DIR [--quick] [--seeds N] [--steps T]

`docs/hypothesis-1.md` describes what is measured, and the results.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from experiments.curves import Row, Training
from experiments.training import Images, NetworkName, load_digits, train


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


def run(settings: Settings = Settings(), report: Callable[[str], None] = print) -> Results:
    """Train and measure every network with every seed; `report` receives progress messages."""
    results = Results(settings)
    training, held_out = load_digits(settings.per_class)
    splits = {
        "training": Images(training.x[: settings.measured], training.y[: settings.measured]),
        "held out": Images(held_out.x[: settings.measured], held_out.y[: settings.measured]),
    }
    times = settings.times()
    stable = [round(share * settings.steps) for share in settings.stable_times]
    for network in settings.networks:
        for seed in settings.seeds:
            start = time.perf_counter()
            snapshots = train(network, training, {*times, *stable}, seed=seed, steps=settings.steps)
            trained = time.perf_counter()
            for split, images in splits.items():
                measured = Training(
                    snapshots=snapshots,
                    times=times,
                    stable=stable,
                    images=images,
                    temperatures=settings.temperatures,
                    scales=settings.scales,
                    seed=seed,
                )
                known = {"network": network, "seed": seed, "images": split}
                for name, rows in _tables(measured, split, network).items():
                    getattr(results, name).extend({**known, **row} for row in rows)
            report(
                f"{network}, seed {seed}: trained in {trained - start:.1f} s, "
                f"measured in {time.perf_counter() - trained:.1f} s"
            )
    return results


def _tables(measured: Training, split: str, network: str) -> dict[str, Iterator[Row]]:
    tables = {"learning": measured.learning(), "correlations": measured.correlations()}
    if split == "training":
        tables |= {"pairs": measured.pairs(), "stability": measured.stability()}
        tables |= {"flips": measured.flips(), "kernels": measured.kernels()}
        if network == "mlp":
            tables["paths"] = measured.paths()
    return tables


def main(
    out: Annotated[Path, typer.Option(help="The folder to write plots and tables into.")],
    quick: Annotated[bool, typer.Option(help="Seconds instead of minutes: a smoke test.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each network.")] = None,
    steps: Annotated[int | None, typer.Option(min=20, help="Updates in a training.")] = None,
) -> None:
    """Measure Hypothesis 1 on small networks, and write plots, tables and a summary."""
    from experiments import output

    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file: give a folder", param_hint="--out")
    settings = QUICK if quick else Settings()
    if seeds is not None:
        settings = dataclasses.replace(settings, seeds=tuple(range(seeds)))
    if steps is not None:
        settings = dataclasses.replace(settings, steps=steps)
    start = time.perf_counter()
    results = run(settings, lambda line: typer.echo(line, err=True))
    output.write(results, out, seconds=time.perf_counter() - start)
    typer.echo(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


if __name__ == "__main__":
    typer.run(main)
