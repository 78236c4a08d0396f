"""Photographs with labels: Imagenette through tensorflow-datasets, or a folder of your own.

tensorflow-datasets is imported only where it is used. TensorFlow is never imported.
"""

import functools
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from jax_excite.data.class_names import CLASS_NAMES, class_index
from jax_excite.data.imagenette import IMAGENETTE, SIZES, SPLITS, prepared
from jax_excite.data.images import FORMATS, decoding, load_image, to_rgb
from jax_excite.errors import DataError, ImageError, TargetError

SEED = 314

_BY_WORDNET = {each.wordnet: each.index for each in IMAGENETTE.values()}
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Example(NamedTuple):
    """A photograph.

    Attributes:
        image: uint8 `[H, W, 3]`, RGB.
        label: its ImageNet-1k class index; None if unknown.
        name: the path of its file relative to the folder; or the data set, the split and the index
            in the split.
    """

    image: np.ndarray
    label: int | None
    name: str


class ImageData(Sequence[Example]):
    """Photographs that are read and decoded on access.

    Attributes:
        names: the names of the examples.

    Args:
        names: the names of the examples.
        image: reads the image of the example at an index.
        label: reads the label of the example at an index.
        size: returns the size of its file in bytes, or None if it has no file.
    """

    def __init__(
        self,
        names: Sequence[str],
        image: Callable[[int], np.ndarray],
        label: Callable[[int], int | None],
        size: Callable[[int], int | None] = lambda _: None,
    ):
        self.names = names
        self._image = image
        self._label = label
        self._size = size

    @functools.cached_property
    def labels(self) -> tuple[int | None, ...]:
        """The label of every example, without decoding any image."""
        return tuple(map(self._label, range(len(self))))

    def size(self, place: int) -> int | None:
        """The size of an image's file in bytes; None if the image has no file."""
        return self._size(place)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "ImageData": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "Example | ImageData":
        if isinstance(index, slice):
            places = range(len(self))[index]
            return ImageData(
                self.names[index],
                lambda place: self._image(places[place]),
                lambda place: self._label(places[place]),
                lambda place: self._size(places[place]),
            )
        place = range(len(self))[index]
        return Example(self._image(place), self._label(place), self.names[place])


def imagenette(
    size: str = "160px",
    split: str = "validation",
    *,
    data_dir: str | os.PathLike[str] | None = None,
) -> ImageData:
    """Version 2 of Imagenette: ten ImageNet classes, 9469 photographs to train, 3925 to validate.

    This is the data set `imagenette/160px-v2` (or `320px-v2`, `full-size-v2`) of
    tensorflow-datasets. On first use, its archive is downloaded, with a message on standard error,
    unless the archive is already in `downloads/manual`. After that, no network is needed.

    Args:
        size: pixels of the short side: "160px", "320px" or "full-size" (99 MB, 342 MB, 1.6 GB).
        split: "train" or "validation".
        data_dir: the folder in which tensorflow-datasets keeps its data; its default if None.

    Returns:
        The examples in the order of tensorflow-datasets, labelled with ImageNet-1k indices.

    Raises:
        DataError: there is no such size or split; the archive cannot be downloaded (the message
            names it, and the folder where you can put it by hand) or is not the published one; or
            the data was prepared elsewhere in a format that only TensorFlow reads.
        ModuleNotFoundError: the extra `data` is not installed.
    """
    if size not in SIZES:
        raise DataError(f"there is no size {size!r}: give one of {', '.join(SIZES)}")
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}: give one of {', '.join(SPLITS)}")
    import tensorflow_datasets as tfds

    builder = prepared(f"{size}-v2", data_dir)
    try:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError:
        raise DataError(
            f"{builder.data_path} was prepared as {builder.info.file_format.value}, which only "
            "TensorFlow reads: give another data_dir"
        ) from None
    wordnet = builder.info.features["label"].names
    names = [f"imagenette-{size}-v2-{split}-{place:05}" for place in range(len(records))]
    return ImageData(
        names,
        lambda place: _decoded(io.BytesIO(records[place]["image"]), names[place]),
        lambda place: _BY_WORDNET[wordnet[records[place]["label"]]],
    )


