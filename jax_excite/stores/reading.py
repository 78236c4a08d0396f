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
    """Attributions of many images; nothing is read before it is asked for.

    Attributes:
        path: its folder.
        manifest: what it was made with.
        layout: its sizes.
        names: of the images.
        labels: class index of each image, `[N]`; -1 where unknown.
        methods: names of the attribution methods.
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
        """Which images are computed and written, skipped ones too: bool `[N]`."""
        found = np.zeros(len(self), bool)
        for chunk in Ledger(self.path).done():
            rows = self.layout.rows(chunk)
            found[rows.start : rows.stop] = True
        return found

    @property
    def skipped(self) -> dict[str, str]:
        """Images that could not be decoded, by name, with the reason."""
        records = Ledger(self.path).done().values()
        return {self.names[int(i)]: why for each in records for i, why in each["skipped"].items()}

    def logits(self, images: Any = slice(None)) -> np.ndarray:
        """`[n, K]`; NaN where an image was skipped or is not done."""
        return self._read("logits", self._rows(images))

    def predictions(self, images: Any = slice(None)) -> np.ndarray:
        """Class index of the greatest logit, `[n]`; -1 where there is none."""
        return self._read("predictions", self._rows(images))

    def targets(self, images: Any = slice(None)) -> np.ndarray:
        """Class indices that are explained, `[n, T]`; -1 where there are none."""
        return self._read("targets", self._rows(images))

    def attributions(
        self, images: Any = slice(None), *, method: str | None = None, target: int = 0
    ) -> np.ndarray:
        """Attributions of some images.

        Args:
            images: an index, a slice, a list of them, or a name or names.
            method: by name; the first if None.
            target: which of the `T` targets of each image, by place.

        Returns:
            float32 `[n, H, W, 3]`, or `[H, W, 3]` for one image; NaN where there is none.

        Raises:
            DataError: there is no such image or method.
            TargetError: there is no such target.
        """
        method = self.methods[0] if method is None else method
        if method not in self.methods:
            raise DataError(f"{self.path} has no {method!r}: it has {', '.join(self.methods)}")
        if not 0 <= target < self.layout.targets:
            raise TargetError(
                f"target is {target}: {self.path} has {self.layout.targets} of each image, from 0"
            )
        rows = self._rows(images)
        place = self.methods.index(method), target
        scales = self._read("scales", rows, *place)
        return self._read("attributions", rows, *place) * scales[..., None, None, None]

    def of_class(self, index: int) -> list[tuple[int, int]]:
        """The images that have a class among their targets: pairs of image and place of target."""
        return [(int(i), int(t)) for i, t in np.argwhere(self.targets() == index)]

    def to_xarray(self) -> "xarray.Dataset":
        """The arrays as a dataset, read lazily, with names as coordinates; needs xarray and zarr.

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
        """The index of an image that is given by index, also from the end, or by name.

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
    """A store that `jax-excite attribute` has written, or is writing.

    Raises:
        DataError: there is none.
        ModuleNotFoundError: tensorstore is not installed.
    """
    return Store(path)
