from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_excite.data.images import load_image
from tests.listings import torchvision

DATA = Path(__file__).parents[3] / "shared" / "data"
SIZES = [(224, 224), (500, 500), (97, 97), (375, 500), (500, 333), (256, 300), (40, 61), (901, 256)]


def reference(image: Image.Image, size: int) -> np.ndarray:
    """What torchvision makes of an RGB image, in [-1, 1], channels last."""
    transforms = torchvision.transforms
    bilinear = transforms.InterpolationMode.BILINEAR
    if image.width == image.height:
        steps = [transforms.Resize((size, size), bilinear, antialias=True)]
    else:
        short = round(size * 256 / 224)
        steps = [transforms.Resize(short, bilinear, antialias=True), transforms.CenterCrop(size)]
    tensor = transforms.ToTensor()(transforms.Compose(steps)(image))
    return (tensor * 2 - 1).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("height_width", SIZES, ids=str)
@pytest.mark.parametrize("size", [224, 111])
def test_synthetic_images_are_prepared_as_by_torchvision(height_width, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*height_width, 3), np.uint8)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(load_image(pixels, size), reference(image, size))


@pytest.mark.parametrize("folder", ["imagenet_samples", "imagenette_examples"])
def test_photographs_are_prepared_as_by_torchvision(folder):
    paths = sorted((DATA / folder).glob("*.jpg"))
    if not paths:
        pytest.skip(f"../shared/data/{folder} is absent")
    for path in paths[::4]:
        with Image.open(path) as image:
            wanted = reference(image.convert("RGB"), 224)
        np.testing.assert_array_equal(load_image(path), wanted, err_msg=path.name)
