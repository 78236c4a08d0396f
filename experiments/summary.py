"""The tables of `docs/hypothesis-1.md`, computed from the rows of a run."""

from collections.abc import Iterable, Sequence

import numpy as np

from experiments.curves import SCALE, Row
from experiments.results import Results

THRESHOLD = 0.9
# Gates that are constant in time: name and temperature in the rows, and name in the tables.
COMPARED: dict[tuple[str, float], str] = {
    ("final", 0.0): "final, hard: G(T)",
    ("final", 0.3): "final, T = 0.3",
    ("final, by spread", SCALE): f"final, {SCALE} of the spread",
    ("averaged", 0.0): "hard, averaged over training",
    ("untrained", 0.0): "untrained, hard: G(0)",
    ("same digit", 0.0): "G(T) of another image of the digit",
    ("other image", 0.0): "G(T) of any other image",
    ("f(T) itself", 0.0): "f(T) in place of f_Lambda",
}


def series(rows: Sequence[Row], value: str, **where: object) -> np.ndarray:
    """A value over time, one line per seed `[seeds, steps]`, from the rows with these entries.

    Raises:
        ValueError: no row has these entries.
    """
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if all(row[key] == wanted for key, wanted in where.items()):
            by_seed.setdefault(row["seed"], []).append(row[value])
    if not by_seed:
        raise ValueError(f"no rows have {where}")
    return np.array(list(by_seed.values()))


def emergence(times: Sequence[int], curve: np.ndarray, threshold: float = THRESHOLD) -> int | None:
    """The first measured step from which on a curve `[steps]` stays above a threshold, or None."""
    below = np.nonzero(np.asarray(curve) <= threshold)[0]
    first = below[-1] + 1 if len(below) else 0
    return times[first] if first < len(times) else None


def markdown(results: Results) -> str:
    """All tables, in Markdown; numbers are means over seeds, +- their standard deviation."""
    sections = {
        "t_pi: the step from which on the correlation stays above 0.9": _emergence_table(results),
        "Correlation over training": _curve_table(results),
        "Correlation by temperature": _temperature_table(results),
        "Equal hard gates": _stability_table(results),
        "Gates of one step, weights of another": _pairs_table(results),
        "Weights of step T: gates of an earlier step, or turned over": _flip_table(results),
        "Alignment of the path kernel": _kernel_table(results),
        "Path space": _path_table(results),
    }
    return "\n".join(f"## {title}\n\n{table}\n" for title, table in sections.items() if table)


def _emergence_table(results: Results) -> str:
    times, rows = results.settings.times(), []
    for network in results.settings.networks:
        accuracy = series(results.learning, "accuracy", network=network, images="training")
        for (gates, temperature), title in COMPARED.items():
            agreement = _curves(results, network, "training", gates, temperature, "agreement")
            steps = {}
            for images in ("training", "held out"):
                curves = _curves(results, network, images, gates, temperature)
                steps[images] = [emergence(times, curve) for curve in curves]
            places = [(i, times.index(t)) for i, t in enumerate(steps["training"]) if t is not None]
            then = [
                f"{np.mean([values[place] for place in places]):.2f}" if places else ""
                for values in (accuracy, agreement)
            ]
            listed = [
                ", ".join("never" if t is None else str(t) for t in found)
                for found in steps.values()
            ]
            rows.append([network, title, listed[0], *then, listed[1]])
    titles = ["network", "gates", "step", "accuracy of f then", "agreement then", "step, held out"]
    return _table(titles, rows)


def _curve_table(results: Results) -> str:
    times, rows = results.settings.times(), []
    shown = _spaced(times, 8)
    for network in results.settings.networks:
        for (gates, temperature), title in COMPARED.items():
            curves = _curves(results, network, "training", gates, temperature)
            rows.append([network, title, *(_mean(curves[:, times.index(t)]) for t in shown)])
        for images in ("training", "held out"):
            curves = series(results.learning, "accuracy", network=network, images=images)
            cells = [_mean(curves[:, times.index(t)]) for t in shown]
            rows.append([network, f"*accuracy, {images}*", *cells])
    return _table(["network", "gates", *(f"t = {t}" for t in shown)], rows)


