"""Writes the tables and plots of a run: all files, or none."""

import csv
import dataclasses
import importlib.metadata
import io
import json
import tempfile
from pathlib import Path

from experiments import plots, summary
from experiments.results import Results

VERSIONS = ("jax-excite", "jax", "flax", "optax", "numpy", "mlxtend")


def write(results: Results, out: Path, seconds: float) -> None:
    """Write the results of a run into a folder, replacing files with the same names.

    The files are the plots, one CSV file per table, `tables.md` and `run.json` (settings, versions,
    time).

    Args:
        results: the measurements.
        out: the folder; created if it does not exist.
        seconds: the duration of the run.
    """
    files = {f"{name}.csv": _csv(rows).encode() for name, rows in results.tables().items()}
    files["tables.md"] = summary.markdown(results).encode()
    files["run.json"] = _manifest(results, seconds).encode()
    for name, draw in plots.PLOTS.items():
        buffer = io.BytesIO()
        draw(results).savefig(buffer, dpi=90)
        files[name] = buffer.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        for name in files:
            (Path(folder) / name).replace(out / name)


def _csv(rows: list[dict[str, object]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _manifest(results: Results, seconds: float) -> str:
    settings = dataclasses.asdict(results.settings)
    settings["temperatures"] = [f"{t:g}" for t in settings["temperatures"]]
    manifest = {
        "settings": settings,
        "times": results.settings.times(),
        "seconds": round(seconds, 1),
        "versions": {name: _version(name) for name in VERSIONS},
    }
    return json.dumps(manifest, indent=2, allow_nan=False) + "\n"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
