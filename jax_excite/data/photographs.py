"""Photographs that come with an installed package, for demonstrations and for calibration."""

import importlib.resources
from collections.abc import Iterable
from pathlib import Path

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def packaged_photographs(names: Iterable[str] = PHOTOGRAPHS) -> list[Path]:
    """Files in the wheel of scikit-image, whose own loaders might try to download them.

    Raises:
        ModuleNotFoundError: scikit-image, of the extra `demo`, is not installed.
    """
    try:
        data = importlib.resources.files("skimage") / "data"
    except ModuleNotFoundError as error:
        error.msg = 'the photographs come with scikit-image: pip install "jax-excite[demo]"'
        raise
    return [Path(str(data / name)) for name in names]
