"""Plots of summaries. This module needs the `[viz]` extra."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from jax_excite.evaluation.summary import Summary

_WIDTH, _ROW, _HEAD = 4.2, 0.24, 0.8  # inches
_ACROSS = 3


def draw_intervals(
    path: str | os.PathLike[str], lines: Sequence[Summary], better: Mapping[str, str | None]
) -> None:
    """Draw means with their intervals: one panel per metric, one row per method.

    Args:
        path: a PNG file.
        lines: the lines of the table; each model has its own colour.
        better: `higher`, `lower` or None per metric.
    """
    metrics = list(dict.fromkeys(line.metric for line in lines))
    models = list(dict.fromkeys(line.model for line in lines))
    methods = list(dict.fromkeys(line.method for line in lines))
    down = -(-len(metrics) // _ACROSS)
    size = _WIDTH * _ACROSS, down * (_HEAD + _ROW * len(methods) * max(1, len(models) / 1.5))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, _ACROSS, squeeze=False, sharey=True)
    for panel in panels.ravel()[len(metrics) :]:
        panel.set_visible(False)
    for panel, metric in zip(panels.ravel(), metrics, strict=False):
        for number, model in enumerate(models):
            chosen = [each for each in lines if (each.metric, each.model) == (metric, model)]
            known = [each for each in chosen if each.mean is not None]
            means = [float(each.mean or 0) for each in known]
            ends = [
                [
                    mean - (mean if end is None else end)
                    for end, mean in zip(row, means, strict=True)
                ]
                for row in ([each.low for each in known], [each.high for each in known])
            ]
            panel.errorbar(
                means,
                [methods.index(each.method) + 0.25 * number for each in known],
                xerr=[[max(0.0, low) for low in ends[0]], [max(0.0, -high) for high in ends[1]]],
                fmt="o",
                markersize=3.5,
                label=model,
            )
        panel.set_yticks(range(len(methods)), methods, fontsize=8)
        panel.set_ylim(len(methods) - 0.3, -0.7)
        panel.tick_params(axis="x", labelsize=8)
        panel.grid(alpha=0.3)
        side = better.get(metric)
        panel.set_title(f"{metric}{f' ({side} is better)' if side else ''}", fontsize=9)
    panels[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110, format="png")
