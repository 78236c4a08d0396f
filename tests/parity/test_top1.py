"""Right answers on 100 ImageNet photographs, image by image the same as PyTorch's."""

import importlib.resources
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from jax_excite import load, load_images
from jax_excite.data.class_names import class_index
from tests import listings
from tests import torch_reference as reference
from tests.parity.test_pullbacks import checkpoint

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "imagenet_samples"


def answers(name, paths):
    """The classes that our network gives to photographs, and PyTorch's."""
    weights = checkpoint(name)
    model = load(name, weights=weights)
    size, resize = model.preprocessing.size, model.preprocessing.resize
    module = reference.reference(name, weights=weights, dtype=torch.float32)
    apply = jax.jit(lambda model, x: model(x).argmax(axis=1))
    ours, theirs = [], []
    for start in range(0, len(paths), 20):
        images = load_images(paths[start : start + 20], size, resize=resize)
        ours.append(apply(model, images))
        with torch.no_grad():
            theirs.append(module(listings.to_torch(images)).argmax(dim=1).numpy())
    return np.concatenate(ours), np.concatenate(theirs)


@pytest.mark.skipif(not SAMPLES.exists(), reason=f"{SAMPLES} is not there: no photographs")
@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("squeezenet1_0", 61),
        ("efficientnet_lite0", 89),
        pytest.param("efficientnet_lite1", 87, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite2", 92, marks=pytest.mark.slow),
    ],
)
def test_right_answers(name, right, record_property):
    paths = sorted(SAMPLES.glob("*.jpg"))
    labels = np.array([int(path.name[:4]) for path in paths])
    assert len(labels) == 100
    ours, theirs = answers(name, paths)
    row = [name, "100 photographs", "right answers", f"{(ours == labels).sum()} of 100"]
    record_property("parity", [*row, "", f"{(theirs == labels).sum()} of 100", ""])
    np.testing.assert_array_equal(ours, theirs)
    assert (ours == labels).sum() == right


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_lite0",
        *(pytest.param(f"efficientnet_lite{i}", marks=pytest.mark.slow) for i in (1, 2)),
    ],
)
def test_answers_on_photographs_of_a_package(name):
    folder = importlib.resources.files("skimage") / "data"
    names = ["chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png"]
    ours, theirs = answers(name, [Path(str(folder / file)) for file in names])
    np.testing.assert_array_equal(ours, theirs)
    cats = {class_index(cat) for cat in ("tabby", "tiger cat", "Egyptian cat")}
    assert ours[0] in cats
    assert ours[1] in {class_index("espresso"), class_index("cup"), class_index("eggnog")}
