"""Which temperatures are best? The rank of a target class in a network that did not make the image.

Photographs are changed by ascents towards random classes along the pullbacks of one network. The
response of another network to the result cannot be fitted to the noise of the first one. The rank
of the target among the other network's classes (0 is best) is compared over temperatures: constant
ones, and multiples of each site's own spread.

    python -m experiments.calibration PHOTOGRAPHS --squeezenet squeezenet1_0.pth --out DIR
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import jax_excite as je
from jax_excite import pictures
from jax_excite.data.class_names import CLASS_NAMES
from jax_excite.evaluation.summary import interval
from jax_excite.metrics import standing
from jax_excite.models import Classifier

AT_ONCE = 8
CONSTANT = {"efficientnet_lite0": (0.3, 0.6, 1.0, 1.5), "squeezenet1_0": (0.3, 30.0, 60.0, 200.0)}
SCALES = (0.15, 0.3, 0.6, 1.0)
CHANNEL_SCALES = (0.3, 0.6)
SHOWN = {
    "efficientnet_lite0": ("gradient", "T = 0.3", "T = 1", "0.6 of the site's spread"),
    "squeezenet1_0": ("gradient", "T = 0.3", "T = 60", "0.6 of the site's spread"),
}
CLASSES = (0, 497, 9, 574)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The ranks of the targets after ascents along one network's pullbacks."""

    made_with: str
    setting: str
    ranks: list[int]
    seconds: float


def settings(name: str, model: Classifier, photographs: np.ndarray) -> dict[str, je.Gating]:
    """The gatings to compare, by name."""
    batches = np.split(photographs, range(AT_ONCE, len(photographs), AT_ONCE))
    by_site = je.calibrate(model, batches, scale=1)
    by_channel = je.calibrate(model, batches, scale=1, per_channel=True)
    return {
        "gradient": je.recipes.VANILLA,
        **{f"T = {t:g}": je.Gating(t, t) for t in CONSTANT[name]},
        **{f"{s:g} of the site's spread": times(by_site, s) for s in SCALES},
        **{f"{s:g} of the channel's spread": times(by_channel, s) for s in CHANNEL_SCALES},
    }


def times(gating: je.Gating, scale: float) -> je.Gating:
    """A copy of a gating with its site temperatures multiplied by `scale`."""
    own = {site: scale * np.asarray(t) for site, t in gating.site_temperatures.items()}
    return dataclasses.replace(gating, site_temperatures=own)


def draw(path: Path, name: str, model: Classifier, photographs: np.ndarray) -> None:
    """Draw the changes that ten steps make to the first two photographs, for each setting."""
    compared = settings(name, model, photographs)
    shown = {what: compared[what] for what in SHOWN[name]}
    rows, titles = [], []
    for number, photograph in enumerate(photographs[:2], start=1):
        for what, gating in shown.items():
            images = np.asarray(je.pga_grid(model, photograph, CLASSES, gating=gating))
            rows.append([(photograph + 1) / 2, *pictures.scale(images - photograph)])
            titles.append(f"photograph {number}\n{what}")
    columns = ["photograph", *(CLASS_NAMES[index] for index in CLASSES)]
    pictures.draw_grid(path, np.asarray(rows, np.float32), titles, columns, title=name)


def main() -> None:
    """Run the experiment; write ranks.json, a table and one picture per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--squeezenet", type=Path, required=True, help="its PyTorch checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--number", type=int, default=100, help="photographs")
    arguments = parser.parse_args()
    files = sorted(arguments.photographs.glob("*.jpg"))
    if len(files) < arguments.number:
        parser.error(f"{arguments.photographs} has {len(files)} photographs (*.jpg)")
    rng = np.random.default_rng(314)
    chosen = sorted(rng.choice(len(files), arguments.number, replace=False))
    photographs = je.load_images([files[i] for i in chosen])
    targets = rng.integers(0, 1000, arguments.number)
    models = {
        "efficientnet_lite0": je.load("efficientnet_lite0"),
        "squeezenet1_0": je.load("squeezenet1_0", weights=arguments.squeezenet),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for name, other in zip(models, reversed(models), strict=True):
        before = standing(models[other], photographs, targets).rank
        outcomes.append(Outcome(name, "before", before.tolist(), 0))
        for setting, gating in settings(name, models[name], photographs).items():
            start = time.perf_counter()
            images = je.pga(models[name], photographs, targets, gating=gating, batch_size=AT_ONCE)
            seconds = time.perf_counter() - start
            found = standing(models[other], images, targets).rank
            outcomes.append(Outcome(name, setting, found.tolist(), seconds))
            print(name, setting, np.median(found), file=sys.stderr, flush=True)
    for name, model in models.items():
        draw(arguments.out / f"calibration_{name}.png", name, model, photographs)
    text = json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1)
    (arguments.out / "ranks.json").write_text(text)
    (arguments.out / "ranks.md").write_text(table(outcomes))
    print(table(outcomes))


def table(outcomes: list[Outcome]) -> str:
    """The ranks as a Markdown table, with their difference from the ranks by the gradient.

    The last two columns are paired by target: the share of targets whose rank is better than by
    the gradient (ties count half), and the median difference.
    """
    lines = [
        "| made with | temperatures | median rank | 95 % interval | quartiles "
        "| better than gradient | median difference to it |",
        "|---|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        ranks = np.asarray(o.ranks, float)
        low, middle, high = np.percentile(ranks, (25, 50, 75))
        gradient = next(
            np.asarray(other.ranks, float)
            for other in outcomes
            if (other.made_with, other.setting) == (o.made_with, "gradient")
        )
        better = (ranks < gradient) + (ranks == gradient) / 2
        gap = ranks - gradient
        cells = (
            o.made_with,
            o.setting,
            f"{middle:.0f}",
            _range(ranks, np.median, ".0f"),
            f"{low:.0f}, {high:.0f}",
            f"{better.mean():.0%} ({_range(better, np.mean, '.0%')})",
            f"{np.median(gap):.0f} ({_range(gap, np.median, '.0f')})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(values: np.ndarray, statistic: Callable[..., Any], form: str) -> str:
    low, high = interval(values, statistic)
    return f"{low:{form}} to {high:{form}}"


if __name__ == "__main__":
    main()
