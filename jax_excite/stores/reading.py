"""Reading a store back."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_excite.errors import DataError, TargetError
from jax_excite.stores.layout import ARRAYS, layout_of, open_arrays, read_manifest
from jax_excite.stores.ledger import Ledger

if TYPE_CHECKING:
    import xarray


class Store:
    """Attributions of many images; data are read only on request.

    Attributes:
        path: the folder of the store.
        manifest: what the store was made with.
        layout: the sizes of the store.
        names: the names of the images.
        labels: the class index of each image, `[N]`; -1 where unknown.
        methods: the names of the attribution methods.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        manifest = read_manifest(self.path)
        if manifest is None:
            raise DataError(f"there is no store at {self.path}")
        self.manifest = manifest
        self.layout = layout_of(manifest)
        self.names: list[str] = manifest["names"]
        self.labels = np.array([-1 if each is None else each for each in manifest["labels"]])
        self.methods: list[str] = list(manifest["settings"]["methods"])
        self._arrays = open_arrays(self.path, self.layout)

    def __len__(self) -> int:
        return self.layout.images

    def __repr__(self) -> str:
        return f"<Store {self.path}: {len(self)} images, {', '.join(self.methods)}>"

    @property
    def done(self) -> np.ndarray:
        """Which images are computed and written, including skipped ones: bool `[N]`."""
        found = np.zeros(len(self), bool)
        for chunk in Ledger(self.path).done():
            rows = self.layout.rows(chunk)
            found[rows.start : rows.stop] = True
        return found

    @property
    def skipped(self) -> dict[str, str]:
        """The reason for each image that could not be decoded, by image name."""
        records = Ledger(self.path).done().values()
        return {self.names[int(i)]: why for each in records for i, why in each["skipped"].items()}

    def logits(self, images: Any = slice(None)) -> np.ndarray:
        """Logits `[n, K]`; NaN where an image was skipped or is not done."""
        return self._read("logits", self._rows(images))

    def predictions(self, images: Any = slice(None)) -> np.ndarray:
        """The class index of the greatest logit, `[n]`; -1 where there is none."""
        return self._read("predictions", self._rows(images))

    def targets(self, images: Any = slice(None)) -> np.ndarray:
        """The class indices that are explained, `[n, T]`; -1 where there are none."""
        return self._read("targets", self._rows(images))

    def attributions(
        self, images: Any = slice(None), *, method: str | None = None, target: int = 0
    ) -> np.ndarray:
        """Attributions of some images.

        Args:
            images: an index, a name, a list of these, or a slice.
            method: the name of the method; None for the first.
            target: which of the `T` targets of each image, as an index from 0.

        Returns:
            float32 `[n, H, W, 3]`, or `[H, W, 3]` for one image; NaN where there is none.

        Raises:
            DataError: there is no such image or method.
            TargetError: there is no such target.
        """
        method = self.methods[0] if method is None else method
        if method not in self.methods:
            raise DataError(
                f"{self.path} has no method {method!r}: choose one of {', '.join(self.methods)}"
            )
        if not 0 <= target < self.layout.targets:
            raise TargetError(
                f"target is {target}: {self.path} has {self.layout.targets} targets per image, "
                "numbered from 0"
            )
        rows = self._rows(images)
        place = self.methods.index(method), target
        scales = self._read("scales", rows, *place)
        return self._read("attributions", rows, *place) * scales[..., None, None, None]

    def of_class(self, index: int) -> list[tuple[int, int]]:
        """The images with a class among their targets, as pairs of image and target indices."""
        return [(int(i), int(t)) for i, t in np.argwhere(self.targets() == index)]

    def to_xarray(self) -> "xarray.Dataset":
        """The arrays as a lazily read dataset, with names as coordinates; needs xarray and zarr.

        An attribution is `attributions * scales`.
        """
        import xarray

        found = xarray.open_zarr(self.path / ARRAYS, consolidated=False, chunks=None)
        return found.assign_coords(image=self.names, method=self.methods)

    def _rows(self, images: Any) -> Any:
        if isinstance(images, slice):
            return list(range(len(self))[images])
        if np.ndim(images) == 0:
            return self.place(images)
        return [self.place(each) for each in images]

    def place(self, image: Any) -> int:
        """The index of an image given by name or by index; negative indices count from the end.

        Raises:
            DataError: there is no such image.
        """
        if isinstance(image, str) and image in self.names:
            return self.names.index(image)
        if isinstance(image, (int, np.integer)) and -len(self) <= image < len(self):
            return int(image) % len(self)
        raise DataError(
            f"{self.path} has no image {image!r}: give an index below {len(self)}, or a name"
        )

    def _read(self, name: str, rows: Any, *more: int) -> np.ndarray:
        return np.asarray(self._arrays[name][(rows, *more)].read().result())


def open_store(path: str | os.PathLike[str]) -> Store:
    """A store that `jax-excite attribute` has written or is writing.

    Raises:
        DataError: there is no store at the path.
        ModuleNotFoundError: tensorstore is not installed.
    """
    return Store(path)
