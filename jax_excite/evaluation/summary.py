"""Summaries of the scores of methods over photographs: means, intervals, paired differences."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from jax_excite.errors import ExciteError

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Summary:
    """One line of the table.

    Attributes:
        model: the network.
        metric: the metric.
        method: the attribution.
        n: the number of photographs with a score.
        mean: the mean of the scores; None if there are none.
        std: the sample standard deviation; None for fewer than two scores.
        median: the median of the scores.
        low: the lower end of the 95 % bootstrap interval of the mean.
        high: the upper end of that interval.
        difference: the mean of the paired differences from the reference; None for the reference.
        difference_low: the lower end of the interval of the difference.
        difference_high: the upper end of that interval.
        pairs: the number of photographs for which both methods have a score.
    """

    model: str
    metric: str
    method: str
    n: int
    mean: float | None
    std: float | None
    median: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    pairs: int


# By model, metric and method: one score per photograph, NaN where there is none.
Table = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


def summarise(scores: Table, reference: str, *, seed: int = 0) -> list[Summary]:
    """Summarise scores; differences are from the method `reference` on the same photographs."""
    lines = []
    for model, by_metric in scores.items():
        for metric, by_method in by_metric.items():
            base = by_method.get(reference)
            for method, values in by_method.items():
                own = np.asarray(values, float)
                known = own[np.isfinite(own)]
                low, high = interval(known, np.mean, seed)
                gap = np.empty(0)
                if base is not None and method != reference:
                    gap = own - np.asarray(base, float)
                    gap = gap[np.isfinite(gap)]
                gap_low, gap_high = interval(gap, np.mean, seed)
                lines.append(
                    Summary(
                        model,
                        metric,
                        method,
                        len(known),
                        _of(known, np.mean),
                        float(np.std(known, ddof=1)) if len(known) > 1 else None,
                        _of(known, np.median),
                        low,
                        high,
                        _of(gap, np.mean),
                        gap_low,
                        gap_high,
                        len(gap),
                    )
                )
    return lines


def interval(
    values: np.ndarray, statistic: Callable[..., Any], seed: int = 0
) -> tuple[float | None, float | None]:
    """The 95 % percentile bootstrap interval of a statistic; two None for fewer than two values."""
    if len(values) < 2:
        return None, None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, 10_000_000 // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _of(values: np.ndarray, statistic: Callable[..., Any]) -> float | None:
    return float(statistic(values)) if len(values) else None


COLUMNS = [field.name for field in dataclasses.fields(Summary)]


def write_csv(path: Path, lines: Sequence[Summary]) -> None:
    """Write one line per summary; cells without a value are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(line) for line in lines)
    path.write_text(text.getvalue(), "utf-8")


def write_json(path: Path, lines: Sequence[Summary]) -> None:
    """Write a list of objects; missing values are null."""
    text = json.dumps([dataclasses.asdict(line) for line in lines], indent=1)
    path.write_text(text + "\n", "utf-8")


def write_parquet(path: Path, lines: Sequence[Summary]) -> None:
    """Write a table with one row per summary. Needs pyarrow."""
    import pyarrow
    import pyarrow.parquet

    columns = {name: [getattr(line, name) for line in lines] for name in COLUMNS}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


WRITERS: dict[str, Callable[[Path, Sequence[Summary]], None]] = {
    ".csv": write_csv,
    ".json": write_json,
    ".parquet": write_parquet,
}


def writer_of(path: Path) -> Callable[[Path, Sequence[Summary]], None]:
    """The writer for the suffix of a path; raises `ExciteError` if there is none."""
    if path.suffix.lower() not in WRITERS:
        raise ExciteError(f"--out is {path}: give a name that ends in {', '.join(WRITERS)}")
    return WRITERS[path.suffix.lower()]


def markdown(lines: Sequence[Summary], better: Mapping[str, str | None]) -> str:
    """One table per model and metric, with the best mean first.

    Args:
        lines: the lines of the table.
        better: `higher`, `lower` or None per metric.
    """
    parts: list[str] = []
    for model, metric in dict.fromkeys((line.model, line.metric) for line in lines):
        own = [line for line in lines if (line.model, line.metric) == (model, metric)]
        known = better.get(metric)
        sign = -1 if known == "higher" else 1

        def place(line: Summary, sign: int = sign) -> tuple[bool, float]:
            return line.mean is None, 0.0 if line.mean is None else sign * line.mean

        heading = f"## {model}: {metric}{f' ({known} is better)' if known else ''}"
        parts += [
            heading,
            "",
            "| method | n | mean | 95 % interval | std | median | pairs | difference "
            "| 95 % interval |",
            "|---|---|---|---|---|---|---|---|---|",
            *(f"| {' | '.join(_cells(line))} |" for line in sorted(own, key=place)),
            "",
        ]
    return "\n".join(parts)


def _cells(line: Summary) -> list[str]:
    return [
        line.method,
        str(line.n),
        _number(line.mean),
        _range(line.low, line.high),
        _number(line.std),
        _number(line.median),
        str(line.pairs) if line.pairs else "",
        _number(line.difference),
        _range(line.difference_low, line.difference_high),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{_number(low)} to {_number(high)}"
