"""Hypothesis 1 of the paper (section 4.3.1), measured while small networks learn digits.

    python -m experiments.hypothesis_1 --out DIR [--quick] [--seeds N] [--steps T]

`docs/hypothesis-1.md` describes what is measured, and the results.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from experiments import output
from experiments.curves import Row, Training
from experiments.results import FULL, QUICK, Results, Settings
from experiments.training import Images, load_digits, train


def run(settings: Settings = FULL, report: Callable[[str], None] = print) -> Results:
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
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file: give a folder", param_hint="--out")
    settings = QUICK if quick else FULL
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
