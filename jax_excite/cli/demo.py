"""`jax-excite demo`: the default network on photographs that come with scikit-image."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy import special

from jax_excite.cli.console import announce, errors_in_one_line, with_progress
from jax_excite.cli.gatings import at_temperature, gating_of
from jax_excite.cli.networks import logits
from jax_excite.data.class_names import CLASS_NAMES, class_index
from jax_excite.data.images import load_images
from jax_excite.data.photographs import packaged_photographs
from jax_excite.models import Classifier, model_spec
from jax_excite.pullbacks.pga import pga
from jax_excite.weights.loading import load_model

MODEL = "efficientnet_lite0"
PHOTOGRAPHS = {"cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
CLASSES = ("tiger cat", "espresso", "church", "ostrich", "golf ball", "garbage truck")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("out"),
) -> None:
    """Explain EfficientNet-Lite0 on three photographs, offline: out/demo.png."""
    with errors_in_one_line():
        images = load_images(packaged_photographs(PHOTOGRAPHS.values()))
        from jax_excite import pictures

        announce(f"Loading {MODEL}")
        model = load_model(MODEL)
        out.mkdir(parents=True, exist_ok=True)
        _print_predictions(model, images)

        soft = gating_of(model_spec(MODEL), model, temperature=None)
        gatings = {"excitation pullback": soft, "gradient": at_temperature(soft, 0.0)}
        classes = [class_index(name) for name in CLASSES]
        jobs = [(image, gating) for image in images for gating in gatings.values()]
        cells = np.full((len(jobs), 1 + len(CLASSES), *images.shape[1:]), 0.5, np.float32)
        picture = out / "demo.png"
        for row, (image, gating) in enumerate(with_progress(jobs, "Climbing towards each class")):
            starts = np.repeat(image[None], len(classes), axis=0)
            changes = np.asarray(pga(model, starts, classes, gating=gating)) - image
            cells[row] = np.concatenate([(image[None] + 1) / 2, pictures.scale(changes)])
            pictures.draw_grid(
                picture,
                cells,
                [f"{name}\n{how}" for name in PHOTOGRAPHS for how in gatings],
                ["photograph", *CLASSES],
                title="What ten steps towards each class add to a photograph",
            )
        typer.echo(f"\n{picture}: differences after 10 steps of L2 norm 20 within radius 100.")


def _print_predictions(model: Classifier, images: np.ndarray) -> None:
    probabilities = special.softmax(logits(model, images), axis=1)
    for name, row in zip(PHOTOGRAPHS, probabilities, strict=True):
        top = np.argsort(-row)[:5]
        listed = ", ".join(f"{CLASS_NAMES[c]} {row[c]:.1%}" for c in top)
        typer.echo(f"{name:>8}: {listed}")
