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
    data = importlib.resources.files("skimage") / "data"
    return [Path(str(data / name)) for name in names]
