"""Formats the table, with the circumstances of its measurement."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.rows import REFERENCES, Row
from benchmarks.variants import Device
from benchmarks.workers import ENVIRONMENTS, ROOT

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision")
COLUMNS = (
    "model",
    "job",
    "environment",
    "variant",
    "batch",
    "seconds",
    *(f"{reference} / this" for reference in REFERENCES),
    "per second",
    "peak memory, MB (of it imports)",
    "compiling, s: cold",
    "from the cache",
    "GFLOP (unshared)",
    "share of peak",
    "error",
    "logits rose",
    "check",
)


def circumstances(device: Device) -> dict[str, Any]:
    """The machine, versions, commit, environments and time."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": _commit(),
        "device": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
        if device == "gpu"
        else "CPU",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
        "environments": ENVIRONMENTS,
    }


def _processor() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _commit() -> str:
    changed = _output("git", "status", "--porcelain", "--untracked-files=no")
    return _output("git", "rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def _output(*command: str) -> str:
    """The output of a command; empty if the command cannot be run or fails."""
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def markdown(rows: Sequence[Row], rates: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table in Markdown, below a list of its circumstances.

    Args:
        rows: the rows.
        rates: GFLOP/s of matrix products by dtype, with model, job and environment.
        about: the result of `circumstances`.
    """
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"- {about['date']}, commit {about['commit'] or 'unknown'}",
        f"- {about['device']}; {about['processor']}, {about['cores']} cores; {about['system']}",
        f"- {versions}",
        *(
            f"- environment {name}: {_variables(variables)}"
            for name, variables in about["environments"].items()
        ),
        f"- matrix products, GFLOP/s: {_rates(rates)}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def as_json(rows: Sequence[Row], rates: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The same contents as JSON, complete and without rounding."""
    everything = {**about, "rates": list(rates), "rows": [dataclasses.asdict(row) for row in rows]}
    return json.dumps(everything, indent=1) + "\n"


def _variables(variables: dict[str, str]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in variables.items()) or "as it is"


def _rates(rates: Sequence[dict[str, Any]]) -> str:
    found: dict[str, list[float]] = {}
    for rate in rates:
        for dtype, value in rate["gflops"].items():
            found.setdefault(dtype, []).append(value)
    return ", ".join(f"{dtype} {spread(values, '.0f')}" for dtype, values in found.items())


def _cells(row: Row) -> list[str]:
    batch = str(row.batch_size or ("default" if row.variant.startswith("ours") else "all"))
    start = [row.model, row.job, row.environment, row.variant, batch]
    if not row.seconds:
        middle = ["-"] * (len(COLUMNS) - len(start) - 1)
        return [*start, *middle, f"did not run: {row.complaint}".replace("|", "/")]
    unshared = "" if row.gflop == row.unshared_gflop else f" ({row.unshared_gflop:.0f})"
    return [
        *start,
        spread(row.seconds, ".3g"),
        *(spread(row.ratios[name], ".2f") if name in row.ratios else "-" for name in REFERENCES),
        f"{row.per_second:.3g}",
        f"{row.peak / 1e6:.0f} ({row.imported / 1e6:.0f})" if row.peak else "-",
        f"{row.cold:.1f}",
        "-" if row.cached is None else f"{row.cached:.1f}",
        f"{row.gflop:.3g}{unshared}",
        f"{row.share:.0%}",
        "-" if row.error is None else f"{row.error:.1e}",
        "-" if row.rise is None else f"{row.rise:.2f}",
        f"FAILED: {row.complaint}" if row.complaint else "passed",
    ]


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the range if there are several values."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}} to {max(values):{form}})"
