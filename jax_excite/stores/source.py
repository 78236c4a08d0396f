"""Sources of images: opened by name, fingerprinted, and decoded ahead of the device."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np

from jax_excite.data.datasets import ImageData, image_folder, imagenette, listed_images
from jax_excite.data.preprocessing import Preprocessing
from jax_excite.errors import DataError, ImageError

_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An image in the form that the network takes, or the reason why there is none."""

    place: int
    image: np.ndarray | None
    reason: str | None = None
    failure: OSError | None = None


def open_source(text: str) -> ImageData:
    """The images of a source that is given as text.

    Args:
        text: a folder, a text file with a path on each line, or `imagenette/SIZE/SPLIT` with a size
            and a split of `jax_excite.data.datasets.imagenette`.

    Raises:
        DataError: there is no such source, or it holds no images.
    """
    path = Path(text)
    if path.is_dir():
        return image_folder(path)
    if path.is_file():
        return listed_images(path)
    name, *details = PurePath(text).parts
    if name == "imagenette" and len(details) <= 2:
        return imagenette(*details)
    raise DataError(
        f"there is no {text}: give a folder, a text file with a path on each line, or "
        "imagenette/SIZE/SPLIT"
    )


def fingerprint(data: ImageData) -> str:
    """SHA-256 of the names, labels and, for files, sizes of all images."""
    digest = hashlib.sha256()
    for place, (name, label) in enumerate(zip(data.names, data.labels, strict=True)):
        digest.update(f"{name}\0{label}\0{data.size(place)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def decoded(
    data: ImageData, groups: Sequence[Sequence[int]], preprocessing: Preprocessing
) -> Iterator[list[Decoded]]:
    """The images of each group of places, read and resized by threads before they are needed."""
    import grain

    def read(place: int) -> Decoded:
        try:
            image = data[place].image
            return Decoded(place, preprocessing.load_images([image])[0])
        except ImageError as error:
            return Decoded(place, None, reason=str(error))
        except OSError as error:
            return Decoded(place, None, failure=error)

    places = [place for group in groups for place in group]
    ahead = max(_THREADS, 2 * max(map(len, groups), default=1))
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=ahead)
    images = iter(grain.MapDataset.source(places).map(read).to_iter_dataset(options))
    for group in groups:
        yield [next(images) for _ in group]