def _temperature_table(results: Results) -> str:
    settings, times, rows = results.settings, np.array(results.settings.times()), []
    early = (times >= settings.steps / 100) & (times <= settings.steps / 10)
    late = times > settings.steps / 10
    shown = {
        **{("final", t): f"G(T), Gamma(T): T = {t:g}" for t in settings.temperatures},
        **{("final, by spread", t): f"Gamma(T): {t:g} of the spread" for t in settings.scales},
        ("same digit", 0.0): "another image of the digit: hard",
        ("same digit, by spread", SCALE): f"another image of the digit: {SCALE} of the spread",
        ("other image", 0.0): "any other image: hard",
        ("other image, by spread", SCALE): f"any other image: {SCALE} of the spread",
        ("untrained", 0.0): "untrained: hard",
    }
    for network in settings.networks:
        hard = _curves(results, network, "training", "final", 0.0)
        for (gates, temperature), title in shown.items():
            curves = _curves(results, network, "training", gates, temperature)
            cells = []
            for phase in (early, late):
                cells.append(_mean(curves[:, phase].mean(axis=1)))
                cells.append(_mean((curves - hard)[:, phase].mean(axis=1), "+.3f"))
            rows.append([network, title, *cells])
    phases = [f"t in [{times[phase][0]}, {times[phase][-1]}]" for phase in (early, late)]
    return _table(["network", "gates", phases[0], "less G(T)", phases[1], "less G(T)"], rows)


def _stability_table(results: Results) -> str:
    times, rows = results.settings.times(), []
    shown = _spaced(times, 6)[:-1]
    for network in results.settings.networks:
        layers = {row["layer"] for row in results.stability if row["network"] == network}
        for layer in sorted(layers):
            shares = series(results.stability, "equal", network=network, layer=layer)
            cells = [_mean(shares[:, times.index(t)]) for t in shown]
            rows.append([network, str(layer), *cells, _mean(shares[:, -1])])
    return _table(["network", "layer", *(f"t = {t}" for t in shown), "other image"], rows)


def _pairs_table(results: Results) -> str:
    times, rows = results.settings.times(), []
    shown = _spaced(times, 8)
    for network in results.settings.networks:
        for temperature, title in ((0.0, "hard"), (SCALE, f"{SCALE} of the spread")):
            final = {
                s: series(
                    results.pairs,
                    "correlation",
                    network=network,
                    temperature=temperature,
                    **{"gates of": s},
                )[:, -1]
                for s in shown
            }
            rows.append([network, title, *(_mean(values) for values in final.values())])
    return _table(["network", "gates", *(f"s = {s}" for s in shown)], rows)


def _flip_table(results: Results) -> str:
    times, rows = results.settings.times(), []
    shown = _spaced(times, 8)[:-1]
    titles = {
        "earlier": "G(s)",
        "weakest": "G(T), as many turned over: the weakest",
        "random": "G(T), as many turned over: any",
    }
    for network in results.settings.networks:
        for value, title in titles.items():
            found = series(results.flips, value, network=network)
            rows.append([network, title, *(_mean(found[:, times.index(s)]) for s in shown)])
    return _table(["network", "gates", *(f"s = {s}" for s in shown)], rows)


def _kernel_table(results: Results) -> str:
    times, rows = results.settings.times(), []
    shown = _spaced(times, 8)
    for network in results.settings.networks:
        for temperature, title in ((0.0, "hard"), (SCALE, f"{SCALE} of the spread")):
            for value in ("with final", "with digits"):
                where = {"network": network, "temperature": temperature}
                found = series(results.kernels, value, **where)
                cells = [_mean(found[:, times.index(t)]) for t in shown]
                rows.append([network, title, value, *cells, _mean(found[:, -1])])
    titles = ["network", "gates", "alignment", *(f"t = {t}" for t in shown), "pixels"]
    return _table(titles, rows)


def _path_table(results: Results) -> str:
    names = dict.fromkeys((row["gates"], row["temperature"]) for row in results.paths)
    rows = []
    for gates, temperature in names:
        found = [
            series(results.paths, value, gates=gates, temperature=temperature)[:, 0]
            for value in ("with averaged", "with hard")
        ]
        rows.append([gates, f"{temperature:g}", *(_mean(each, ".3f") for each in found)])
    return _table(["gates", "temperature", "with averaged", "with G(T)"], rows) if rows else ""


def _curves(
    results: Results,
    network: str,
    images: str,
    gates: str,
    temperature: float,
    value: str = "correlation",
) -> np.ndarray:
    where = {"network": network, "images": images, "gates": gates, "temperature": temperature}
    return series(results.correlations, value, **where)


def _spaced(times: Sequence[int], count: int) -> list[int]:
    """A selection of the measured steps, evenly spaced, including the first and the last."""
    chosen = np.unique(np.linspace(0, len(times) - 1, count).round().astype(int))
    return [times[i] for i in chosen]


def _mean(values: np.ndarray, form: str = ".2f") -> str:
    text = format(np.mean(values), form)
    return f"{text} +- {format(np.std(values), form.lstrip('+'))}" if len(values) > 1 else text


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
