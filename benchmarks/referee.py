"""Inputs and reference results for all variants, from PyTorch in a process of its own."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.jobs import Sizes, as_cells
from benchmarks.variants import Device
from benchmarks.work import forward_gflop
from benchmarks.workers import answers
from jax_excite.models import model_spec
from jax_excite.weights.published import at_hand
from tests import listings
from tests import torch_reference as reference
from weights_converter import convert_file


def prepare(folder: Path, model: str, sizes: Sizes, device: Device = "cpu") -> float:
    """Write a network's weights in both formats, images, classes, and the fields in float64.

    The weights are random, with measured BatchNorm statistics, unless a package contains the
    published weights of the network.

    Returns:
        The GFLOP of one image's forward pass.
    """
    published = at_hand(model_spec(model).published[0])
    package = published if model_spec(model).published[0].package else None
    module = reference.reference(model, weights=package)
    torch.save(module.float().net.state_dict(), folder / "weights.pth")
    convert_file(folder / "weights.pth", folder / "weights.safetensors", model=model)
    images = reference.images(1, sizes.images, sizes.size, sizes.size).astype(np.float32)
    np.save(folder / "images.npy", images)
    np.save(folder / "classes.npy", np.array(sizes.class_indices()))
    np.save(folder / "fields.npy", exact_fields(folder, model, device))
    return forward_gflop(model, sizes.size)


def exact_fields(folder: Path, model: str, device: Device) -> np.ndarray:
    """The class grid in float64, one row per cell."""
    place = "cuda" if device == "gpu" else "cpu"
    module = reference.reference(model, weights=folder / "weights.pth")
    soft = listings.soften(module, skip_functional=False).to(place)
    images, classes = np.load(folder / "images.npy"), np.load(folder / "classes.npy")
    parts = []
    for image in images:
        x, c = as_cells(image[None].astype(np.float64), classes)
        field = listings.pullback(
            soft, listings.to_torch(x).to(place), torch.as_tensor(c, device=place)
        )
        parts.append(listings.to_numpy(field.cpu()))
    return np.concatenate(parts)


def mean_rises(folder: Path, model: str, results: list[Path]) -> list[float]:
    """The mean rise of the logits of the classes, for each file of ascended images."""
    module = reference.reference(model, weights=folder / "weights.pth", dtype=torch.float32)
    cells, targets = as_cells(np.load(folder / "images.npy"), np.load(folder / "classes.npy"))

    def logits(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = module(listings.to_torch(x)).numpy()
        return np.take_along_axis(found, targets[:, None], axis=1)[:, 0]

    before = logits(cells)
    return [float((logits(np.load(path)["result"]) - before).mean()) for path in results]


def main() -> None:
    """Run a worker that executes each line of standard input and answers with one line."""
    stream = answers()
    for line in sys.stdin:
        command = json.loads(line)
        folder, model = Path(command["folder"]), command["model"]
        if command["do"] == "prepare":
            answer = prepare(folder, model, Sizes(**command["sizes"]), command["device"])
        else:
            answer = mean_rises(folder, model, [Path(path) for path in command["results"]])
        print(json.dumps({"answer": answer}), file=stream)


if __name__ == "__main__":
    main()