def image_folder(path: str | os.PathLike[str]) -> ImageData:
    """The photographs in a folder and its subfolders, sorted by name, without hidden files.

    The label of a file is that of its nearest parent folder whose name is a label: a WordNet id of
    Imagenette, a class name or an index. If there is no such folder, the label is the class index
    in four digits at the start of the file's name, before an underscore, as in `0497_church.jpg`.
    Names with other numbers, such as `12_05_2024.jpg` or `497.jpg`, contain no label. The label is
    then None.

    Raises:
        DataError: the path is not a folder, or the folder holds no images.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give one that holds images")
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _SUFFIXES and file.is_file() and not _hidden(file, folder)
    )
    if not files:
        raise DataError(f"{folder} holds no images: give files {', '.join(sorted(_SUFFIXES))}")
    names = [file.relative_to(folder).as_posix() for file in files]

    return _of_files(names, files)


def listed_images(path: str | os.PathLike[str]) -> ImageData:
    """The photographs that a text file lists, one path per line, labelled as by `image_folder`.

    Paths are absolute, or relative to the folder of the text file. Empty lines are ignored.

    Raises:
        DataError: the file lists no paths, or is not a text file.
    """
    text = Path(path)
    try:
        names = [line.strip() for line in text.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise DataError(f"{text} is not a text file: give one with one path per line") from None
    if not names:
        raise DataError(f"{text} lists no images: give one path per line")
    return _of_files(names, [text.parent / name for name in names])


def _of_files(names: list[str], files: list[Path]) -> ImageData:
    return ImageData(
        names,
        # The bytes are read before decoding, so that an error of reading is not reported as a
        # damaged image.
        lambda place: _decoded(io.BytesIO(files[place].read_bytes()), str(files[place])),
        lambda place: _label(PurePath(names[place])),
        lambda place: files[place].stat().st_size,
    )


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def select(
    data: Sequence[Example],
    classes: Iterable[str | SupportsIndex],
    *,
    per_class: int = 1,
    seed: int = SEED,
) -> list[Example]:
    """Random examples of the given classes.

    The examples drawn from a class depend on the seed and on that class, not on the other classes.

    Args:
        data: the examples to choose from; of an `ImageData`, only the chosen images are read.
        classes: class indices or names.
        per_class: the number of different examples per class.
        seed: the random seed, >= 0.

    Returns:
        `per_class` examples of the first class, then of the second, and so on.

    Raises:
        TargetError: a class does not exist, or has too few examples.
    """
    if per_class < 1:
        raise TargetError(f"per_class is {per_class}: give a positive number")
    labels = data.labels if isinstance(data, ImageData) else [each.label for each in data]
    indices = [class_index(each) for each in classes]
    places = {index: [i for i, label in enumerate(labels) if label == index] for index in indices}
    too_few = [
        f"{index} ({CLASS_NAMES[index]}) has {len(found)}"
        for index, found in places.items()
        if len(found) < per_class
    ]
    if too_few:
        raise TargetError(f"per_class is {per_class}, but class {', class '.join(too_few)}")
    return [
        data[int(place)]
        for index in indices
        for place in np.random.default_rng([seed, index]).choice(
            places[index], per_class, replace=False
        )
    ]


def batches(
    data: Iterable[Example], batch_size: int, *, size: int = 224, resize: int | None = None
) -> Iterator[tuple[Float[np.ndarray, "N {size} {size} 3"], Int[np.ndarray, " N"]]]:
    """Batches of examples, in the form that classifiers take.

    Args:
        data: the examples; each is read once.
        batch_size: the number of examples per batch; the last batch may have fewer.
        size: height and width in pixels.
        resize: pixels of the short side before the crop, as for `load_image`.

    Returns:
        An iterator over images, float32 `[n, size, size, 3]` in [-1, 1], and their labels, int32
        `[n]`, -1 where unknown.

    Raises:
        ImageError: `batch_size` is not positive, or an image cannot be read.
    """
    if batch_size < 1:
        raise ImageError(f"batch_size is {batch_size}: give a positive number")
    return _batches(iter(data), batch_size, size, resize)


def _batches(
    examples: Iterator[Example], batch_size: int, size: int, resize: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    while some := list(itertools.islice(examples, batch_size)):
        labels = [-1 if each.label is None else each.label for each in some]
        images = [load_image(each.image, size, resize=resize) for each in some]
        yield np.stack(images), np.array(labels, np.int32)


def _decoded(file: Any, name: str) -> np.ndarray:
    with decoding(name):
        image = Image.open(file, formats=FORMATS)
        image.load()
    return np.asarray(to_rgb(image, name))


def _label(name: PurePath) -> int | None:
    folders = (_label_of_folder(parent.name) for parent in name.parents)
    label = next((label for label in folders if label is not None), None)
    if label is None and (leading := re.match(r"([0-9]{4})_", name.name)):
        label = _index(leading[1])
    return label


@functools.cache
def _label_of_folder(name: str) -> int | None:
    return _BY_WORDNET[name] if name in _BY_WORDNET else _index(name)


def _index(name: str) -> int | None:
    try:
        return class_index(name)
    except TargetError:
        return None
