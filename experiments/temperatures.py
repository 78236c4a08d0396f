"""Measures the temperatures of `jax_excite/models/temperatures.json`, and writes that file.

    python -m experiments.temperatures

The networks are those whose published weights a package contains, since those of others cannot be
measured without a download. The photographs are six that come with scikit-image and scikit-learn.
"""

import importlib.resources
import json

import numpy as np

from jax_excite import calibrate
from jax_excite.data.photographs import packaged_photographs
from jax_excite.models import MODELS
from jax_excite.models.temperatures import FILE
from jax_excite.weights.loading import load_model

FROM_SKLEARN = ("china.jpg", "flower.jpg")


def main() -> None:
    """Measure, and write the file anew."""
    folder = importlib.resources.files("sklearn") / "datasets" / "images"
    photographs = [*packaged_photographs(), *(str(folder / name) for name in FROM_SKLEARN)]
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for name in (name for name, spec in MODELS.items() if spec.published[0].package):
        model = load_model(name)
        gating = calibrate(model, [model.preprocessing.load_images(photographs)])
        found = {
            str(site): float(f"{np.asarray(value):.3g}")
            for site, value in gating.site_temperatures.items()
        }
        measured[name] = {MODELS[name].published[0].name: found}
        print(f"{name}: {len(found)} sites")
    FILE.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
