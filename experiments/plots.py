"""The plots of `docs/hypothesis-1.md`, as matplotlib figures."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from experiments.curves import SCALE
from experiments.results import Results
from experiments.summary import THRESHOLD, series

# From name and temperature in the rows to title, colour and line style.
LINES: dict[tuple[str, float], tuple[str, str, str]] = {
    ("final", 0.0): ("final gates, hard: G(T)", "black", "-"),
    ("final", 0.3): ("final, soft: T = 0.3", "#0072b2", "-"),
    ("final, by spread", SCALE): (f"final, soft: {SCALE} of the spread", "#d55e00", "-"),
    ("untrained", 0.0): ("untrained gates: G(0)", "#009e73", "-"),
    ("same digit", 0.0): ("G(T) of another image of the digit", "0.45", "--"),
    ("other image", 0.0): ("G(T) of any other image", "0.45", ":"),
    ("f(T) itself", 0.0): ("f(T) in place of $f_\\Lambda$", "#cc79a7", "-."),
}


def draw_curves(results: Results, images: str = "training") -> Figure:
    """Correlation with f^(t) over time, for gates that are constant in time, and the accuracy."""
    figure, axes = _figure(results, 2, 6.6)
    times = results.settings.times()
    for network, (top, bottom) in axes.items():
        for (gates, temperature), (title, colour, style) in LINES.items():
            curves = series(
                results.correlations,
                "correlation",
                network=network,
                images=images,
                gates=gates,
                temperature=temperature,
            )
            _line(top, times, curves, label=title, color=colour, linestyle=style)
        top.axhline(THRESHOLD, color="0.8", linewidth=0.8, zorder=0)
        top.set_ylim(-0.1, 1.03)
        for split, style in (("training", "-"), ("held out", "--")):
            accuracy = series(results.learning, "accuracy", network=network, images=split)
            _line(bottom, times, accuracy, label=split, color="black", linestyle=style)
        _steps(top, times)
        _steps(bottom, times)
        bottom.set_xlabel("step t")
    first = next(iter(axes.values()))
    first[0].set_ylabel("correlation with $f^{(t)}(X)$")
    first[1].set_ylabel("accuracy")
    first[1].legend(frameon=False, fontsize=8)
    _legend(figure, first[0], columns=4)
    return figure


def draw_temperatures(results: Results) -> Figure:
    """Correlation over temperatures at several steps; top: absolute, bottom: by spread."""
    figure, axes = _figure(results, 2, 6.6)
    settings, times = results.settings, results.settings.times()
    shown = [t for t in times if t >= settings.steps / 100][::2]
    for network, cells in axes.items():
        for axis, gates, temperatures in (
            (cells[0], "final", settings.temperatures),
            (cells[1], "final, by spread", settings.scales),
        ):
            for number, t in enumerate(shown):
                values = np.stack(
                    [
                        series(
                            results.correlations,
                            "correlation",
                            network=network,
                            images="training",
                            gates=gates,
                            temperature=temperature,
                            step=t,
                        )[:, 0]
                        for temperature in temperatures
                    ],
                    axis=1,
                )
                colour = _shade(number, len(shown))
                _line(axis, range(len(temperatures)), values, label=f"t = {t}", color=colour)
            axis.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
            axis.set_ylim(0, 1.03)
        cells[0].set_xlabel("temperature")
        cells[1].set_xlabel("temperature / spread of the layer")
    first = next(iter(axes.values()))
    for axis in first:
        axis.set_ylabel("correlation with $f^{(t)}(X)$")
    _legend(figure, first[0], columns=len(shown))
    return figure


def draw_stability(results: Results) -> Figure:
    """The share of gates equal to the final ones, and the cosine of soft gates, by layer."""
    figure, axes = _figure(results, 2, 6.6)
    times = results.settings.times()
    layers = max(row["layer"] for row in results.stability)
    for network, cells in axes.items():
        found = {row["layer"] for row in results.stability if row["network"] == network}
        for axis, value in zip(cells, ("equal", "cosine"), strict=True):
            for layer in sorted(found):
                curves = series(results.stability, value, network=network, layer=layer)
                colour = _shade(layer - 1, layers)
                _line(axis, times, curves[:, :-1], label=f"layer {layer}", color=colour)
                chance = curves[:, -1].mean()
                axis.axhline(chance, color=colour, linestyle=":", linewidth=0.9)
            _steps(axis, times)
            axis.set_ylim(0.4, 1.03)
        cells[1].set_xlabel("step t")
    deepest = max(axes.values(), key=lambda cells: len(cells[0].get_legend_handles_labels()[0]))
    first = next(iter(axes.values()))
    first[0].set_ylabel("gates equal to G(T)")
    first[1].set_ylabel(f"cosine of soft gates ({SCALE} of spread)")
    _legend(figure, deepest[0], columns=layers)
    return figure


def draw_pairs(results: Results) -> Figure:
    """Correlation of f^(t) with the gates of step s and the weights of step t, for all s and t."""
    figure, axes = _figure(results, 2, 7.0)
    times = results.settings.times()
    norm = Normalize(0, 1)
    for network, cells in axes.items():
        for axis, temperature in zip(cells, (0.0, SCALE), strict=True):
            lines = [
                series(
                    results.pairs,
                    "correlation",
                    network=network,
                    temperature=temperature,
                    **{"gates of": s},
                ).mean(axis=0)
                for s in times
            ]
            axis.imshow(lines, origin="lower", norm=norm, cmap="viridis")
            axis.contour(lines, levels=[THRESHOLD], colors="white", linewidths=1.2)
            ticks = range(0, len(times), max(1, len(times) // 7))
            axis.set_xticks(ticks, [str(times[i]) for i in ticks], fontsize=8)
            axis.set_yticks(ticks, [str(times[i]) for i in ticks], fontsize=8)
        cells[1].set_xlabel("weights of step t")
    first = next(iter(axes.values()))
    first[0].set_ylabel("hard gates of step s")
    first[1].set_ylabel(f"soft gates of step s ({SCALE} of spread)")
    figure.colorbar(
        ScalarMappable(norm, "viridis"),
        ax=[axis for cells in axes.values() for axis in cells],
        shrink=0.6,
        label="correlation with $f^{(t)}(X)$; white line: 0.9",
    )
    return figure


PLOTS: dict[str, Callable[[Results], Figure]] = {
    "hypothesis-1.png": draw_curves,
    "hypothesis-1-temperatures.png": draw_temperatures,
    "hypothesis-1-stability.png": draw_stability,
    "hypothesis-1-pairs.png": draw_pairs,
}


def _figure(results: Results, rows: int, height: float) -> tuple[Figure, dict[str, list[Axes]]]:
    """A figure with one column per network, and its axes by network, from top to bottom."""
    networks = results.settings.networks
    figure = Figure(figsize=(3.9 * len(networks), height), layout="constrained")
    grid = figure.subplots(rows, len(networks), squeeze=False)
    for axis, network in zip(grid[0], networks, strict=True):
        axis.set_title(network)
    for axis in grid.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, {network: list(grid[:, i]) for i, network in enumerate(networks)}


def _line(axis: Axes, x, curves: np.ndarray, **style) -> None:
    """Draw the mean over seeds, and a band from the smallest to the largest value."""
    axis.plot(x, curves.mean(axis=0), linewidth=1.6, **style)
    colour = style["color"]
    axis.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, lw=0)


def _steps(axis: Axes, times) -> None:
    axis.set_xscale("symlog", linthresh=1, linscale=0.3)
    axis.set_xlim(0, times[-1])


def _shade(number: int, count: int) -> tuple[float, float, float]:
    """A shade of blue, from light to dark."""
    share = number / max(1, count - 1)
    light, dark = np.array([0.65, 0.80, 0.92]), np.array([0.03, 0.15, 0.35])
    red, green, blue = light + share * (dark - light)
    return float(red), float(green), float(blue)


def _legend(figure: Figure, axis: Axes, columns: int) -> None:
    handles, titles = axis.get_legend_handles_labels()
    figure.legend(
        handles, titles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9
    )
