"""The arrays of a store: Zarr, version 3, through tensorstore."""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jax_excite.errors import DataError

MANIFEST = "manifest.json"
ARRAYS = "arrays"  # a Zarr group, next to the manifest, the journal and the locks
DONE, SKIPPED = 1, 2  # values of the array `status`; 0 means not yet computed


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sizes of a store.

    Attributes:
        images: the number of images.
        methods: the number of attribution methods.
        targets: the number of targets per image.
        height: the height of an attribution, in pixels.
        width: the width of an attribution, in pixels.
        logits: the number of logits of the network.
        dtype: the dtype of attributions, `float16` or `float32`.
        chunk: the number of images per chunk; each write is one chunk.
    """

    images: int
    methods: int
    targets: int
    height: int
    width: int
    logits: int
    dtype: str
    chunk: int

    @property
    def chunks(self) -> int:
        """The number of chunks; the last may be smaller."""
        return -(-self.images // self.chunk)

    def rows(self, chunk: int) -> range:
        """The images of a chunk."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.images))

    def bytes_of_attributions(self) -> int:
        """The size of the attributions on disk without compression."""
        cells = self.images * self.methods * self.targets
        return cells * self.height * self.width * 3 * np.dtype(self.dtype).itemsize

    def arrays(self) -> dict[str, dict[str, Any]]:
        """The Zarr metadata of each array, by name.

        An attribution is the product of its values in `attributions` and in `scales`. A scale is a
        power of two, so that float16 has eleven bits for small attributions too.
        """
        n, of = self.images, self.chunk
        plane = (self.height, self.width, 3)
        size = (n, self.methods, self.targets, *plane)
        axes = ("image", "method", "target", "row", "column", "channel")
        return {
            "attributions": _array(size, (of, 1, 1, *plane), axes, self.dtype, "NaN"),
            "scales": _array(size[:3], (of, self.methods, self.targets), axes[:3], fill="NaN"),
            "logits": _array((n, self.logits), (of, self.logits), ("image", "class"), fill="NaN"),
            "predictions": _array((n,), (of,), ("image",), "int32", -1),
            "targets": _array((n, self.targets), (of, self.targets), ("image", "target"), "int32"),
            "status": _array((n,), (of,), ("image",), "uint8", 0),
        }


def _array(
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    axes: tuple[str, ...],
    dtype: str = "float32",
    fill: Any = -1,
) -> dict[str, Any]:
    return {
        "shape": shape,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default"},
        "data_type": dtype,
        "fill_value": fill,
        "dimension_names": axes,
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 1}},
        ],
    }


def create(path: Path, layout: Layout, manifest: dict[str, Any]) -> None:
    """Create an empty store; it appears complete or not at all.

    Raises:
        DataError: the folder cannot be written to.
        FileExistsError: another run has created the store first.
    """
    import tensorstore

    with _what_fails_named(path):
        staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            for name, metadata in layout.arrays().items():
                spec = {**_spec(staged, name), "metadata": metadata}
                tensorstore.open(spec, create=True).result()
            group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
            (staged / ARRAYS / "zarr.json").write_text(json.dumps(group), "utf-8")
            text = json.dumps({**manifest, "layout": dataclasses.asdict(layout)}, indent=1)
            (staged / MANIFEST).write_text(text + "\n", "utf-8")
            staged.chmod(0o755)
            try:
                staged.rename(path)
            except OSError as error:
                if path.exists():
                    raise FileExistsError(path) from error
                raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a store: what it was made with; None if there is nothing at the path.

    Raises:
        DataError: the path exists but is not a store.
    """
    if not path.exists():
        return None
    try:
        return json.loads((path / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        raise DataError(
            f"{path} is not a store, because it has no readable {MANIFEST}: give the path of a "
            "store, or a path that does not exist yet"
        ) from None


def layout_of(manifest: dict[str, Any]) -> Layout:
    """The sizes that a manifest records."""
    return Layout(**manifest["layout"])


def open_arrays(path: Path, layout: Layout, *, write: bool = False) -> dict[str, Any]:
    """The tensorstore arrays of a store by name; nothing is read yet."""
    import tensorstore

    names = layout.arrays()
    opened = {n: tensorstore.open(_spec(path, n), read=True, write=write) for n in names}
    try:
        return {name: future.result() for name, future in opened.items()}
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None


def write_rows(path: Path, arrays: dict[str, Any], rows: range, values: dict[str, Any]) -> None:
    """Write the values of images to their arrays; once this returns, they are on disk.

    Raises:
        DataError: they cannot be written; the message gives the reason.
    """
    with _what_fails_named(path):
        written = [arrays[n][rows.start : rows.stop].write(each) for n, each in values.items()]
        for future in written:
            future.result()


def _spec(store: Path, name: str) -> dict[str, Any]:
    folder = f"{store.absolute() / ARRAYS / name}/"
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": folder}}


@contextlib.contextmanager
def _what_fails_named(path: Path) -> Iterator[None]:
    """Raise `DataError` if the file system fails, where tensorstore raises `ValueError`."""
    try:
        yield
    except FileExistsError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be written: {error}") from error
